//! AdamW: Adam with decoupled weight decay, one pass over a tensor.
//!
//! p ← p·(1 − lr·λ); m ← β₁m + (1 − β₁)g; v ← β₂v + (1 − β₂)g²;
//! p ← p − lr/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + ε).
//!
//! # Source
//! Loshchilov and Hutter 2017, arXiv:1711.05101; the order of operations of `torch.optim.AdamW`.

mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
pub mod reference;

use burn::tensor::Tensor;

use crate::dispatch::on_device;

/// Constants of the update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWParams {
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε, added to the root.
    pub epsilon: f64,
    /// λ.
    pub weight_decay: f64,
}

/// First and second moment.
///
/// # Shapes
/// Both that of the parameter.
#[derive(Clone, Debug)]
pub struct Moments<const D: usize> {
    /// m.
    pub m: Tensor<D>,
    /// v.
    pub v: Tensor<D>,
}

impl<const D: usize> Moments<D> {
    /// Zeroes like `param`.
    pub fn zeros(param: &Tensor<D>) -> Self {
        Self {
            m: param.zeros_like(),
            v: param.zeros_like(),
        }
    }
}

/// One update with learning rate `lr`; `t` counts from 1.
pub fn step<const D: usize>(
    param: Tensor<D>,
    grad: &Tensor<D>,
    moments: Moments<D>,
    (lr, t): (f64, u64),
    params: &AdamWParams,
) -> (Tensor<D>, Moments<D>) {
    cpu::step(param, grad, moments, (lr, t), params)
        .or_else(|(param, moments)| {
            on_device!(
                cube::step(param, grad, moments, (lr, t), params),
                or(param, moments)
            )
        })
        .unwrap_or_else(|(param, moments)| reference::step(param, grad, moments, (lr, t), params))
}
