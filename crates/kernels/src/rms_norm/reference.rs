//! [`rms_norm`](super::rms_norm) in plain tensors.

use burn::tensor::{DType, Tensor};

/// Normalised rows and the reciprocal root mean square of each.
pub fn forward(x: &Tensor<2>, weight: &Tensor<1>, eps: f64) -> (Tensor<2>, Tensor<1>) {
    let dtype = x.dtype();
    let x = x.clone().cast(DType::F32);
    let rstd = (x.clone().square().mean_dim(1) + eps).sqrt().recip();
    let y = (x * rstd.clone()).cast(dtype) * weight.clone().cast(dtype).unsqueeze();
    (y, rstd.squeeze_dim(1))
}

/// Gradient of the input.
pub fn backward(dy: &Tensor<2>, x: &Tensor<2>, weight: &Tensor<1>, rstd: &Tensor<1>) -> Tensor<2> {
    let dtype = x.dtype();
    let rstd = rstd.clone().unsqueeze_dim::<2>(1);
    let normed = x.clone().cast(DType::F32) * rstd.clone();
    let dy = dy.clone().cast(DType::F32) * weight.clone().cast(DType::F32).unsqueeze();
    let mean = (dy.clone() * normed.clone()).mean_dim(1);
    ((dy - normed * mean) * rstd).cast(dtype)
}

/// Gradient of the weight.
pub fn backward_weight(dy: &Tensor<2>, x: &Tensor<2>, rstd: &Tensor<1>) -> Tensor<1> {
    let normed = x.clone().cast(DType::F32) * rstd.clone().unsqueeze_dim::<2>(1);
    (dy.clone().cast(DType::F32) * normed)
        .sum_dim(0)
        .squeeze_dim::<1>(0)
        .cast(x.dtype())
}
