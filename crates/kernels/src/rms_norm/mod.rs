//! Root-mean-square normalisation.
//!
//! y = x · r · w with r = 1 / √(mean(x²) + ε), statistics in f32; in some families 1 + w is in the place of w ([`Gain`]).
//!
//! # Source
//! Zhang and Sennrich 2019, arXiv:1910.07467; ε inside the root as Llama has it.

pub(crate) mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
pub mod reference;

use backdraft_arch::NormScale;
use burn::backend::DispatchTensor;
use burn::tensor::Tensor;

use crate::autograd::{Vjp, attach, parent};
use crate::column_sums::column_sums;
use crate::dispatch::on_device;

/// What normalised rows are multiplied by; a weight alone is the usual.
#[derive(Clone, Copy, Debug)]
pub struct Gain<'a> {
    /// `[n]`.
    pub weight: &'a Tensor<1>,
    /// The weight itself, or one more.
    pub scale: NormScale,
}

impl<'a> From<&'a Tensor<1>> for Gain<'a> {
    fn from(weight: &'a Tensor<1>) -> Self {
        let scale = NormScale::Weight;
        Self { weight, scale }
    }
}

/// Normalised rows, and the reciprocal root mean square of each row for the backward pass.
///
/// # Shapes
/// `x` `[t, n]`, `gain` `[n]`; result `[t, n]` and `[t]`.
pub fn forward<'a>(x: &Tensor<2>, gain: impl Into<Gain<'a>>, eps: f64) -> (Tensor<2>, Tensor<1>) {
    let gain = gain.into();
    cpu::forward(x, gain, eps)
        .or_else(|| on_device!(cube::forward(x, gain, eps)))
        .unwrap_or_else(|| reference::forward(x, gain, eps))
}

/// Gradient of the input: dx = r·(dy∘w − x̂·mean(dy∘w∘x̂)) with x̂ = x·r.
///
/// # Shapes
/// `dy`, `x` and the result `[t, n]`; `gain` `[n]`; `rstd` `[t]`.
pub fn backward<'a>(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    gain: impl Into<Gain<'a>>,
    rstd: &Tensor<1>,
) -> Tensor<2> {
    let gain = gain.into();
    cpu::backward(dy, x, gain, rstd)
        .or_else(|| on_device!(cube::backward(dy, x, gain, rstd, None).ok()))
        .unwrap_or_else(|| reference::backward(dy, x, gain, rstd))
}

/// [`backward`] added to what reaches the input past the norm. `sum` is written over where nothing else
/// holds it.
///
/// # Shapes
/// As [`backward`]; `sum` `[t, n]`.
pub fn backward_add<'a>(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    gain: impl Into<Gain<'a>>,
    rstd: &Tensor<1>,
    sum: Tensor<2>,
) -> Tensor<2> {
    let gain = gain.into();
    let fused: Result<_, Option<Tensor<2>>> =
        on_device!(cube::backward(dy, x, gain, rstd, Some(sum)), or Some(sum));
    fused.unwrap_or_else(|sum| {
        let dx = backward(dy, x, gain, rstd);
        match sum {
            Some(sum) => sum + dx,
            None => dx,
        }
    })
}

/// Gradient of the weight, whatever its scale, in f32: Σₜ dy∘x̂.
///
/// # Shapes
/// As [`backward`]; result `[n]`.
pub fn backward_weight(dy: &Tensor<2>, x: &Tensor<2>, rstd: &Tensor<1>) -> Tensor<1> {
    cpu::backward_weight(dy, x, rstd)
        .unwrap_or_else(|| column_sums(&reference::weight_terms(dy, x, rstd)))
}

/// The differentiable form of [`forward`].
pub fn rms_norm(x: Tensor<2>, (weight, scale): (Tensor<1>, NormScale), eps: f64) -> Tensor<2> {
    let parents = [parent(&x), parent(&weight)];
    let (x, weight) = (x.inner(), weight.inner());
    let gain = Gain {
        weight: &weight,
        scale,
    };
    let (y, rstd) = forward(&x, gain, eps);
    let rule = RmsNorm {
        x,
        weight,
        scale,
        rstd,
    };
    attach(y, parents, rule)
}

#[derive(Clone, Debug)]
struct RmsNorm {
    x: Tensor<2>,
    weight: Tensor<1>,
    scale: NormScale,
    rstd: Tensor<1>,
}

impl Vjp<2> for RmsNorm {
    fn vjp(self, dy: DispatchTensor, [dx, dw]: [bool; 2]) -> [Option<DispatchTensor>; 2] {
        let dy = Tensor::from_dispatch(dy);
        let gain = Gain {
            weight: &self.weight,
            scale: self.scale,
        };
        [
            dx.then(|| backward(&dy, &self.x, gain, &self.rstd).into_dispatch()),
            dw.then(|| {
                let dw = backward_weight(&dy, &self.x, &self.rstd);
                dw.cast(self.weight.dtype()).into_dispatch()
            }),
        ]
    }
}
