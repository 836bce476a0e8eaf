//! [`dora`](super) in plain tensors.

use burn::tensor::{DType, Tensor};

use crate::lora_linear::Factors;

/// α·x·Wᵀ + (m/n − 1)·α·x̃·Wᵀ + (m/n)·α·s·(x̃·Aᵀ)·Bᵀ with n the lengths of the rows of W + s·B·A; differentiable with respect to
/// everything but n.
///
/// # Shapes
/// `x` `[t, in]`, `weight` `[out, in]`, `magnitude` `[out]`, result `[t, out]`.
pub fn forward(
    x: Tensor<2>,
    (weight, alpha): (Tensor<2>, f32),
    factors: &Factors,
    magnitude: Tensor<1>,
) -> Tensor<2> {
    let (a, b) = (factors.a.clone(), factors.b.clone());
    let delta = b.clone().matmul(a.clone()).mul_scalar(factors.scaling);
    let [out, _] = weight.dims();
    let squares = (weight.clone() + delta).square().sum_dim(1);
    let norms = squares.sqrt().detach().reshape([out]);
    let gain = (magnitude / norms).reshape([1, out]);
    let seen = match factors.dropout {
        Some(dropout) => {
            let ones = Tensor::ones(x.dims(), &x.device().inner());
            x.clone() * dropout.apply(ones)
        }
        None => x.clone(),
    };
    let product = |x: Tensor<2>| x.matmul(weight.clone().transpose()).mul_scalar(alpha);
    let low_rank = seen.clone().matmul(a.transpose()).matmul(b.transpose());
    let low_rank = low_rank.mul_scalar(alpha * factors.scaling);
    product(x) + product(seen) * (gain.clone() - 1.0) + low_rank * gain
}

/// Each column times its gain.
pub fn scale_columns(y: Tensor<2>, gain: &Tensor<1>) -> Tensor<2> {
    let dtype = y.dtype();
    let scaled = y.cast(DType::F32) * gain.clone().unsqueeze();
    scaled.cast(dtype)
}

/// Σ a ∘ b over tokens.
pub fn column_products(a: &Tensor<2>, b: &Tensor<2>) -> Tensor<1> {
    let [_, out] = a.dims();
    let product = a.clone().cast(DType::F32) * b.clone().cast(DType::F32);
    product.sum_dim(0).reshape([out])
}
