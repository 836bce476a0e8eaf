//! [`swiglu`](super::swiglu) in plain tensors.

use burn::tensor::activation::sigmoid;
use burn::tensor::{DType, Tensor};

/// silu(gate)·up.
pub fn forward(gate: &Tensor<2>, up: &Tensor<2>) -> Tensor<2> {
    let dtype = gate.dtype();
    let g = gate.clone().cast(DType::F32);
    (g.clone() * sigmoid(g)).cast(dtype) * up.clone()
}

/// Gradients of gate and up.
pub fn backward(dy: &Tensor<2>, gate: &Tensor<2>, up: &Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let dtype = gate.dtype();
    let [dy, g, u] = [dy, gate, up].map(|x| x.clone().cast(DType::F32));
    let s = sigmoid(g.clone());
    let slope = s.clone() * (g.clone() * (1.0 - s.clone()) + 1.0);
    let dgate: Tensor<2> = dy.clone() * u * slope;
    (dgate.cast(dtype), (dy * g * s).cast(dtype))
}
