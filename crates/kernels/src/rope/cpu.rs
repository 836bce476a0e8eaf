//! f32 in place on the CPU.

use backdraft_arch::RotaryPairs;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::RotaryTables;
use crate::cpu::{f32s, grain, into_vec, simd, tensor};

/// `Err` hands `x` back when it is not f32 on the CPU.
pub(super) fn rotate(
    x: Tensor<2>,
    tables: &RotaryTables,
    sign: f32,
) -> Result<Tensor<2>, Tensor<2>> {
    let (Some(_), Some(cos), Some(sin)) = (f32s(&x), f32s(&tables.cos), f32s(&tables.sin)) else {
        return Err(x);
    };
    let (cos, sin): (&[f32], &[f32]) = (&cos, &sin);
    let [t, width] = x.dims();
    let half = tables.cos.dims()[1];
    let (head_dim, pairs) = (tables.head_dim, tables.pairs);
    let mut values = into_vec(x);
    values
        .par_chunks_mut(width.max(1))
        .with_min_len(grain(width))
        .enumerate()
        .for_each(|(row, values)| {
            let angles = row * half..(row + 1) * half;
            let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
            simd(
                #[inline(always)]
                || {
                    for head in values.chunks_exact_mut(head_dim) {
                        let head = &mut head[..2 * half];
                        match pairs {
                            RotaryPairs::Halves => {
                                let (first, second) = head.split_at_mut(half);
                                for i in 0..half {
                                    let (a, b) = (first[i], second[i]);
                                    let s = sign * sin[i];
                                    first[i] = a * cos[i] - b * s;
                                    second[i] = b * cos[i] + a * s;
                                }
                            }
                            RotaryPairs::Neighbours => {
                                for (i, pair) in head.chunks_exact_mut(2).enumerate() {
                                    let (a, b) = (pair[0], pair[1]);
                                    let s = sign * sin[i];
                                    pair[0] = a * cos[i] - b * s;
                                    pair[1] = b * cos[i] + a * s;
                                }
                            }
                        }
                    }
                },
            );
        });
    Ok(tensor(values, [t, width]))
}
