//! Why a run, or a part of it, trains nothing although nothing fails.
//!
//! A run of one step under a warm-up has a learning rate of zero; an adapter whose B is zero changes nothing. Such a
//! run ends as others do, exit code 0 included: it did what its recipe says. It is said before the first step and again
//! at the end.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::schedule::LrSchedule;

/// Why a run, or a part of it, trains nothing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum NoEffect {
    /// The learning rate is zero in every step.
    NoLearningRate {
        /// Steps of the run.
        total_steps: usize,
        /// Steps of the warm-up, whose first has rate zero.
        warmup_steps: usize,
    },
    /// The warm-up lasts as long as the run.
    PeakNotReached {
        /// Steps of the run.
        total_steps: usize,
        /// Steps of the warm-up.
        warmup_steps: usize,
        /// The highest rate of a step.
        highest: f64,
        /// The rate that the recipe asks for.
        peak: f64,
    },
    /// The gradient was zero in every step.
    NoGradient {
        /// Steps done.
        steps: usize,
    },
    /// Every B of the adapter is zero, as it was at the start.
    Untrained {
        /// The step whose weights the adapter holds.
        step: usize,
    },
}

impl NoEffect {
    /// What the learning rates of a run keep it from.
    #[must_use]
    pub fn of_schedule(schedule: &LrSchedule) -> Option<Self> {
        let LrSchedule {
            total_steps,
            warmup_steps,
            peak_lr: peak,
            ..
        } = *schedule;
        let highest = (0..total_steps)
            .map(|step| schedule.at(step))
            .fold(0.0, f64::max);
        if highest == 0.0 {
            return Some(Self::NoLearningRate {
                total_steps,
                warmup_steps,
            });
        }
        (warmup_steps >= total_steps).then_some(Self::PeakNotReached {
            total_steps,
            warmup_steps,
            highest,
            peak,
        })
    }
}

impl fmt::Display for NoEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoLearningRate {
                total_steps,
                warmup_steps,
            } => {
                let steps = backdraft_data::count(total_steps as u64, "step");
                write!(
                    f,
                    "nothing is trained: the learning rate is 0 in every step ({steps}"
                )?;
                if warmup_steps > 0 {
                    write!(f, ", and a warm-up begins at 0")?;
                }
                write!(f, "); train for more steps, or set train.warmup_steps = 0")
            }
            Self::PeakNotReached {
                total_steps,
                warmup_steps,
                highest,
                peak,
            } => write!(
                f,
                "the learning rate never reaches its peak: the warm-up of {} outlasts the run of {}, so that the highest \
                 rate is {highest:.1e} of {peak:.1e}; lower train.warmup_steps, or train for more steps",
                backdraft_data::count(warmup_steps as u64, "step"),
                backdraft_data::count(total_steps as u64, "step"),
            ),
            Self::NoGradient { steps } => write!(
                f,
                "nothing was trained: the gradient was zero in every step ({})",
                backdraft_data::count(steps as u64, "step")
            ),
            Self::Untrained { step } => write!(
                f,
                "nothing was trained: every B of the adapter of step {step} is still zero, so that it changes nothing"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::ScheduleKind;

    fn of(warmup_steps: usize, total_steps: usize) -> Option<NoEffect> {
        NoEffect::of_schedule(&LrSchedule {
            kind: ScheduleKind::cosine(),
            warmup_steps,
            total_steps,
            peak_lr: 2e-4,
        })
    }

    #[test]
    fn rates_that_train_nothing_are_found() {
        assert!(matches!(of(1, 1), Some(NoEffect::NoLearningRate { .. })));
        assert!(matches!(of(5, 1), Some(NoEffect::NoLearningRate { .. })));
        let Some(NoEffect::PeakNotReached { highest, .. }) = of(5, 3) else {
            panic!("{:?}", of(5, 3));
        };
        assert!((highest - 2e-4 * 2.0 / 5.0).abs() < 1e-12, "{highest}");
        assert!(matches!(of(2, 2), Some(NoEffect::PeakNotReached { .. })));
        assert_eq!(of(1, 2), None);
        assert_eq!(of(0, 1), None);
    }

    #[test]
    fn words() {
        let said = |found: Option<NoEffect>| found.unwrap().to_string();
        assert_eq!(
            said(of(1, 1)),
            "nothing is trained: the learning rate is 0 in every step (1 step, and a warm-up begins at 0); train for \
             more steps, or set train.warmup_steps = 0"
        );
        assert_eq!(
            said(of(5, 3)),
            "the learning rate never reaches its peak: the warm-up of 5 steps outlasts the run of 3 steps, so that the \
             highest rate is 8.0e-5 of 2.0e-4; lower train.warmup_steps, or train for more steps"
        );
    }
}
