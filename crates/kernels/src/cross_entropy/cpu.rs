//! f32 rows on the CPU, in place.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::Loss;
use crate::cpu::{capped, exp, f32s, into_vec, max, simd, sum, tensor};

/// `Err` hands `logits` back when they are not f32 on the CPU.
pub(super) fn softmax_nll(
    logits: Tensor<2>,
    cap: Option<f32>,
    targets: &[u32],
    weights: Option<&Tensor<1>>,
) -> Result<Loss, Tensor<2>> {
    if f32s(&logits).is_none() {
        return Err(logits);
    }
    let [n, v] = logits.dims();
    let weights = weights.map(|weights| match f32s(weights) {
        Some(weights) => weights,
        None => panic!("weights in f32 beside the logits, found {weights:?}"),
    });
    let mut values = into_vec(logits);
    let nll: Vec<f32> = values
        .par_chunks_mut(v)
        .zip(targets)
        .enumerate()
        .map(|(i, (row, &target))| {
            let weight = weights.as_ref().map(|weights| weights[i]);
            simd(
                #[inline(always)]
                || match cap {
                    None => row_loss(row, target as usize, weight),
                    Some(cap) => capped_row_loss(row, cap, target as usize, weight),
                },
            )
        })
        .collect();
    let d_logits = weights.map(|_| tensor(values, [n, v]));
    Ok((tensor(nll, [n]), d_logits))
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
