//! [`stochastic_round`](super) in plain tensors: neighbours by rounding to the nearest what lies half a step away.

use burn::tensor::{DType, Tensor};

use super::{LARGEST, SMALLEST, key};
use crate::noise::{self, RowNoise};

/// A little more than half a step of bf16, of a value whose significand is as small as it can be, and little more than a whole one
/// where it is as large.
const STEP: f64 = 1.0 / 256.0 + 1.0 / 16_384.0;

/// Values of bf16, in f32.
pub fn to_bf16(x: Tensor<2>, seed: u64) -> Tensor<2> {
    let dims = x.dims();
    let rows: Vec<RowNoise> = (0..dims[0])
        .map(|row| RowNoise {
            key: key(seed, row),
            scale: 1.0,
        })
        .collect();
    // From [−1, 1) to [0, 1), exactly.
    let draws = noise::add(x.zeros_like(), &rows);
    let draws = draws.add_scalar(1.0).mul_scalar(0.5);
    let largest = f64::from(LARGEST);
    let magnitude = x.clone().abs().clamp(0.0, largest);
    let near = nearest(magnitude.clone()).clamp(0.0, largest);
    let above = near.clone().greater(magnitude.clone());
    let lower = near
        .clone()
        .mask_where(above.clone(), nearest(near.clone().mul_scalar(1.0 - STEP)));
    let upper = nearest(near.clone().mul_scalar(1.0 + STEP)).clamp(0.0, largest);
    let upper = upper.mask_where(above, near);
    let step = upper.clone() - lower.clone();
    let goes_up = (draws * step).lower(magnitude.clone() - lower.clone());
    let rounded = lower.mask_where(goes_up, upper);
    let small = magnitude.lower_elem(f64::from(SMALLEST));
    (rounded * x.sign()).mask_fill(small, 0.0)
}

fn nearest(x: Tensor<2>) -> Tensor<2> {
    x.cast(DType::BF16).cast(DType::F32)
}
