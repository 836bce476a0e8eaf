//! One cube for each row on a CubeCL device.

use backdraft_arch::NormScale;
use burn::tensor::{DType, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::Gain;
use crate::cube::{
    InPlace, RowCube, argument, cubes, elem, empty, floats, into_floats, len, line, on_cube,
    sum_cube, sum_lanes, tensor,
};

/// Units that share a row, at most.
const UNITS: u32 = 256;

pub(super) fn forward(x: &Tensor<2>, gain: Gain<'_>, eps: f64) -> Option<(Tensor<2>, Tensor<1>)> {
    let [rows, width] = x.dims();
    let (x, w) = (floats(x)?, floats(gain.weight)?);
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
                gain.scale,
                cube,
                dtypes,
            );
        }
    }
    Some((tensor(y), tensor(rstd)))
}

/// `Err` hands `sum` back when something is not on a CubeCL device. The result is written over it.
pub(super) fn backward(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    gain: Gain<'_>,
    rstd: &Tensor<1>,
    sum: Option<Tensor<2>>,
) -> Result<Tensor<2>, Option<Tensor<2>>> {
    let [rows, width] = x.dims();
    let (Some(dy), Some(x), Some(w), Some(rstd)) =
        (floats(dy), floats(x), floats(gain.weight), floats(rstd))
    else {
        return Err(sum);
    };
    let like_x = |sum: &Tensor<2>| on_cube(sum) && sum.dtype() == x.dtype;
    if dy.dtype != x.dtype || rstd.dtype != DType::F32 || !sum.as_ref().is_none_or(like_x) {
        return Err(sum);
    }
    let sum = match sum.map(into_floats) {
        None => None,
        Some(Ok(sum)) => Some(sum),
        Some(Err(sum)) => return Err(Some(sum)),
    };
    let mut dx = sum.is_none().then(|| empty(&x, [rows, width], x.dtype));
    if len(&x) > 0 {
        let line = line(x.dtype, width);
        let vectors = width / line;
        let cube = RowCube::new(&x, vectors, UNITS);
        let dtypes = [elem(x.dtype), elem(w.dtype)];
        let adds = sum.is_some();
        let (added, out) = match (&sum, &dx) {
            (Some(sum), _) => {
                let out = InPlace::over(sum, line, 4);
                dx = Some(out.tensor);
                (argument(sum, line), out.argument)
            }
            (None, Some(dx)) => (argument(&x, line), argument(dx, line)),
            (None, None) => unreachable!("there is new memory where nothing is added to"),
        };
        let client = x.client.clone();
        let [dy, x, w] = [&dy, &x, &w].map(|x| argument(x, line));
        let scale = 1.0 / width as f32;
        #[expect(unsafe_code, reason = "a kernel without bounds checks")]
        // SAFETY: dy, x, what is added and dx have `rows` rows of `vectors` vectors, w one, and rstd a value for each.
        unsafe {
            backward_kernel::launch_unchecked(
                &client,
                cubes(rows),
                cube.dim(),
                line,
                dy,
                x,
                w,
                argument(&rstd, 1),
                added,
                out,
                vectors as u32,
                scale,
                adds,
                gain.scale,
                cube,
                dtypes,
            );
        }
    }
    let Some(dx) = dx.or(sum) else {
        unreachable!("there is new memory where nothing is added to");
    };
    Ok(tensor(dx))
}

/// What a row is multiplied by.
#[cube]
pub(crate) fn factor<W: Float, N: Size>(
    weight: Vector<W, N>,
    #[comptime] scale: NormScale,
) -> Vector<f32, N> {
    let weight = Vector::<f32, N>::cast_from(weight);
    if comptime!(scale == NormScale::OnePlusWeight) {
        Vector::<f32, N>::new(1.0f32) + weight
    } else {
        weight
    }
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
    #[comptime] gain: NormScale,
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
        let w = factor::<W, N>(weight[i], gain);
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
    added: &[Vector<F, N>],
    dx: &mut [Vector<F, N>],
    vectors: u32,
    scale: f32,
    #[comptime] adds: bool,
    #[comptime] gain: NormScale,
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
        let w = factor::<W, N>(weight[i], gain);
        products += d * w * v;
        i += units;
    }
    let r = rstd[row];
    let c = sum_cube(sum_lanes(products), cube) * r * r * scale;
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let v = Vector::<f32, N>::cast_from(x[start + i]);
        let d = Vector::<f32, N>::cast_from(dy[start + i]);
        let w = factor::<W, N>(weight[i], gain);
        let mut value = (d * w - v * Vector::new(c)) * Vector::new(r);
        if comptime!(adds) {
            value += Vector::<f32, N>::cast_from(added[start + i]);
        }
        dx[start + i] = Vector::cast_from(value);
        i += units;
    }
}
