//! What several rules ask of a series.

use super::curve::{Change, Curve};
use super::robust::median;
use super::{Evidence, Series, evaluation};

/// Standard errors between the first and the last third that make a gain real.
const REAL_GAIN: f64 = 3.0;
/// Standard errors that make a rise real, and its least share of the first loss.
const REAL_RISE: f64 = 4.0;
const LEAST_RISE: f64 = 0.05;
/// Least gain, as a share of the first loss.
const LEAST_GAIN: f64 = 0.03;
/// Share of the gain in the last third below which a curve is flat.
const FLAT: f64 = 0.045;
/// Below this many values their noise is known badly, by so many values.
const SHORT: usize = 24;
const FEW_VALUES: f64 = 6.0;
/// Standard errors that make a fall real.
const REAL_FALL: f64 = 2.5;

/// A series with everything that several rules ask for.
pub(super) struct Look<'a> {
    pub(super) series: &'a Series<'a>,
    pub(super) train: Curve,
    pub(super) eval: Curve,
    pub(super) first: f64,
    pub(super) now: f64,
    /// Fall from the first loss to the last third.
    pub(super) gain: f64,
    /// Fall from the middle to the last third of the effective time.
    pub(super) recent: Change,
    /// Fall from the first to the last third.
    pub(super) overall: Change,
}

impl<'a> Look<'a> {
    pub(super) fn new(series: &'a Series<'a>) -> Self {
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

    /// Whether half of the run is done.
    pub(super) fn late(&self) -> bool {
        self.train.last_step() >= self.series.total_steps.div_ceil(2)
    }

    pub(super) fn points_after_warmup(&self) -> usize {
        let warmup = self.series.warmup_steps;
        self.train.len() - self.train.steps.partition_point(|&s| s <= warmup)
    }

    /// The whole run as a multiple of what was seen of it.
    pub(super) fn run_ahead(&self) -> f64 {
        let warmup = self.series.warmup_steps;
        let seen = self.train.last_step().saturating_sub(warmup).max(1) as f64;
        let whole = self.series.total_steps.saturating_sub(warmup) as f64;
        (whole / seen).max(1.0)
    }

    /// How much further noise may reach than it seems to: it is known badly from few values.
    pub(super) fn doubt(&self) -> f64 {
        match self.train.len() {
            0..SHORT => 1.0 + FEW_VALUES / self.train.len().max(1) as f64,
            _ => 1.0,
        }
    }

    /// Whether a loss has fallen at all, beyond doubt and by an amount that matters.
    pub(super) fn gains(&self) -> bool {
        self.train_gains() || self.eval_gains()
    }

    /// The same of the training loss.
    pub(super) fn train_gains(&self) -> bool {
        let by_thirds = self.overall.in_errors() > REAL_GAIN * self.doubt();
        let by_ends = self.gain > 4.0 * self.doubt() * self.train.noise / 3f64.sqrt();
        self.gain > LEAST_GAIN * self.first.abs() && (by_thirds || by_ends)
    }

    /// Whether the training loss stands below where it began, as it is shown.
    pub(super) fn falls(&self) -> bool {
        self.now < self.first
    }

    /// Whether the training loss has risen beyond doubt, and by an amount that matters.
    pub(super) fn rises(&self) -> bool {
        self.overall.in_errors() < -REAL_RISE * self.doubt()
            && self.overall.fall < -LEAST_RISE * self.first.abs()
    }

    pub(super) fn eval_gains(&self) -> bool {
        let fall = self.eval.first() - self.eval.last(1.0 / 3.0);
        self.eval.len() > evaluation::MIN_POINTS
            && fall > 0.02 * self.eval.first().abs()
            && fall > 5.0 * self.eval.noise
    }

    pub(super) fn train_is_flat(&self) -> bool {
        let Change {
            fall,
            standard_error,
        } = self.recent;
        let falling = fall > FLAT * self.gain && self.recent.in_errors() > REAL_FALL;
        !falling && fall + standard_error < 3.0 * FLAT * self.gain
    }

    pub(super) fn eval_direction(&self) -> EvalDirection {
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

    pub(super) fn train_loss(&self) -> Evidence {
        Evidence::TrainLoss {
            first: self.first,
            now: self.now,
        }
    }

    /// The training loss, where it has fallen.
    pub(super) fn train_fall(&self) -> Option<Evidence> {
        self.falls().then(|| self.train_loss())
    }

    /// The training loss by thirds of the run, which single values do not move.
    pub(super) fn train_thirds(&self) -> Evidence {
        let now = self.overall_end();
        Evidence::TrainLoss {
            first: now + self.overall.fall,
            now,
        }
    }

    /// The level of the training loss over the last third of the run.
    pub(super) fn overall_end(&self) -> f64 {
        self.train.level(3, 2)
    }

    /// The evaluation loss, where it has fallen beyond doubt.
    pub(super) fn eval_fall(&self) -> Option<Evidence> {
        self.eval_gains().then(|| Evidence::EvalLoss {
            first: self.eval.first(),
            now: self.eval.last(1.0 / 3.0),
        })
    }

    /// How much of the gain came lately, where that is no chance.
    pub(super) fn still_falls(&self) -> Option<Evidence> {
        (self.recent.in_errors() > 1.0 && self.recent.fall > 0.0).then(|| self.recent_fall())
    }

    pub(super) fn recent_fall(&self) -> Evidence {
        Evidence::RecentFall {
            share: (self.recent.fall / self.gain).clamp(0.0, 1.0),
            standard_errors: self.recent.in_errors(),
        }
    }

    pub(super) fn grad_norm_spikes(&self) -> Option<Evidence> {
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
pub(super) enum EvalDirection {
    Falling,
    Flat(Evidence),
    /// Too few evaluations, too noisy ones, or none.
    Unknown,
}

/// First step from which the curve is about where it is now, by running medians of five.
pub(super) fn settled(curve: &Curve) -> usize {
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
