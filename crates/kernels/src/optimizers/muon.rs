//! Muon: a mean of gradients, made orthogonal.
//!
//! m ← μm + (1 − μ)g; u = (1 − μ)g + μm (Nesterov); o = the nearest orthogonal matrix to u, by five Newton–Schulz steps
//! X ← aX + (bA + cA²)X with A = XXᵀ, from X = u / ‖u‖, the shorter side first;
//! w ← w·(1 − lr·λ) − lr·0.2·√max(rows, columns)·o, so that an update has the root mean square that AdamW's have, and learning rates
//! are of AdamW's order.
//!
//! Each of A and B of an adapter is a matrix of its own here, as torch's optimiser would have them.
//!
//! # Source
//! Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", with its coefficients; the scale of
//! Liu et al. 2025, arXiv:2502.16982. `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, in f32 throughout.

use super::{Matrices, decayed};

/// a, b and c.
const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];
/// How many times.
const STEPS: usize = 5;
/// What a norm is at least.
const EPSILON: f64 = 1e-7;
/// Root mean square of AdamW's updates.
const RMS: f64 = 0.2;

/// Constants of the update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MuonParams {
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
    p: &MuonParams,
) -> (Matrices, Matrices) {
    let mix = |m: Matrices| m.mul_scalar(p.momentum) + grad.clone().mul_scalar(1.0 - p.momentum);
    let m = mix(m);
    let [_, rows, columns] = values.dims();
    let scale = RMS * (rows.max(columns) as f64).sqrt();
    let update = orthogonal(mix(m.clone())).mul_scalar(lr * scale);
    (decayed(values, lr, p.weight_decay) - update, m)
}

/// Nearly the nearest orthogonal matrix to each: singular values between about 0.7 and 1.2 in the place of 1.
///
/// # Shapes
/// As `x`, `[n, rows, columns]`.
pub fn orthogonal(x: Matrices) -> Matrices {
    let [_, rows, columns] = x.dims();
    if rows > columns {
        return orthogonal(x.swap_dims(1, 2)).swap_dims(1, 2);
    }
    let squares = x.clone().square().sum_dim(1).sum_dim(2);
    let mut x = x / squares.sqrt().clamp_min(EPSILON);
    let [a, b, c] = COEFFICIENTS;
    for _ in 0..STEPS {
        let gram = x.clone().matmul(x.clone().swap_dims(1, 2));
        let polynomial = gram.clone().mul_scalar(b) + gram.clone().matmul(gram).mul_scalar(c);
        x = x.clone().mul_scalar(a) + polynomial.matmul(x);
    }
    x
}
