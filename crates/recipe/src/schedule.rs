//! The learning rate at each optimiser step.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// Shape of the learning-rate curve, under the names that transformers gives it.
///
/// Written in a recipe as `lr_scheduler = "cosine"`, or with options as
/// `lr_scheduler = { kind = "cosine_with_min_lr", min_lr_rate = 0.1 }`.
///
/// # Source
/// `transformers/optimization.py`; the defaults of the options are those of that file.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum ScheduleKind {
    /// The peak throughout; warm-up does not apply, as in transformers.
    Constant {},
    /// Warm-up, then the peak.
    ConstantWithWarmup {},
    /// Warm-up, then a straight line to zero.
    Linear {},
    /// Warm-up, then `num_cycles` cosine waves (one half by default: a fall from the peak to zero).
    Cosine {
        /// Cosine waves between the end of the warm-up and the last step.
        #[serde(default = "half")]
        num_cycles: f64,
    },
    /// Warm-up, then `num_cycles` cosine falls to zero, each starting again at the peak.
    CosineWithRestarts {
        /// Falls between the end of the warm-up and the last step.
        #[serde(default = "one")]
        num_cycles: f64,
    },
    /// As [`Cosine`](Self::Cosine), but falling to a share of the peak instead of zero.
    CosineWithMinLr {
        /// Lowest learning rate as a share of the peak, between 0 and 1.
        min_lr_rate: f64,
        /// Cosine waves between the end of the warm-up and the last step.
        #[serde(default = "half")]
        num_cycles: f64,
    },
    /// Warm-up, then a power of the share of steps that remain.
    Polynomial {
        /// Exponent; 1 is a straight line.
        #[serde(default = "one")]
        power: f64,
        /// Learning rate at the end, below the peak.
        #[serde(default = "polynomial_lr_end")]
        lr_end: f64,
    },
    /// Warm-up, then one over the square root of the step.
    InverseSqrt {
        /// Steps after which the rate has fallen to `1/√2`; by default the warm-up, or 10,000 without one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timescale: Option<usize>,
    },
    /// From `lr_start` to the peak, each step's rate the same multiple of the one before: a learning-rate range test.
    /// Warm-up does not apply. Not one of transformers'.
    RangeTest {
        /// Learning rate of the first step, below the peak.
        lr_start: f64,
    },
}

fn half() -> f64 {
    0.5
}

fn one() -> f64 {
    1.0
}

fn polynomial_lr_end() -> f64 {
    1e-7
}

impl ScheduleKind {
    /// Names of all kinds, as a recipe writes them.
    pub const NAMES: [&str; 9] = [
        "constant",
        "constant_with_warmup",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "polynomial",
        "inverse_sqrt",
        "range_test",
    ];

    /// A fall along half a cosine wave from the peak to zero.
    #[must_use]
    pub const fn cosine() -> Self {
        Self::Cosine { num_cycles: 0.5 }
    }

    /// Whether the curve begins with a warm-up.
    #[must_use]
    pub const fn warms_up(self) -> bool {
        !matches!(self, Self::Constant {} | Self::RangeTest { .. })
    }

    /// Name of the kind, as a recipe writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Constant {} => "constant",
            Self::ConstantWithWarmup {} => "constant_with_warmup",
            Self::Linear {} => "linear",
            Self::Cosine { .. } => "cosine",
            Self::CosineWithRestarts { .. } => "cosine_with_restarts",
            Self::CosineWithMinLr { .. } => "cosine_with_min_lr",
            Self::Polynomial { .. } => "polynomial",
            Self::InverseSqrt { .. } => "inverse_sqrt",
            Self::RangeTest { .. } => "range_test",
        }
    }
}

/// Learning rate as a function of the optimiser step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LrSchedule {
    /// Shape of the curve.
    pub kind: ScheduleKind,
    /// Steps over which the rate rises from zero to the peak.
    pub warmup_steps: usize,
    /// Optimiser steps of the whole run.
    pub total_steps: usize,
    /// Highest learning rate.
    pub peak_lr: f64,
}

impl LrSchedule {
    /// The learning rate that the optimiser uses at `step`, counted from 0.
    ///
    /// With a warm-up the rate of step 0 is zero. From `total_steps` on the rate stays where the
    /// curve ends: transformers' cosine would rise again there.
    #[must_use]
    pub fn at(&self, step: usize) -> f64 {
        self.peak_lr * self.factor(step.min(self.total_steps))
    }

    fn factor(&self, step: usize) -> f64 {
        if self.kind.warms_up() && step < self.warmup_steps {
            return step as f64 / self.warmup_steps as f64;
        }
        let progress = self.progress(step);
        match self.kind {
            ScheduleKind::Constant {} | ScheduleKind::ConstantWithWarmup {} => 1.0,
            ScheduleKind::Linear {} => self.remaining(step),
            ScheduleKind::Cosine { num_cycles } => wave(num_cycles, progress).max(0.0),
            ScheduleKind::CosineWithRestarts { .. } if progress >= 1.0 => 0.0,
            ScheduleKind::CosineWithRestarts { num_cycles } => {
                (0.5 * (1.0 + (PI * (num_cycles * progress).fract()).cos())).max(0.0)
            }
            ScheduleKind::CosineWithMinLr {
                min_lr_rate,
                num_cycles,
            } => (wave(num_cycles, progress) * (1.0 - min_lr_rate) + min_lr_rate).max(0.0),
            ScheduleKind::Polynomial { power, lr_end } => {
                let range = self.peak_lr - lr_end;
                (range * (1.0 - progress).max(0.0).powf(power) + lr_end) / self.peak_lr
            }
            ScheduleKind::InverseSqrt { timescale } => self.inverse_sqrt(step, timescale),
            ScheduleKind::RangeTest { lr_start } => {
                // The last step has the peak.
                let last = self.total_steps.saturating_sub(1).max(1) as f64;
                (lr_start / self.peak_lr).powf((1.0 - step as f64 / last).max(0.0))
            }
        }
    }

    /// Steps of the part after the warm-up; at least one, so that it can divide.
    fn decay_steps(&self) -> f64 {
        self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64
    }

    fn progress(&self, step: usize) -> f64 {
        step.saturating_sub(self.warmup_steps) as f64 / self.decay_steps()
    }

    fn remaining(&self, step: usize) -> f64 {
        self.total_steps.saturating_sub(step) as f64 / self.decay_steps()
    }

    fn inverse_sqrt(&self, step: usize, timescale: Option<usize>) -> f64 {
        let default = if self.warmup_steps == 0 {
            10_000
        } else {
            self.warmup_steps
        };
        let timescale = timescale.unwrap_or(default).max(1) as f64;
        let since_warmup = step.saturating_sub(self.warmup_steps) as f64;
        1.0 / ((since_warmup + timescale) / timescale).sqrt()
    }
}

fn wave(num_cycles: f64, progress: f64) -> f64 {
    0.5 * (1.0 + (PI * num_cycles * 2.0 * progress).cos())
}

/// Warm-up steps for a ratio of the run, rounded up as transformers does.
#[must_use]
pub fn warmup_steps_from_ratio(ratio: f64, total_steps: usize) -> usize {
    (ratio * total_steps as f64).ceil() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Case {
        name: String,
        options: serde_json::Map<String, serde_json::Value>,
        warmup_steps: usize,
        total_steps: usize,
        peak_lr: f64,
        lr_used_at_step: Vec<f64>,
    }

    impl Case {
        /// transformers takes `min_lr` for `min_lr_rate` times the peak; a recipe resolves it likewise.
        fn kind(&self) -> serde_json::Result<ScheduleKind> {
            let mut options = self.options.clone();
            if let Some(min_lr) = options.remove("min_lr").and_then(|v| v.as_f64()) {
                options.insert("min_lr_rate".into(), (min_lr / self.peak_lr).into());
            }
            options.insert("kind".into(), self.name.clone().into());
            serde_json::from_value(options.into())
        }
    }

    #[test]
    fn golden_schedules() {
        let root = std::env::var("BACKDRAFT_GOLDEN")
            .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden").into());
        let path = format!("{root}/misc/schedules.json");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let cases: Vec<Case> = serde_json::from_str(&text).unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let name = case.name.as_str();
            let kind = match case.kind() {
                Ok(kind) => kind,
                Err(error) => {
                    let known = ScheduleKind::NAMES.contains(&name);
                    assert!(
                        !known && error.to_string().contains(name),
                        "{name}: {error}"
                    );
                    continue;
                }
            };
            let schedule = LrSchedule {
                kind,
                warmup_steps: case.warmup_steps,
                total_steps: case.total_steps,
                peak_lr: case.peak_lr,
            };
            for (step, &expected) in case.lr_used_at_step.iter().enumerate() {
                let actual = schedule.at(step);
                assert!(
                    (actual - expected).abs() <= 1e-12 * expected.abs(),
                    "{kind:?} at step {step}: expected {expected:e}, got {actual:e}"
                );
            }
        }
    }

    fn schedule(kind: ScheduleKind, warmup_steps: usize, total_steps: usize) -> LrSchedule {
        LrSchedule {
            kind,
            warmup_steps,
            total_steps,
            peak_lr: 1.0,
        }
    }

    #[test]
    fn stays_where_it_ends() {
        for kind in [ScheduleKind::cosine(), ScheduleKind::Linear {}] {
            let schedule = schedule(kind, 2, 10);
            assert!(schedule.at(10) < 1e-12);
            assert_eq!(schedule.at(10), schedule.at(15));
        }
        let polynomial = ScheduleKind::Polynomial {
            power: 2.0,
            lr_end: 0.25,
        };
        assert_eq!(schedule(polynomial, 2, 10).at(99), 0.25);
    }

    #[test]
    fn restarts_begin_again_at_the_peak() {
        let schedule = schedule(ScheduleKind::CosineWithRestarts { num_cycles: 2.0 }, 0, 8);
        assert_eq!(schedule.at(0), 1.0);
        assert!(schedule.at(3) < 0.2);
        assert_eq!(schedule.at(4), 1.0);
        assert_eq!(schedule.at(8), 0.0);
    }

    #[test]
    fn inverse_sqrt_starts_at_the_peak_and_halves_after_three_timescales() {
        let schedule = schedule(ScheduleKind::InverseSqrt { timescale: Some(4) }, 2, 100);
        assert_eq!(schedule.at(1), 0.5);
        assert_eq!(schedule.at(2), 1.0);
        assert_eq!(schedule.at(14), 0.5);
    }

    #[test]
    fn a_range_test_rises_by_the_same_factor_from_its_start_to_the_peak() {
        let schedule = schedule(ScheduleKind::RangeTest { lr_start: 1e-4 }, 3, 5);
        let rates: Vec<f64> = (0..6).map(|step| schedule.at(step)).collect();
        for (rate, expected) in rates.iter().zip([1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1.0]) {
            assert!((rate / expected - 1.0).abs() < 1e-12, "{rates:?}");
        }
    }

    #[test]
    fn warm_up_longer_than_the_run_and_empty_runs_divide_by_nothing() {
        for kind in [ScheduleKind::cosine(), ScheduleKind::Linear {}] {
            assert_eq!(schedule(kind, 10, 4).at(2), 0.2);
            assert!(schedule(kind, 0, 0).at(0).is_finite());
            assert!(schedule(kind, 3, 3).at(3).is_finite());
        }
    }

    #[test]
    fn ratio_rounds_up() {
        assert_eq!(warmup_steps_from_ratio(0.05, 330), 17);
        assert_eq!(warmup_steps_from_ratio(0.0, 330), 0);
        assert_eq!(warmup_steps_from_ratio(1.0, 3), 3);
    }

    #[test]
    fn names_are_those_serde_reads() {
        for name in ScheduleKind::NAMES {
            let text = format!(r#"{{"kind": "{name}", "min_lr_rate": 0.1}}"#);
            let rising = format!(r#"{{"kind": "{name}", "lr_start": 1e-7}}"#);
            let plain = format!(r#"{{"kind": "{name}"}}"#);
            let kind: ScheduleKind = serde_json::from_str(&text)
                .or_else(|_| serde_json::from_str(&rising))
                .or_else(|_| serde_json::from_str(&plain))
                .unwrap();
            assert_eq!(kind.name(), name);
        }
    }
}
