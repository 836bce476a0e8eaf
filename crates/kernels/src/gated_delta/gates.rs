//! The two gates of each value head, from what their projections give: β = σ(b), g = −e^A·softplus(a + dt).

use burn::tensor::activation::{sigmoid, softplus};
use burn::tensor::{DType, Tensor};

/// β and g; differentiable as it stands.
///
/// # Shapes
/// `b`, `a` and the results `[t, h]`, `a_log` and `dt_bias` `[h]`; the results are f32.
pub fn gates(b: Tensor<2>, a: Tensor<2>, a_log: Tensor<1>, dt_bias: Tensor<1>) -> [Tensor<2>; 2] {
    let [rate, dt] = [a_log, dt_bias].map(|w| w.cast(DType::F32).unsqueeze::<2>());
    let decay = softplus(a.cast(DType::F32) + dt, 1.0) * rate.exp().neg();
    [sigmoid(b.cast(DType::F32)), decay]
}

/// Gradients of `b` and `a`: dβ·β·(1 − β), and −dg·e^A·σ(a + dt).
///
/// # Shapes
/// As [`gates`]; `d` are the gradients of its results.
pub fn gates_backward(
    [d_beta, d_decay]: [Tensor<2>; 2],
    [b, a]: [&Tensor<2>; 2],
    [a_log, dt_bias]: [&Tensor<1>; 2],
) -> [Tensor<2>; 2] {
    let dtype = a.dtype();
    let [rate, dt] = [a_log, dt_bias].map(|w| w.clone().cast(DType::F32).unsqueeze::<2>());
    let slope = sigmoid(a.clone().cast(DType::F32) + dt);
    let beta = sigmoid(b.clone().cast(DType::F32));
    let db = d_beta * beta.clone() * (beta.neg() + 1.0);
    let da = d_decay * slope * rate.exp().neg();
    [db.cast(dtype), da.cast(dtype)]
}
