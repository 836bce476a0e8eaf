//! [`column_sums`](super::column_sums) in plain tensors.

use burn::tensor::{DType, Tensor};

/// Σ of each column.
pub fn column_sums(x: &Tensor<2>) -> Tensor<1> {
    let [_, n] = x.dims();
    x.clone().cast(DType::F32).sum_dim(0).reshape([n])
}
