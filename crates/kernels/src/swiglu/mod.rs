//! The gated activation of the MLP: y = silu(gate)·up with silu(g) = g·σ(g).
//!
//! # Source
//! Shazeer 2020, arXiv:2002.05202.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "cuda")]
mod cuda;
pub mod reference;

use burn::backend::DispatchTensor;
use burn::tensor::Tensor;

use crate::autograd::{Vjp, attach, parent};
use crate::dispatch::{on_cuda, on_device};
use crate::low_rank::Adapted;

/// silu(gate)·up.
///
/// # Shapes
/// All `[t, m]`.
pub fn forward(gate: &Tensor<2>, up: &Tensor<2>) -> Tensor<2> {
    cpu::forward(gate, up)
        .or_else(|| on_device!(cube::forward(gate, up)))
        .unwrap_or_else(|| reference::forward(gate, up))
}

/// Gradients of gate and up: dgate = dy·up·σ(1 + g(1 − σ)), dup = dy·g·σ. They take the place of gate and up
/// where nobody else holds those and the kernel can.
///
/// # Shapes
/// All `[t, m]`.
pub fn backward(dy: &Tensor<2>, gate: Tensor<2>, up: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    cpu::backward(dy, gate, up).unwrap_or_else(|(gate, up)| {
        on_device!(cube::backward(dy, &gate, &up))
            .unwrap_or_else(|| reference::backward(dy, &gate, &up))
    })
}

/// Gate and up with their terms, and [`forward`] of them, in one pass where there is a kernel for it.
///
/// # Shapes
/// All `[t, m]`.
pub fn forward_adapted(gate: Adapted, up: Adapted) -> [Tensor<2>; 3] {
    on_cuda!(cuda::forward(gate, up), or(gate, up)).unwrap_or_else(|(gate, up)| {
        let (gate, up) = (gate.complete(), up.complete());
        let product = forward(&gate, &up);
        [gate, up, product]
    })
}

/// [`backward`] of a gradient whose term may still have to be added.
///
/// # Shapes
/// As [`backward`].
pub fn backward_adapted(dy: Adapted, gate: Tensor<2>, up: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    #[cfg(feature = "cuda")]
    if let Some(term) = &dy.term
        && let Some(gradients) = cuda::backward(&dy.base, term, &gate, &up)
    {
        return gradients;
    }
    backward(&dy.complete(), gate, up)
}

/// The differentiable form of [`forward`].
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    let parents = [parent(&gate), parent(&up)];
    let (gate, up) = (gate.inner(), up.inner());
    attach(forward(&gate, &up), parents, SwiGlu { gate, up })
}

#[derive(Clone, Debug)]
struct SwiGlu {
    gate: Tensor<2>,
    up: Tensor<2>,
}

impl Vjp<2> for SwiGlu {
    fn vjp(self, dy: DispatchTensor, _: [bool; 2]) -> [Option<DispatchTensor>; 2] {
        let (dgate, dup) = backward(&Tensor::from_dispatch(dy), self.gate, self.up);
        [Some(dgate.into_dispatch()), Some(dup.into_dispatch())]
    }
}
