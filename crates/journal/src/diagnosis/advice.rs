//! What to change after a verdict.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::verdict::{Cause, Verdict};

/// A change to make in the recipe, or something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Advice {
    /// End the run.
    StopEarly,
    /// Take the checkpoint of this step.
    KeepCheckpoint {
        /// The best step.
        step: usize,
    },
    /// Go back to a checkpoint before this step.
    GoBackBefore {
        /// The step at which the loss left.
        step: usize,
    },
    /// Train for fewer epochs.
    FewerEpochs,
    /// Raise the rank, should the result be too weak.
    RaiseRank,
    /// Lower the learning rate.
    LowerLearningRate,
    /// Raise the learning rate.
    RaiseLearningRate,
    /// Warm up over more steps.
    LongerWarmup,
    /// Raise micro-batch × accumulation.
    LargerBatch,
    /// Evaluate on more rows.
    MoreEvalRows,
}

impl Advice {
    /// What the table of starting points says for a verdict, the most promising first.
    #[must_use]
    pub fn for_verdict(verdict: Verdict) -> Vec<Self> {
        match verdict {
            Verdict::WarmingUp | Verdict::NoClearChange | Verdict::Healthy => Vec::new(),
            Verdict::Converged { .. } => vec![Self::StopEarly, Self::FewerEpochs, Self::RaiseRank],
            Verdict::Overfitting { best_step, .. } => vec![
                Self::StopEarly,
                Self::KeepCheckpoint { step: best_step },
                Self::FewerEpochs,
            ],
            Verdict::Unstable { cause, .. } => match cause {
                Cause::WarmupTooShort => vec![
                    Self::LongerWarmup,
                    Self::LowerLearningRate,
                    Self::LargerBatch,
                ],
                Cause::LearningRateTooHigh => vec![
                    Self::LowerLearningRate,
                    Self::LargerBatch,
                    Self::LongerWarmup,
                ],
            },
            Verdict::Stuck => vec![Self::RaiseLearningRate],
            Verdict::Diverged { since } => vec![
                Self::GoBackBefore { step: since },
                Self::LowerLearningRate,
                Self::LongerWarmup,
            ],
            Verdict::EvalTooNoisy => vec![Self::MoreEvalRows],
        }
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StopEarly => write!(f, "stop early"),
            Self::KeepCheckpoint { step } => write!(f, "keep the checkpoint of step {step}"),
            Self::GoBackBefore { step } => {
                write!(f, "go back to a checkpoint before step {step}")
            }
            Self::FewerEpochs => write!(f, "train for fewer epochs"),
            Self::RaiseRank => write!(f, "raise the rank if the result is too weak"),
            Self::LowerLearningRate => write!(f, "lower the learning rate; try halving it"),
            Self::RaiseLearningRate => write!(f, "raise the learning rate; try doubling it"),
            Self::LongerWarmup => write!(f, "warm up for longer, at least 5 % of the run"),
            Self::LargerBatch => write!(
                f,
                "use a larger batch: micro-batch × accumulation of 16 or more"
            ),
            Self::MoreEvalRows => write!(f, "evaluate on more rows"),
        }
    }
}
