//! From findings to one verdict. The order of the rules is the order in which troubles matter.

use super::curve::{Change, Curve, ordered};
use super::evaluation::{self, AgainstBest};
use super::jumps::{self, Jumps};
use super::robust::median;
use super::{Cause, Diagnosis, Evidence, Series, Verdict};

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
/// Standard errors between the first and the last third that make a gain real.
const REAL_GAIN: f64 = 3.0;
/// Least gain, as a share of the first loss.
const LEAST_GAIN: f64 = 0.03;
/// Share of the gain in the last third below which a curve is flat.
const FLAT: f64 = 0.045;
/// Standard errors that make a fall real.
const REAL_FALL: f64 = 2.5;
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
        .or_else(|| look.stuck())
        .or_else(|| look.eval_too_noisy())
        .or_else(|| look.converged())
        .or_else(|| look.healthy())
        .unwrap_or_else(|| look.too_early())
}

/// A series with everything that several rules ask for.
struct Look<'a> {
    series: &'a Series<'a>,
    train: Curve,
    eval: Curve,
    first: f64,
    now: f64,
    /// Fall from the first loss to the last third.
    gain: f64,
    /// Fall from the middle to the last third of the effective time.
    recent: Change,
    /// Fall from the first to the last third.
    overall: Change,
}

impl<'a> Look<'a> {
    fn new(series: &'a Series<'a>) -> Self {
        let train = Curve::train(series);
        let eval = Curve::eval(series.eval, &train);
        let first = train.first();
        // Of a few log lines, each an average itself, the last one is where the curve stands.
        let now = match train.values.last() {
            Some(&last) if train.len() < 12 => last,
            _ => train.last(1.0 / 16.0),
        };
        let recent = train.fall(3, 1, 2);
        let overall = train.fall(3, 0, 2);
        Self {
            series,
            gain: overall.fall.max(first - train.last(1.0 / 3.0)),
            train,
            eval,
            first,
            now,
            recent,
            overall,
        }
    }

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
        let few = self.train.len()
            < if self.late() {
                MIN_POINTS
            } else {
                2 * MIN_POINTS
            };
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

    fn in_warmup(&self) -> Option<Diagnosis> {
        let step = self.train.last_step();
        let Series { warmup_steps, .. } = *self.series;
        (step <= warmup_steps && warmup_steps > 0).then(|| {
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

    /// Whether half of the run is done.
    fn late(&self) -> bool {
        self.train.last_step() >= self.series.total_steps.div_ceil(2)
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
        let evidence = vec![
            Evidence::EvalAgainstBest {
                best: against.best,
                best_step: against.best_step,
                now: against.now,
                standard_errors: against.standard_errors,
            },
            self.train_loss(),
        ];
        let verdict = Verdict::Overfitting {
            since: against.since,
            best_step: against.best_step,
            best_loss: against.best,
        };
        Some(Diagnosis::new(verdict, evidence))
    }

    fn stuck(&self) -> Option<Diagnosis> {
        let enough = self.points_after_warmup() >= MIN_POINTS;
        let error = self.overall.standard_error;
        let fall = self.overall.fall.max(0.0) + error;
        let expected_fall = fall * self.run_ahead() / self.first.abs();
        // A fall before the first third was over is a fall as well.
        let early = self.gain > SLOW_PACE * self.first.abs() + 2.0 * self.train.noise / 3f64.sqrt();
        // When much of the run is over, no sign of a fall is enough.
        let hidden = self.late() && self.train.len() >= EARLY_POINTS && !self.gains();
        let slow = expected_fall < SLOW_PACE && !early || hidden && expected_fall < HIDDEN_FALL;
        (enough && slow && !self.eval_gains()).then(|| {
            Diagnosis::new(
                Verdict::Stuck,
                vec![Evidence::Pace { expected_fall }, self.train_loss()],
            )
        })
    }

    /// The whole run as a multiple of what was seen of it.
    fn run_ahead(&self) -> f64 {
        let warmup = self.series.warmup_steps;
        let seen = self.train.last_step().saturating_sub(warmup).max(1) as f64;
        let whole = self.series.total_steps.saturating_sub(warmup) as f64;
        (whole / seen).max(1.0)
    }

    fn eval_too_noisy(&self) -> Option<Diagnosis> {
        let blind = 3.0 * evaluation::third_error(&self.eval);
        let noisy = self.eval.len() > evaluation::MIN_POINTS + 1
            && self.gains()
            && blind > BLIND * self.gain
            && evaluation::trend(&self.eval).abs() < CLEAR_TREND;
        noisy.then(|| {
            Diagnosis::new(
                Verdict::EvalTooNoisy,
                vec![
                    Evidence::EvalNoise {
                        noise: self.eval.noise,
                        gain: self.gain,
                        points: self.eval.len(),
                    },
                    self.train_loss(),
                ],
            )
        })
    }

    fn converged(&self) -> Option<Diagnosis> {
        let points = self.points_after_warmup();
        let enough = points
            >= if self.late() {
                MIN_POINTS
            } else {
                EARLY_POINTS
            };
        if !self.gains() || !enough {
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
        let enough = self.points_after_warmup() >= MIN_POINTS;
        (enough && self.gains()).then(|| {
            Diagnosis::new(
                Verdict::Healthy,
                vec![self.train_loss(), self.recent_fall()],
            )
        })
    }

    fn too_early(&self) -> Diagnosis {
        let points = self.train.len();
        Diagnosis::new(Verdict::WarmingUp, vec![Evidence::TooFewPoints { points }])
    }

    /// Whether the loss has fallen at all, beyond doubt and by an amount that matters.
    fn gains(&self) -> bool {
        let by_thirds = self.overall.in_errors() > REAL_GAIN;
        let by_ends = self.gain > 4.0 * self.train.noise / 3f64.sqrt();
        self.gain > LEAST_GAIN * self.first.abs() && (by_thirds || by_ends) || self.eval_gains()
    }

    fn eval_gains(&self) -> bool {
        let fall = self.eval.first() - self.eval.last(1.0 / 3.0);
        self.eval.len() > evaluation::MIN_POINTS
            && fall > 0.02 * self.eval.first().abs()
            && fall > 5.0 * self.eval.noise
    }

    fn train_is_flat(&self) -> bool {
        let Change {
            fall,
            standard_error,
        } = self.recent;
        let falling = fall > FLAT * self.gain && self.recent.in_errors() > REAL_FALL;
        !falling && fall + standard_error < 3.0 * FLAT * self.gain
    }

    fn eval_direction(&self) -> EvalDirection {
        if self.eval.len() <= evaluation::MIN_POINTS + 1 {
            return EvalDirection::Unknown;
        }
        let change = self.eval.fall(3, 1, 2);
        let gain = self.eval.first() - self.eval.last(1.0 / 3.0);
        if gain < 0.01 * self.eval.first().abs() {
            return EvalDirection::Unknown;
        }
        let share = change.fall / gain;
        if share > FLAT && change.in_errors() > REAL_FALL {
            return EvalDirection::Falling;
        }
        if change.fall + change.standard_error < 2.0 * FLAT * gain {
            return EvalDirection::Flat(Evidence::EvalFlat {
                loss: self.eval.last(1.0 / 3.0),
                share: share.max(0.0),
            });
        }
        EvalDirection::Unknown
    }

    fn points_after_warmup(&self) -> usize {
        let warmup = self.series.warmup_steps;
        self.train.len() - self.train.steps.partition_point(|&s| s <= warmup)
    }

    fn train_loss(&self) -> Evidence {
        Evidence::TrainLoss {
            first: self.first,
            now: self.now,
        }
    }

    fn recent_fall(&self) -> Evidence {
        Evidence::RecentFall {
            share: (self.recent.fall / self.gain).clamp(0.0, 1.0),
            standard_errors: self.recent.in_errors(),
        }
    }

    fn grad_norm_spikes(&self) -> Option<Evidence> {
        const SPIKE: f64 = 4.0;
        let norms: Vec<f64> = self
            .series
            .train
            .iter()
            .filter_map(|p| p.grad_norm)
            .filter(|g| g.is_finite())
            .collect();
        let usual = median(&mut norms.clone());
        let largest = norms.iter().copied().fold(0.0, f64::max) / usual;
        let count = norms.iter().filter(|&&g| g > SPIKE * usual).count();
        (count > 0 && usual > 0.0).then_some(Evidence::GradNormSpikes { count, largest })
    }
}

/// Where the evaluation loss is going.
#[derive(Clone, Copy)]
enum EvalDirection {
    Falling,
    Flat(Evidence),
    /// Too few evaluations, too noisy ones, or none.
    Unknown,
}

/// First step from which the curve is about where it is now, by running medians of five.
fn settled(curve: &Curve) -> usize {
    const WIDTH: usize = 5;
    let now = curve.last(1.0 / 3.0);
    let level = now + FLAT * (curve.first() - now) + curve.noise / (WIDTH as f64).sqrt();
    let at = curve
        .values
        .windows(WIDTH.min(curve.len().max(1)))
        .position(|w| median(&mut w.to_vec()) <= level)
        .unwrap_or(0);
    curve.steps.get(at).copied().unwrap_or(0)
}
