//! The numbers behind a verdict.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One finding. Losses are in nats, shares are fractions of one.
///
/// `Display` says it in plain words with rounded numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Evidence {
    /// The learning rate still rises.
    InWarmup {
        /// Steps done.
        step: usize,
        /// Steps of the warm-up.
        warmup_steps: usize,
    },
    /// Fewer losses than a judgement needs, or too noisy ones.
    TooFewPoints {
        /// Losses there are.
        points: usize,
    },
    /// The training loss from the beginning to now, without noise.
    TrainLoss {
        /// At the beginning.
        first: f64,
        /// Now.
        now: f64,
    },
    /// The evaluation loss from the beginning to now, without noise.
    EvalLoss {
        /// At the beginning.
        first: f64,
        /// Now.
        now: f64,
    },
    /// How far the training loss is from where it was, and how far noise alone may put it.
    NoClearChange {
        /// From the first to the last third, negative where it rose.
        fall: f64,
        /// What noise alone may make of it.
        noise: f64,
        /// Losses there are.
        points: usize,
    },
    /// How much of the whole gain came in the last third of the effective time.
    RecentFall {
        /// Share of the gain so far.
        share: f64,
        /// The fall in units of its standard error.
        standard_errors: f64,
    },
    /// Where the loss will be at this pace.
    Pace {
        /// Fall by the end of the run as a share of the first loss, at most.
        expected_fall: f64,
    },
    /// The evaluation loss against its best.
    EvalAgainstBest {
        /// Best loss.
        best: f64,
        /// Its step.
        best_step: usize,
        /// Loss now, without noise.
        now: f64,
        /// The rise in units of its standard error.
        standard_errors: f64,
    },
    /// The evaluations that ended the run.
    NoBetterEval {
        /// Best loss.
        best: f64,
        /// Its step.
        best_step: usize,
        /// The last loss.
        now: f64,
        /// Evaluations after the best one.
        evaluations: usize,
    },
    /// The evaluation loss has stopped falling.
    EvalFlat {
        /// Where it stands.
        loss: f64,
        /// Its change over the last third as a share of its gain.
        share: f64,
    },
    /// Evaluation scatters.
    EvalNoise {
        /// Standard deviation of one evaluation.
        noise: f64,
        /// What training has gained.
        gain: f64,
        /// Evaluations.
        points: usize,
    },
    /// The training loss rose and fell again.
    Jumps {
        /// Rises that are no noise.
        count: usize,
        /// The largest, in nats.
        largest: f64,
        /// The step of the first.
        first_step: usize,
        /// The step at which the last one peaked.
        last_step: usize,
    },
    /// The training loss scatters from one entry to the next.
    Scatter {
        /// Standard deviation as a share of the first loss.
        share: f64,
    },
    /// Gradient norms far above the usual.
    GradNormSpikes {
        /// How many.
        count: usize,
        /// The largest as a multiple of the median.
        largest: f64,
    },
    /// A number that is none.
    NotFinite {
        /// The step.
        step: usize,
    },
    /// The loss is above where it began.
    AboveStart {
        /// At the beginning.
        first: f64,
        /// Now.
        now: f64,
    },
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::InWarmup { step, warmup_steps } => {
                write!(f, "step {step} of {warmup_steps} warm-up steps")
            }
            Self::TooFewPoints { points } => {
                write!(f, "{} logged", count(points, "step"))
            }
            Self::TrainLoss { first, now } => {
                write!(f, "train loss {} → {}", Loss(first), Loss(now))
            }
            Self::EvalLoss { first, now } => {
                write!(f, "eval loss {} → {}", Loss(first), Loss(now))
            }
            Self::NoClearChange {
                fall,
                noise,
                points,
            } => write!(
                f,
                "train loss {} by {} over {}, and noise alone may do {}",
                if fall < 0.0 { "rose" } else { "fell" },
                Loss(fall.abs()),
                count(points, "step"),
                Loss(noise)
            ),
            Self::RecentFall { share, .. } => write!(
                f,
                "{:.0} % of the drop in the last third of the run",
                100.0 * share
            ),
            Self::Pace { expected_fall } => write!(
                f,
                "at this pace the loss falls by at most {:.1} % until the end",
                100.0 * expected_fall
            ),
            Self::EvalAgainstBest {
                best,
                best_step,
                now,
                standard_errors,
            } => write!(
                f,
                "eval loss {} at step {best_step}, now {} ({standard_errors:.1} standard errors above)",
                Loss(best),
                Loss(now)
            ),
            Self::NoBetterEval {
                best,
                best_step,
                now,
                evaluations,
            } if now < best => write!(
                f,
                "eval loss {} at step {best_step}, and only {} after {} more",
                Loss(best),
                Loss(now),
                count(evaluations, "evaluation")
            ),
            Self::NoBetterEval {
                best,
                best_step,
                now,
                evaluations,
            } => write!(
                f,
                "eval loss {} at step {best_step}, not better in {} since, now {}",
                Loss(best),
                count(evaluations, "evaluation"),
                Loss(now)
            ),
            Self::EvalFlat { loss, share } => write!(
                f,
                "eval loss stays at {} ({:.0} % of its drop in the last third of the run)",
                Loss(loss),
                100.0 * share
            ),
            Self::EvalNoise {
                noise,
                gain,
                points,
            } => write!(
                f,
                "{points} eval losses scatter by ±{}, train loss fell by {}",
                Loss(noise),
                Loss(gain)
            ),
            Self::Jumps {
                count: jumps,
                largest,
                first_step,
                last_step,
            } => write!(
                f,
                "train loss jumped up {} between steps {first_step} and {last_step}, once by {}",
                count(jumps, "time"),
                Loss(largest)
            ),
            Self::Scatter { share } => write!(
                f,
                "train loss scatters by ±{:.0} % of where it began",
                100.0 * share
            ),
            Self::GradNormSpikes {
                count: spikes,
                largest,
            } => write!(
                f,
                "{} of the gradient norm, the largest {largest:.1} times the median",
                count(spikes, "spike")
            ),
            Self::NotFinite { step } => {
                write!(f, "loss or gradient is not a number at step {step}")
            }
            Self::AboveStart { first, now } => write!(
                f,
                "train loss {}, above the {} it began with",
                Loss(now),
                Loss(first)
            ),
        }
    }
}

fn count(number: usize, noun: &str) -> String {
    backdraft_data::count(number as u64, noun)
}

/// A loss with about three digits that mean something.
struct Loss(f64);

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0.abs();
        if size != 0.0 && !(1e-3..1e5).contains(&size) {
            write!(f, "{:.2e}", self.0)
        } else if size < 0.1 {
            write!(f, "{:.4}", self.0)
        } else {
            write!(f, "{:.3}", self.0)
        }
    }
}
