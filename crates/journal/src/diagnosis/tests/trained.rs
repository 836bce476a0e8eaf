//! Curves that nobody drew: small models, really trained. What they are follows from how they are trained.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::*;

/// Gaussian numbers by the sum of twelve uniform ones.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
}

/// Linear regression with stochastic gradient descent on batches of rows.
struct Regression {
    features: usize,
    rows: usize,
    batch: usize,
    /// Spread of the features: feature j has the standard deviation (j + 1)^-decay.
    decay: f64,
    label_noise: f64,
    /// Learning rate in units of that beyond which the first feature alone diverges.
    rate: f64,
    steps: usize,
    evals: usize,
}

struct Rows {
    x: Vec<Vec<f64>>,
    y: Vec<f64>,
}

impl Rows {
    fn draw(rng: &mut ChaCha8Rng, task: &Regression, rows: usize, truth: &[f64]) -> Self {
        let x: Vec<Vec<f64>> = (0..rows)
            .map(|_| {
                (0..task.features)
                    .map(|j| normal(rng) * ((j + 1) as f64).powf(-task.decay))
                    .collect()
            })
            .collect();
        let y = x
            .iter()
            .map(|x| dot(x, truth) + task.label_noise * normal(rng))
            .collect();
        Self { x, y }
    }

    fn error(&self, row: usize, weights: &[f64]) -> f64 {
        dot(&self.x[row], weights) - self.y[row]
    }

    fn loss(&self, weights: &[f64]) -> f64 {
        let n = self.y.len();
        (0..n).map(|i| self.error(i, weights).powi(2)).sum::<f64>() / (2 * n) as f64
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Regression {
    fn diagnose(&self, seed: u64) -> Diagnosis {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let truth: Vec<f64> = (0..self.features).map(|_| normal(&mut rng)).collect();
        let data = Rows::draw(&mut rng, self, self.rows, &truth);
        let held_out = Rows::draw(&mut rng, self, 200, &truth);
        // The hessian of the first feature alone is 1.
        let learning_rate = 2.0 * self.rate;
        let mut weights = vec![0.0; self.features];
        let (mut train, mut eval) = (Vec::new(), Vec::new());
        for step in 1..=self.steps {
            let mut gradient = vec![0.0; self.features];
            let mut loss = 0.0;
            for _ in 0..self.batch {
                let row = rng.random_range(0..self.rows);
                let error = data.error(row, &weights);
                loss += error.powi(2) / (2 * self.batch) as f64;
                for (g, x) in gradient.iter_mut().zip(&data.x[row]) {
                    *g += error * x / self.batch as f64;
                }
            }
            for (w, g) in weights.iter_mut().zip(&gradient) {
                *w -= learning_rate * g;
            }
            train.push(TrainPoint {
                step,
                loss,
                grad_norm: Some(dot(&gradient, &gradient).sqrt()),
                learning_rate,
            });
            if self.evals > 0 && step % (self.steps / self.evals) == 0 {
                let loss = held_out.loss(&weights);
                eval.push(EvalPoint { step, loss });
            }
        }
        diagnose(&Series {
            train: &train,
            eval: &eval,
            total_steps: self.steps,
            warmup_steps: 0,
            stopped_early: false,
        })
    }
}

/// Seeds that no threshold was chosen with.
const SEEDS: std::ops::Range<u64> = 2000..2020;

/// Nine of ten runs must be seen for what they are.
fn check(expected: Class, diagnose: impl Fn(u64) -> Diagnosis) {
    let wrong: Vec<Diagnosis> = SEEDS
        .map(diagnose)
        .filter(|d| d.verdict.class() != expected)
        .collect();
    assert!(wrong.len() <= 2, "{expected}: {wrong:#?}");
}

const PLAIN: Regression = Regression {
    features: 20,
    rows: 4000,
    batch: 16,
    decay: 0.0,
    label_noise: 1.0,
    rate: 0.05,
    steps: 600,
    evals: 12,
};

#[test]
fn enough_rows_and_steps_converge() {
    // A time constant is 10 steps.
    check(Class::Converged, |seed| PLAIN.diagnose(seed));
}

#[test]
fn a_run_of_two_time_constants_is_healthy() {
    let task = Regression {
        rate: 2.0 / 600.0 / 2.0,
        ..PLAIN
    };
    check(Class::Healthy, |seed| task.diagnose(seed));
}

#[test]
fn a_thousandth_of_a_time_constant_is_stuck() {
    let task = Regression {
        rate: 1e-3 / 600.0 / 2.0,
        batch: 64,
        ..PLAIN
    };
    check(Class::Stuck, |seed| task.diagnose(seed));
}

#[test]
fn more_weights_than_rows_over_fit() {
    let task = Regression {
        features: 60,
        rows: 60,
        batch: 30,
        label_noise: 6.0,
        rate: 0.05,
        steps: 1000,
        evals: 20,
        ..PLAIN
    };
    check(Class::Overfitting, |seed| task.diagnose(seed));
}

#[test]
fn beyond_the_limit_of_stability_is_divergence() {
    let task = Regression {
        rate: 1.5,
        steps: 60,
        ..PLAIN
    };
    check(Class::Diverged, |seed| task.diagnose(seed));
}

/// The product of two weights, fitted to 1 with a rate above what its minimum can bear: the weights are
/// thrown around it, within bounds, for ever. None where they left the bounds after all.
fn product_of_two(rate: f64, seed: u64) -> Option<Diagnosis> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut a, mut b) = (1.0 + 0.05 * normal(&mut rng), 0.2);
    let mut train = Vec::new();
    for step in 1..=300 {
        let error = a * b - 1.0 + 0.02 * normal(&mut rng);
        train.push(TrainPoint {
            step,
            loss: 0.05 + error * error / 2.0,
            grad_norm: Some(error.abs() * (a * a + b * b).sqrt()),
            learning_rate: rate,
        });
        (a, b) = (a - rate * error * b, b - rate * error * a);
    }
    let diagnosis = diagnose(&Series {
        train: &train,
        eval: &[],
        total_steps: 300,
        warmup_steps: 0,
        stopped_early: false,
    });
    (a.abs() < 10.0 && b.abs() < 10.0).then_some(diagnosis)
}

#[test]
fn a_rate_that_the_minimum_cannot_bear_is_unstable() {
    let bounded: Vec<Diagnosis> = SEEDS
        .filter_map(|seed| product_of_two(1.5 + 0.005 * (seed % 20) as f64, seed))
        .collect();
    let right = bounded
        .iter()
        .filter(|d| d.verdict.class() == Class::Unstable);
    assert!(bounded.len() >= 10);
    // Chaos looks much like the scatter of batches; it is known by its loudness alone.
    assert!(5 * right.count() >= 4 * bounded.len(), "{bounded:#?}");
}
