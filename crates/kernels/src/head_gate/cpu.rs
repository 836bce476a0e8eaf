//! f32 on the processor, one pass each.

use burn::tensor::Tensor;

use crate::cpu::{build_rows, f32s, sigmoid, tensor};

pub(super) fn split(x: &Tensor<2>, head_dim: usize) -> Option<[Tensor<2>; 2]> {
    let [t, width] = x.dims();
    let x = f32s(x)?;
    Some([0, head_dim].map(|side| {
        let values = build_rows(
            t,
            width / 2,
            #[inline(always)]
            |row, out| {
                let pairs = x[row * width..(row + 1) * width].chunks_exact(2 * head_dim);
                for (out, pair) in out.chunks_exact_mut(head_dim).zip(pairs) {
                    for (out, x) in out.iter_mut().zip(&pair[side..]) {
                        out.write(*x);
                    }
                }
            },
        );
        tensor(values, [t, width / 2])
    }))
}

pub(super) fn join([query, gate]: [&Tensor<2>; 2], head_dim: usize) -> Option<Tensor<2>> {
    let [t, width] = query.dims();
    let (query, gate) = (f32s(query)?, f32s(gate)?);
    let values = build_rows(
        t,
        2 * width,
        #[inline(always)]
        |row, out| {
            let heads = row * width..(row + 1) * width;
            let query = query[heads.clone()].chunks_exact(head_dim);
            let gate = gate[heads].chunks_exact(head_dim);
            let pairs = out.chunks_exact_mut(2 * head_dim);
            for ((out, query), gate) in pairs.zip(query).zip(gate) {
                for (out, x) in out.iter_mut().zip(query.iter().chain(gate)) {
                    out.write(*x);
                }
            }
        },
    );
    Some(tensor(values, [t, 2 * width]))
}

pub(super) fn forward(out: &Tensor<2>, gate: &Tensor<2>) -> Option<Tensor<2>> {
    let [t, width] = out.dims();
    let (values, gate) = (f32s(out)?, f32s(gate)?);
    let y = build_rows(
        t,
        width,
        #[inline(always)]
        |row, out| {
            let span = row * width..(row + 1) * width;
            for ((out, o), g) in out.iter_mut().zip(&values[span.clone()]).zip(&gate[span]) {
                out.write(o * sigmoid(*g));
            }
        },
    );
    Some(tensor(y, [t, width]))
}

pub(super) fn backward(
    dy: &Tensor<2>,
    out: &Tensor<2>,
    gate: &Tensor<2>,
) -> Option<[Tensor<2>; 2]> {
    let [t, width] = out.dims();
    let (values, o, g) = (f32s(dy)?, f32s(out)?, f32s(gate)?);
    let d_out = forward(dy, gate)?;
    let d_gate = build_rows(
        t,
        width,
        #[inline(always)]
        |row, out| {
            for (i, out) in (row * width..).zip(out) {
                let s = sigmoid(g[i]);
                out.write(values[i] * o[i] * s * (1.0 - s));
            }
        },
    );
    Some([d_out, tensor(d_gate, [t, width])])
}
