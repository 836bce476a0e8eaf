//! Codes in blocks to values, one pass.

use burn::tensor::{DType, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::{codes, table, words};
use crate::codebook::DynamicMap;
use crate::cube::{CubeTensor, argument, elem, elementwise, empty, floats, indices, len, tensor};
use crate::dequantize::{Absmax, BlockFormat, Blocks};

/// Codes that are taken together: a word of four bits each.
pub(super) const CODES: usize = 8;

/// Groups of codes that a unit expands: enough to have several loads under way.
const GROUPS: usize = 4;

/// Codes of scales that share a scale.
const NESTED_BLOCK: usize = crate::quantize::NESTED_BLOCK_SIZE;

/// Bits of a code in each of its arrays, known when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Planes {
    pub(super) high: usize,
    /// 0 where there is one array.
    pub(super) low: usize,
}

impl Planes {
    /// Values that codes stand for.
    pub(super) fn values(self) -> usize {
        1 << (self.high + self.low)
    }
}

/// The values in `dtype`; `None` elsewhere than on a CubeCL device and for blocks that are no multiple of 8.
///
/// # Shapes
/// `[out, in]`.
pub(in super::super) fn dequantize<F: BlockFormat>(
    matrix: &Blocks<F>,
    dtype: DType,
) -> Option<Tensor<2>> {
    let (block_size, dims) = (matrix.block_size, matrix.dims);
    if !block_size.is_multiple_of(CODES) {
        return None;
    }
    let parts = Parts::of(matrix)?;
    let values = dims[0] * dims[1];
    let out = empty(&parts.high, dims, dtype);
    if values == 0 {
        return Some(tensor(out));
    }
    let line = if values.is_multiple_of(CODES) {
        CODES
    } else {
        1
    };
    let groups = values.div_ceil(CODES);
    let (count, dim) = elementwise(groups.div_ceil(GROUPS));
    let client = out.client.clone();
    let (out_argument, elem) = (argument(&out, line), elem(dtype));
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: there is a scale for each started block, and the kernel does not go beyond the last group.
    unsafe {
        kernel::launch_unchecked(
            &client,
            count,
            dim,
            line,
            parts.high(1),
            parts.low(),
            parts.scale_codes(),
            parts.scales(),
            parts.code_table(),
            parts.scale_table(),
            out_argument,
            values as u32,
            parts.offset,
            block_size,
            parts.double,
            parts.planes,
            elem,
        );
    }
    Some(tensor(out))
}

/// Some rows in f32; `None` elsewhere than on a CubeCL device. All of `rows` must be below `out`.
pub(in super::super) fn rows<F: BlockFormat>(
    matrix: &Blocks<F>,
    rows: &[u32],
) -> Option<Tensor<2>> {
    let parts = Parts::of(matrix)?;
    let width = matrix.dims[1];
    let out = empty(&parts.high, [rows.len(), width], DType::F32);
    if len(&out) > 0 {
        let (count, dim) = elementwise(len(&out));
        #[expect(unsafe_code, reason = "a kernel without bounds checks")]
        // SAFETY: rows are rows of the matrix, as the caller checked, which has a scale for each started block; the
        // kernel does not go beyond the output.
        unsafe {
            rows_kernel::launch_unchecked(
                &out.client,
                count,
                dim,
                parts.high(1),
                parts.low(),
                parts.scale_codes(),
                parts.scales(),
                parts.code_table(),
                parts.scale_table(),
                indices(&out.client, rows),
                argument(&out, 1),
                width as u32,
                parts.offset,
                matrix.block_size,
                parts.double,
                parts.planes,
            );
        }
    }
    Some(tensor(out))
}

/// A matrix on a CubeCL device, as kernels take it. Buffers of the kind of scale that it has not, or of a second array
/// of codes, are bound to something that is there.
pub(super) struct Parts {
    /// Codes, or their high bits.
    pub(super) high: CubeTensor,
    /// Their low bits.
    low: CubeTensor,
    pub(super) planes: Planes,
    /// Scales, or their codes.
    absmax: CubeTensor,
    /// Scales of scales.
    nested: CubeTensor,
    pub(super) offset: f32,
    /// Whether scales are in codes.
    pub(super) double: bool,
    code: &'static [f32],
}

impl Parts {
    pub(super) fn of<F: BlockFormat>(matrix: &Blocks<F>) -> Option<Self> {
        let high = codes(&matrix.planes[0], DType::U8)?;
        let low = match matrix.planes.get(1) {
            Some(low) => codes(low, DType::U8)?,
            None => high.clone(),
        };
        let (absmax, nested, offset, double) = match &matrix.absmax {
            Absmax::Single(absmax) => {
                let absmax = floats(absmax)?;
                (absmax.clone(), absmax, 0.0, false)
            }
            Absmax::Double {
                codes: scale_codes,
                scales,
                offset,
            } => (
                codes(scale_codes, DType::U8)?,
                floats(scales)?,
                *offset,
                true,
            ),
        };
        let [bits, more] = matrix.format.planes();
        Some(Self {
            high,
            low,
            planes: Planes {
                high: bits,
                low: more,
            },
            absmax,
            nested,
            offset,
            double,
            code: matrix.format.values(),
        })
    }

    /// Codes, or their high bits, in vectors of `line` words.
    pub(super) fn high(&self, line: usize) -> BufferArg {
        words(&self.high, line)
    }

    /// Low bits of codes in words.
    pub(super) fn low(&self) -> BufferArg {
        words(&self.low, 1)
    }

    /// Codes of scales, four to a word.
    pub(super) fn scale_codes(&self) -> BufferArg {
        words(&self.absmax, 1)
    }

    /// Scales, or scales of scales.
    pub(super) fn scales(&self) -> BufferArg {
        let scales = if self.double {
            &self.nested
        } else {
            &self.absmax
        };
        argument(scales, 1)
    }

    pub(super) fn code_table(&self) -> BufferArg {
        table(self.code, &self.high)
    }

    pub(super) fn scale_table(&self) -> BufferArg {
        let values = if self.double {
            &DynamicMap::Signed.values()[..]
        } else {
            &[0.0]
        };
        table(values, &self.high)
    }
}

/// A unit expands the eight codes of each of its groups, which lie a cube apart.
#[cube(launch_unchecked)]
fn kernel<F: Float, N: Size>(
    high: &[u32],
    low: &[u32],
    scale_codes: &[u32],
    scales: &[f32],
    code: &[f32],
    map: &[f32],
    out: &mut [Vector<F, N>],
    values: u32,
    offset: f32,
    #[comptime] block_size: usize,
    #[comptime] double: bool,
    #[comptime] planes: Planes,
    #[define(F)] _dtype: ElemType,
) {
    let mut lookup = Shared::<[f32]>::new_slice(comptime!(planes.values()));
    if UNIT_POS < comptime!(planes.values() as u32) {
        lookup[UNIT_POS as usize] = code[UNIT_POS as usize];
    }
    sync_cube();
    let values = values as usize;
    let start = CUBE_POS * CUBE_DIM as usize * GROUPS + UNIT_POS as usize;
    #[unroll]
    for k in 0..GROUPS {
        let group = start + k * CUBE_DIM as usize;
        let first = group * CODES;
        if first < values {
            let upper = eight(high, group, comptime!(planes.high));
            let lower = second(low, group, planes);
            let block = first / block_size;
            let scale = scale(block, scale_codes, scales, map, offset, double);
            let lanes = N::value();
            if comptime!(lanes == CODES) {
                let mut vector = Vector::<F, N>::empty();
                #[unroll]
                for i in 0..CODES {
                    let index = code_of(upper, lower, i, planes);
                    vector.insert(i, F::cast_from(lookup[index as usize] * scale));
                }
                out[group] = vector;
            } else {
                #[unroll]
                for i in 0..CODES {
                    let index = code_of(upper, lower, i, planes);
                    if first + i < values {
                        out[first + i] = Vector::new(F::cast_from(lookup[index as usize] * scale));
                    }
                }
            }
        }
    }
}

/// A unit has one value.
#[cube(launch_unchecked)]
fn rows_kernel(
    high: &[u32],
    low: &[u32],
    scale_codes: &[u32],
    scales: &[f32],
    code: &[f32],
    map: &[f32],
    rows: &[u32],
    out: &mut [f32],
    width: u32,
    offset: f32,
    #[comptime] block_size: usize,
    #[comptime] double: bool,
    #[comptime] planes: Planes,
) {
    let i = ABSOLUTE_POS;
    if i < out.len() {
        let width = width as usize;
        let at = rows[i / width] as usize * width + i % width;
        let scale = scale(at / block_size, scale_codes, scales, map, offset, double);
        let upper = one(high, at, comptime!(planes.high));
        if comptime!(planes.low == 0) {
            out[i] = code[upper as usize] * scale;
        } else {
            let lower = one(low, at, comptime!(planes.low));
            let index = (upper << comptime!(planes.low as u32)) | lower;
            out[i] = code[index as usize] * scale;
        }
    }
}

/// The scale of a block.
#[cube]
pub(super) fn scale(
    block: usize,
    scale_codes: &[u32],
    scales: &[f32],
    map: &[f32],
    offset: f32,
    #[comptime] double: bool,
) -> f32 {
    if comptime!(double) {
        let shift = (block % 4 * 8) as u32;
        let scale_code = (scale_codes[block / 4] >> shift) & 255u32;
        map[scale_code as usize] * scales[block / NESTED_BLOCK] + offset
    } else {
        scales[block]
    }
}

/// The part of an array that eight codes have, in the lowest bits.
#[cube]
pub(super) fn eight(packed: &[u32], group: usize, #[comptime] bits: usize) -> u32 {
    if comptime!(bits == 4) {
        packed[group]
    } else {
        let shift = (group % comptime!(4 / bits) * comptime!(CODES * bits)) as u32;
        packed[group / comptime!(4 / bits)] >> shift
    }
}

/// The same of the second array, where there is one.
#[cube]
pub(super) fn second(low: &[u32], group: usize, #[comptime] planes: Planes) -> u32 {
    if comptime!(planes.low == 0) {
        0u32
    } else {
        eight(low, group, comptime!(planes.low))
    }
}

/// Code `i` of eight, from what their arrays have.
#[cube]
pub(super) fn code_of(
    upper: u32,
    lower: u32,
    #[comptime] i: usize,
    #[comptime] planes: Planes,
) -> u32 {
    let index = (upper >> comptime!(shift(i, planes.high))) & comptime!(mask(planes.high));
    if comptime!(planes.low == 0) {
        index
    } else {
        let rest = (lower >> comptime!(shift(i, planes.low))) & comptime!(mask(planes.low));
        (index << comptime!(planes.low as u32)) | rest
    }
}

/// A code's bits in an array.
#[cube]
fn one(packed: &[u32], at: usize, #[comptime] bits: usize) -> u32 {
    let place = at % comptime!(32 / bits);
    let byte = place / comptime!(8 / bits);
    let before = place % comptime!(8 / bits) * bits;
    let shift = (byte * 8 + comptime!(8 - bits) - before) as u32;
    (packed[at / comptime!(32 / bits)] >> shift) & comptime!(mask(bits))
}

/// How far to shift a word for its code `i`: the lowest byte comes first, its highest bits before its lowest.
fn shift(i: usize, bits: usize) -> u32 {
    let per_byte = 8 / bits;
    (i / per_byte * 8 + (per_byte - 1 - i % per_byte) * bits) as u32
}

fn mask(bits: usize) -> u32 {
    (1 << bits) - 1
}
