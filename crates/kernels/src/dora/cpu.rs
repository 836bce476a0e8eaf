//! f32 on the processor: one pass each, without a tensor of the products.

use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::cpu::{f32s, grain, into_vec, simd, tensor};

/// Columns that a task sums, so that it reads whole lines of the cache.
const COLUMNS: usize = 64;

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
    let [_, width] = a.dims();
    let (a, b) = (f32s(a)?, f32s(b)?);
    let (a, b): (&[f32], &[f32]) = (&a, &b);
    let mut sums = vec![0.0; width];
    // Each sum in the order of the tokens, whatever the number of threads.
    sums.par_chunks_mut(COLUMNS)
        .enumerate()
        .for_each(|(part, sums)| {
            let start = part * COLUMNS;
            simd(
                #[inline(always)]
                || {
                    let end = start + sums.len();
                    for (a, b) in a.chunks_exact(width).zip(b.chunks_exact(width)) {
                        let pairs = a[start..end].iter().zip(&b[start..end]);
                        for (sum, (a, b)) in sums.iter_mut().zip(pairs) {
                            *sum += a * b;
                        }
                    }
                },
            );
        });
    Some(tensor(sums, [width]))
}
