//! f32 on the CPU, one pass.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::Gradients;
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

/// `Err` hands everything back when something is not f32 on the CPU.
pub(super) fn backward(
    dy: Tensor<2>,
    gate: Tensor<2>,
    up: Tensor<2>,
    wanted: bool,
) -> Result<Gradients, (Tensor<2>, Tensor<2>, Tensor<2>)> {
    let shape = gate.dims();
    if [&dy, &gate, &up].map(f32s).iter().any(Option::is_none) {
        return Err((dy, gate, up));
    }
    let (mut product, mut dgate, mut dup) = (into_vec(dy), into_vec(gate), into_vec(up));
    let width = shape[1].max(1);
    (
        dgate.par_chunks_mut(width),
        dup.par_chunks_mut(width),
        product.par_chunks_mut(width),
    )
        .into_par_iter()
        .with_min_len(crate::cpu::grain(width))
        .for_each(|(gate, up, product)| {
            simd(
                #[inline(always)]
                || {
                    for ((gate, up), product) in gate.iter_mut().zip(up).zip(product) {
                        let (g, u, dy) = (*gate, *up, *product);
                        let s = sigmoid(g);
                        *gate = dy * u * s * (1.0 + g * (1.0 - s));
                        *up = dy * g * s;
                        *product = g * s * u;
                    }
                },
            );
        });
    Ok(Gradients {
        gate: tensor(dgate, shape),
        up: tensor(dup, shape),
        product: wanted.then(|| tensor(product, shape)),
    })
}
