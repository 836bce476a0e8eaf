//! Schedule-free AdamW: gradients are taken at y, between the fast z and its running mean x, which is what is learned.
//!
//! γ = lr·√(1 − β₂ᵗ); v ← β₂v + (1 − β₂)g²; d = g/(√v + ε) + λy; z ← z − γd; c = γ²/Σγ²; x ← (1 − c)x + cz;
//! y = (1 − β₁)z + β₁x.
//!
//! Parameters are y while training. x follows from y and z, and is not kept.
//!
//! # Source
//! Defazio et al. 2024, arXiv:2405.15682, algorithm 1 with Adam's scaling; y is updated as in its authors' program:
//! y ← (1 − c)y + cz − γ(1 − β₁(1 − c))d, with z before its update.

use burn::tensor::Tensor;

use super::Matrices;
use crate::adamw::AdamWParams;

/// What is kept between updates, zero before the first.
///
/// # Shapes
/// `z` and `v` as parameters, `sum` `[n, 1, 1]`.
#[derive(Clone, Debug)]
pub struct ScheduleFree {
    /// z.
    pub z: Matrices,
    /// v.
    pub v: Matrices,
    /// Σγ².
    pub sum: Tensor<3>,
}

/// One update of y; `t` counts from 1.
pub fn step(
    y: Matrices,
    grad: &Matrices,
    kept: ScheduleFree,
    (lr, t): (f64, u64),
    p: &AdamWParams,
) -> (Matrices, ScheduleFree) {
    let z = if t == 1 { y.clone() } else { kept.z };
    let rate = lr * (1.0 - p.beta2.powf(t as f64)).sqrt();
    let v = kept.v.mul_scalar(p.beta2) + grad.clone().square().mul_scalar(1.0 - p.beta2);
    let d = grad.clone() / v.clone().sqrt().add_scalar(p.epsilon);
    let d = match p.weight_decay {
        0.0 => d,
        weight_decay => d + y.clone().mul_scalar(weight_decay),
    };
    let sum = kept.sum.add_scalar(rate * rate);
    // While the rate is zero nothing moves, and the sum stays zero.
    let share = sum
        .clone()
        .clamp_min(f32::MIN_POSITIVE)
        .recip()
        .mul_scalar(rate * rate);
    let rest = share.clone().neg().add_scalar(1.0);
    let along = rest
        .clone()
        .mul_scalar(-p.beta1)
        .add_scalar(1.0)
        .mul_scalar(rate);
    let y = y * rest + z.clone() * share - d.clone() * along;
    let z = z - d.mul_scalar(rate);
    (y, ScheduleFree { z, v, sum })
}

/// x: what evaluation goes by and a file gets.
pub fn averaged(y: Matrices, z: &Matrices, p: &AdamWParams) -> Matrices {
    (y - z.clone().mul_scalar(1.0 - p.beta1)).div_scalar(p.beta1)
}
