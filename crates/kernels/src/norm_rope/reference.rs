//! [`norm_rope`](super::norm_rope) in plain tensors.

use burn::tensor::{DType, Tensor};

use crate::rms_norm::{Gain, reference as rms_norm};
use crate::rope::RotaryTables;
use crate::rope::reference::rotate;

/// Normed, then turned.
pub fn forward<'a>(
    x: &Tensor<2>,
    gain: impl Into<Gain<'a>>,
    eps: f64,
    tables: &RotaryTables,
) -> Tensor<2> {
    let Gain { weight, scale } = gain.into();
    let weight = &weight.clone().cast(DType::F32);
    let x_groups = groups(x, weight.dims()[0]);
    let (normed, _) = rms_norm::forward(&x_groups, Gain { weight, scale }, eps);
    rotate(normed.reshape(x.dims()), tables, 1.0).cast(x.dtype())
}

/// Gradient of the input.
pub fn backward<'a>(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    gain: impl Into<Gain<'a>>,
    eps: f64,
    tables: &RotaryTables,
) -> Tensor<2> {
    let Gain { weight, scale } = gain.into();
    let (d_normed, x_groups, rstd) = parts(dy, x, weight.dims()[0], eps, tables);
    let weight = &weight.clone().cast(DType::F32);
    let dx = rms_norm::backward(&d_normed, &x_groups, Gain { weight, scale }, &rstd);
    dx.reshape(x.dims()).cast(x.dtype())
}

/// Gradient of the weight, in f32.
pub fn backward_weight(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    normed: usize,
    eps: f64,
    tables: &RotaryTables,
) -> Tensor<1> {
    let (d_normed, x_groups, rstd) = parts(dy, x, normed, eps, tables);
    rms_norm::backward_weight(&d_normed, &x_groups, &rstd)
}

/// What each group of heads adds to it.
pub(super) fn weight_terms(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    normed: usize,
    eps: f64,
    tables: &RotaryTables,
) -> Tensor<2> {
    let (d_normed, x_groups, rstd) = parts(dy, x, normed, eps, tables);
    rms_norm::weight_terms(&d_normed, &x_groups, &rstd)
}

/// The gradient behind the norm and the norm's input, a row for each group of heads, and the statistic of each.
fn parts(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    normed: usize,
    eps: f64,
    tables: &RotaryTables,
) -> (Tensor<2>, Tensor<2>, Tensor<1>) {
    let unturned = rotate(dy.clone().cast(DType::F32), tables, -1.0);
    let x = groups(x, normed);
    let rstd = (x.clone().square().mean_dim(1) + eps).sqrt().recip();
    (groups(&unturned, normed), x, rstd.squeeze_dim(1))
}

/// In f32, rows of what is normed together.
fn groups(x: &Tensor<2>, normed: usize) -> Tensor<2> {
    let [t, width] = x.dims();
    let rows = [t * width / normed, normed];
    x.clone().cast(DType::F32).reshape(rows)
}
