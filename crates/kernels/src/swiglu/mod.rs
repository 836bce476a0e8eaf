//! The gated activation of the MLP: y = silu(gate)·up with silu(g) = g·σ(g), or with another [`Activation`].
//!
//! GELU's form with tanh is of the same kind, because ½(1 + tanh(z)) = σ(2z): both are g·σ(z(g)), and their derivative is
//! σ·(1 + g·(1 − σ)·z′).
//!
//! # Source
//! Shazeer 2020, arXiv:2002.05202; Hendrycks and Gimpel 2016, arXiv:1606.08415 (the form with tanh).

mod cpu;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "cuda")]
mod cuda;
pub mod reference;

use backdraft_arch::Activation;
use burn::backend::DispatchTensor;
use burn::tensor::Tensor;

use crate::autograd::{Vjp, attach, parent};
use crate::dispatch::{on_cuda, on_device};
use crate::low_rank::Adapted;

/// z(g) = √(2/π)·2·(g + 0.044715·g³), of [`Activation::GeluTanh`].
const GELU: [f32; 2] = [1.595_769_1, 0.044_715];

/// act(gate)·up.
///
/// # Shapes
/// All `[t, m]`.
pub fn forward(gate: &Tensor<2>, up: &Tensor<2>, activation: Activation) -> Tensor<2> {
    cpu::forward(gate, up, activation)
        .or_else(|| on_device!(cube::forward(gate, up, activation)))
        .unwrap_or_else(|| reference::forward(gate, up, activation))
}

/// Gradients of gate and up: of silu, dgate = dy·up·σ(1 + g(1 − σ)), dup = dy·g·σ. They take the place of gate and up
/// where nobody else holds those and the kernel can.
///
/// # Shapes
/// All `[t, m]`.
pub fn backward(
    dy: &Tensor<2>,
    gate: Tensor<2>,
    up: Tensor<2>,
    activation: Activation,
) -> (Tensor<2>, Tensor<2>) {
    cpu::backward(dy, gate, up, activation).unwrap_or_else(|(gate, up)| {
        on_device!(cube::backward(dy, &gate, &up, activation))
            .unwrap_or_else(|| reference::backward(dy, &gate, &up, activation))
    })
}

/// Gate and up with their terms, and [`forward`] of them, in one pass where there is a kernel for it.
///
/// # Shapes
/// All `[t, m]`.
pub fn forward_adapted(gate: Adapted, up: Adapted, activation: Activation) -> [Tensor<2>; 3] {
    on_cuda!(cuda::forward(gate, up, activation), or(gate, up)).unwrap_or_else(|(gate, up)| {
        let (gate, up) = (gate.complete(), up.complete());
        let product = forward(&gate, &up, activation);
        [gate, up, product]
    })
}

/// [`backward`] of a gradient whose term may still have to be added.
///
/// # Shapes
/// As [`backward`].
pub fn backward_adapted(
    dy: Adapted,
    gate: Tensor<2>,
    up: Tensor<2>,
    activation: Activation,
) -> (Tensor<2>, Tensor<2>) {
    #[cfg(feature = "cuda")]
    if let Some(term) = &dy.term
        && let Some(gradients) = cuda::backward(&dy.base, term, &gate, &up, activation)
    {
        return gradients;
    }
    backward(&dy.complete(), gate, up, activation)
}

/// The differentiable form of [`forward`].
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>, activation: Activation) -> Tensor<2> {
    let parents = [parent(&gate), parent(&up)];
    let (gate, up) = (gate.inner(), up.inner());
    let y = forward(&gate, &up, activation);
    let rule = SwiGlu {
        gate,
        up,
        activation,
    };
    attach(y, parents, rule)
}

#[derive(Clone, Debug)]
struct SwiGlu {
    gate: Tensor<2>,
    up: Tensor<2>,
    activation: Activation,
}

impl Vjp<2> for SwiGlu {
    fn vjp(self, dy: DispatchTensor, _: [bool; 2]) -> [Option<DispatchTensor>; 2] {
        let dy = Tensor::from_dispatch(dy);
        let (dgate, dup) = backward(&dy, self.gate, self.up, self.activation);
        [Some(dgate.into_dispatch()), Some(dup.into_dispatch())]
    }
}
