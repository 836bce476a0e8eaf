//! A projection with a weight-decomposed adapter: y = α·x·W′ᵀ, where the rows of W′ are those of W + s·B·A, each brought
//! to a trained length m: W′ = g ⊙ (W + s·B·A) with the gain g = m / n and n the rows' lengths.
//!
//! n is not differentiated, so that backwards g is a constant: LoRA's own backward pass takes g ⊙ dy in place of dy, and
//! dm = Σ dy ⊙ z / n over tokens, z being what LoRA gives before the gain. Under dropout x̃ takes the place of x in all that the
//! adapter adds, the change of length included: y = α·x·Wᵀ + (g − 1)·α·x̃·Wᵀ + g·s·(x̃·Aᵀ)·Bᵀ, which is what LoRA under
//! dropout gives times g, and (g − 1)·α·(x̃ − x)·Wᵀ.
//!
//! n² is a sum of three terms, none of which takes a matrix of W's size: ‖W‖², which never changes; 2s·Σ (W·Aᵀ) ∘ B, a product
//! with r columns as for r tokens; s²·Σ (B·(A·Aᵀ)) ∘ B. Making W + s·B·A takes as many operations, and W and a copy of its
//! size in memory, dequantised where it is in codes.
//!
//! # Source
//! Liu et al. 2024, arXiv:2402.09353; n is detached as in its section 4.3, and dropout is as in PEFT.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod reference;

use burn::tensor::{DType, Tensor};

use crate::dispatch::on_device;
use crate::dropout::Dropout;
use crate::frozen_matrix::FrozenMatrix;
use crate::gemm::{Op, gemm};
use crate::lora_linear::{Factors, lora_linear};

/// Less than any square of a row that counts: a row of zeros has the gain 0 / √this.
const LEAST_SQUARE: f32 = 1e-30;

/// n: the lengths of the rows of W + s·B·A, in f32. `squares` are the squared lengths of W's rows.
///
/// # Shapes
/// `squares` and the result `[out]`.
pub fn row_norms(weight: &impl FrozenMatrix, squares: &Tensor<1>, factors: &Factors) -> Tensor<1> {
    let there: Option<Tensor<1>> = on_device!(cube::row_norms(weight, squares, factors));
    there.unwrap_or_else(|| {
        let Factors { a, b, scaling, .. } = factors;
        let a_gram = gemm((Op::N, a), (Op::T, a), 1.0, None);
        let cross = weight.matmul_add(a, 2.0 * scaling, None);
        let (a_gram, b_rows) = ((Op::N, &a_gram), (Op::T, b));
        let all = gemm(a_gram, b_rows, scaling * scaling, Some(cross));
        let [_, out] = all.dims();
        let change = (all.cast(DType::F32) * b.clone().transpose().cast(DType::F32)).sum_dim(0);
        let squares = squares.clone() + change.reshape([out]);
        squares.clamp_min(LEAST_SQUARE).sqrt()
    })
}

/// `y` with each column times its gain, written over it where nothing else holds it.
///
/// # Shapes
/// `y` and the result `[t, out]`, `gain` `[out]`, f32.
pub fn scale_columns(y: Tensor<2>, gain: &Tensor<1>) -> Tensor<2> {
    cpu::scale_columns(y, gain)
        .or_else(|y| on_device!(cube::scale_columns(y, gain), or y))
        .unwrap_or_else(|y| reference::scale_columns(y, gain))
}

/// Σ a ∘ b over tokens, in f32.
///
/// # Shapes
/// `a` and `b` `[t, out]`, result `[out]`.
pub fn column_products(a: &Tensor<2>, b: &Tensor<2>) -> Tensor<1> {
    cpu::column_products(a, b)
        .or_else(|| on_device!(cube::column_products(a, b)))
        .unwrap_or_else(|| reference::column_products(a, b))
}

/// What dropout adds to the output of LoRA times the gain: (g − 1) ⊙ α·(x̃ − x)·Wᵀ.
///
/// # Shapes
/// `x` `[t, in]`, `gain` `[out]`, result `[t, out]`.
pub fn dropped(
    x: &Tensor<2>,
    (weight, alpha): (&impl FrozenMatrix, f32),
    gain: &Tensor<1>,
    dropout: Dropout,
) -> Tensor<2> {
    let difference = dropout.apply(x.clone()) - x.clone();
    let product = weight.matmul_add(&difference, alpha, None);
    scale_columns(product, &(gain.clone() - 1.0))
}

/// What dropout adds to the gradient of the input that LoRA has for g ⊙ dy: D(v) − v with v = α·((g − 1) ⊙ dy)·W and D the
/// mask.
///
/// # Shapes
/// `dy` `[t, out]`, `gain` `[out]`, result `[t, in]`.
pub fn dropped_backward(
    dy: Tensor<2>,
    (weight, alpha): (&impl FrozenMatrix, f32),
    gain: &Tensor<1>,
    dropout: Dropout,
) -> Tensor<2> {
    let dy = scale_columns(dy, &(gain.clone() - 1.0));
    let v = weight.matmul_transposed_add(&dy, alpha, None);
    dropout.apply(v.clone()) - v
}

/// The differentiable projection: the gain `magnitude` / `norms` on what LoRA gives, and what dropout adds. α is in the
/// factors' scaling too.
///
/// # Shapes
/// `x` `[t, in]`, `norms` and `magnitude` `[out]`, result `[t, out]`.
pub fn dora_linear<W: FrozenMatrix>(
    x: Tensor<2>,
    (weight, alpha): (W, f32),
    factors: Factors,
    norms: &Tensor<1>,
    magnitude: Tensor<1>,
) -> Tensor<2> {
    let gain = magnitude / norms.clone();
    let dropout = factors.dropout;
    let y = lora_linear(x.clone(), (weight.clone(), alpha), Some(factors));
    let y = reference::scale_columns(y, &gain);
    let Some(dropout) = dropout else {
        return y;
    };
    let ones = Tensor::ones(x.dims(), (&x.device().inner(), x.dtype()));
    let mask = dropout.apply(ones);
    let difference = x * (mask - 1.0);
    let product = lora_linear(difference, (weight, alpha), None);
    y + reference::scale_columns(product, &(gain - 1.0))
}
