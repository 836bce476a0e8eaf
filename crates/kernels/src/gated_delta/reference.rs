//! [`gated_delta`](super::gated_delta) in plain tensors: one token after the other.

use burn::tensor::{DType, Tensor};

use super::{DeltaLayout, EPS, Operands};
use crate::segments::Segments;

/// From zero states.
pub fn forward(x: &Operands, segments: &Segments, layout: DeltaLayout) -> Tensor<2> {
    let device = &x.qkv.device();
    let zero = || {
        let shape = [layout.value_heads * layout.key_dim, layout.value_dim];
        Tensor::zeros(shape, (device, DType::F32))
    };
    let states = (0..segments.len()).map(|_| zero()).collect();
    forward_from(x, segments, layout, states).0
}

/// From these states, with those that are left.
pub fn forward_from(
    x: &Operands,
    segments: &Segments,
    layout: DeltaLayout,
    states: Vec<Tensor<2>>,
) -> (Tensor<2>, Vec<Tensor<2>>) {
    let DeltaLayout {
        value_heads,
        key_dim,
        value_dim,
        ..
    } = layout;
    let width = layout.key_width();
    let all = x.qkv.clone().cast(DType::F32);
    let q = per_value_head(all.clone().narrow(1, 0, width), layout) / (key_dim as f64).sqrt();
    let k = per_value_head(all.clone().narrow(1, width, width), layout);
    let v = all.narrow(1, 2 * width, layout.value_width());
    let decay = x.decay.clone().exp();
    let (mut rows, mut left) = (Vec::new(), Vec::new());
    for ((tokens, _), state) in segments.iter().zip(states) {
        let mut state = state.reshape([value_heads, key_dim, value_dim]);
        for t in tokens {
            let of_heads = |gate: &Tensor<2>| -> Tensor<3> {
                gate.clone().narrow(0, t, 1).reshape([value_heads, 1, 1])
            };
            let key = |all: &Tensor<3>| -> Tensor<3> {
                (all.clone().narrow(0, t, 1)).reshape([value_heads, key_dim, 1])
            };
            let value: Tensor<3> = (v.clone().narrow(0, t, 1)).reshape([value_heads, 1, value_dim]);
            state = state * of_heads(&decay);
            let held = (state.clone() * key(&k)).sum_dim(1);
            let update = (value - held) * of_heads(&x.beta);
            state = state + key(&k) * update;
            let out = (state.clone() * key(&q)).sum_dim(1);
            rows.push(out.reshape([1, value_heads * value_dim]));
        }
        left.push(state.reshape([value_heads * key_dim, value_dim]));
    }
    (Tensor::cat(rows, 0).cast(x.qkv.dtype()), left)
}

/// Queries or keys of length 1, `[t, value_heads, key_dim]`: each as often as value heads share it.
fn per_value_head(x: Tensor<2>, layout: DeltaLayout) -> Tensor<3> {
    let ([t, _], d) = (x.dims(), layout.key_dim);
    let heads: Tensor<3> = x.reshape([t, layout.key_heads, d]);
    let length = (heads.clone().square().sum_dim(2) + EPS).sqrt();
    let shared: Tensor<4> = (heads / length).reshape([t, layout.key_heads, 1, d]);
    let repeated = shared.repeat_dim(2, layout.group());
    repeated.reshape([t, layout.value_heads, d])
}

/// Gradients of the operands, by Burn's autodiff of [`forward`].
pub fn backward(
    d_out: &Tensor<2>,
    x: &Operands,
    segments: &Segments,
    layout: DeltaLayout,
) -> Operands {
    let leaf = |x: &Tensor<2>| x.clone().autodiff().require_grad();
    let x = Operands {
        qkv: leaf(&x.qkv),
        beta: leaf(&x.beta),
        decay: leaf(&x.decay),
    };
    let out = forward(&x, segments, layout);
    let grads = (out * d_out.clone().autodiff()).sum().backward();
    let grad = |x: &Tensor<2>| {
        let none = || x.clone().inner().zeros_like();
        x.grad(&grads).unwrap_or_else(none)
    };
    Operands {
        qkv: grad(&x.qkv),
        beta: grad(&x.beta),
        decay: grad(&x.decay),
    }
}
