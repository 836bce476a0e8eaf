//! Adafactor: AdamW's second moment as a product of a column and a row, and no first.
//!
//! βₜ = 1 − t^−0.8; R ← βₜR + (1 − βₜ)·mean over columns of (g² + ε), C alike over rows; v = R·C / mean(R);
//! u = g / √v; w ← w·(1 − lr·λ) − lr·u / max(1, RMS(u)).
//!
//! Of a row v is C: nothing is lost there.
//!
//! # Source
//! Shazeer & Stern 2018, arXiv:1804.04235, algorithms 4 and 5, with the learning rate of the run in the place of relative steps,
//! as transformers' Trainer has it.

use burn::tensor::Tensor;

use super::{Matrices, decayed};

/// What the share of the past in the means comes nearer to one by.
const DECAY: f64 = -0.8;
/// Added to squares.
const EPSILON: f64 = 1e-30;
/// The largest root mean square of an update.
const CLIP: f64 = 1.0;

/// What is kept between updates, zero before the first.
///
/// # Shapes
/// `rows` `[n, rows, 1]`, `columns` `[n, 1, columns]`.
#[derive(Clone, Debug)]
pub struct Factored {
    /// R.
    pub rows: Tensor<3>,
    /// C.
    pub columns: Tensor<3>,
}

/// One update; `t` counts from 1.
pub fn step(
    values: Matrices,
    grad: &Matrices,
    kept: Factored,
    (lr, t): (f64, u64),
    weight_decay: f64,
) -> (Matrices, Factored) {
    let beta = 1.0 - (t as f64).powf(DECAY);
    let squares = grad.clone().square().add_scalar(EPSILON);
    let mix =
        |before: Tensor<3>, now: Tensor<3>| before.mul_scalar(beta) + now.mul_scalar(1.0 - beta);
    let rows = mix(kept.rows, squares.clone().mean_dim(2));
    let columns = mix(kept.columns, squares.mean_dim(1));
    // √R and √C apart: their product may be below what f32 holds.
    let by_row = (rows.clone() / rows.clone().mean_dim(1)).sqrt().recip();
    let update = grad.clone() * by_row * columns.clone().sqrt().recip();
    let square = update.clone().square().mean_dim(1).mean_dim(2);
    let factor = square.sqrt().div_scalar(CLIP).clamp_min(1.0).recip();
    let values = decayed(values, lr, weight_decay) - update * factor.mul_scalar(lr);
    (values, Factored { rows, columns })
}
