//! f32 rows on the CPU, in place.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::Loss;
use crate::cpu::{exp, f32s, into_vec, max, simd, sum, tensor};

/// `Err` hands `logits` back when they are not f32 on the CPU.
pub(super) fn softmax_nll(
    logits: Tensor<2>,
    targets: &[u32],
    scale: Option<f32>,
) -> Result<Loss, Tensor<2>> {
    if f32s(&logits).is_none() {
        return Err(logits);
    }
    let [n, v] = logits.dims();
    let mut values = into_vec(logits);
    let nll: Vec<f32> = values
        .par_chunks_mut(v)
        .zip(targets)
        .map(|(row, &target)| {
            simd(
                #[inline(always)]
                || row_loss(row, target as usize, scale),
            )
        })
        .collect();
    let d_logits = scale.map(|_| tensor(values, [n, v]));
    Ok((tensor(nll, [n]), d_logits))
}

#[inline(always)]
fn row_loss(row: &mut [f32], target: usize, scale: Option<f32>) -> f32 {
    let top = max(row);
    let chosen = row[target] - top;
    let total = match scale {
        None => sum(row, |x| exp(x - top)),
        Some(_) => {
            for x in row.iter_mut() {
                *x = exp(*x - top);
            }
            sum(row, |x| x)
        }
    };
    if let Some(scale) = scale {
        let factor = scale / total;
        for x in row.iter_mut() {
            *x *= factor;
        }
        row[target] -= scale;
    }
    total.ln() - chosen
}
