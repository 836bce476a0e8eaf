//! [`norm_rope`](super::norm_rope) in plain tensors.

use burn::tensor::{DType, Tensor};

use crate::rms_norm::reference as rms_norm;
use crate::rope::RotaryTables;
use crate::rope::reference::rotate;

/// Normed, then turned.
pub fn forward(x: &Tensor<2>, weight: &Tensor<1>, eps: f64, tables: &RotaryTables) -> Tensor<2> {
    let weight = weight.clone().cast(DType::F32);
    let (normed, _) = rms_norm::forward(&heads(x, tables), &weight, eps);
    rotate(normed.reshape(x.dims()), tables, 1.0).cast(x.dtype())
}

/// Gradient of the input.
pub fn backward(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    eps: f64,
    tables: &RotaryTables,
) -> Tensor<2> {
    let (normed, x_heads, rstd) = parts(dy, x, eps, tables);
    let weight = weight.clone().cast(DType::F32);
    let dx = rms_norm::backward(&normed, &x_heads, &weight, &rstd);
    dx.reshape(x.dims()).cast(x.dtype())
}

/// Gradient of the weight.
pub fn backward_weight(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    eps: f64,
    tables: &RotaryTables,
) -> Tensor<1> {
    let (normed, x_heads, rstd) = parts(dy, x, eps, tables);
    rms_norm::backward_weight(&normed, &x_heads, &rstd).cast(x.dtype())
}

/// The gradient behind the norm and the norm's input, a row for each head, and the statistic of each.
fn parts(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    eps: f64,
    tables: &RotaryTables,
) -> (Tensor<2>, Tensor<2>, Tensor<1>) {
    let unturned = rotate(dy.clone().cast(DType::F32), tables, -1.0);
    let x = heads(x, tables);
    let rstd = (x.clone().square().mean_dim(1) + eps).sqrt().recip();
    (heads(&unturned, tables), x, rstd.squeeze_dim(1))
}

/// In f32, `[t·h, d]`.
fn heads(x: &Tensor<2>, tables: &RotaryTables) -> Tensor<2> {
    let ([t, width], d) = (x.dims(), 2 * tables.cos.dims()[1]);
    x.clone().cast(DType::F32).reshape([t * width / d, d])
}
