//! Lion: the sign of a mean of gradients.
//!
//! c = β₁m + (1 − β₁)g; w ← w·(1 − lr·λ) − lr·sign(c); m ← β₂m + (1 − β₂)g.
//!
//! # Source
//! Chen et al. 2023, arXiv:2302.06675, algorithm 2.

use super::{Matrices, decayed};

/// Constants of the update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LionParams {
    /// β₁, of what the step goes by.
    pub beta1: f64,
    /// β₂, of what is kept.
    pub beta2: f64,
    /// λ.
    pub weight_decay: f64,
}

/// One update; `m` is zero before the first.
pub fn step(
    values: Matrices,
    grad: &Matrices,
    m: Matrices,
    lr: f64,
    p: &LionParams,
) -> (Matrices, Matrices) {
    let mix = |beta: f64| m.clone().mul_scalar(beta) + grad.clone().mul_scalar(1.0 - beta);
    let step = mix(p.beta1).sign().mul_scalar(lr);
    (decayed(values, lr, p.weight_decay) - step, mix(p.beta2))
}
