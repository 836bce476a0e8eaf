//! The names of what a curve can mean.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The kinds of verdicts, without their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The learning rate still rises, or there is too little to judge by.
    WarmingUp,
    /// The loss falls, and nothing speaks against going on.
    Healthy,
    /// The loss has fallen and goes on flat; or the evaluation loss has, which more training does not help.
    Converged,
    /// The evaluation loss has turned up while the training loss has not.
    Overfitting,
    /// The loss jumps up again and again.
    Unstable,
    /// At this pace the loss will hardly have fallen by the end of the run.
    Stuck,
    /// The loss went above where it began and stays there, or is no number any more.
    Diverged,
    /// Training gains something, but evaluation scatters too much to say whether it gains too.
    EvalTooNoisy,
    /// The loss has neither fallen nor risen beyond its noise, which could hide either.
    NoClearChange,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 9] = [
        Self::WarmingUp,
        Self::Healthy,
        Self::Converged,
        Self::Overfitting,
        Self::Unstable,
        Self::Stuck,
        Self::Diverged,
        Self::EvalTooNoisy,
        Self::NoClearChange,
    ];

    /// Name in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WarmingUp => "warming up",
            Self::NoClearChange => "no clear change",
            Self::Healthy => "healthy",
            Self::Converged => "converged",
            Self::Overfitting => "over-fitting",
            Self::Unstable => "unstable",
            Self::Stuck => "stuck",
            Self::Diverged => "diverged",
            Self::EvalTooNoisy => "eval too noisy",
        }
    }

    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why a loss jumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The jumps began soon after the learning rate had reached its peak.
    WarmupTooShort,
    /// The jumps go on, or came later.
    LearningRateTooHigh,
}

/// What a curve means.
///
/// `Display` says it in a few plain words, as for a line of a dashboard.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Verdict {
    /// See [`Class::WarmingUp`].
    WarmingUp,
    /// See [`Class::NoClearChange`].
    NoClearChange,
    /// See [`Class::Healthy`].
    Healthy,
    /// See [`Class::Converged`].
    Converged {
        /// The step from which the loss is about what it is now.
        since: usize,
    },
    /// See [`Class::Overfitting`].
    Overfitting {
        /// The first evaluation after the best one, from which on the loss rises.
        since: usize,
        /// The step of the best evaluation.
        best_step: usize,
        /// Its loss, nats.
        best_loss: f64,
    },
    /// See [`Class::Unstable`].
    Unstable {
        /// The step at which the first jump began.
        since: usize,
        /// Why.
        cause: Cause,
    },
    /// See [`Class::Stuck`].
    Stuck,
    /// See [`Class::Diverged`].
    Diverged {
        /// The step at which the loss left for good, or ceased to be a number.
        since: usize,
    },
    /// See [`Class::EvalTooNoisy`].
    EvalTooNoisy,
}

impl Verdict {
    /// Its kind.
    #[must_use]
    pub const fn class(self) -> Class {
        match self {
            Self::WarmingUp => Class::WarmingUp,
            Self::NoClearChange => Class::NoClearChange,
            Self::Healthy => Class::Healthy,
            Self::Converged { .. } => Class::Converged,
            Self::Overfitting { .. } => Class::Overfitting,
            Self::Unstable { .. } => Class::Unstable,
            Self::Stuck => Class::Stuck,
            Self::Diverged { .. } => Class::Diverged,
            Self::EvalTooNoisy => Class::EvalTooNoisy,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WarmingUp => write!(f, "too early to tell"),
            Self::NoClearChange => write!(f, "no clear change yet"),
            Self::Healthy => write!(f, "healthy: the loss is falling"),
            Self::Converged { since } => {
                write!(f, "converged: hardly any change since step {since}")
            }
            Self::Overfitting {
                since, best_step, ..
            } => write!(
                f,
                "over-fitting since step {since}: eval loss rises, best at step {best_step}"
            ),
            Self::Unstable { since, cause } => {
                let cause = match cause {
                    Cause::WarmupTooShort => "warm-up too short",
                    Cause::LearningRateTooHigh => "learning rate too high",
                };
                write!(
                    f,
                    "unstable since step {since}: the loss jumps up and down ({cause})"
                )
            }
            Self::Stuck => write!(f, "stuck: the loss barely falls (learning rate too low)"),
            Self::Diverged { since } => {
                write!(f, "diverged at step {since}: the loss has not come back")
            }
            Self::EvalTooNoisy => write!(f, "eval loss too noisy to tell"),
        }
    }
}
