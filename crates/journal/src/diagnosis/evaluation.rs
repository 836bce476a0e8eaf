//! What the evaluation losses say.

use super::curve::Curve;
use super::robust::{in_errors, mann_kendall, median_of};

/// Fewer evaluations are no series.
pub(super) const MIN_POINTS: usize = 4;
/// Rises below this share of the best loss do not matter.
const MATERIAL_RISE: f64 = 0.012;
/// Standard errors that make a rise real, after having picked the lowest of many points as the best.
const REAL_RISE: f64 = 3.2;
/// The same for evaluations that rise one after the other, by a Mann–Kendall statistic of [`CLEAR_TREND`].
const REAL_RISE_IN_ORDER: f64 = 2.4;
const CLEAR_TREND: f64 = 2.15;
/// How much more it takes while the noise itself is known from few points.
const FEW_POINTS: f64 = 2.5;
/// Below this many evaluations a median of three neighbours hides too much.
const FEW: usize = 10;
/// At most so many values enter the rank test, which takes every pair.
const RANKED: usize = 64;

/// Evaluation against its best.
#[derive(Clone, Copy, Debug)]
pub(super) struct AgainstBest {
    pub(super) best: f64,
    pub(super) best_step: usize,
    /// First evaluation after the best one.
    pub(super) since: usize,
    pub(super) now: f64,
    pub(super) standard_errors: f64,
    /// Mann–Kendall statistic from the best one on.
    trend: f64,
    after: usize,
    points: usize,
}

impl AgainstBest {
    /// Compares the end of the curve with its lowest point; none if that point is the last.
    pub(super) fn new(curve: &Curve) -> Option<Self> {
        let at = lowest(curve);
        let after = curve.len().checked_sub(at + 1).filter(|&n| n > 0)?;
        let tail = after.div_ceil(2);
        let (best, weight) = level_around(&curve.values, at);
        let now = mean(&curve.values[curve.len() - tail..]);
        let spread = (1.0 / tail as f64 + 1.0 / weight).sqrt();
        Some(Self {
            best: curve.values[at],
            best_step: curve.steps[at],
            since: curve.steps[at + 1],
            now,
            standard_errors: in_errors(now - best, curve.noise * spread),
            trend: mann_kendall(&thinned(&curve.values[at..])),
            after,
            points: curve.len().saturating_sub(2).max(1),
        })
    }

    /// Whether the loss has really turned up.
    pub(super) fn rises(&self) -> bool {
        // Three values in order give a statistic of 1.04, four with one tie one of 1.36.
        let steady = match self.after {
            0 | 1 => false,
            2 => self.trend > 1.0,
            _ => self.trend > 1.3,
        };
        let doubt = if self.trend > CLEAR_TREND {
            REAL_RISE_IN_ORDER
        } else {
            REAL_RISE
        };
        steady
            && self.standard_errors > doubt * (1.0 + FEW_POINTS / self.points as f64)
            && self.now - self.best > MATERIAL_RISE * self.best.abs()
    }
}

/// The end of a run that evaluation ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) best: f64,
    pub(super) best_step: usize,
    /// First evaluation after the best one.
    pub(super) since: usize,
    pub(super) now: f64,
    /// Evaluations after the best one.
    pub(super) evaluations: usize,
}

impl Ended {
    /// By the lowest value itself, as early stopping goes; where that is the last one, since it is lower by too
    /// little, by the one before. None of a single evaluation.
    pub(super) fn new(curve: &Curve) -> Option<Self> {
        let values = &curve.values;
        let before_last = 0..values.len().saturating_sub(1);
        let lowest =
            |range: std::ops::Range<usize>| range.min_by(|&a, &b| values[a].total_cmp(&values[b]));
        let at = match lowest(0..values.len())? {
            last if last + 1 == values.len() => lowest(before_last)?,
            best => best,
        };
        Some(Self {
            best: values[at],
            best_step: curve.steps[at],
            since: *curve.steps.get(at + 1)?,
            now: *values.last()?,
            evaluations: values.len() - at - 1,
        })
    }
}

/// Level at the lowest value, which alone would be too low by chance, and how many values it is worth.
fn level_around(values: &[f64], at: usize) -> (f64, f64) {
    let around = &values[at.saturating_sub(1)..(at + 2).min(values.len())];
    if values.len() >= FEW && around.len() == 3 {
        return (median_of(around), 3.0);
    }
    let mut sorted = around.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.truncate(2);
    (mean(&sorted), sorted.len() as f64)
}

/// Index of the lowest value; with many values, of the lowest median of three.
fn lowest(curve: &Curve) -> usize {
    let values = &curve.values;
    let level = |i: usize| {
        if values.len() < FEW || i == 0 || i + 1 == values.len() {
            values[i]
        } else {
            median_of(&values[i - 1..=i + 1])
        }
    };
    // Where medians are equal the value itself decides.
    (0..values.len())
        .min_by(|&a, &b| {
            level(a)
                .total_cmp(&level(b))
                .then(values[a].total_cmp(&values[b]))
        })
        .unwrap_or(0)
}

/// Standard error of the mean of a third of the evaluations.
pub(super) fn third_error(curve: &Curve) -> f64 {
    let third = (curve.len() as f64 / 3.0).max(1.0);
    curve.noise * (2.0 / third).sqrt()
}

/// Mann–Kendall statistic of the whole series, negative for a fall.
pub(super) fn trend(curve: &Curve) -> f64 {
    mann_kendall(&thinned(&curve.values))
}

/// Means of equally long runs of values, so that few enough are left.
fn thinned(values: &[f64]) -> Vec<f64> {
    let width = values.len().div_ceil(RANKED).max(1);
    values.chunks(width).map(mean).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
