//! Sums over tokens: what a bias gets.
//!
//! In f32, whatever the values are, and always in the same order.

mod cpu;
pub mod reference;

use burn::tensor::Tensor;

use crate::gemm::{Op, gemm_f32};

/// Σ of each column, in f32. Elsewhere than on the processor it is a product with ones, whose order does not depend on how
/// a sum was tuned.
///
/// # Shapes
/// `x` `[t, n]`, result `[n]`.
pub fn column_sums(x: &Tensor<2>) -> Tensor<1> {
    cpu::column_sums(x).unwrap_or_else(|| {
        let [t, n] = x.dims();
        let ones = Tensor::ones([1, t], (&x.device(), x.dtype()));
        gemm_f32((Op::N, &ones), (Op::N, x), 1.0).reshape([n])
    })
}
