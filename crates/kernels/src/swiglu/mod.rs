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
const GELU: [f32; 2] = [1.595_769, 0.044_715];

/// act(gate)·up.
///
/// # Shapes
/// All `[t, m]`.
pub fn forward(gate: &Tensor<2>, up: &Tensor<2>, activation: Activation) -> Tensor<2> {
    cpu::forward(gate, up, activation)
        .or_else(|| on_device!(cube::forward(gate, up, activation)))
        .unwrap_or_else(|| reference::forward(gate, up, activation))
}

/// What the backward pass gives.
///
/// # Shapes
/// All `[t, m]`.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// Of silu, dgate = dy·up·σ(1 + g(1 − σ)).
    pub gate: Tensor<2>,
    /// Of silu, dup = dy·g·σ.
    pub up: Tensor<2>,
    /// act(gate)·up once more, bit for bit that of the forward pass, where it was asked for: it need not be
    /// kept for the gradients of what reads it.
    pub product: Option<Tensor<2>>,
}

/// Gradients of gate and up, and their product if it is `wanted`. They take the places of gate, up and dy where nobody
/// else holds those.
///
/// # Shapes
/// All `[t, m]`.
pub fn backward(
    dy: Tensor<2>,
    gate: Tensor<2>,
    up: Tensor<2>,
    activation: Activation,
    wanted: bool,
) -> Gradients {
    cpu::backward(dy, gate, up, activation, wanted)
        .or_else(|(dy, gate, up)| {
            on_device!(
                cube::backward(dy, gate, up, activation, wanted),
                or(dy, gate, up)
            )
        })
        .unwrap_or_else(|(dy, gate, up)| reference::backward(&dy, &gate, &up, activation, wanted))
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
    wanted: bool,
) -> Gradients {
    on_cuda!(
        cuda::backward(dy, gate, up, activation, wanted),
        or(dy, gate, up)
    )
    .unwrap_or_else(|(dy, gate, up)| backward(dy.complete(), gate, up, activation, wanted))
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
        let d = backward(
            Tensor::from_dispatch(dy),
            self.gate,
            self.up,
            self.activation,
            false,
        );
        [Some(d.gate.into_dispatch()), Some(d.up.into_dispatch())]
    }
}
