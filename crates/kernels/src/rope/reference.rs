//! [`rope`](super::rope) in plain tensors.

use backdraft_arch::RotaryPairs;
use burn::tensor::{DType, Tensor};

use super::RotaryTables;

/// Turns by `sign` times the tables' angles.
pub fn rotate(x: Tensor<2>, tables: &RotaryTables, sign: f32) -> Tensor<2> {
    let [t, width] = x.dims();
    let (d, turning, half) = (tables.head_dim, tables.rotary_dim(), tables.cos.dims()[1]);
    let heads = width / d;
    let dtype = x.dtype();
    let x = x.cast(DType::F32).reshape([t, heads, d]);
    let part = |range| x.clone().slice([0..t, 0..heads, range]);
    // The axis of a pair's two features comes first within a head, or last.
    let (pairs, axis, table) = match tables.pairs {
        RotaryPairs::Halves => ([t, heads, 2, half], 2, [t, 1, 1, half]),
        RotaryPairs::Neighbours => ([t, heads, half, 2], 3, [t, 1, half, 1]),
    };
    let lift = |values: &Tensor<2>| values.clone().reshape(table);
    let (cos, sin) = (lift(&tables.cos), lift(&tables.sin).mul_scalar(sign));
    let x_pairs = part(0..turning).reshape(pairs);
    let [first, second] = [0, 1].map(|side| x_pairs.clone().narrow(axis, side, 1));
    let turned_first = first.clone() * cos.clone() - second.clone() * sin.clone();
    let turned_second = second * cos + first * sin;
    let turned = Tensor::cat(vec![turned_first, turned_second], axis).reshape([t, heads, turning]);
    let all = match turning == d {
        true => turned,
        false => Tensor::cat(vec![turned, part(turning..d)], 2),
    };
    all.reshape([t, width]).cast(dtype)
}
