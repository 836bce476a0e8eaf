//! [`adamw`](super) in plain tensors.

use burn::tensor::Tensor;

use super::{AdamWParams, Moments};

/// One update.
pub fn step<const D: usize>(
    param: Tensor<D>,
    grad: &Tensor<D>,
    Moments { m, v }: Moments<D>,
    (lr, t): (f64, u64),
    p: &AdamWParams,
) -> (Tensor<D>, Moments<D>) {
    let m = m.mul_scalar(p.beta1) + grad.clone().mul_scalar(1.0 - p.beta1);
    let v = v.mul_scalar(p.beta2) + grad.clone().square().mul_scalar(1.0 - p.beta2);
    let (correction1, correction2) = (1.0 - p.beta1.powf(t as f64), 1.0 - p.beta2.powf(t as f64));
    let denominator = v.clone().sqrt().div_scalar(correction2.sqrt()) + p.epsilon;
    let param = param.mul_scalar(1.0 - lr * p.weight_decay)
        - (m.clone() / denominator).mul_scalar(lr / correction1);
    (param, Moments { m, v })
}
