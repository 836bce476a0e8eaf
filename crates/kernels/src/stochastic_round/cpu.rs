//! f32 rows on the CPU, in place.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{LARGEST, SMALLEST, key};
use crate::cpu::{f32s, grain, into_vec, tensor};
use crate::uniform::uniform;

/// `Err` hands `x` back when it is not f32 on the CPU.
pub(super) fn to_bf16(x: Tensor<2>, seed: u64) -> Result<Tensor<2>, Tensor<2>> {
    let dims = x.dims();
    if f32s(&x).is_none() || dims[1] == 0 {
        return Err(x);
    }
    let mut values = into_vec(x);
    values
        .par_chunks_mut(dims[1])
        .enumerate()
        .with_min_len(grain(dims[1]))
        .for_each(|(row, values)| {
            let key = key(seed, row);
            for (j, value) in values.iter_mut().enumerate() {
                *value = rounded(*value, uniform(key, j as u64));
            }
        });
    Ok(tensor(values, dims))
}

/// By a draw from [0, 1).
fn rounded(x: f32, draw: f32) -> f32 {
    if x.abs() < SMALLEST {
        return 0.0;
    }
    if x.is_nan() {
        return x;
    }
    let bits = x.to_bits();
    // The share of the way to the neighbour that is larger in magnitude.
    let share = (bits & 0xFFFF) as f32 / 65_536.0;
    let up = u32::from(draw < share) << 16;
    f32::from_bits((bits & !0xFFFF) + up).clamp(-LARGEST, LARGEST)
}
