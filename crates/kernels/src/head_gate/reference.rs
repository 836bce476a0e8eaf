//! [`head_gate`](super) in plain tensors; all but [`backward`] are differentiable.

use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid;

/// Query and gate apart.
pub fn split(x: &Tensor<2>, head_dim: usize) -> [Tensor<2>; 2] {
    let [t, width] = x.dims();
    let pairs: Tensor<3> = x.clone().reshape([t, width / head_dim, head_dim]);
    let heads = width / (2 * head_dim);
    let pairs: Tensor<4> = pairs.reshape([t, heads, 2, head_dim]);
    [0, 1].map(|side| {
        let side = pairs.clone().narrow(2, side, 1);
        side.reshape([t, heads * head_dim])
    })
}

/// The two in one.
pub fn join(sides: [&Tensor<2>; 2], head_dim: usize) -> Tensor<2> {
    let [t, width] = sides[0].dims();
    let shape = [t, width / head_dim, 1, head_dim];
    let sides: [Tensor<4>; 2] = sides.map(|side| side.clone().reshape(shape));
    Tensor::cat(sides.to_vec(), 2).reshape([t, 2 * width])
}

/// o·σ(g).
pub fn forward(out: &Tensor<2>, gate: &Tensor<2>) -> Tensor<2> {
    out.clone() * sigmoid(gate.clone())
}

/// Gradients of both.
pub fn backward(dy: &Tensor<2>, out: &Tensor<2>, gate: &Tensor<2>) -> [Tensor<2>; 2] {
    let s = sigmoid(gate.clone());
    let d_out = dy.clone() * s.clone();
    let d_gate = d_out.clone() * out.clone() * (s.neg() + 1.0);
    [d_out, d_gate]
}
