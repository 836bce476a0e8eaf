//! A frozen weight, however it is stored.

use std::fmt::Debug;

use burn::tensor::Tensor;

use crate::gemm::{self, Op, gemm};

/// A frozen weight, however it is stored.
pub trait FrozenMatrix: Clone + Debug + Send + 'static {
    /// `x · Wᵀ`.
    ///
    /// # Shapes
    /// `x` `[t, in]`, result `[t, out]`.
    fn matmul(&self, x: &Tensor<2>) -> Tensor<2>;

    /// `x · Wᵀ`, and `sum` where there is one.
    ///
    /// # Shapes
    /// As [`matmul`](Self::matmul).
    fn matmul_add(&self, x: &Tensor<2>, sum: Option<&Tensor<2>>) -> Tensor<2> {
        let product = self.matmul(x);
        match sum {
            Some(sum) => sum.clone() + product,
            None => product,
        }
    }

    /// `dy · W`.
    ///
    /// # Shapes
    /// `dy` `[t, out]`, result `[t, in]`.
    fn matmul_transposed(&self, dy: &Tensor<2>) -> Tensor<2>;

    /// `dy · W`, added to `sum` where there is one, which is written over, or a copy of it where something else holds
    /// it.
    ///
    /// # Shapes
    /// As [`matmul_transposed`](Self::matmul_transposed).
    fn matmul_transposed_add(&self, dy: &Tensor<2>, sum: Option<Tensor<2>>) -> Tensor<2> {
        let product = self.matmul_transposed(dy);
        match sum {
            Some(sum) => sum + product,
            None => product,
        }
    }
}

impl FrozenMatrix for Tensor<2> {
    fn matmul(&self, x: &Tensor<2>) -> Tensor<2> {
        gemm::nt(x, self)
    }

    fn matmul_transposed(&self, dy: &Tensor<2>) -> Tensor<2> {
        gemm::nn(dy, self)
    }

    fn matmul_add(&self, x: &Tensor<2>, sum: Option<&Tensor<2>>) -> Tensor<2> {
        gemm::project(x, self, sum)
    }

    fn matmul_transposed_add(&self, dy: &Tensor<2>, sum: Option<Tensor<2>>) -> Tensor<2> {
        gemm((Op::N, dy), (Op::N, self), 1.0, sum)
    }
}
