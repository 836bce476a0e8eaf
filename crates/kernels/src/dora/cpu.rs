//! f32 on the processor: one pass each, without a tensor of the products.

use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::cpu::{f32s, grain, into_vec, simd, sum_columns, tensor};

/// `Err` hands `y` back when something is not f32 on the CPU.
pub(super) fn scale_columns(y: Tensor<2>, gain: &Tensor<1>) -> Result<Tensor<2>, Tensor<2>> {
    let (shape @ [_, width], Some(gain)) = (y.dims(), f32s(gain)) else {
        return Err(y);
    };
    if f32s(&y).is_none() {
        return Err(y);
    }
    let gain: &[f32] = &gain;
    let mut values = into_vec(y);
    values
        .par_chunks_mut(width.max(1))
        .with_min_len(grain(width))
        .for_each(|row| {
            simd(
                #[inline(always)]
                || {
                    for (value, gain) in row.iter_mut().zip(gain) {
                        *value *= gain;
                    }
                },
            );
        });
    Ok(tensor(values, shape))
}

pub(super) fn column_products(a: &Tensor<2>, b: &Tensor<2>) -> Option<Tensor<1>> {
    let [t, width] = a.dims();
    let (a, b) = (f32s(a)?, f32s(b)?);
    let (a, b): (&[f32], &[f32]) = (&a, &b);
    // Each sum in the order of the tokens, whatever the number of threads.
    let sums = sum_columns(
        [t, width],
        #[inline(always)]
        |row, columns, sums| {
            let span = row * width + columns.start..row * width + columns.end;
            let pairs = a[span.clone()].iter().zip(&b[span]);
            for (sum, (a, b)) in sums.iter_mut().zip(pairs) {
                *sum += a * b;
            }
        },
    );
    Some(tensor(sums, [width]))
}
