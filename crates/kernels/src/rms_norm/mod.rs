//! Root-mean-square normalisation.
//!
//! y = x · r · w with r = 1 / √(mean(x²) + ε), statistics in f32.
//!
//! # Source
//! Zhang and Sennrich 2019, arXiv:1910.07467; ε inside the root as Llama has it.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod reference;

use burn::backend::DispatchTensor;
use burn::tensor::Tensor;

use crate::autograd::{Vjp, attach, parent};
use crate::dispatch::on_device;

/// Normalised rows, and the reciprocal root mean square of each row for the backward pass.
///
/// # Shapes
/// `x` `[t, n]`, `weight` `[n]`; result `[t, n]` and `[t]`.
pub fn forward(x: &Tensor<2>, weight: &Tensor<1>, eps: f64) -> (Tensor<2>, Tensor<1>) {
    cpu::forward(x, weight, eps)
        .or_else(|| on_device!(cube::forward(x, weight, eps)))
        .unwrap_or_else(|| reference::forward(x, weight, eps))
}

/// Gradient of the input: dx = r·(dy∘w − x̂·mean(dy∘w∘x̂)) with x̂ = x·r.
///
/// # Shapes
/// `dy`, `x` and the result `[t, n]`; `weight` `[n]`; `rstd` `[t]`.
pub fn backward(dy: &Tensor<2>, x: &Tensor<2>, weight: &Tensor<1>, rstd: &Tensor<1>) -> Tensor<2> {
    cpu::backward(dy, x, weight, rstd)
        .or_else(|| on_device!(cube::backward(dy, x, weight, rstd, None).ok()))
        .unwrap_or_else(|| reference::backward(dy, x, weight, rstd))
}

/// [`backward`] added to what reaches the input past the norm. `sum` is written over where nothing else
/// holds it.
///
/// # Shapes
/// As [`backward`]; `sum` `[t, n]`.
pub fn backward_add(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    rstd: &Tensor<1>,
    sum: Tensor<2>,
) -> Tensor<2> {
    let fused: Result<_, Option<Tensor<2>>> =
        on_device!(cube::backward(dy, x, weight, rstd, Some(sum)), or Some(sum));
    fused.unwrap_or_else(|sum| {
        let dx = backward(dy, x, weight, rstd);
        match sum {
            Some(sum) => sum + dx,
            None => dx,
        }
    })
}

/// Gradient of the weight: Σₜ dy∘x̂.
///
/// # Shapes
/// As [`backward`]; result `[n]`.
pub fn backward_weight(dy: &Tensor<2>, x: &Tensor<2>, rstd: &Tensor<1>) -> Tensor<1> {
    reference::backward_weight(dy, x, rstd)
}

/// The differentiable form of [`forward`].
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f64) -> Tensor<2> {
    let parents = [parent(&x), parent(&weight)];
    let (x, weight) = (x.inner(), weight.inner());
    let (y, rstd) = forward(&x, &weight, eps);
    attach(y, parents, RmsNorm { x, weight, rstd })
}

#[derive(Clone, Debug)]
struct RmsNorm {
    x: Tensor<2>,
    weight: Tensor<1>,
    rstd: Tensor<1>,
}

impl Vjp<2> for RmsNorm {
    fn vjp(self, dy: DispatchTensor, [dx, dw]: [bool; 2]) -> [Option<DispatchTensor>; 2] {
        let dy = Tensor::from_dispatch(dy);
        [
            dx.then(|| backward(&dy, &self.x, &self.weight, &self.rstd).into_dispatch()),
            dw.then(|| backward_weight(&dy, &self.x, &self.rstd).into_dispatch()),
        ]
    }
}
