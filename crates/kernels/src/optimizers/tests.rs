//! Ten steps of each rule against the same in f64 loops over single numbers, written from the papers.

use burn::tensor::{Device, TensorData};

use super::adafactor::{self, Factored};
use super::lion::{self, LionParams};
use super::muon::{self, MuonParams};
use super::schedule_free::{self, ScheduleFree};
use super::sgd::{self, SgdParams};
use super::*;
use crate::adamw::AdamWParams;

const LR: f64 = 0.02;
const DECAY: f64 = 0.1;
/// Wide, tall, square, and a row.
const SHAPES: [[usize; 3]; 4] = [[3, 4, 9], [2, 9, 4], [1, 5, 5], [2, 1, 6]];

type Matrix = Vec<Vec<f64>>;

/// Numbers in [-1, 1), some of them small.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let draws = (0..count as u64).map(|i| 2.0 * crate::uniform::uniform(seed, i) - 1.0);
    draws
        .enumerate()
        .map(|(i, x)| if i % 5 == 0 { x * 1e-3 } else { x })
        .collect()
}

fn tensor(values: Vec<f32>, shape: [usize; 3]) -> Matrices {
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

fn matrices(values: &[f32], [_, rows, columns]: [usize; 3]) -> Vec<Matrix> {
    let matrix = |values: &[f32]| {
        let rows = values.chunks(columns);
        rows.map(|row| row.iter().map(|&x| f64::from(x)).collect())
            .collect()
    };
    values.chunks(rows * columns).map(matrix).collect()
}

fn map(a: &Matrix, b: &Matrix, f: impl Fn(f64, f64) -> f64) -> Matrix {
    let rows = a.iter().zip(b);
    rows.map(|(a, b)| a.iter().zip(b).map(|(&a, &b)| f(a, b)).collect())
        .collect()
}

fn product(a: &Matrix, b: &Matrix) -> Matrix {
    let row = |a: &Vec<f64>| {
        (0..b[0].len())
            .map(|j| a.iter().zip(b).map(|(x, b)| x * b[j]).sum())
            .collect()
    };
    a.iter().map(row).collect()
}

fn transposed(a: &Matrix) -> Matrix {
    (0..a[0].len())
        .map(|j| a.iter().map(|row| row[j]).collect())
        .collect()
}

fn scaled(a: &Matrix, by: f64) -> Matrix {
    map(a, a, |x, _| x * by)
}

/// Ten steps of `ours` on all matrices together and of `theirs` on each, from zero states of `zeros`.
fn check<S>(
    zeros: impl Fn([usize; 3]) -> S,
    ours: impl Fn(Matrices, &Matrices, S, u64) -> (Matrices, S),
    theirs: impl Fn(&mut Matrix, &Matrix, &mut [Matrix; 2], u64),
) {
    for shape in SHAPES {
        let count = shape.iter().product();
        let start = numbers(count, 1);
        let mut values = tensor(start.clone(), shape);
        let mut state = zeros(shape);
        let mut expected = matrices(&start, shape);
        let zero = || vec![vec![0.0; shape[2]]; shape[1]];
        let mut kept: Vec<[Matrix; 2]> = expected.iter().map(|_| [zero(), zero()]).collect();
        for t in 1..=10 {
            let grad = numbers(count, 1 + t);
            (values, state) = ours(values, &tensor(grad.clone(), shape), state, t);
            let each = expected
                .iter_mut()
                .zip(matrices(&grad, shape))
                .zip(&mut kept);
            for ((values, grad), kept) in each {
                theirs(values, &grad, kept, t);
            }
            let found: Vec<f32> = values.clone().into_data().try_into_vec().unwrap();
            let expected = expected.iter().flatten().flatten();
            for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
                assert!(
                    (f64::from(found) - expected).abs() < 2e-5,
                    "{shape:?}, step {t}, number {i}: {found} instead of {expected}"
                );
            }
        }
        // Not by standing still.
        assert!(matrices(&start, shape) != expected);
    }
}

fn one(shape: [usize; 3]) -> Matrices {
    Tensor::zeros(shape, &Device::flex())
}

#[test]
fn lion_as_its_paper_has_it() {
    let p = LionParams {
        beta1: 0.9,
        beta2: 0.99,
        weight_decay: DECAY,
    };
    check(
        one,
        |values, grad, m, _| lion::step(values, grad, m, LR, &p),
        |values, grad, [m, _], _| {
            let sign = map(m, grad, |m, g| {
                let c = 0.9 * m + 0.1 * g;
                if c > 0.0 { 1.0 } else { -1.0 }
            });
            *values = map(values, &sign, |w, sign| w - LR * (sign + DECAY * w));
            *m = map(m, grad, |m, g| 0.99 * m + 0.01 * g);
        },
    );
}

#[test]
fn sgd_as_written() {
    let p = SgdParams {
        momentum: 0.9,
        weight_decay: DECAY,
    };
    check(
        one,
        |values, grad, m, _| sgd::step(values, grad, m, LR, &p),
        |values, grad, [m, _], _| {
            *m = map(m, grad, |m, g| 0.9 * m + g);
            *values = map(values, m, |w, m| w - LR * DECAY * w - LR * m);
        },
    );
}

#[test]
fn adafactor_as_its_paper_has_it() {
    let zeros = |[n, rows, columns]: [usize; 3]| Factored {
        rows: one([n, rows, 1]),
        columns: one([n, 1, columns]),
    };
    check(
        zeros,
        |values, grad, kept, t| adafactor::step(values, grad, kept, (LR, t), DECAY),
        |values, grad, [r, c], t| {
            let beta = 1.0 - (t as f64).powf(-0.8);
            let (rows, columns) = (grad.len(), grad[0].len());
            for (r, row) in r.iter_mut().zip(grad) {
                let mean = row.iter().map(|g| g * g + 1e-30).sum::<f64>() / columns as f64;
                r[0] = beta * r[0] + (1.0 - beta) * mean;
            }
            for (j, c) in c[0].iter_mut().enumerate() {
                let mean = grad.iter().map(|row| row[j].powi(2) + 1e-30).sum::<f64>() / rows as f64;
                *c = beta * *c + (1.0 - beta) * mean;
            }
            let mean = r.iter().map(|row| row[0]).sum::<f64>() / rows as f64;
            let mut update = grad.clone();
            for (i, row) in update.iter_mut().enumerate() {
                for (j, g) in row.iter_mut().enumerate() {
                    *g /= (r[i][0] * c[0][j] / mean).sqrt();
                }
            }
            let squares = update.iter().flatten().map(|u| u * u).sum::<f64>();
            let rms = (squares / (rows * columns) as f64).sqrt();
            *values = map(values, &update, |w, u| {
                w - LR * DECAY * w - LR * u / rms.max(1.0)
            });
        },
    );
}

fn newton_schulz(x: &Matrix) -> Matrix {
    if x.len() > x[0].len() {
        return transposed(&newton_schulz(&transposed(x)));
    }
    let norm = x.iter().flatten().map(|x| x * x).sum::<f64>().sqrt();
    let mut x = scaled(x, 1.0 / norm);
    for _ in 0..5 {
        let a = product(&x, &transposed(&x));
        let b = map(&a, &product(&a, &a), |a, aa| -4.7750 * a + 2.0315 * aa);
        x = map(&x, &product(&b, &x), |x, bx| 3.4445 * x + bx);
    }
    x
}

#[test]
fn muon_as_its_authors_have_it() {
    let p = MuonParams {
        momentum: 0.95,
        weight_decay: DECAY,
    };
    check(
        one,
        |values, grad, m, _| muon::step(values, grad, m, LR, &p),
        |values, grad, [m, _], _| {
            *m = map(m, grad, |m, g| 0.95 * m + 0.05 * g);
            let u = newton_schulz(&map(m, grad, |m, g| 0.95 * m + 0.05 * g));
            let scale = 0.2 * (grad.len().max(grad[0].len()) as f64).sqrt();
            *values = map(values, &u, |w, u| w - LR * DECAY * w - LR * scale * u);
        },
    );
}

/// As the paper has it: x, y and z, each kept, with a rate of zero at first; the mean that is told at the end is x.
#[test]
fn schedule_free_as_its_paper_has_it() {
    let p = AdamWParams {
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: DECAY,
    };
    let rates = |t: u64| LR * (t.saturating_sub(1) as f64 / 3.0).min(1.0);
    for shape in SHAPES {
        let count = shape.iter().product();
        let start = numbers(count, 1);
        let mut y = tensor(start.clone(), shape);
        let mut kept = ScheduleFree {
            z: one(shape),
            v: one(shape),
            sum: one([shape[0], 1, 1]),
        };
        let mut theirs: Vec<[f64; 4]> = start
            .iter()
            .map(|&w| [f64::from(w), f64::from(w), f64::from(w), 0.0])
            .collect();
        let mut sum = 0.0;
        for t in 1..=10 {
            let grad = numbers(count, 1 + t);
            let there = tensor(grad.clone(), shape);
            (y, kept) = schedule_free::step(y, &there, kept, (rates(t), t), &p);
            let rate = rates(t) * (1.0 - 0.95f64.powi(t as i32)).sqrt();
            sum += rate * rate;
            let c = if sum > 0.0 { rate * rate / sum } else { 0.0 };
            for ([x, y, z, v], &g) in theirs.iter_mut().zip(&grad) {
                let g = f64::from(g);
                *v = 0.95 * *v + 0.05 * g * g;
                *z -= rate * (g / (v.sqrt() + 1e-8) + DECAY * *y);
                *x = (1.0 - c) * *x + c * *z;
                *y = 0.1 * *z + 0.9 * *x;
            }
            let x = schedule_free::averaged(y.clone(), &kept.z, &p);
            for (ours, i) in [(&x, 0), (&y, 1), (&kept.z, 2), (&kept.v, 3)] {
                let found: Vec<f32> = ours.clone().into_data().try_into_vec().unwrap();
                for (found, expected) in found.iter().zip(&theirs) {
                    let apart = f64::from(*found) - expected[i];
                    assert!(apart.abs() < 2e-5, "{shape:?}, step {t}, {i}: {apart}");
                }
            }
        }
    }
}

/// The rows of what comes out are nearly orthonormal, and a matrix of zeroes stays one.
#[test]
fn five_steps_make_a_matrix_nearly_orthogonal() {
    let x = muon::orthogonal(tensor(numbers(2 * 4 * 9, 5), [2, 4, 9]));
    let values: Vec<f32> = x.into_data().try_into_vec().unwrap();
    for x in matrices(&values, [2, 4, 9]) {
        let gram = product(&x, &transposed(&x));
        for (i, row) in gram.iter().enumerate() {
            for (j, &g) in row.iter().enumerate() {
                let expected = if i == j { 1.0 } else { 0.0 };
                // Squares of singular values between 0.68 and 1.2.
                assert!((g - expected).abs() < 0.55, "{i}, {j}: {g}");
            }
        }
    }
    let zero = muon::orthogonal(one([1, 2, 3])).into_data();
    assert!(zero.iter::<f32>().all(|x| x == 0.0));
}
