//! Matrices kept in 4-bit codes: their values.

#[cfg(feature = "cube")]
mod cube;

use burn::tensor::{DType, Int, Tensor};

use crate::dispatch::on_device;

/// The scales of blocks of codes.
#[derive(Clone, Copy, Debug)]
pub enum Scales<'a> {
    /// As f32, `[blocks]`.
    Single(&'a Tensor<1>),
    /// `map[code]·scale + offset`.
    Double {
        /// `[blocks]` u8.
        codes: &'a Tensor<1, Int>,
        /// `[ceil(blocks / 256)]` f32.
        scales: &'a Tensor<1>,
        /// What the codes stand for.
        map: &'a [f32; 256],
        /// Added to each.
        offset: f32,
    },
}

/// Values of `packed`, two codes to a byte with the first in the high half, in blocks of `block_size` over
/// the row-major matrix; `None` where no device kernel applies.
///
/// # Shapes
/// `packed` `[ceil(out·in / 2)]` u8, result `dims`.
pub fn on_device(
    packed: &Tensor<1, Int>,
    scales: Scales<'_>,
    code: &[f32; 16],
    block_size: usize,
    dims: [usize; 2],
    dtype: DType,
) -> Option<Tensor<2>> {
    on_device!(cube::dequantize(
        packed, scales, code, block_size, dims, dtype
    ))
}
