//! One cube for each row on a CubeCL device.

use burn::tensor::{DType, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use crate::cube::{
    RowCube, argument, cubes, elem, empty, floats, len, line, sum_cube, sum_lanes, tensor,
};

/// Units that share a row, at most.
const UNITS: u32 = 256;

pub(super) fn forward(
    x: &Tensor<2>,
    weight: &Tensor<1>,
    eps: f64,
) -> Option<(Tensor<2>, Tensor<1>)> {
    let [rows, width] = x.dims();
    let (x, w) = (floats(x)?, floats(weight)?);
    let (y, rstd) = (
        empty(&x, [rows, width], x.dtype),
        empty(&x, [rows], DType::F32),
    );
    if len(&x) > 0 {
        let line = line(x.dtype, width);
        let vectors = width / line;
        let cube = RowCube::new(&x, vectors, UNITS);
        let dtypes = [elem(x.dtype), elem(w.dtype)];
        let [x, w, y] = [&x, &w, &y].map(|x| argument(x, line));
        let scale = 1.0 / width as f32;
        let client = &rstd.client;
        #[expect(unsafe_code, reason = "a kernel without bounds checks")]
        // SAFETY: x and y have `rows` rows of `vectors` vectors, w one, and rstd a value for each row.
        unsafe {
            forward_kernel::launch_unchecked(
                client,
                cubes(rows),
                cube.dim(),
                line,
                x,
                w,
                y,
                argument(&rstd, 1),
                vectors as u32,
                scale,
                eps as f32,
                cube,
                dtypes,
            );
        }
    }
    Some((tensor(y), tensor(rstd)))
}

pub(super) fn backward(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    rstd: &Tensor<1>,
) -> Option<Tensor<2>> {
    let [rows, width] = x.dims();
    let (dy, x, w, rstd) = (floats(dy)?, floats(x)?, floats(weight)?, floats(rstd)?);
    if dy.dtype != x.dtype || rstd.dtype != DType::F32 {
        return None;
    }
    let dx = empty(&x, [rows, width], x.dtype);
    if len(&x) > 0 {
        let line = line(x.dtype, width);
        let vectors = width / line;
        let cube = RowCube::new(&x, vectors, UNITS);
        let dtypes = [elem(x.dtype), elem(w.dtype)];
        let [dy, x, w, out] = [&dy, &x, &w, &dx].map(|x| argument(x, line));
        let scale = 1.0 / width as f32;
        let client = &dx.client;
        #[expect(unsafe_code, reason = "a kernel without bounds checks")]
        // SAFETY: dy, x and dx have `rows` rows of `vectors` vectors, w one, and rstd a value for each.
        unsafe {
            backward_kernel::launch_unchecked(
                client,
                cubes(rows),
                cube.dim(),
                line,
                dy,
                x,
                w,
                argument(&rstd, 1),
                out,
                vectors as u32,
                scale,
                cube,
                dtypes,
            );
        }
    }
    Some(tensor(dx))
}

#[cube(launch_unchecked)]
fn forward_kernel<F: Float, W: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<W, N>],
    y: &mut [Vector<F, N>],
    rstd: &mut [f32],
    vectors: u32,
    scale: f32,
    eps: f32,
    #[comptime] cube: RowCube,
    #[define(F, W)] _dtypes: [ElemType; 2],
) {
    let row = CUBE_POS;
    if row >= rstd.len() {
        terminate!();
    }
    let vectors = vectors as usize;
    let start = row * vectors;
    let units = comptime!(cube.units as usize);

    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let v = Vector::<f32, N>::cast_from(x[start + i]);
        squares += v * v;
        i += units;
    }
    let mean = sum_cube(sum_lanes(squares), cube) * scale;
    let r = 1.0f32 / (mean + eps).sqrt();
    if UNIT_POS == 0 {
        rstd[row] = r;
    }
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let v = Vector::<f32, N>::cast_from(x[start + i]);
        let w = Vector::<f32, N>::cast_from(weight[i]);
        y[start + i] = Vector::cast_from(v * Vector::new(r) * w);
        i += units;
    }
}

#[cube(launch_unchecked)]
fn backward_kernel<F: Float, W: Float, N: Size>(
    dy: &[Vector<F, N>],
    x: &[Vector<F, N>],
    weight: &[Vector<W, N>],
    rstd: &[f32],
    dx: &mut [Vector<F, N>],
    vectors: u32,
    scale: f32,
    #[comptime] cube: RowCube,
    #[define(F, W)] _dtypes: [ElemType; 2],
) {
    let row = CUBE_POS;
    if row >= rstd.len() {
        terminate!();
    }
    let vectors = vectors as usize;
    let start = row * vectors;
    let units = comptime!(cube.units as usize);

    let mut products = Vector::<f32, N>::new(0.0f32);
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let v = Vector::<f32, N>::cast_from(x[start + i]);
        let d = Vector::<f32, N>::cast_from(dy[start + i]);
        let w = Vector::<f32, N>::cast_from(weight[i]);
        products += d * w * v;
        i += units;
    }
    let r = rstd[row];
    let c = sum_cube(sum_lanes(products), cube) * r * r * scale;
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let v = Vector::<f32, N>::cast_from(x[start + i]);
        let d = Vector::<f32, N>::cast_from(dy[start + i]);
        let w = Vector::<f32, N>::cast_from(weight[i]);
        dx[start + i] = Vector::cast_from((d * w - v * Vector::new(c)) * Vector::new(r));
        i += units;
    }
}
