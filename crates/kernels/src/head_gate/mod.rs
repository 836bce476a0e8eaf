//! A gate on each head of attention's output: y = o·σ(g).
//!
//! Query and gate come from one projection, head by head: `d` features of the query, then `d` of the gate. Backwards,
//! do = dy·σ(g) and dg = dy·o·σ(g)·(1 − σ(g)).
//!
//! # Source
//! Qiu et al. 2025, arXiv:2505.06708; layout as in Hugging Face's Qwen 3.5.

mod cpu;
pub mod reference;

use burn::tensor::Tensor;

/// Query and gate apart; differentiable as it stands.
///
/// # Shapes
/// `x` `[t, 2·h·d]`, results `[t, h·d]`.
pub fn split(x: &Tensor<2>, head_dim: usize) -> [Tensor<2>; 2] {
    assert_eq!(x.dims()[1] % (2 * head_dim), 0, "queries with their gates");
    cpu::split(x, head_dim).unwrap_or_else(|| reference::split(x, head_dim))
}

/// The two in one again: the gradient of what [`split`] took apart.
///
/// # Shapes
/// As [`split`].
pub fn join([query, gate]: [&Tensor<2>; 2], head_dim: usize) -> Tensor<2> {
    assert_eq!(query.dims(), gate.dims(), "queries and gates");
    cpu::join([query, gate], head_dim).unwrap_or_else(|| reference::join([query, gate], head_dim))
}

/// o·σ(g).
///
/// # Shapes
/// All `[t, h·d]`.
pub fn forward(out: &Tensor<2>, gate: &Tensor<2>) -> Tensor<2> {
    cpu::forward(out, gate).unwrap_or_else(|| reference::forward(out, gate))
}

/// Gradients of `out` and `gate`.
///
/// # Shapes
/// All `[t, h·d]`.
pub fn backward(dy: &Tensor<2>, out: &Tensor<2>, gate: &Tensor<2>) -> [Tensor<2>; 2] {
    cpu::backward(dy, out, gate).unwrap_or_else(|| reference::backward(dy, out, gate))
}
