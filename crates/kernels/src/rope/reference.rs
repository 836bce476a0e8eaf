//! [`rope`](super::rope) in plain tensors.

use burn::tensor::{DType, Tensor};

use super::RotaryTables;

/// Turns by `sign` times the tables' angles.
pub fn rotate(x: Tensor<2>, tables: &RotaryTables, sign: f32) -> Tensor<2> {
    let [t, width] = x.dims();
    let half = tables.cos.dims()[1];
    let heads = width / (2 * half);
    let dtype = x.dtype();
    let x = x.cast(DType::F32).reshape([t, heads, 2, half]);
    let lift = |table: &Tensor<2>| table.clone().reshape([t, 1, 1, half]);
    let (cos, sin) = (lift(&tables.cos), lift(&tables.sin).mul_scalar(sign));
    let first = x.clone().slice([0..t, 0..heads, 0..1, 0..half]);
    let second = x.slice([0..t, 0..heads, 1..2, 0..half]);
    let turned_first = first.clone() * cos.clone() - second.clone() * sin.clone();
    let turned_second = second * cos + first * sin;
    Tensor::cat(vec![turned_first, turned_second], 2)
        .reshape([t, width])
        .cast(dtype)
}
