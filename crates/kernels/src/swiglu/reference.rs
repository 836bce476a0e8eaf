//! [`swiglu`](super::swiglu) in plain tensors.

use burn::tensor::activation::sigmoid;
use burn::tensor::{DType, Tensor};

use super::Gradients;

/// silu(gate)·up.
pub fn forward(gate: &Tensor<2>, up: &Tensor<2>) -> Tensor<2> {
    let dtype = gate.dtype();
    let g = gate.clone().cast(DType::F32);
    (g.clone() * sigmoid(g)).cast(dtype) * up.clone()
}

/// Gradients of gate and up, and the product.
pub fn backward(dy: &Tensor<2>, gate: &Tensor<2>, up: &Tensor<2>, wanted: bool) -> Gradients {
    let dtype = gate.dtype();
    let product = wanted.then(|| forward(gate, up));
    let [dy, g, u] = [dy, gate, up].map(|x| x.clone().cast(DType::F32));
    let s = sigmoid(g.clone());
    let slope = s.clone() * (g.clone() * (1.0 - s.clone()) + 1.0);
    let dgate: Tensor<2> = dy.clone() * u * slope;
    Gradients {
        gate: dgate.cast(dtype),
        up: (dy * g * s).cast(dtype),
        product,
    }
}
