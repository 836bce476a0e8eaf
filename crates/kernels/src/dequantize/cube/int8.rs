//! Whole numbers of 8 bits to values, one pass.

use burn::tensor::{DType, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::{codes, words};
use crate::cube::{argument, elem, elementwise, empty, floats, indices, len, tensor};
use crate::dequantize::Int8Rows;

/// Vectors of a unit: enough to have several loads under way.
const VECTORS: usize = 4;

/// The values in `dtype`; `None` elsewhere than on a CubeCL device.
///
/// # Shapes
/// `[out, in]`.
pub(in super::super) fn dequantize(matrix: &Int8Rows, dtype: DType) -> Option<Tensor<2>> {
    let codes = codes(&matrix.codes, DType::I8)?;
    let absmax = floats(&matrix.absmax)?;
    let width = matrix.dims[1];
    let out = empty(&codes, matrix.dims, dtype);
    if len(&out) > 0 {
        // Whole words, which do not cross rows.
        let fits = |line: &usize| width.is_multiple_of(*line);
        let line = [8, 4].into_iter().find(fits).unwrap_or(1);
        let (count, dim) = elementwise((len(&out) / line).div_ceil(VECTORS));
        #[expect(unsafe_code, reason = "a kernel without bounds checks")]
        // SAFETY: there is a code for each value and a scale for each row, and the kernel does not go beyond the output.
        unsafe {
            kernel::launch_unchecked(
                &out.client,
                count,
                dim,
                line,
                words(&codes, 1),
                argument(&absmax, 1),
                argument(&out, line),
                (width / line) as u32,
                elem(dtype),
            );
        }
    }
    Some(tensor(out))
}

/// Some rows in f32; `None` elsewhere than on a CubeCL device. All of `rows` must be below `out`.
pub(in super::super) fn rows(matrix: &Int8Rows, rows: &[u32]) -> Option<Tensor<2>> {
    let codes = codes(&matrix.codes, DType::I8)?;
    let absmax = floats(&matrix.absmax)?;
    let width = matrix.dims[1];
    let out = empty(&codes, [rows.len(), width], DType::F32);
    if len(&out) > 0 {
        let (count, dim) = elementwise(len(&out));
        #[expect(unsafe_code, reason = "a kernel without bounds checks")]
        // SAFETY: rows are rows of the matrix, as the caller checked; the kernel does not go beyond the output.
        unsafe {
            rows_kernel::launch_unchecked(
                &out.client,
                count,
                dim,
                words(&codes, 1),
                argument(&absmax, 1),
                indices(&out.client, rows),
                argument(&out, 1),
                width as u32,
            );
        }
    }
    Some(tensor(out))
}

/// A unit expands vectors that lie a cube apart; `width` is vectors of a row.
#[cube(launch_unchecked)]
fn kernel<F: Float, N: Size>(
    codes: &[u32],
    absmax: &[f32],
    out: &mut [Vector<F, N>],
    width: u32,
    #[define(F)] _dtype: ElemType,
) {
    let width = width as usize;
    let start = CUBE_POS * CUBE_DIM as usize * VECTORS + UNIT_POS as usize;
    #[unroll]
    for k in 0..VECTORS {
        let at = start + k * CUBE_DIM as usize;
        if at < out.len() {
            let step = absmax[at / width] / 127.0f32;
            let lanes = N::value();
            if comptime!(lanes == 1) {
                let shift = (at % 4 * 8) as u32;
                out[at] = Vector::new(F::cast_from(number(codes[at / 4] >> shift) * step));
            } else {
                let mut vector = Vector::<F, N>::empty();
                #[unroll]
                for w in 0..comptime!(lanes / 4) {
                    let word = codes[at * comptime!(lanes / 4) + w];
                    #[unroll]
                    for i in 0..4usize {
                        let value = number(word >> comptime!(8 * i as u32)) * step;
                        vector.insert(comptime!(4 * w + i), F::cast_from(value));
                    }
                }
                out[at] = vector;
            }
        }
    }
}

/// A unit has one value.
#[cube(launch_unchecked)]
fn rows_kernel(codes: &[u32], absmax: &[f32], rows: &[u32], out: &mut [f32], width: u32) {
    let i = ABSOLUTE_POS;
    if i < out.len() {
        let width = width as usize;
        let row = rows[i / width] as usize;
        let at = row * width + i % width;
        let shift = (at % 4 * 8) as u32;
        out[i] = number(codes[at / 4] >> shift) * (absmax[row] / 127.0f32);
    }
}

/// The lowest byte as a number with a sign.
#[cube]
fn number(word: u32) -> f32 {
    let byte = word & 255u32;
    let value = f32::cast_from(byte);
    select(byte > 127u32, value - 256.0f32, value)
}
