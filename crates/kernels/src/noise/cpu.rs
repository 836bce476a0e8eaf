//! f32 rows on the CPU, in place.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{RowNoise, draw};
use crate::cpu::{f32s, grain, into_vec, tensor};

/// `Err` hands `x` back when it is not f32 on the CPU.
pub(super) fn add(x: Tensor<2>, rows: &[RowNoise]) -> Result<Tensor<2>, Tensor<2>> {
    let dims = x.dims();
    if f32s(&x).is_none() || dims[1] == 0 {
        return Err(x);
    }
    let mut values = into_vec(x);
    values
        .par_chunks_mut(dims[1])
        .zip(rows)
        .with_min_len(grain(dims[1]))
        .for_each(|(values, row)| {
            for (j, value) in values.iter_mut().enumerate() {
                *value += row.scale * draw(row.key, j);
            }
        });
    Ok(tensor(values, dims))
}
