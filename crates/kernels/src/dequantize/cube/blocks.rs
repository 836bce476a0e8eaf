//! 4-bit codes to values on a CubeCL device, one pass.

use std::cell::RefCell;
use std::collections::HashMap;

use burn::tensor::{DType, Int, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::{CubeBackend, CubeDevice};
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::{Absmax, FourBit};
use crate::codebook::DynamicMap;
use crate::cube::{CubeTensor, argument, elem, elementwise, empty, floats, len, tensor};

/// Codes in a word of packed bytes.
pub(super) const CODES: usize = 8;

/// Words that a unit expands: enough to have several loads under way.
const WORDS: usize = 4;

/// Codes of scales that share a scale.
const NESTED_BLOCK: usize = crate::quantize::NESTED_BLOCK_SIZE;

/// The values in `dtype`; `None` elsewhere than on a CubeCL device and for blocks that are no multiple of 8.
///
/// # Shapes
/// `[out, in]`.
pub(super) fn dequantize(matrix: &FourBit, dtype: DType) -> Option<Tensor<2>> {
    let (block_size, dims) = (matrix.block_size, matrix.dims);
    if !block_size.is_multiple_of(CODES) {
        return None;
    }
    let parts = Parts::of(matrix)?;
    let values = dims[0] * dims[1];
    let out = empty(&parts.packed, dims, dtype);
    if values == 0 {
        return Some(tensor(out));
    }
    let line = if values.is_multiple_of(CODES) {
        CODES
    } else {
        1
    };
    let words = values.div_ceil(CODES);
    let (count, dim) = elementwise(words.div_ceil(WORDS));
    let client = out.client.clone();
    let (out_argument, elem) = (argument(&out, line), elem(dtype));
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: there is a scale for each started block, and the kernel does not go beyond the last word.
    unsafe {
        kernel::launch_unchecked(
            &client,
            count,
            dim,
            line,
            parts.codes(1),
            parts.scale_codes(),
            parts.scales(),
            parts.code_table(),
            parts.scale_table(),
            out_argument,
            values as u32,
            parts.offset,
            block_size,
            parts.double,
            elem,
        );
    }
    Some(tensor(out))
}

/// A matrix on a CubeCL device, as kernels take it. Buffers of the kind of scale that it has not are bound to
/// something that is there.
pub(super) struct Parts {
    pub(super) packed: CubeTensor,
    /// Scales, or their codes.
    absmax: CubeTensor,
    /// Scales of scales.
    nested: CubeTensor,
    pub(super) offset: f32,
    /// Whether scales are in codes.
    pub(super) double: bool,
    values: usize,
    code: &'static [f32],
}

impl Parts {
    pub(super) fn of(matrix: &FourBit) -> Option<Self> {
        let packed = bytes(&matrix.packed)?;
        let (absmax, nested, offset, double) = match &matrix.absmax {
            Absmax::Single(absmax) => {
                let absmax = floats(absmax)?;
                (absmax.clone(), absmax, 0.0, false)
            }
            Absmax::Double {
                codes,
                scales,
                offset,
            } => (bytes(codes)?, floats(scales)?, *offset, true),
        };
        Some(Self {
            packed,
            absmax,
            nested,
            offset,
            double,
            values: matrix.dims[0] * matrix.dims[1],
            code: matrix.format.values(),
        })
    }

    /// Codes in vectors of `line` words.
    #[expect(unsafe_code, reason = "bytes are read as words")]
    pub(super) fn codes(&self, line: usize) -> BufferArg {
        let words = self.values.div_ceil(CODES);
        // SAFETY: memory is allocated in whole words, and bytes beyond the last code are not used.
        unsafe { BufferArg::from_raw_parts(self.packed.handle.clone(), words / line) }
    }

    /// Codes of scales, four to a word.
    #[expect(unsafe_code, reason = "bytes are read as words")]
    pub(super) fn scale_codes(&self) -> BufferArg {
        let words = len(&self.absmax).div_ceil(4);
        // SAFETY: as above.
        unsafe { BufferArg::from_raw_parts(self.absmax.handle.clone(), words) }
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
        table(self.code, &self.packed)
    }

    pub(super) fn scale_table(&self) -> BufferArg {
        let values = if self.double {
            &DynamicMap::Signed.values()[..]
        } else {
            &[0.0]
        };
        table(values, &self.packed)
    }
}

/// Contiguous bytes on a CubeCL device.
fn bytes(x: &Tensor<1, Int>) -> Option<CubeTensor> {
    let x = x.clone().try_into_primitive::<CubeBackend>().ok()?;
    (x.dtype == DType::U8).then(|| into_contiguous(x))
}

thread_local! {
    /// Tables on devices, by device and contents: each is written once.
    static TABLES: RefCell<HashMap<(CubeDevice, Vec<u32>), Handle>> = RefCell::new(HashMap::new());
}

#[expect(unsafe_code, reason = "CubeCL takes lengths on trust")]
fn table(values: &[f32], on: &CubeTensor) -> BufferArg {
    let bits: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
    let handle = TABLES.with_borrow_mut(|tables| {
        let entry = tables.entry((on.device.clone(), bits));
        entry
            .or_insert_with_key(|(_, bits)| {
                let bytes: Vec<u8> = bits.iter().flat_map(|bits| bits.to_ne_bytes()).collect();
                on.client.create_from_slice(&bytes)
            })
            .clone()
    });
    // SAFETY: the table has as many values.
    unsafe { BufferArg::from_raw_parts(handle, values.len()) }
}

/// Lets this thread's tables go.
pub(crate) fn forget() {
    TABLES.with_borrow_mut(HashMap::clear);
}

/// A unit expands the eight codes of each of its words, which lie a cube apart.
#[cube(launch_unchecked)]
fn kernel<F: Float, N: Size>(
    packed: &[u32],
    scale_codes: &[u32],
    scales: &[f32],
    code: &[f32],
    map: &[f32],
    out: &mut [Vector<F, N>],
    values: u32,
    offset: f32,
    #[comptime] block_size: usize,
    #[comptime] double: bool,
    #[define(F)] _dtype: ElemType,
) {
    let mut lookup = Shared::<[f32]>::new_slice(16usize);
    if UNIT_POS < 16 {
        lookup[UNIT_POS as usize] = code[UNIT_POS as usize];
    }
    sync_cube();
    let values = values as usize;
    let start = CUBE_POS * CUBE_DIM as usize * WORDS + UNIT_POS as usize;
    #[unroll]
    for k in 0..WORDS {
        let word = start + k * CUBE_DIM as usize;
        let first = word * CODES;
        if first < values {
            let codes = packed[word];
            let block = first / block_size;
            let scale = scale(block, scale_codes, scales, map, offset, double);
            let lanes = N::value();
            if comptime!(lanes == CODES) {
                let mut vector = Vector::<F, N>::empty();
                #[unroll]
                for i in 0..CODES {
                    let shift = comptime!(shift(i));
                    let index = (codes >> shift) & 15u32;
                    vector.insert(i, F::cast_from(lookup[index as usize] * scale));
                }
                out[word] = vector;
            } else {
                #[unroll]
                for i in 0..CODES {
                    let shift = comptime!(shift(i));
                    let index = (codes >> shift) & 15u32;
                    if first + i < values {
                        out[first + i] = Vector::new(F::cast_from(lookup[index as usize] * scale));
                    }
                }
            }
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

/// How far to shift a word for its code `i`: the lowest byte comes first, its high half before its low.
pub(super) fn shift(i: usize) -> u32 {
    (i / 2 * 8 + 4 * (1 - i % 2)) as u32
}
