//! One pass each on a CubeCL device. Sums are f32, in an order that depends on nothing but the sizes.

use burn::tensor::{DType, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::LEAST_SQUARE;
use crate::cube::{
    CubeTensor, InPlace, RowCube, argument, elem, elementwise, empty, floats, into_floats, len,
    line, sum_cube, tensor,
};
use crate::frozen_matrix::FrozenMatrix;
use crate::lora_linear::Factors;

/// f32 on the device.
fn full(x: &Tensor<1>) -> Option<CubeTensor> {
    floats(x).filter(|x| x.dtype == DType::F32)
}

/// `Err` hands `y` back when something is not on a CubeCL device.
pub(super) fn scale_columns(y: Tensor<2>, gain: &Tensor<1>) -> Result<Tensor<2>, Tensor<2>> {
    let [_, width] = y.dims();
    let Some(gain) = full(gain) else {
        return Err(y);
    };
    let y = into_floats(y)?;
    if len(&y) == 0 {
        return Ok(tensor(y));
    }
    let line = line(y.dtype, width);
    let out = InPlace::over(&y, line, 0);
    let (count, dim) = elementwise(len(&y) / line);
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: both have as many vectors, and the kernel does not go beyond the last; there is a gain for each column.
    unsafe {
        scale_kernel::launch_unchecked(
            &y.client.clone(),
            count,
            dim,
            line,
            argument(&y, line),
            out.argument,
            argument(&gain, 1),
            (width / line) as u32,
            elem(y.dtype),
        );
    }
    Ok(tensor(out.tensor))
}

#[cube(launch_unchecked)]
fn scale_kernel<F: Float, N: Size>(
    y: &[Vector<F, N>],
    out: &mut [Vector<F, N>],
    gain: &[f32],
    vectors: u32,
    #[define(F)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i < out.len() {
        let first = i % vectors as usize * N::value();
        let mut factor = Vector::<f32, N>::empty();
        #[unroll]
        for lane in 0..N::value() {
            factor.insert(lane, gain[first + lane]);
        }
        out[i] = Vector::cast_from(Vector::<f32, N>::cast_from(y[i]) * factor);
    }
}

/// Units of a cube along a row and down the rows.
const ACROSS: u32 = 32;
const DOWN: u32 = 8;

/// Rows of a cube.
const STRIP: usize = 128;

pub(super) fn column_products(a: &Tensor<2>, b: &Tensor<2>) -> Option<Tensor<1>> {
    let [t, width] = a.dims();
    let (a, b) = (floats(a)?, floats(b)?);
    if a.dtype != b.dtype || t * width == 0 {
        return None;
    }
    let line = line(a.dtype, width);
    let strips = t.div_ceil(STRIP);
    let partial = empty(&a, [strips, width], DType::F32);
    let sums = empty(&a, [width], DType::F32);
    let across = (width / line).div_ceil(ACROSS as usize);
    let (count, dim) = elementwise(width);
    #[expect(unsafe_code, reason = "kernels without bounds checks")]
    // SAFETY: both have t rows of so many vectors, and the kernels go beyond neither; each strip has a row of sums.
    unsafe {
        strips_kernel::launch_unchecked(
            &a.client.clone(),
            CubeCount::Static(across as u32, strips as u32, 1),
            CubeDim::new_2d(ACROSS, DOWN),
            line,
            argument(&a, line),
            argument(&b, line),
            argument(&partial, 1),
            t as u32,
            (width / line) as u32,
            elem(a.dtype),
        );
        sums_kernel::launch_unchecked(
            &a.client.clone(),
            count,
            dim,
            argument(&partial, 1),
            argument(&sums, 1),
            strips as u32,
        );
    }
    Some(tensor(sums))
}

/// Sums over the rows of a strip: each unit over every eighth, then over the eight.
#[cube(launch_unchecked)]
fn strips_kernel<F: Float, N: Size>(
    a: &[Vector<F, N>],
    b: &[Vector<F, N>],
    partial: &mut [f32],
    rows: u32,
    vectors: u32,
    #[define(F)] _dtype: ElemType,
) {
    let column = CUBE_POS_X * ACROSS + UNIT_POS_X;
    let first = CUBE_POS_Y * comptime!(STRIP as u32);
    let end = min(first + comptime!(STRIP as u32), rows);
    let mut sum = Vector::<f32, N>::new(0.0f32);
    if column < vectors {
        let mut row = first + UNIT_POS_Y;
        while row < end {
            let at = (row * vectors + column) as usize;
            sum += Vector::<f32, N>::cast_from(a[at]) * Vector::<f32, N>::cast_from(b[at]);
            row += DOWN;
        }
    }
    let mut all = Shared::<[Vector<f32, N>]>::new_slice(comptime!((ACROSS * DOWN) as usize));
    all[(UNIT_POS_Y * ACROSS + UNIT_POS_X) as usize] = sum;
    sync_cube();
    if UNIT_POS_Y == 0u32 && column < vectors {
        let mut total = all[UNIT_POS_X as usize];
        #[unroll]
        for y in 1..DOWN {
            total += all[(comptime!(y * ACROSS) + UNIT_POS_X) as usize];
        }
        let to = (CUBE_POS_Y * vectors + column) as usize * N::value();
        #[unroll]
        for lane in 0..N::value() {
            partial[to + lane] = total.extract(lane);
        }
    }
}

#[cube(launch_unchecked)]
fn sums_kernel(partial: &[f32], sums: &mut [f32], strips: u32) {
    let column = ABSOLUTE_POS;
    let width = sums.len();
    if column < width {
        let mut sum = 0.0f32;
        for strip in 0..strips {
            sum += partial[strip as usize * width + column];
        }
        sums[column] = sum;
    }
}

/// n from the squared lengths of W's rows.
///
/// # Shapes
/// `squares` and the result `[out]`.
pub(super) fn row_norms(
    weight: &impl FrozenMatrix,
    squares: &Tensor<1>,
    factors: &Factors,
) -> Option<Tensor<1>> {
    let (a, b) = (floats(&factors.a)?, floats(&factors.b)?);
    let squares = full(squares)?;
    let cross = floats(&weight.matmul_add(&factors.a, 2.0 * factors.scaling, None))?;
    let [out, rank] = factors.b.dims();
    let [_, input] = factors.a.dims();
    if [cross.dtype, b.dtype] != [a.dtype; 2] || out * rank * input == 0 {
        return None;
    }
    let gram = empty(&a, [rank, rank], DType::F32);
    let norms = empty(&a, [out], DType::F32);
    let line = line(a.dtype, input);
    let vectors = input / line;
    let row = RowCube::new(&a, vectors, 256);
    let (count, dim) = elementwise(out);
    #[expect(unsafe_code, reason = "kernels without bounds checks")]
    // SAFETY: the sizes follow from those of the factors, and no kernel goes beyond them.
    unsafe {
        gram_kernel::launch_unchecked(
            &a.client.clone(),
            CubeCount::Static(rank as u32, rank as u32, 1),
            row.dim(),
            line,
            argument(&a, line),
            argument(&gram, 1),
            vectors as u32,
            row,
            elem(a.dtype),
        );
        norms_kernel::launch_unchecked(
            &a.client.clone(),
            count,
            dim,
            argument(&squares, 1),
            argument(&cross, 1),
            argument(&gram, 1),
            argument(&b, 1),
            argument(&norms, 1),
            factors.scaling * factors.scaling,
            rank as u32,
            elem(a.dtype),
        );
    }
    Some(tensor(norms))
}

/// A·Aᵀ, a cube for each pair of rows.
#[cube(launch_unchecked)]
fn gram_kernel<F: Float, N: Size>(
    a: &[Vector<F, N>],
    gram: &mut [f32],
    vectors: u32,
    #[comptime] row: RowCube,
    #[define(F)] _dtype: ElemType,
) {
    let (i, j) = (CUBE_POS_Y, CUBE_POS_X);
    let mut sum = Vector::<f32, N>::new(0.0f32);
    let mut at = UNIT_POS;
    while at < vectors {
        let left = Vector::<f32, N>::cast_from(a[(i * vectors + at) as usize]);
        sum += left * Vector::<f32, N>::cast_from(a[(j * vectors + at) as usize]);
        at += comptime!(row.units);
    }
    let total = sum_cube(crate::cube::sum_lanes(sum), row);
    if UNIT_POS == 0u32 {
        gram[(i * CUBE_COUNT_X + j) as usize] = total;
    }
}

#[cube(launch_unchecked)]
fn norms_kernel<F: Float>(
    squares: &[f32],
    cross: &[F],
    gram: &[f32],
    b: &[F],
    norms: &mut [f32],
    scaling_squared: f32,
    rank: u32,
    #[define(F)] _dtype: ElemType,
) {
    let out = ABSOLUTE_POS;
    let rows = norms.len();
    let rank = rank as usize;
    if out < rows {
        let mut square = squares[out];
        for i in 0..rank {
            let mut inner = 0.0f32;
            for j in 0..rank {
                inner += gram[i * rank + j] * f32::cast_from(b[out * rank + j]);
            }
            let change = f32::cast_from(cross[i * rows + out]) + scaling_squared * inner;
            square += f32::cast_from(b[out * rank + i]) * change;
        }
        norms[out] = max(square, LEAST_SQUARE).sqrt();
    }
}
