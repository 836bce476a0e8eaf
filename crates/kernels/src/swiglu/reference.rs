//! [`swiglu`](super::swiglu) in plain tensors.

use backdraft_arch::Activation;
use burn::tensor::activation::sigmoid;
use burn::tensor::{DType, Tensor};

use super::Gradients;

/// act(gate)·up.
pub fn forward(gate: &Tensor<2>, up: &Tensor<2>, activation: Activation) -> Tensor<2> {
    let dtype = gate.dtype();
    let g = gate.clone().cast(DType::F32);
    (g.clone() * share(g, activation)).cast(dtype) * up.clone()
}

/// What the activation leaves of the gate.
fn share(g: Tensor<2>, activation: Activation) -> Tensor<2> {
    match activation {
        Activation::Silu => sigmoid(g),
        Activation::GeluTanh => (inner(g).tanh() + 1.0) * 0.5,
    }
}

/// √(2/π)·(g + 0.044715·g³).
fn inner(g: Tensor<2>) -> Tensor<2> {
    let cubed = g.clone() * g.clone().square();
    (g + cubed * 0.044_715) * std::f64::consts::FRAC_2_PI.sqrt()
}

/// Gradients of gate and up, and the product.
pub fn backward(
    dy: &Tensor<2>,
    gate: &Tensor<2>,
    up: &Tensor<2>,
    activation: Activation,
    wanted: bool,
) -> Gradients {
    let dtype = gate.dtype();
    let product = wanted.then(|| forward(gate, up, activation));
    let [dy, g, u] = [dy, gate, up].map(|x| x.clone().cast(DType::F32));
    let s = share(g.clone(), activation);
    let slope = match activation {
        Activation::Silu => s.clone() * (g.clone() * (1.0 - s.clone()) + 1.0),
        Activation::GeluTanh => {
            let steep = 1.0 - inner(g.clone()).tanh().square();
            let d_inner =
                (g.clone().square() * (3.0 * 0.044_715) + 1.0) * std::f64::consts::FRAC_2_PI.sqrt();
            s.clone() + g.clone() * steep * d_inner * 0.5
        }
    };
    let dgate: Tensor<2> = dy.clone() * u * slope;
    Gradients {
        gate: dgate.cast(dtype),
        up: (dy * g * s).cast(dtype),
        product,
    }
}
