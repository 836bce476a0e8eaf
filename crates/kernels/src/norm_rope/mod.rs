//! Root-mean-square normalisation of each head, then its rotary position embedding: queries and keys of Qwen 3 and Gemma 3.
//! Or of all heads together: those of OLMo 2.
//!
//! Within each head, or within all that share a statistic, n = x·r∘w with r = 1 / √(mean(x²) + ε), and y = rope(n).
//! Statistics and the step between the two are in f32; nothing but x is needed for the backward pass. The kernels know pairs
//! of halves; what is paired with its neighbour goes by the reference.
//!
//! # Source
//! Henry et al. 2020, arXiv:2010.04245, with the norm of [`rms_norm`](crate::rms_norm); order as in Hugging Face's
//! Qwen 3 and OLMo 2.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod reference;

use backdraft_arch::NormScale;
use burn::backend::DispatchTensor;
use burn::tensor::Tensor;

use crate::autograd::{Vjp, attach, parent};
use crate::column_sums::column_sums;
use crate::dispatch::on_device;
use crate::rms_norm::Gain;
use crate::rope::RotaryTables;

/// Every head of every token, normed and turned. The length of `gain` says what is normed together: heads of d, or g heads
/// at a time.
///
/// # Shapes
/// `x` and the result `[t, h·d]` with heads of d features, `gain` `[g·d]`, the same for all groups of g heads.
pub fn forward<'a>(
    x: &Tensor<2>,
    gain: impl Into<Gain<'a>>,
    eps: f64,
    tables: &RotaryTables,
) -> Tensor<2> {
    let gain = gain.into();
    check(x, gain.weight, tables);
    cpu::forward(x, gain, eps, tables)
        .or_else(|| on_device!(cube::forward(x, gain, eps, tables)))
        .unwrap_or_else(|| reference::forward(x, gain, eps, tables))
}

/// Gradient of the input: with g = rope⁻¹(dy)∘w, dx = r·(g − x·r²·mean(g∘x)). `dy` is written over where nothing else
/// holds it.
///
/// # Shapes
/// As [`forward`]; `dy` `[t, h·d]`.
pub fn backward<'a>(
    dy: Tensor<2>,
    x: &Tensor<2>,
    gain: impl Into<Gain<'a>>,
    eps: f64,
    tables: &RotaryTables,
) -> Tensor<2> {
    let gain = gain.into();
    check(x, gain.weight, tables);
    cpu::backward(dy, x, gain, eps, tables)
        .or_else(|dy| on_device!(cube::backward(dy, x, gain, eps, tables), or dy))
        .unwrap_or_else(|dy| reference::backward(&dy, x, gain, eps, tables))
}

/// Gradient of the weight, of `normed` values, in f32: Σ over tokens and groups of rope⁻¹(dy)∘x·r.
///
/// # Shapes
/// As [`backward`]; result `[normed]`.
pub fn backward_weight(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    normed: usize,
    eps: f64,
    tables: &RotaryTables,
) -> Tensor<1> {
    cpu::backward_weight(dy, x, normed, eps, tables)
        .unwrap_or_else(|| column_sums(&reference::weight_terms(dy, x, normed, eps, tables)))
}

/// The differentiable form of [`forward`].
pub fn norm_rope(
    x: Tensor<2>,
    (weight, scale): (Tensor<1>, NormScale),
    eps: f64,
    tables: &RotaryTables,
) -> Tensor<2> {
    let parents = [parent(&x), parent(&weight)];
    let (x, weight) = (x.inner(), weight.inner());
    let gain = Gain {
        weight: &weight,
        scale,
    };
    let y = forward(&x, gain, eps, tables);
    let rule = NormRope {
        x,
        weight,
        scale,
        eps,
        tables: tables.clone(),
    };
    attach(y, parents, rule)
}

fn check(x: &Tensor<2>, weight: &Tensor<1>, tables: &RotaryTables) {
    let ([_, width], [normed]) = (x.dims(), weight.dims());
    let (d, turning) = (tables.head_dim, tables.rotary_dim());
    assert!(turning <= d, "{turning} features turn in heads of {d}");
    assert_eq!(
        normed % d,
        0,
        "a norm of {normed} features is none of heads of {d}"
    );
    assert_eq!(
        width % normed,
        0,
        "{width} features are no whole number of norms of {normed}"
    );
}

#[derive(Clone, Debug)]
struct NormRope {
    x: Tensor<2>,
    weight: Tensor<1>,
    scale: NormScale,
    eps: f64,
    tables: RotaryTables,
}

impl Vjp<2> for NormRope {
    fn vjp(self, dy: DispatchTensor, [dx, dw]: [bool; 2]) -> [Option<DispatchTensor>; 2] {
        let dy: Tensor<2> = Tensor::from_dispatch(dy);
        let normed = self.weight.dims()[0];
        let dw = dw.then(|| {
            let dw = backward_weight(&dy, &self.x, normed, self.eps, &self.tables);
            dw.cast(self.weight.dtype()).into_dispatch()
        });
        let gain = Gain {
            weight: &self.weight,
            scale: self.scale,
        };
        let dx = dx.then(|| backward(dy, &self.x, gain, self.eps, &self.tables).into_dispatch());
        [dx, dw]
    }
}
