//! f32 on the CPU, one pass.

use backdraft_arch::Activation;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::GELU;
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

/// `Err` hands gate and up back when something is not f32 on the CPU.
pub(super) fn backward(
    dy: &Tensor<2>,
    gate: Tensor<2>,
    up: Tensor<2>,
    activation: Activation,
) -> Result<(Tensor<2>, Tensor<2>), (Tensor<2>, Tensor<2>)> {
    match activation {
        Activation::Silu => backward_with(
            dy,
            (gate, up),
            #[inline(always)]
            |g| {
                let s = sigmoid(g);
                (s, 1.0 + g * (1.0 - s))
            },
        ),
        Activation::GeluTanh => backward_with(
            dy,
            (gate, up),
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
    dy: &Tensor<2>,
    (gate, up): (Tensor<2>, Tensor<2>),
    slope: impl Fn(f32) -> (f32, f32) + Sync,
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
                        let (s, rest) = slope(g);
                        *gate = dy * u * s * rest;
                        *up = dy * g * s;
                    }
                },
            );
        });
    Ok((tensor(dgate, shape), tensor(dup, shape)))
}
