//! From findings to one verdict. The order of the rules is the order in which troubles matter.

use super::curve::ordered;
use super::evaluation::{self, AgainstBest, Ended};
use super::jumps::{self, Jumps};
use super::look::{EvalDirection, Look, settled};
use super::{Advice, Cause, Diagnosis, Evidence, Series, Verdict};

/// Losses after the warm-up below which nothing is said.
const MIN_POINTS: usize = 5;
/// The same to call a curve flat in the first half of a run.
const EARLY_POINTS: usize = 20;
/// Above the first loss by this share, and for good: diverged.
const ABOVE_START: f64 = 0.15;
/// A curve that has risen so often has come back each time but the last.
const CAME_BACK: usize = 3;
/// Rises as a share of the net fall beyond which a curve jumps rather than falls.
const RISES_TO_FALL: f64 = 0.3;
/// A fall by less of the first loss until the end of the run is none.
const SLOW_PACE: f64 = 0.05;
/// A fall by less until the end is none if half of the run has not shown any.
const HIDDEN_FALL: f64 = 0.12;
/// Blind to a rise that gives back this share of the gain: evaluation is too noisy.
const BLIND: f64 = 0.35;
/// Mann–Kendall statistic of an evaluation loss that clearly falls.
const CLEAR_TREND: f64 = 2.8;

/// Says what the curve means so far.
///
/// Never fails: a curve without points, or with nothing but NaN, has a verdict too. Takes time
/// proportional to the number of points.
#[must_use]
pub fn diagnose(series: &Series<'_>) -> Diagnosis {
    let look = Look::new(series);
    look.not_finite()
        .or_else(|| look.above_start())
        .or_else(|| look.in_warmup())
        .or_else(|| look.jumping())
        .or_else(|| look.overfitting())
        .or_else(|| look.stopped_early())
        .or_else(|| look.rising())
        .or_else(|| look.stuck())
        .or_else(|| look.eval_too_noisy())
        .or_else(|| look.converged())
        .or_else(|| look.healthy())
        .or_else(|| look.no_clear_change())
        .unwrap_or_else(|| look.too_early())
}

/// Each says what it finds, or nothing where another rule must judge.
impl Look<'_> {
    /// A loss or gradient that is no number, and not one that a resume has left behind.
    fn not_finite(&self) -> Option<Diagnosis> {
        let points = ordered(self.series.train, |p| p.step);
        let bad = |p: &super::TrainPoint| {
            !p.loss.is_finite() || p.grad_norm.is_some_and(|g| !g.is_finite())
        };
        let recent = points.len() - points.len().div_ceil(10);
        let train = points[recent..].iter().find(|p| bad(p)).map(|p| p.step);
        let eval = ordered(self.series.eval, |p| p.step)
            .last()
            .filter(|p| !p.loss.is_finite())
            .map(|p| p.step);
        let step = train.or(eval)?;
        let since = points[..recent]
            .iter()
            .rev()
            .take_while(|p| bad(p))
            .last()
            .map_or(step, |p| p.step);
        Some(Diagnosis::new(
            Verdict::Diverged { since },
            vec![Evidence::NotFinite { step: since }],
        ))
    }

    fn above_start(&self) -> Option<Diagnosis> {
        let least = if self.late() {
            MIN_POINTS
        } else {
            2 * MIN_POINTS
        };
        let few = self.train.len() < least;
        let now = self.train.last(1.0 / 12.0);
        let above = now - self.first;
        // The noise itself is known badly from few values.
        let error = self.train.noise * (1.0 + 8.0 / self.train.len() as f64);
        if few || above <= ABOVE_START * self.first.abs() || above <= 4.0 * error {
            return None;
        }
        let came_back = jumps::find(&self.train).is_some_and(|j| j.count >= CAME_BACK);
        if came_back && above < self.first.abs() {
            return None;
        }
        let level = self.first + above / 4.0;
        let below = self.train.values.iter().rposition(|&v| v < level);
        let since = below.map_or(0, |i| (i + 1).min(self.train.len() - 1));
        let mut evidence = vec![Evidence::AboveStart {
            first: self.first,
            now,
        }];
        evidence.extend(self.grad_norm_spikes());
        Some(Diagnosis::new(
            Verdict::Diverged {
                since: self.train.steps[since],
            },
            evidence,
        ))
    }

    /// A rise that is smaller and yet no chance, at the end of a run.
    fn rising(&self) -> Option<Diagnosis> {
        let enough = self.points_after_warmup() >= MIN_POINTS && self.late();
        let now = self.overall_end();
        (enough && self.rises() && now > self.first).then(|| {
            let since = self.train.steps[0];
            Diagnosis::new(
                Verdict::Diverged { since },
                vec![Evidence::AboveStart {
                    first: self.first,
                    now,
                }],
            )
        })
    }

    fn in_warmup(&self) -> Option<Diagnosis> {
        let step = self.train.last_step();
        let Series { warmup_steps, .. } = *self.series;
        let ended = self.series.stopped_early;
        (step <= warmup_steps && warmup_steps > 0 && !ended).then(|| {
            Diagnosis::new(
                Verdict::WarmingUp,
                vec![Evidence::InWarmup { step, warmup_steps }],
            )
        })
    }

    fn jumping(&self) -> Option<Diagnosis> {
        let (since, last, first_evidence) = match jumps::find(&self.train) {
            Some(jumps) if self.jumps_count(&jumps) => {
                let evidence = Evidence::Jumps {
                    count: jumps.count,
                    largest: jumps.largest,
                    first_step: jumps.first_step,
                    last_step: jumps.last_step,
                };
                (jumps.first_step, jumps.last_step, evidence)
            }
            _ => {
                let share = jumps::scatter(&self.train)
                    .filter(|_| self.scatter_counts())
                    .or_else(|| jumps::wander(&self.train))?;
                let since = self.train.steps[0];
                (since, self.train.last_step(), Evidence::Scatter { share })
            }
        };
        let mut evidence = vec![first_evidence, self.train_loss()];
        evidence.extend(self.grad_norm_spikes());
        let cause = self.cause(last);
        Some(Diagnosis::new(Verdict::Unstable { since, cause }, evidence))
    }

    fn jumps_count(&self, jumps: &Jumps) -> bool {
        let net = (self.first - self.now).max(0.0);
        jumps.recent && jumps.count >= 2 && jumps.total > RISES_TO_FALL * net
    }

    /// A few log lines of a long run may scatter; those of a whole run should not.
    fn scatter_counts(&self) -> bool {
        let (mut up, mut down) = (0.0, 0.0);
        for pair in self.train.values.windows(2) {
            let change = pair[1] - pair[0];
            up += change.max(0.0);
            down += (-change).max(0.0);
        }
        self.late() && up > RISES_TO_FALL * down
    }

    fn cause(&self, last_jump: usize) -> Cause {
        let early = self
            .series
            .warmup_steps
            .saturating_mul(3)
            .max(self.series.total_steps / 6);
        if last_jump <= early {
            Cause::WarmupTooShort
        } else {
            Cause::LearningRateTooHigh
        }
    }

    fn overfitting(&self) -> Option<Diagnosis> {
        if self.eval.len() < evaluation::MIN_POINTS {
            return None;
        }
        let against = AgainstBest::new(&self.eval).filter(AgainstBest::rises)?;
        let mut evidence = vec![Evidence::EvalAgainstBest {
            best: against.best,
            best_step: against.best_step,
            now: against.now,
            standard_errors: against.standard_errors,
        }];
        evidence.extend(self.train_fall());
        let verdict = Verdict::Overfitting {
            since: against.since,
            best_step: against.best_step,
            best_loss: against.best,
        };
        Some(Diagnosis::new(verdict, evidence))
    }

    /// A run that evaluation ended, which it does where more training no longer helps.
    fn stopped_early(&self) -> Option<Diagnosis> {
        if !self.series.stopped_early {
            return None;
        }
        let ended = Ended::new(&self.eval)?;
        let mut evidence = vec![Evidence::NoBetterEval {
            best: ended.best,
            best_step: ended.best_step,
            now: ended.now,
            evaluations: ended.evaluations,
        }];
        evidence.extend(self.train_fall());
        let verdict = if ended.now > ended.best {
            Verdict::Overfitting {
                since: ended.since,
                best_step: ended.best_step,
                best_loss: ended.best,
            }
        } else {
            Verdict::Converged {
                since: ended.best_step,
            }
        };
        let mut diagnosis = Diagnosis::new(verdict, evidence);
        diagnosis
            .advice
            .retain(|advice| *advice != Advice::StopEarly);
        Some(diagnosis)
    }

    fn stuck(&self) -> Option<Diagnosis> {
        let enough = self.points_after_warmup() >= MIN_POINTS;
        let error = self.overall.standard_error * self.doubt();
        let fall = self.overall.fall.max(0.0) + error;
        let expected_fall = fall * self.run_ahead() / self.first.abs();
        // A fall before the first third was over is a fall as well.
        let early = self.gain > SLOW_PACE * self.first.abs() + 2.0 * self.train.noise / 3f64.sqrt();
        // When much of the run is over, a fall that noise cannot have hidden is none either.
        let most = (fall + error) * self.run_ahead() / self.first.abs();
        let hidden = self.late() && self.train.len() >= EARLY_POINTS && !self.gains();
        let slow = expected_fall < SLOW_PACE && !early || hidden && most < HIDDEN_FALL;
        (enough && slow && !self.rises() && !self.eval_gains()).then(|| {
            Diagnosis::new(
                Verdict::Stuck,
                vec![Evidence::Pace { expected_fall }, self.train_thirds()],
            )
        })
    }

    fn eval_too_noisy(&self) -> Option<Diagnosis> {
        let blind = 3.0 * evaluation::third_error(&self.eval);
        let noisy = self.eval.len() > evaluation::MIN_POINTS + 1
            && self.gains()
            && self.gain > 0.0
            && blind > BLIND * self.gain
            && evaluation::trend(&self.eval).abs() < CLEAR_TREND;
        noisy.then(|| {
            let mut evidence = vec![Evidence::EvalNoise {
                noise: self.eval.noise,
                gain: self.gain,
                points: self.eval.len(),
            }];
            evidence.extend(self.train_fall());
            Diagnosis::new(Verdict::EvalTooNoisy, evidence)
        })
    }

    fn converged(&self) -> Option<Diagnosis> {
        let least = if self.late() {
            MIN_POINTS
        } else {
            EARLY_POINTS
        };
        let enough = self.points_after_warmup() >= least;
        if !self.gains() || !self.falls() || !enough {
            return None;
        }
        let eval = self.eval_direction();
        let (flat, evidence) = match eval {
            EvalDirection::Falling => return None,
            EvalDirection::Flat(evidence) => (true, vec![evidence, self.train_loss()]),
            EvalDirection::Unknown => (
                self.train_is_flat(),
                vec![self.recent_fall(), self.train_loss()],
            ),
        };
        flat.then(|| {
            let since = match eval {
                EvalDirection::Flat(_) => settled(&self.eval),
                _ => settled(&self.train),
            };
            Diagnosis::new(Verdict::Converged { since }, evidence)
        })
    }

    fn healthy(&self) -> Option<Diagnosis> {
        if self.points_after_warmup() < MIN_POINTS {
            return None;
        }
        let fall = self.train_fall().filter(|_| self.train_gains());
        let mut evidence = vec![fall.or_else(|| self.eval_fall())?];
        evidence.extend(self.still_falls());
        Some(Diagnosis::new(Verdict::Healthy, evidence))
    }

    fn no_clear_change(&self) -> Option<Diagnosis> {
        (self.points_after_warmup() >= MIN_POINTS).then(|| {
            let evidence = Evidence::NoClearChange {
                fall: self.overall.fall,
                noise: 2.0 * self.overall.standard_error * self.doubt(),
                points: self.train.len(),
            };
            Diagnosis::new(Verdict::NoClearChange, vec![evidence])
        })
    }

    fn too_early(&self) -> Diagnosis {
        let points = self.train.len();
        Diagnosis::new(Verdict::WarmingUp, vec![Evidence::TooFewPoints { points }])
    }
}
