//! f32 on the CPU, one pass.

use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::cpu::{build_rows, f32s, into_vec, sigmoid, simd, tensor};

pub(super) fn forward(gate: &Tensor<2>, up: &Tensor<2>) -> Option<Tensor<2>> {
    let [rows, width] = gate.dims();
    let (gate, up) = (f32s(gate)?, f32s(up)?);
    let (gate, up): (&[f32], &[f32]) = (&gate, &up);
    let y = build_rows(
        rows,
        width,
        #[inline(always)]
        |i, out| {
            let span = i * width..(i + 1) * width;
            for ((out, &g), &u) in out.iter_mut().zip(&gate[span.clone()]).zip(&up[span]) {
                out.write(g * sigmoid(g) * u);
            }
        },
    );
    Some(tensor(y, [rows, width]))
}

/// `Err` hands gate and up back when something is not f32 on the CPU.
pub(super) fn backward(
    dy: &Tensor<2>,
    gate: Tensor<2>,
    up: Tensor<2>,
) -> Result<(Tensor<2>, Tensor<2>), (Tensor<2>, Tensor<2>)> {
    let shape = gate.dims();
    let ours = f32s(&gate).is_some() && f32s(&up).is_some();
    let Some(dy) = f32s(dy).filter(|_| ours) else {
        return Err((gate, up));
    };
    let (mut dgate, mut dup) = (into_vec(gate), into_vec(up));
    let width = shape[1].max(1);
    (
        dgate.par_chunks_mut(width),
        dup.par_chunks_mut(width),
        dy.par_chunks(width),
    )
        .into_par_iter()
        .with_min_len(crate::cpu::grain(width))
        .for_each(|(gate, up, dy)| {
            simd(
                #[inline(always)]
                || {
                    for ((gate, up), &dy) in gate.iter_mut().zip(up).zip(dy) {
                        let (g, u) = (*gate, *up);
                        let s = sigmoid(g);
                        *gate = dy * u * s * (1.0 + g * (1.0 - s));
                        *up = dy * g * s;
                    }
                },
            );
        });
    Ok((tensor(dgate, shape), tensor(dup, shape)))
}
