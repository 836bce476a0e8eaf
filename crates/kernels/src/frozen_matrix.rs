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
    fn matmul(&self, x: &Tensor<2>) -> Tensor<2> {
        self.matmul_add(x, 1.0, None)
    }

    /// `alpha · x · Wᵀ`, and `sum` where there is one.
    ///
    /// # Shapes
    /// As [`matmul`](Self::matmul).
    fn matmul_add(&self, x: &Tensor<2>, alpha: f32, sum: Option<&Tensor<2>>) -> Tensor<2>;

    /// `dy · W`.
    ///
    /// # Shapes
    /// `dy` `[t, out]`, result `[t, in]`.
    fn matmul_transposed(&self, dy: &Tensor<2>) -> Tensor<2> {
        self.matmul_transposed_add(dy, 1.0, None)
    }

    /// `alpha · dy · W`, added to `sum` where there is one, which is written over, or a copy of it where something else
    /// holds it.
    ///
    /// # Shapes
    /// As [`matmul_transposed`](Self::matmul_transposed).
    fn matmul_transposed_add(
        &self,
        dy: &Tensor<2>,
        alpha: f32,
        sum: Option<Tensor<2>>,
    ) -> Tensor<2>;
}

impl FrozenMatrix for Tensor<2> {
    fn matmul_add(&self, x: &Tensor<2>, alpha: f32, sum: Option<&Tensor<2>>) -> Tensor<2> {
        gemm::project(x, self, alpha, sum)
    }

    fn matmul_transposed_add(
        &self,
        dy: &Tensor<2>,
        alpha: f32,
        sum: Option<Tensor<2>>,
    ) -> Tensor<2> {
        gemm((Op::N, dy), (Op::N, self), alpha, sum)
    }
}
