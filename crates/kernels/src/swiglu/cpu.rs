//! f32 on the CPU, one pass.

use backdraft_arch::Activation;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{GELU, Gradients};
use crate::cpu::{build_rows, f32s, into_vec, sigmoid, simd, tensor};

pub(super) fn forward(
    gate: &Tensor<2>,
    up: &Tensor<2>,
    activation: Activation,
) -> Option<Tensor<2>> {
    match activation {
        Activation::Silu => forward_with(
            gate,
            up,
            #[inline(always)]
            |g| g,
        ),
        Activation::GeluTanh => forward_with(gate, up, gelu),
    }
}

/// z of GELU.
#[inline(always)]
fn gelu(g: f32) -> f32 {
    let [scale, cubed] = GELU;
    scale * (g + cubed * g * g * g)
}

/// z′ of GELU.
#[inline(always)]
fn gelu_slope(g: f32) -> f32 {
    let [scale, cubed] = GELU;
    scale * (1.0 + 3.0 * cubed * g * g)
}

/// g·σ(z(g))·u.
fn forward_with(
    gate: &Tensor<2>,
    up: &Tensor<2>,
    z: impl Fn(f32) -> f32 + Sync,
) -> Option<Tensor<2>> {
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
                out.write(g * sigmoid(z(g)) * u);
            }
        },
    );
    Some(tensor(y, [rows, width]))
}

/// dy, gate and up, handed back.
type Operands = (Tensor<2>, Tensor<2>, Tensor<2>);

/// `Err` hands everything back when something is not f32 on the CPU.
pub(super) fn backward(
    dy: Tensor<2>,
    gate: Tensor<2>,
    up: Tensor<2>,
    activation: Activation,
    wanted: bool,
) -> Result<Gradients, Operands> {
    match activation {
        Activation::Silu => backward_with(
            [dy, gate, up],
            wanted,
            #[inline(always)]
            |g| {
                let s = sigmoid(g);
                (s, 1.0 + g * (1.0 - s))
            },
        ),
        Activation::GeluTanh => backward_with(
            [dy, gate, up],
            wanted,
            #[inline(always)]
            |g| {
                let s = sigmoid(gelu(g));
                (s, 1.0 + g * (1.0 - s) * gelu_slope(g))
            },
        ),
    }
}

/// `slope` gives the two factors of the derivative of g·σ(z(g)), σ(z(g)) first.
fn backward_with(
    [dy, gate, up]: [Tensor<2>; 3],
    wanted: bool,
    slope: impl Fn(f32) -> (f32, f32) + Sync,
) -> Result<Gradients, Operands> {
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
                        let (s, rest) = slope(g);
                        *gate = dy * u * s * rest;
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
