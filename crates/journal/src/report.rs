//! What a run tells whoever watches it.

use std::path::{Path, PathBuf};

use backdraft_arch::StoredShare;
use backdraft_data::DataReport;
use backdraft_plan::Prediction;
use backdraft_plan::bytes::gib;
use backdraft_plan::memory::{Measured, Memory};
use backdraft_recipe::no_effect::NoEffect;
use serde::{Deserialize, Serialize};

use crate::adaptation::{AdaptationReport, PrecisionSummary};
pub use crate::answers::{AnswersReport, Estimate};
use crate::diagnosis::{Diagnosis, Finding};
use crate::records::Report;

/// What is about to happen.
#[derive(Clone, Debug, Serialize)]
pub struct RunInfo {
    /// The model as the recipe names it.
    pub model: String,
    /// The device that computes.
    pub device: String,
    /// Values in the base model, frozen.
    pub base_params: usize,
    /// Values in the adapters, or in tensors of the base, trained.
    pub trained_params: usize,
    /// Whether they are in tensors of the base.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub full: bool,
    /// How the base is stored, most bytes first.
    pub base: Vec<StoredShare>,
    /// Memory that the run will need.
    pub memory: Memory,
    /// What is kept and recomputed.
    pub activations: ActivationReport,
    /// What became of the training rows.
    #[serde(skip)]
    pub train_data: DataReport,
    /// What became of the evaluation rows.
    #[serde(skip)]
    pub eval_data: Option<DataReport>,
    /// Optimiser steps.
    pub total_steps: usize,
    /// Optimiser steps in an epoch.
    pub steps_per_epoch: usize,
    /// Steps between log lines.
    pub logging_steps: usize,
}

/// One optimiser step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepReport {
    /// Counted from 1.
    pub step: usize,
    /// Epochs done, with a fraction.
    pub epoch: f64,
    /// Mean nll of the step's supervised tokens, nats, or what the objective says.
    pub loss: f64,
    /// The same with label smoothing and z-loss, where there is either: what the step minimised. `loss` stays comparable with
    /// evaluations and other runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub penalized_loss: Option<f64>,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate used.
    pub learning_rate: f64,
    /// Tokens computed.
    pub tokens: usize,
    /// Supervised tokens among them.
    pub supervised_tokens: usize,
    /// Seconds that the step took.
    pub seconds: f64,
    /// Seconds since the run began.
    pub elapsed: f64,
    /// What came of its answers, where the objective compares any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<AnswersReport>,
}

/// Memory ran out: the step is repeated with more recomputation.
#[derive(Clone, Debug, Serialize)]
pub struct ReplanReport {
    /// The optimiser step, counted from 1.
    pub step: usize,
    /// Bytes that a step could use before.
    pub budget_before: u64,
    /// Bytes that it may use from now on.
    pub budget: u64,
    /// What was needed and could be had, or what the device said.
    pub reason: String,
}

impl std::fmt::Display for ReplanReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "step {} is repeated with more recomputation, and from now on a step may use {:.2} GiB: {}",
            self.step,
            gib(self.budget),
            self.reason,
        )
    }
}

/// What the passes keep and recompute, for the longest micro-batch.
#[derive(Clone, Debug, Serialize)]
pub struct ActivationReport {
    /// `smart`, or the name of a fixed policy.
    pub policy: String,
    /// Bytes that a step may use, base included.
    pub budget: u64,
    /// What is predicted.
    pub prediction: Prediction,
}

/// One evaluation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EvalReport {
    /// Steps done.
    pub step: usize,
    /// Epochs done, with a fraction.
    pub epoch: f64,
    /// Mean nll of all supervised tokens, nats, or what the objective says.
    pub eval_loss: f64,
    /// exp(eval_loss), where that is an nll; absent where answers are compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// Supervised tokens.
    pub tokens: usize,
    /// Whether no evaluation before was better.
    pub best: bool,
    /// Seconds that it took.
    pub seconds: f64,
    /// What came of the answers, where the objective compares any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<AnswersReport>,
    /// Further sets of rows held out, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<SetReport>,
}

/// An evaluation of one of the further sets of rows held out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SetReport {
    /// What the recipe calls the set.
    pub name: String,
    /// Mean nll of all supervised tokens, nats, or what the objective says.
    pub eval_loss: f64,
    /// The same before the first step; absent of a set that joined a run on its way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_loss: Option<f64>,
    /// exp(eval_loss), where that is an nll; absent where answers are compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// Supervised tokens.
    pub tokens: usize,
    /// What came of the answers, where the objective compares any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<AnswersReport>,
}

impl StepReport {
    /// Its curves by name, as event files and trackers have them.
    #[must_use]
    pub fn scalars(&self) -> Vec<(String, f64)> {
        let mut scalars = vec![
            ("train/loss", self.loss),
            ("train/grad_norm", self.grad_norm),
            ("train/learning_rate", self.learning_rate),
            ("train/epoch", self.epoch),
            (
                "train/tokens_per_second",
                self.tokens as f64 / self.seconds.max(1e-9),
            ),
        ];
        let penalized = self.penalized_loss;
        scalars.extend(penalized.map(|loss| ("train/penalized_loss", loss)));
        with_answers("train", scalars, self.answers.as_ref())
    }
}

/// Curves, with those of answers where they are compared.
fn with_answers(
    split: &str,
    scalars: Vec<(&str, f64)>,
    answers: Option<&AnswersReport>,
) -> Vec<(String, f64)> {
    let told = answers.into_iter().flat_map(AnswersReport::scalars);
    let told = told.map(|(name, value)| (format!("{split}/{name}"), value));
    let scalars = scalars.into_iter();
    let scalars = scalars.map(|(name, value)| (name.to_owned(), value));
    scalars.chain(told).collect()
}

/// Curves of rows held out, under the name of their split.
fn held_out_scalars(
    split: &str,
    (loss, perplexity): (f64, Option<f64>),
    answers: Option<&AnswersReport>,
) -> Vec<(String, f64)> {
    let names = ["loss", "perplexity"].map(|name| format!("{split}/{name}"));
    let mut scalars = vec![(names[0].as_str(), loss)];
    scalars.extend(perplexity.map(|value| (names[1].as_str(), value)));
    with_answers(split, scalars, answers)
}

impl SetReport {
    /// Its curves by name.
    #[must_use]
    pub fn scalars(&self) -> Vec<(String, f64)> {
        let split = format!("eval_{}", self.name);
        let losses = (self.eval_loss, self.perplexity);
        held_out_scalars(&split, losses, self.answers.as_ref())
    }

    /// How much the loss has risen since before the first step: what was forgotten, or, below zero, learned.
    #[must_use]
    pub fn change(&self) -> Option<f64> {
        Some(self.eval_loss - self.start_loss?)
    }
}

impl EvalReport {
    /// Its curves by name, those of further sets last.
    #[must_use]
    pub fn scalars(&self) -> Vec<(String, f64)> {
        let losses = (self.eval_loss, self.perplexity);
        let mut scalars = held_out_scalars("eval", losses, self.answers.as_ref());
        scalars.extend(self.sets.iter().flat_map(SetReport::scalars));
        scalars
    }

    /// Loss and answers of one of the further sets, or of `data.eval`; none of a set that was not measured.
    #[must_use]
    pub fn of_set(&self, name: Option<&str>) -> Option<(f64, Option<&AnswersReport>)> {
        let Some(name) = name else {
            return Some((self.eval_loss, self.answers.as_ref()));
        };
        let set = self.sets.iter().find(|set| set.name == name)?;
        Some((set.eval_loss, set.answers.as_ref()))
    }
}

/// The whole run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RunSummary {
    /// Steps done.
    pub steps: usize,
    /// Steps planned.
    pub total_steps: usize,
    /// Whether somebody stopped it early.
    pub interrupted: bool,
    /// Whether it ended because evaluation no longer improved.
    pub stopped_early: bool,
    /// The step that this process went on from; 0 if it began at the beginning.
    pub resumed_from: usize,
    /// Seconds, evaluation and saving included.
    pub seconds: f64,
    /// Tokens per second of training time.
    pub tokens_per_second: f64,
    /// Seconds that telling of the steps took (records, events, diagnosis, whoever listens), in the thread
    /// that computes.
    pub reporting_seconds: f64,
    /// Supervised tokens per second of training time.
    pub supervised_tokens_per_second: f64,
    /// Loss of the last step, nats.
    pub final_loss: Option<f64>,
    /// What came of the answers of the last step, where the objective compares any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_answers: Option<AnswersReport>,
    /// Lowest evaluation loss, nats.
    pub best_eval_loss: Option<f64>,
    /// The step it was measured after.
    pub best_step: Option<usize>,
    /// What the curve means.
    pub diagnosis: Option<Diagnosis>,
    /// Memory that the run was to need.
    pub memory: Memory,
    /// Memory that the process held; `None` where the system does not tell.
    pub measured_memory: Option<Measured>,
    /// What the device's allocator held at the end, which is its most: it gives nothing back. `None` on the
    /// processor.
    ///
    /// # Units
    /// Bytes.
    pub device_memory: Option<usize>,
    /// The most memory that the process held, reading the model included; on a GPU as `device_memory`.
    ///
    /// # Units
    /// Bytes.
    pub peak_memory: Option<usize>,
    /// What adaptive precision came to, where there was any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<PrecisionSummary>,
    /// Why the run, or a part of it, trained nothing; empty of most.
    pub no_effect: Vec<NoEffect>,
    /// Where the adapter lies, or the model where no adapter was made.
    pub adapter: PathBuf,
    /// Whether it is a model.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub full: bool,
    /// The step whose weights it holds: the best by evaluation, or the last.
    pub adapter_step: usize,
}

/// Hears of everything that happens in a run, in order.
pub trait Reporter: Send {
    /// The run begins.
    fn start(&mut self, _: &RunInfo) {}
    /// An optimiser step is done.
    fn step(&mut self, _: &StepReport) {}
    /// An evaluation is done.
    fn eval(&mut self, _: &EvalReport) {}
    /// The curve means something else than before.
    fn diagnosis(&mut self, _step: usize, _: &Diagnosis) {}
    /// The answers that are compared show something beside the curve.
    fn finding(&mut self, _step: usize, _: &Finding) {}
    /// The run is resumed from a checkpoint; `history` is what came before.
    fn resumed(&mut self, _step: usize, _checkpoint: &Path, _history: &[Report]) {}
    /// The run ends since evaluation no longer improves.
    fn stopped_early(&mut self, _step: usize, _best_step: usize) {}
    /// A checkpoint was written.
    fn saved(&mut self, _step: usize, _: &Path) {}
    /// Memory ran out, and the step is repeated with more recomputation.
    fn replanned(&mut self, report: &ReplanReport) {
        self.warn(&report.to_string());
    }
    /// Rows are measured, to deal out precision or to start adapters: this takes a while.
    fn adapting(&mut self, _what: &str) {}
    /// That is done.
    fn adapted(&mut self, _: &AdaptationReport) {}
    /// Something is not as it should be, but the run goes on.
    fn warn(&mut self, _: &str) {}
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Reporter for Silent {}
