//! [`rms_norm`](super::rms_norm) in plain tensors.

use backdraft_arch::NormScale;
use burn::tensor::{DType, Tensor};

use super::Gain;

/// Normalised rows and the reciprocal root mean square of each.
pub fn forward<'a>(x: &Tensor<2>, gain: impl Into<Gain<'a>>, eps: f64) -> (Tensor<2>, Tensor<1>) {
    let Gain { weight, scale } = gain.into();
    let dtype = x.dtype();
    let x = x.clone().cast(DType::F32);
    let rstd = (x.clone().square().mean_dim(1) + eps).sqrt().recip();
    let normed = x * rstd.clone();
    let y = match scale {
        NormScale::Weight => normed.cast(dtype) * weight.clone().cast(dtype).unsqueeze(),
        NormScale::OnePlusWeight => {
            (normed * (weight.clone().cast(DType::F32) + 1.0).unsqueeze()).cast(dtype)
        }
    };
    (y, rstd.squeeze_dim(1))
}

/// Gradient of the input.
pub fn backward<'a>(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    gain: impl Into<Gain<'a>>,
    rstd: &Tensor<1>,
) -> Tensor<2> {
    let dtype = x.dtype();
    let rstd = rstd.clone().unsqueeze_dim::<2>(1);
    let normed = x.clone().cast(DType::F32) * rstd.clone();
    let dy = dy.clone().cast(DType::F32) * factors(gain.into()).unsqueeze();
    let mean = (dy.clone() * normed.clone()).mean_dim(1);
    ((dy - normed * mean) * rstd).cast(dtype)
}

/// What rows are multiplied by, in f32.
fn factors(Gain { weight, scale }: Gain<'_>) -> Tensor<1> {
    let weight = weight.clone().cast(DType::F32);
    match scale {
        NormScale::Weight => weight,
        NormScale::OnePlusWeight => weight + 1.0,
    }
}

/// Gradient of the weight, in f32.
pub fn backward_weight(dy: &Tensor<2>, x: &Tensor<2>, rstd: &Tensor<1>) -> Tensor<1> {
    weight_terms(dy, x, rstd).sum_dim(0).squeeze_dim::<1>(0)
}

/// What each row adds to the gradient of the weight: dy∘x̂ in f32.
pub(crate) fn weight_terms(dy: &Tensor<2>, x: &Tensor<2>, rstd: &Tensor<1>) -> Tensor<2> {
    let normed = x.clone().cast(DType::F32) * rstd.clone().unsqueeze_dim::<2>(1);
    dy.clone().cast(DType::F32) * normed
}
