//! Values on the host into codes: what a loader does to one tensor after the other.
//!
//! A tensor is cut, row-major, into blocks; the last may be shorter. A block keeps its largest
//! magnitude `absmax`, and for each value x the code nearest to x · (1/absmax), the lower of two
//! equally near values. Values must be finite.
//!
//! # Source
//! Dettmers et al. 2021, arXiv:2110.02861 (blocks), and 2023, arXiv:2305.14314 (NF4).

mod cells;
mod cpu;
pub mod reference;

pub(crate) use cpu::encode;

use crate::codebook::{DynamicMap, FourBitFormat, NestedFormat};

/// Packed codes, two to a byte with the first in the high half, and the `absmax` of each block.
///
/// # Shapes
/// `ceil(n / 2)` codes, `ceil(n / block_size)` scales.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackedBlocks {
    /// Codes.
    pub packed: Vec<u8>,
    /// Scales.
    pub absmax: Vec<f32>,
}

/// Codes of 8 bits and the `absmax` of each block.
///
/// # Shapes
/// `n` codes, `ceil(n / block_size)` scales.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ByteBlocks {
    /// Codes.
    pub codes: Vec<u8>,
    /// Scales.
    pub absmax: Vec<f32>,
}

/// 4-bit codes of `values`.
///
/// A tensor may be given in pieces: any but the last must be whole blocks.
///
/// # Panics
/// If `block_size` is odd or 0.
pub fn four_bit(values: &[f32], format: FourBitFormat, block_size: usize) -> PackedBlocks {
    assert!(
        block_size > 0 && block_size.is_multiple_of(2),
        "block size {block_size}"
    );
    cpu::four_bit(values, format, block_size)
}

/// Codes of 6 bits of `values`, a byte each: the cells that all nested formats are made of. The four highest of the six
/// bits are bitsandbytes' NF4 code, and scales are NF4's too.
///
/// A tensor may be given in pieces: any but the last must be whole blocks.
///
/// # Panics
/// If `block_size` is 0.
pub fn nested_codes(values: &[f32], block_size: usize) -> ByteBlocks {
    assert!(block_size > 0, "block size 0");
    cells::codes(values, block_size)
}

/// The arrays in which `format` keeps codes that [`nested_codes`] made: as many bits of each code as
/// [`NestedFormat::planes`] says, the first code in the highest bits of the first byte.
///
/// A tensor may be given in pieces: any but the last must be a multiple of 8.
///
/// # Shapes
/// `ceil(n · bits / 8)` bytes each.
pub fn planes(codes: &[u8], format: NestedFormat) -> [Vec<u8>; 2] {
    cells::planes(codes, format)
}

/// 8-bit codes of `values` from a dynamic map.
///
/// # Panics
/// If `block_size` is 0.
pub fn blockwise(values: &[f32], map: DynamicMap, block_size: usize) -> ByteBlocks {
    assert!(block_size > 0, "block size 0");
    cpu::blockwise(values, map, block_size)
}

/// Integers −127 to 127 for rows of `width` values, each in units of its row's `absmax` / 127.
///
/// # Shapes
/// `n` codes, `n / width` scales.
///
/// # Source
/// Dettmers et al. 2022, arXiv:2208.07339, without its treatment of outliers.
pub fn int8_rows(values: &[f32], width: usize) -> (Vec<i8>, Vec<f32>) {
    cpu::int8_rows(values, width)
}

/// Whether none of `values` is NaN or infinite.
pub fn all_finite(values: &[f32]) -> bool {
    cpu::all_finite(values)
}

/// Scales of 4-bit blocks, themselves quantised: (absmax − offset) in blocks of 256 with the signed map.
#[derive(Clone, Debug, PartialEq)]
pub struct NestedScales {
    /// Codes and scales of the centred absmax.
    pub blocks: ByteBlocks,
    /// Mean of the absmax.
    pub offset: f32,
}

/// Scales to one nested block.
pub const NESTED_BLOCK_SIZE: usize = 256;

/// Quantises `absmax` about its mean.
pub fn nested(absmax: &[f32]) -> NestedScales {
    let sum: f64 = absmax.iter().map(|&x| f64::from(x)).sum();
    nested_about(absmax, (sum / absmax.len().max(1) as f64) as f32)
}

/// Quantises `absmax` about a given offset.
pub fn nested_about(absmax: &[f32], offset: f32) -> NestedScales {
    let centred: Vec<f32> = absmax.iter().map(|x| x - offset).collect();
    NestedScales {
        blocks: blockwise(&centred, DynamicMap::Signed, NESTED_BLOCK_SIZE),
        offset,
    }
}

/// What values are multiplied by before their code is looked up; 0 for a block of zeros.
///
/// Below 2⁻¹²⁸ the reciprocal is infinite; such a block is scaled up first.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    reciprocal: f32,
    lift: f32,
}

impl Scale {
    #[inline(always)]
    pub(crate) fn of(absmax: f32) -> Self {
        const LIFT: f32 = 1.0e30;
        if absmax == 0.0 {
            Self {
                reciprocal: 0.0,
                lift: 1.0,
            }
        } else if absmax < 1.0e-37 {
            Self {
                reciprocal: 1.0 / (absmax * LIFT),
                lift: LIFT,
            }
        } else {
            Self {
                reciprocal: 1.0 / absmax,
                lift: 1.0,
            }
        }
    }

    #[inline(always)]
    pub(crate) fn apply(self, x: f32) -> f32 {
        x * self.lift * self.reciprocal
    }
}
