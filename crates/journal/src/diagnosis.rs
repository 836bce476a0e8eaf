//! What the curve of a run means, in one verdict with numbers and a change to make.
//!
//! [`diagnose`] looks at the losses so far and knows nothing of models, devices or terminals. It may be
//! called after every step; [`Monitor`] does so without looking at everything again each time.
//!
//! Nothing depends on the size of the loss or the length of the run. Three ideas carry that:
//!
//! - The axis is *effective time*, the sum of the learning rates used. A cosine schedule flattens every
//!   curve at its end; along this axis only a model that has stopped learning is flat.
//! - Noise is measured on the curve itself (second differences, median absolute deviation), and a
//!   difference counts only in units of its own standard error.
//! - A difference must also matter, as a share of the first loss or of what training gained so far.
//!
//! What a verdict claims is written at [`Class`], and how curves with a known answer are made at
//! [`corpus`].

pub mod advice;
pub mod answers;
pub mod confusion;
pub mod corpus;
mod curve;
mod evaluation;
pub mod evidence;
mod jumps;
mod look;
pub mod monitor;
mod robust;
mod rules;
pub mod verdict;

#[cfg(test)]
mod tests;

pub use advice::Advice;
pub use answers::{AnswerMonitor, AnswerPoint, Finding, findings};
pub use confusion::Confusion;
pub use evidence::Evidence;
pub use monitor::Monitor;
pub use rules::diagnose;
pub use verdict::{Cause, Class, Verdict};

use serde::{Deserialize, Serialize};

/// The training loss at one optimiser step, or averaged over the steps of a log interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainPoint {
    /// Optimiser step, counted from 1.
    pub step: usize,
    /// Mean nll of the supervised tokens, nats.
    pub loss: f64,
    /// Global gradient norm before clipping, where it was measured.
    pub grad_norm: Option<f64>,
    /// Learning rate of the update. Rates that are all zero or no numbers are taken as constant.
    pub learning_rate: f64,
}

/// The evaluation loss after one optimiser step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvalPoint {
    /// Steps done.
    pub step: usize,
    /// Mean nll of all supervised tokens, nats.
    pub loss: f64,
}

/// A run so far.
///
/// Points stand in the order of their steps. Of points with the same step the last one counts, as after
/// a resume that goes over some steps again; points out of order are sorted.
#[derive(Clone, Copy, Debug)]
pub struct Series<'a> {
    /// Training losses.
    pub train: &'a [TrainPoint],
    /// Evaluation losses; may be empty.
    pub eval: &'a [EvalPoint],
    /// Optimiser steps that the run is planned to have.
    pub total_steps: usize,
    /// Steps over which the learning rate rises.
    pub warmup_steps: usize,
    /// Whether evaluation ended the run, since it no longer improved.
    pub stopped_early: bool,
}

/// What a curve means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// The one thing that the curve shows.
    pub verdict: Verdict,
    /// The numbers that it rests on, the most telling first.
    pub evidence: Vec<Evidence>,
    /// What to change, the most promising first. Empty where there is nothing to change.
    pub advice: Vec<Advice>,
}

impl Diagnosis {
    pub(crate) fn new(verdict: Verdict, evidence: Vec<Evidence>) -> Self {
        Self {
            verdict,
            evidence,
            advice: Advice::for_verdict(verdict),
        }
    }
}

/// Verdict, evidence and what to change, on one line.
impl std::fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.verdict.fmt(f)?;
        let joined = |items: Vec<String>| items.join("; ");
        if !self.evidence.is_empty() {
            let evidence = self.evidence.iter().map(ToString::to_string);
            write!(f, " ({})", joined(evidence.collect()))?;
        }
        if !self.advice.is_empty() {
            let advice = self.advice.iter().map(ToString::to_string);
            write!(f, ". To change: {}", joined(advice.collect()))?;
        }
        Ok(())
    }
}
