//! [`lora_linear`](super::lora_linear) in plain tensors.

use burn::tensor::Tensor;

use super::Factors;

/// α·x·Wᵀ + s·(x·Aᵀ)·Bᵀ; differentiable with respect to everything, W too.
pub fn forward(
    x: Tensor<2>,
    (weight, alpha): (Tensor<2>, f32),
    factors: Option<&Factors>,
) -> Tensor<2> {
    let y = x.clone().matmul(weight.transpose());
    let y = if alpha == 1.0 { y } else { y.mul_scalar(alpha) };
    match factors {
        None => y,
        Some(f) => {
            let x = match f.dropout {
                Some(dropout) => {
                    let ones = Tensor::ones(x.dims(), &x.device().inner());
                    x * dropout.apply(ones)
                }
                None => x,
            };
            let delta = x
                .matmul(f.a.clone().transpose())
                .matmul(f.b.clone().transpose());
            y + delta.mul_scalar(f.scaling)
        }
    }
}
