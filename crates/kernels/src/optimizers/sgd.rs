//! Gradient descent with momentum: m ← μm + g; w ← w·(1 − lr·λ) − lr·m.
//!
//! # Source
//! Sutskever et al. 2013, in the form of `torch.optim.SGD` without dampening; its weight decay is added to the gradient,
//! the one here is decoupled.

use super::{Matrices, decayed};

/// Constants of the update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdParams {
    /// μ.
    pub momentum: f64,
    /// λ.
    pub weight_decay: f64,
}

/// One update; `m` is zero before the first.
pub fn step(
    values: Matrices,
    grad: &Matrices,
    m: Matrices,
    lr: f64,
    p: &SgdParams,
) -> (Matrices, Matrices) {
    let m = m.mul_scalar(p.momentum) + grad.clone();
    let values = decayed(values, lr, p.weight_decay) - m.clone().mul_scalar(lr);
    (values, m)
}
