//! What the answers of a run that compares them show beside its loss: findings, of which there may be several.
//!
//! A finding counts a difference in units of its own standard error, and it must also matter. What each claims is written at
//! [`Finding`], and how runs with known answers are made at [`corpus`].

pub mod confusion;
pub mod corpus;
pub mod monitor;
#[cfg(test)]
mod tests;

use std::fmt;

pub use monitor::AnswerMonitor;
use serde::{Deserialize, Serialize};

use super::robust::noise;
use crate::answers::AnswersReport;

/// Pairs of a step or of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AnswerPoint {
    /// Optimiser steps done.
    pub step: usize,
    /// Pairs.
    pub pairs: usize,
    /// Mean reward of chosen answers.
    pub chosen: f64,
    /// Mean reward of rejected ones.
    pub rejected: f64,
    /// Share of pairs whose chosen answer has the higher reward.
    pub accuracy: f64,
    /// Correlation of the margin with how much longer the chosen answer is.
    pub length_bias: Option<f64>,
}

impl AnswerPoint {
    /// Of a report; `None` where its answers are no pairs, or are scored by a head: the level of scores means nothing, and what is
    /// advised below does not go for them.
    #[must_use]
    pub fn of(step: usize, report: &AnswersReport) -> Option<Self> {
        report.logp_chosen?;
        Some(Self {
            step,
            pairs: report.chosen,
            chosen: report.reward_chosen?.mean,
            rejected: report.reward_rejected?.mean,
            accuracy: report.accuracy?.mean,
            length_bias: report.length_bias,
        })
    }
}

/// Something that answers show.
///
/// `Display` says it in plain words, with its numbers and what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Finding {
    /// The margin rises while the rewards of chosen and rejected answers both fall: chosen answers become less likely too. From
    /// the first to the last third of the steps, each beyond three standard errors, and chosen answers lose at least 15 % of
    /// what the margin gains.
    BothFall {
        /// Change of the chosen answers' reward, below 0.
        chosen: f64,
        /// Of the rejected ones'.
        rejected: f64,
        /// Of the margin, above 0.
        margin: f64,
    },
    /// Nearly all pairs are the right way round within the first 50 steps, and stay so: 97 % over eight steps and 24 pairs, and
    /// 96 % from there on. Something shallow tells the answers apart.
    Separable {
        /// The step from which that holds.
        step: usize,
        /// Share of pairs from there on.
        accuracy: f64,
    },
    /// The margin follows the lengths of the answers: a correlation beyond 0.4 and four standard errors, over the last
    /// evaluation if that has pairs enough, else over the last third of the steps.
    LengthBias {
        /// Correlation of the margin with how much longer the chosen answer is; below 0 where shorter ones win.
        correlation: f64,
        /// The same over the first evaluation or the first third, where that tells.
        before: Option<f64>,
    },
}

/// The kinds of findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// See [`Finding::BothFall`].
    BothFall,
    /// See [`Finding::Separable`].
    Separable,
    /// See [`Finding::LengthBias`].
    LengthBias,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::BothFall, Self::Separable, Self::LengthBias];

    /// Name in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BothFall => "both rewards fall",
            Self::Separable => "separable pairs",
            Self::LengthBias => "length bias",
        }
    }
}

impl Finding {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::BothFall { .. } => Kind::BothFall,
            Self::Separable { .. } => Kind::Separable,
            Self::LengthBias { .. } => Kind::LengthBias,
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::BothFall { .. } => {
                "raise objective.sft_weight or objective.beta, lower the learning rate, or take loss = \"apo_zero\""
            }
            Self::Separable { .. } => {
                "look at the pairs: length, format or a phrase may tell them apart; take harder ones, or fewer steps"
            }
            Self::LengthBias { .. } => {
                "compare means over tokens (loss = \"sigmoid_norm\", or kind = \"simpo\"), or balance the lengths of the answers"
            }
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BothFall {
                chosen,
                rejected,
                margin,
            } => write!(
                f,
                "the margin rose by {margin:.3} while both rewards fell, chosen by {:.3} and rejected by {:.3}",
                -chosen, -rejected
            )?,
            Self::Separable { step, accuracy } => write!(
                f,
                "{:.1} % of pairs are the right way round since step {step}: they are easily told apart",
                100.0 * accuracy
            )?,
            Self::LengthBias {
                correlation,
                before,
            } => {
                let side = if correlation > 0.0 {
                    "longer"
                } else {
                    "shorter"
                };
                write!(
                    f,
                    "{side} answers win: the margin and the difference of lengths correlate by {correlation:.2}"
                )?;
                if let Some(before) = before {
                    write!(f, ", at first by {before:.2}")?;
                }
            }
        }
        write!(f, ". To change: {}", self.advice())
    }
}

/// Standard errors that make a change real.
const REAL: f64 = 3.0;
/// Steps below which no change is looked for.
const MIN_STEPS: usize = 15;
/// What chosen answers lose, as a share of what the margin gains, for it to matter.
const LOSES: f64 = 0.15;
/// Steps within which pairs that are easily told apart are.
const SOON: usize = 50;
/// Steps and pairs over which that is seen.
const WINDOW: usize = 8;
const WINDOW_PAIRS: usize = 24;
/// Share of pairs that are right there, and from there on.
const RIGHT: [f64; 2] = [0.97, 0.96];
/// Least correlation that matters, and how many standard errors make it real.
const BIAS: f64 = 0.4;
const BIAS_ERRORS: f64 = 4.0;
/// Least weight (pairs less three, of each point) of a correlation that is told.
const LEAST_WEIGHT: f64 = 15.0;

/// What the answers of steps and evaluations show, each in the order of steps.
#[must_use]
pub fn findings(steps: &[AnswerPoint], evals: &[AnswerPoint]) -> Vec<Finding> {
    let found = [
        both_fall(steps),
        separable(steps),
        length_bias(steps, evals),
    ];
    found.into_iter().flatten().collect()
}

fn both_fall(steps: &[AnswerPoint]) -> Option<Finding> {
    if steps.len() < MIN_STEPS {
        return None;
    }
    let of = |value: fn(&AnswerPoint) -> f64| change(steps.iter().map(value));
    let chosen = of(|point| point.chosen)?;
    let rejected = of(|point| point.rejected)?;
    let margin = of(|point| point.chosen - point.rejected)?;
    let falls = |(by, error): (f64, f64)| by < -REAL * error;
    let rises = margin.0 > REAL * margin.1;
    let matters = -chosen.0 >= LOSES * margin.0 && margin.0 > 0.0;
    (falls(chosen) && falls(rejected) && rises && matters).then_some(Finding::BothFall {
        chosen: chosen.0,
        rejected: rejected.0,
        margin: margin.0,
    })
}

/// From the mean of the first third to that of the last, and its standard error; `None` of numbers that are none.
fn change(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let values: Vec<f64> = values.collect();
    if !values.iter().all(|value| value.is_finite()) {
        return None;
    }
    let third = values.len() / 3;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let by = mean(&values[values.len() - third..]) - mean(&values[..third]);
    Some((by, noise(&values) * (2.0 / third as f64).sqrt()))
}

fn separable(steps: &[AnswerPoint]) -> Option<Finding> {
    let right = |points: &[AnswerPoint]| {
        let pairs: usize = points.iter().map(|point| point.pairs).sum();
        let right: f64 = points.iter().map(|it| it.accuracy * it.pairs as f64).sum();
        (right / pairs.max(1) as f64, pairs)
    };
    let soon = steps.partition_point(|point| point.step <= SOON);
    (0..soon).find_map(|start| {
        let enough =
            (start + WINDOW..=soon).find(|&end| right(&steps[start..end]).1 >= WINDOW_PAIRS)?;
        let (at_once, later) = (right(&steps[start..enough]).0, right(&steps[start..]).0);
        (at_once >= RIGHT[0] && later >= RIGHT[1]).then_some(Finding::Separable {
            step: steps[start].step,
            accuracy: later,
        })
    })
}

fn length_bias(steps: &[AnswerPoint], evals: &[AnswerPoint]) -> Option<Finding> {
    let third = steps.len() / 3;
    let held_out = (|| Some((evals.first()?, evals.last()?)))();
    let of_evals = held_out.and_then(|(first, last)| {
        let last = correlation(std::slice::from_ref(last))?;
        Some((last, correlation(std::slice::from_ref(first))))
    });
    let of_steps = || {
        let last = correlation(&steps[steps.len() - third..])?;
        Some((last, correlation(&steps[..third])))
    };
    let ((z, error), before) = of_evals.or_else(of_steps)?;
    let found = z.tanh();
    (found.abs() >= BIAS && z.abs() > BIAS_ERRORS * error).then_some(Finding::LengthBias {
        correlation: found,
        before: before.map(|(z, _)| z.tanh()),
    })
}

/// Fisher's z of the correlation over some points, each weighted by what it knows, and its standard error.
fn correlation(points: &[AnswerPoint]) -> Option<(f64, f64)> {
    /// Beyond it a few pairs would outweigh all others.
    const MOST: f64 = 0.99;
    let (mut sum, mut weight) = (0.0, 0.0);
    for point in points {
        if let (Some(r), 4..) = (point.length_bias.filter(|r| r.is_finite()), point.pairs) {
            let known = (point.pairs - 3) as f64;
            sum += known * r.clamp(-MOST, MOST).atanh();
            weight += known;
        }
    }
    (weight >= LEAST_WEIGHT).then(|| (sum / weight, 1.0 / weight.sqrt()))
}
