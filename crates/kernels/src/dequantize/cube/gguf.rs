//! Blocks of GGUF files to values, one pass.
//!
//! Blocks are bytes without padding, so that all but a few types begin in the middle of words. A unit unpacks eight
//! values, which lie in one sub-block: their codes are in eight neighbouring bytes, a nibble or a whole byte each.

use backdraft_arch::GgufBlock;
use burn::tensor::{DType, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::{codes, words};
use crate::cube::{argument, elem, elementwise, empty, indices, len, tensor};
use crate::dequantize::GgufBlocks;

/// Values that a unit unpacks together: a divisor of every sub-block.
pub(super) const VALUES: usize = 8;

/// Vectors of a unit: enough to have several loads under way.
const VECTORS: usize = 4;

/// The values in `dtype`; `None` elsewhere than on a CubeCL device.
///
/// # Shapes
/// `[out, in]`.
pub(in super::super) fn dequantize(matrix: &GgufBlocks, dtype: DType) -> Option<Tensor<2>> {
    let bytes = codes(&matrix.bytes, DType::U8)?;
    let out = empty(&bytes, matrix.dims, dtype);
    if len(&out) > 0 {
        let (count, dim) = elementwise((len(&out) / VALUES).div_ceil(VECTORS));
        #[expect(unsafe_code, reason = "a kernel without bounds checks")]
        // SAFETY: rows are whole blocks, all of which are there, and the kernel does not go beyond the output.
        unsafe {
            kernel::launch_unchecked(
                &out.client,
                count,
                dim,
                VALUES,
                words(&bytes, 1),
                argument(&out, VALUES),
                matrix.kind,
                elem(dtype),
            );
        }
    }
    Some(tensor(out))
}

/// Some rows in f32; `None` elsewhere than on a CubeCL device. All of `rows` must be below `out`.
pub(in super::super) fn rows(matrix: &GgufBlocks, rows: &[u32]) -> Option<Tensor<2>> {
    let bytes = codes(&matrix.bytes, DType::U8)?;
    let width = matrix.dims[1];
    let out = empty(&bytes, [rows.len(), width], DType::F32);
    if len(&out) > 0 {
        let (count, dim) = elementwise(len(&out) / VALUES);
        #[expect(unsafe_code, reason = "a kernel without bounds checks")]
        // SAFETY: rows are rows of the matrix, as the caller checked; the kernel does not go beyond the output.
        unsafe {
            rows_kernel::launch_unchecked(
                &out.client,
                count,
                dim,
                VALUES,
                words(&bytes, 1),
                indices(&out.client, rows),
                argument(&out, VALUES),
                (width / VALUES) as u32,
                matrix.kind,
            );
        }
    }
    Some(tensor(out))
}

/// A unit unpacks vectors that lie a cube apart.
#[cube(launch_unchecked)]
fn kernel<F: Float, N: Size>(
    bytes: &[u32],
    out: &mut [Vector<F, N>],
    #[comptime] kind: GgufBlock,
    #[define(F)] _dtype: ElemType,
) {
    let start = CUBE_POS * CUBE_DIM as usize * VECTORS + UNIT_POS as usize;
    #[unroll]
    for k in 0..VECTORS {
        let at = start + k * CUBE_DIM as usize;
        if at < out.len() {
            out[at] = Vector::<F, N>::cast_from(eight::<N>(bytes, at * VALUES, kind));
        }
    }
}

/// A unit has one vector; `width` is vectors of a row.
#[cube(launch_unchecked)]
fn rows_kernel<N: Size>(
    bytes: &[u32],
    rows: &[u32],
    out: &mut [Vector<f32, N>],
    width: u32,
    #[comptime] kind: GgufBlock,
) {
    let i = ABSOLUTE_POS;
    if i < out.len() {
        let width = width as usize;
        let at = rows[i / width] as usize * width + i % width;
        out[i] = eight::<N>(bytes, at * VALUES, kind);
    }
}

/// Eight values from number `first` on, a multiple of eight.
#[cube]
pub(super) fn eight<N: Size>(
    bytes: &[u32],
    first: usize,
    #[comptime] kind: GgufBlock,
) -> Vector<f32, N> {
    let block = first / comptime!(kind.values()) * comptime!(kind.bytes());
    let within = first % comptime!(kind.values());
    let d = half(bytes, block + comptime!(kind.halves()[0]));
    // Where the codes' low bits are, how far to shift them, and their other bits: a word that is shifted for each value
    // (types of 5 bits), or a byte for each value in two words.
    let mut at = block;
    let mut shift = 0u32;
    let mut more = 0u32;
    let mut high = 0usize;
    let mut scale = d;
    let mut minimum = 0.0f32;
    if comptime!(kind == GgufBlock::Q8_0) {
        at += 2 + within;
    } else if comptime!(kind == GgufBlock::Q6_K) {
        let (half_of, quarter, l) = (within / 128, within / 32 % 4, within % 32);
        at += half_of * 64 + quarter % 2 * 32 + l;
        shift = (quarter / 2 * 4) as u32;
        high = block + 128 + half_of * 32 + l;
        more = (quarter * 2) as u32;
        scale = d * signed(byte(bytes, block + 192 + within / 16));
    } else if comptime!(kind == GgufBlock::Q4_K || kind == GgufBlock::Q5_K) {
        let (j, l) = (within / 32, within % 32);
        let dmin = half(bytes, block + 2);
        scale = d * f32::cast_from(sub_scale(bytes, block + 4, j));
        minimum = -(dmin * f32::cast_from(sub_minimum(bytes, block + 4, j)));
        // Behind scales, and fifth bits where there are any.
        at += comptime!(kind.bytes() - 128) + j / 2 * 32 + l;
        shift = (j % 2 * 4) as u32;
        high = block + 16 + l;
        more = j as u32;
    } else {
        // The first half of the values has low nibbles, the other the high ones of the same bytes.
        at += comptime!(kind.bytes() - 16) + within % 16;
        shift = (within / 16 * 4) as u32;
        if comptime!(kind.halves().len() == 2) {
            minimum = half(bytes, block + 2);
        }
        if comptime!(kind == GgufBlock::Q5_0 || kind == GgufBlock::Q5_1) {
            let bits = word(bytes, block + comptime!(kind.bytes() - 20), kind);
            more = bits >> within as u32;
        }
    }
    let mut vector = Vector::<f32, N>::empty();
    #[unroll]
    for w in 0..2usize {
        let low = word(bytes, at + 4 * w, kind);
        let mut rest = 0u32;
        if comptime!(kind == GgufBlock::Q6_K || kind == GgufBlock::Q5_K) {
            rest = word(bytes, high + 4 * w, kind) >> more;
        }
        #[unroll]
        for i in 0..4usize {
            let part = low >> (shift + comptime!(8 * i as u32));
            let value = if comptime!(kind == GgufBlock::Q8_0) {
                signed(part & 255u32)
            } else {
                let mut code = part & 15u32;
                if comptime!(kind == GgufBlock::Q6_K) {
                    code |= ((rest >> comptime!(8 * i as u32)) & 3u32) << 4u32;
                } else if comptime!(kind == GgufBlock::Q5_K) {
                    code |= ((rest >> comptime!(8 * i as u32)) & 1u32) << 4u32;
                } else if comptime!(kind == GgufBlock::Q5_0 || kind == GgufBlock::Q5_1) {
                    code |= ((more >> comptime!((4 * w + i) as u32)) & 1u32) << 4u32;
                }
                f32::cast_from(code) - comptime!(f32::from(kind.offset()))
            };
            vector.insert(comptime!(4 * w + i), value * scale + minimum);
        }
    }
    vector
}

/// The scale of sub-block `j`, 6 bits of the 12 bytes from `at` on.
#[cube]
fn sub_scale(bytes: &[u32], at: usize, j: usize) -> u32 {
    let low = byte(bytes, at + j) & 63u32;
    // Beyond the fourth: low bits beside a minimum's, the others above an earlier scale.
    let other = (byte(bytes, at + j + 4) & 15u32) | ((byte(bytes, at + j % 4) >> 6u32) << 4u32);
    select(j < 4, low, other)
}

/// The minimum of sub-block `j`.
#[cube]
fn sub_minimum(bytes: &[u32], at: usize, j: usize) -> u32 {
    let later = byte(bytes, at + j + 4);
    let other = (later >> 4u32) | ((byte(bytes, at + j) >> 6u32) << 4u32);
    select(j < 4, later & 63u32, other)
}

/// A byte as a number with a sign.
#[cube]
fn signed(byte: u32) -> f32 {
    let value = f32::cast_from(byte);
    select(byte > 127u32, value - 256.0f32, value)
}

#[cube]
fn byte(bytes: &[u32], at: usize) -> u32 {
    let shift = (at % 4 * 8) as u32;
    (bytes[at / 4] >> shift) & 255u32
}

/// Four bytes from an even place on; from a whole word where all places of a type are.
#[cube]
fn word(bytes: &[u32], at: usize, #[comptime] kind: GgufBlock) -> u32 {
    if comptime!(kind.bytes().is_multiple_of(4)) {
        bytes[at / 4]
    } else {
        let odd = at / 2 % 2;
        // The same word again where the place is even: there may be none behind it.
        let (first, second) = (bytes[at / 4], bytes[at / 4 + odd]);
        select(odd == 1, (first >> 16u32) | (second << 16u32), first)
    }
}

/// The number in half precision at an even place.
#[cube]
fn half(bytes: &[u32], at: usize) -> f32 {
    let shift = (at % 4 * 8) as u32;
    let bits = (bytes[at / 4] >> shift) & 65535u32;
    let (exponent, mantissa) = ((bits >> 10u32) & 31u32, bits & 1023u32);
    // The bias is 112 higher in f32; infinity and NaN keep all ones.
    let raised = select(exponent == 31u32, 255u32, exponent + 112u32);
    let normal = f32::from_bits((raised << 23u32) | (mantissa << 13u32));
    // Without the leading one in units of 2⁻²⁴.
    let small = f32::cast_from(mantissa) * 5.960_464_5e-8f32;
    let magnitude = select(exponent == 0u32, small, normal);
    select(bits > 32767u32, -magnitude, magnitude)
}
