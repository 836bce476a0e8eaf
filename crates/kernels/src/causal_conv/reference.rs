//! [`causal_conv`](super::causal_conv) in plain tensors.

use burn::tensor::activation::silu;
use burn::tensor::{DType, Tensor};

use crate::segments::Segments;

/// Each document behind k − 1 rows of zeros, times each tap's weights.
pub fn forward(x: &Tensor<2>, weight: &Tensor<1>, segments: &Segments) -> Tensor<2> {
    let ([_, c], dtype) = (x.dims(), x.dtype());
    let taps = weight.dims()[0] / c;
    let weight: Tensor<2> = weight.clone().cast(DType::F32).reshape([c, taps]);
    let x = x.clone().cast(DType::F32);
    let documents = segments.iter().map(|(rows, _)| {
        let zeros = Tensor::zeros([taps - 1, c], (&x.device(), DType::F32));
        let own = x.clone().narrow(0, rows.start, rows.len());
        let padded = Tensor::cat(vec![zeros, own], 0);
        let term = |tap: usize| {
            let weight = weight.clone().narrow(1, tap, 1).transpose();
            padded.clone().narrow(0, tap, rows.len()) * weight
        };
        (1..taps).fold(term(0), |sum, tap| sum + term(tap))
    });
    silu(Tensor::cat(documents.collect(), 0)).cast(dtype)
}

/// Gradients of input and weight, by Burn's autodiff of [`forward`].
pub fn backward(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    segments: &Segments,
) -> (Tensor<2>, Tensor<1>) {
    let x = x.clone().autodiff().require_grad();
    let weight = weight.clone().autodiff().require_grad();
    let y = forward(&x, &weight, segments);
    let grads = (y * dy.clone().autodiff()).sum().backward();
    match (x.grad(&grads), weight.grad(&grads)) {
        (Some(dx), Some(dw)) => (dx, dw),
        _ => unreachable!("both are leaves of the tape"),
    }
}
