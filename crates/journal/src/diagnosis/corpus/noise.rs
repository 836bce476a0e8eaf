//! How single values scatter around a clean curve.

use std::f64::consts::TAU;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::Specimen;
use super::shape::Clean;
use crate::diagnosis::{Class, EvalPoint, TrainPoint};

/// What single batches do to a value, with variance 1.
struct Scatter {
    heavy_tails: bool,
    /// Likeness of neighbours.
    memory: f64,
    /// Share of batches that are far harder than others.
    hard_batches: f64,
    state: f64,
}

impl Scatter {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        Self {
            heavy_tails: rng.random_bool(0.3),
            memory: if rng.random_bool(0.3) {
                rng.random_range(0.0..0.3)
            } else {
                0.0
            },
            hard_batches: if rng.random_bool(0.2) { 0.01 } else { 0.0 },
            state: 0.0,
        }
    }

    fn next(&mut self, rng: &mut ChaCha8Rng) -> f64 {
        let fresh = if self.heavy_tails {
            student_5(rng)
        } else {
            normal(rng)
        };
        self.state = self.memory * self.state + (1.0 - self.memory * self.memory).sqrt() * fresh;
        let hard = rng.random_bool(self.hard_batches);
        self.state
            + if hard {
                rng.random_range(3.0..8.0)
            } else {
                0.0
            }
    }
}

/// Adds noise, a gradient norm, and what is no number.
pub(super) fn observe(rng: &mut ChaCha8Rng, clean: Clean, truth: Class) -> Specimen {
    let start = clean.train[0];
    let n = clean.train.len();
    let mut scatter = Scatter::draw(rng);
    let norm = rng.random_bool(0.8).then(|| rng.random_range(0.1..5.0));
    let train: Vec<TrainPoint> = (0..n)
        .map(|i| {
            let value = clean.train[i] + clean.train_noise[i] * scatter.next(rng);
            let excess = 1.0 + 5.0 * (clean.excess[i] / start).max(0.0);
            TrainPoint {
                step: clean.plan.steps[i],
                loss: positive(broken(value, n - 1 - i < clean.broken), start),
                grad_norm: norm.map(|g: f64| g * excess * (0.2 * normal(rng)).exp()),
                learning_rate: clean.plan.rates[i],
            }
        })
        .collect();
    let eval = (0..clean.eval.len())
        .map(|j| EvalPoint {
            step: clean.plan.steps[clean.eval_at[j]],
            loss: positive(clean.eval[j] + clean.eval_noise * normal(rng), start),
        })
        .collect();
    let train = if rng.random_bool(0.05) {
        resumed(rng, train)
    } else {
        train
    };
    Specimen {
        truth,
        made: clean.made,
        train,
        eval,
        total_steps: clean.plan.total_steps,
        warmup_steps: clean.plan.warmup_steps,
    }
}

/// Some lines appear twice, as after a resume from a checkpoint before the end of the log.
fn resumed(rng: &mut ChaCha8Rng, train: Vec<TrainPoint>) -> Vec<TrainPoint> {
    let stop = rng.random_range(0..train.len());
    let back = rng.random_range(0..=stop.min(20));
    let mut log = train[..stop].to_vec();
    log.extend_from_slice(&train[stop - back..]);
    log
}

fn broken(value: f64, broken: bool) -> f64 {
    if broken { f64::NAN } else { value }
}

/// A likelihood has no negative loss; NaN stays what it is.
fn positive(value: f64, start: f64) -> f64 {
    if value < 1e-4 * start {
        1e-4 * start
    } else {
        value
    }
}

/// Normal with mean 0 and variance 1.
///
/// # Source
/// Box, Muller: A note on the generation of random normal deviates, 1958.
pub(super) fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (TAU * rng.random::<f64>()).cos()
}

/// Student's t with 5 degrees of freedom, scaled to variance 1.
fn student_5(rng: &mut ChaCha8Rng) -> f64 {
    let squares: f64 = (0..5).map(|_| normal(rng).powi(2)).sum();
    normal(rng) / (squares / 5.0).sqrt() * (3.0f64 / 5.0).sqrt()
}
