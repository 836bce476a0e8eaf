//! f32 rows on the CPU, in place.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{Penalty, RowLosses};
use crate::cpu::{capped, exp, f32s, into_vec, max, simd, sum, tensor};

/// `Err` hands `logits` back when they are not f32 on the CPU.
pub(super) fn row_losses(
    logits: Tensor<2>,
    cap: Option<f32>,
    targets: &[u32],
    weights: Option<&Tensor<1>>,
    penalty: Option<Penalty>,
) -> Result<RowLosses, Tensor<2>> {
    if f32s(&logits).is_none() {
        return Err(logits);
    }
    let [n, v] = logits.dims();
    let weights = weights.map(|weights| match f32s(weights) {
        Some(weights) => weights,
        None => panic!("weights in f32 beside the logits, found {weights:?}"),
    });
    let mut values = into_vec(logits);
    let losses: Vec<(f32, f32)> = values
        .par_chunks_mut(v)
        .zip(targets)
        .enumerate()
        .map(|(i, (row, &target))| {
            let weight = weights.as_ref().map(|weights| weights[i]);
            let target = target as usize;
            simd(
                #[inline(always)]
                || match (penalty, cap) {
                    (None, None) => (row_loss(row, target, weight), 0.0),
                    (None, Some(cap)) => (capped_row_loss(row, cap, target, weight), 0.0),
                    (Some(penalty), cap) => penalized_row(row, cap, target, weight, penalty),
                },
            )
        })
        .collect();
    let (nll, penalized): (Vec<f32>, Vec<f32>) = losses.into_iter().unzip();
    Ok(RowLosses {
        nll: tensor(nll, [n]),
        penalized: penalty.map(|_| tensor(penalized, [n])),
        d_logits: weights.map(|_| tensor(values, [n, v])),
    })
}

#[inline(always)]
fn row_loss(row: &mut [f32], target: usize, weight: Option<f32>) -> f32 {
    let top = max(row);
    let chosen = row[target] - top;
    let total = match weight {
        None => sum(row, |x| exp(x - top)),
        Some(_) => {
            for x in row.iter_mut() {
                *x = exp(*x - top);
            }
            sum(row, |x| x)
        }
    };
    if let Some(weight) = weight {
        let factor = weight / total;
        for x in row.iter_mut() {
            *x *= factor;
        }
        row[target] -= weight;
    }
    total.ln() - chosen
}

/// As [`row_loss`] of capped logits, which are needed once more for the slope of the cap.
#[inline(always)]
fn capped_row_loss(row: &mut [f32], cap: f32, target: usize, weight: Option<f32>) -> f32 {
    for x in row.iter_mut() {
        *x = capped(*x, cap);
    }
    let (top, chosen) = (max(row), row[target]);
    let total = sum(row, |x| exp(x - top));
    if let Some(weight) = weight {
        let factor = weight / total;
        let slope = |x: f32| 1.0 - (x / cap) * (x / cap);
        for x in row.iter_mut() {
            *x = factor * exp(*x - top) * slope(*x);
        }
        row[target] -= weight * slope(chosen);
    }
    total.ln() + top - chosen
}

/// Nll and loss with the penalty.
#[inline(always)]
fn penalized_row(
    row: &mut [f32],
    cap: Option<f32>,
    target: usize,
    weight: Option<f32>,
    penalty: Penalty,
) -> (f32, f32) {
    let Penalty {
        label_smoothing,
        z_loss,
    } = penalty;
    if let Some(cap) = cap {
        for x in row.iter_mut() {
            *x = capped(*x, cap);
        }
    }
    let (top, v) = (max(row), row.len() as f32);
    let chosen = row[target];
    let total = sum(row, |x| exp(x - top));
    let mean = sum(row, |x| x - top) / v;
    let log = total.ln();
    let logsumexp = log + top;
    if let Some(weight) = weight {
        let factor = weight * (1.0 + 2.0 * z_loss * logsumexp) / total;
        let everywhere = weight * label_smoothing / v;
        let slope = |x: f32| match cap {
            None => 1.0,
            Some(cap) => 1.0 - (x / cap) * (x / cap),
        };
        for x in row.iter_mut() {
            *x = (factor * exp(*x - top) - everywhere) * slope(*x);
        }
        row[target] -= weight * (1.0 - label_smoothing) * slope(chosen);
    }
    let nll = log - (chosen - top);
    let smoothed = (1.0 - label_smoothing) * nll + label_smoothing * (log - mean);
    (nll, smoothed + z_loss * logsumexp * logsumexp)
}
