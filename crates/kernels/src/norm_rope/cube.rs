//! One plane for each head on a CubeCL device, or one cube where planes cannot sum; a unit has pairs of vectors.

use burn::tensor::{DType, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use crate::cube::{
    CubeTensor, InPlace, RowCube, argument, cubes, elem, empty, floats, into_floats, len, on_cube,
    sum_cube, sum_lanes, tensor,
};
use crate::rope::RotaryTables;

/// Heads of a cube where each has a plane.
const PLANES: u32 = 8;
/// Units of a plane, or of the cube that stands for one.
const UNITS: u32 = 32;

/// What both kernels read besides the gradient.
struct Operands {
    x: CubeTensor,
    weight: CubeTensor,
    cos: CubeTensor,
    sin: CubeTensor,
    /// Features of a head.
    d: usize,
    heads: usize,
    /// Values in a vector.
    line: usize,
    cube: RowCube,
}

impl Operands {
    fn of(x: &Tensor<2>, weight: &Tensor<1>, tables: &RotaryTables) -> Option<Self> {
        let ([_, width], [d]) = (x.dims(), weight.dims());
        let (x, weight) = (floats(x)?, floats(weight)?);
        let (cos, sin) = (floats(&tables.cos)?, floats(&tables.sin)?);
        if cos.dtype != DType::F32 || sin.dtype != DType::F32 {
            return None;
        }
        let cube = RowCube::new(&x, UNITS as usize, UNITS);
        Some(Self {
            line: line(x.dtype, d / 2),
            heads: width / d,
            x,
            weight,
            cos,
            sin,
            d,
            cube,
        })
    }

    /// Cubes and their units.
    fn launch(&self) -> (CubeCount, CubeDim) {
        let rows = len(&self.x) / self.d;
        if self.cube.planes {
            let count = cubes(rows.div_ceil(PLANES as usize));
            return (count, CubeDim::new_1d(PLANES * UNITS));
        }
        (cubes(rows), self.cube.dim())
    }
}

/// Values in a vector: as few as give every unit of a plane a pair, but no more than 16 bytes.
fn line(dtype: DType, half: usize) -> usize {
    let wanted = half.div_ceil(UNITS as usize).next_power_of_two();
    wanted.min(crate::cube::line(dtype, half))
}

pub(super) fn forward(
    x: &Tensor<2>,
    weight: &Tensor<1>,
    eps: f64,
    tables: &RotaryTables,
) -> Option<Tensor<2>> {
    let o = Operands::of(x, weight, tables)?;
    let y = empty(&o.x, x.dims(), o.x.dtype);
    if len(&o.x) == 0 {
        return Some(tensor(y));
    }
    let (count, dim) = o.launch();
    let [x, w, cos, sin, out] = [&o.x, &o.weight, &o.cos, &o.sin, &y].map(|x| argument(x, o.line));
    let half = (o.d / 2 / o.line) as u32;
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: x and y have whole heads of 2·half vectors, the weight one head, the tables half a head for each token, as
    // the caller checked; the kernel ends beyond the last head of y.
    unsafe {
        forward_kernel::launch_unchecked(
            &o.x.client,
            count,
            dim,
            o.line,
            x,
            w,
            cos,
            sin,
            out,
            half,
            o.heads as u32,
            1.0 / o.d as f32,
            eps as f32,
            o.cube,
            [elem(o.x.dtype), elem(o.weight.dtype)],
        );
    }
    Some(tensor(y))
}

/// `Err` hands `dy` back when something is not on a CubeCL device.
pub(super) fn backward(
    dy: Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    eps: f64,
    tables: &RotaryTables,
) -> Result<Tensor<2>, Tensor<2>> {
    let fits = on_cube(&dy) && dy.dtype() == x.dtype();
    let Some(o) = Operands::of(x, weight, tables).filter(|_| fits) else {
        return Err(dy);
    };
    let dy = into_floats(dy)?;
    if len(&o.x) == 0 {
        return Ok(tensor(dy));
    }
    let (count, dim) = o.launch();
    let out = InPlace::over(&dy, o.line, 0);
    let [dy, x, w, cos, sin] = [&dy, &o.x, &o.weight, &o.cos, &o.sin].map(|x| argument(x, o.line));
    let half = (o.d / 2 / o.line) as u32;
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: dy, x and dx have whole heads of 2·half vectors, the weight one head, the tables half a head for each
    // token, as the caller checked; the kernel ends beyond the last head of dx. Written over dy, each unit reads its
    // pairs before it writes them, and no other unit reads them.
    unsafe {
        backward_kernel::launch_unchecked(
            &o.x.client,
            count,
            dim,
            o.line,
            dy,
            x,
            w,
            cos,
            sin,
            out.argument,
            half,
            o.heads as u32,
            1.0 / o.d as f32,
            eps as f32,
            o.cube,
            [elem(o.x.dtype), elem(o.weight.dtype)],
        );
    }
    Ok(tensor(out.tensor))
}

/// The head that this unit works on.
#[cube]
fn own_head(#[comptime] cube: RowCube) -> usize {
    if comptime!(cube.planes) {
        CUBE_POS * comptime!(PLANES as usize) + PLANE_POS as usize
    } else {
        CUBE_POS
    }
}

/// Its place among the units of the head.
#[cube]
fn own_place(#[comptime] cube: RowCube) -> usize {
    if comptime!(cube.planes) {
        UNIT_POS_PLANE as usize
    } else {
        UNIT_POS as usize
    }
}

/// Σ `value` over the units of a head.
#[cube]
fn sum_head(value: f32, #[comptime] cube: RowCube) -> f32 {
    if comptime!(cube.planes) {
        plane_sum(value)
    } else {
        sum_cube(value, cube)
    }
}

#[cube(launch_unchecked)]
fn forward_kernel<F: Float, W: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<W, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    y: &mut [Vector<F, N>],
    half: u32,
    heads: u32,
    scale: f32,
    eps: f32,
    #[comptime] cube: RowCube,
    #[define(F, W)] _dtypes: [ElemType; 2],
) {
    let head = own_head(cube);
    let half = half as usize;
    let start = head * 2 * half;
    if start >= y.len() {
        terminate!();
    }
    let angle = head / heads as usize * half;
    let units = comptime!(UNITS as usize);

    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut i = own_place(cube);
    while i < half {
        let a = Vector::<f32, N>::cast_from(x[start + i]);
        let b = Vector::<f32, N>::cast_from(x[start + half + i]);
        squares += a * a + b * b;
        i += units;
    }
    let mean = sum_head(sum_lanes(squares), cube) * scale;
    let r = Vector::<f32, N>::new(1.0f32 / (mean + eps).sqrt());
    let mut i = own_place(cube);
    while i < half {
        let a =
            Vector::<f32, N>::cast_from(x[start + i]) * r * Vector::<f32, N>::cast_from(weight[i]);
        let b = Vector::<f32, N>::cast_from(x[start + half + i])
            * r
            * Vector::<f32, N>::cast_from(weight[half + i]);
        let c = cos[angle + i];
        let s = sin[angle + i];
        y[start + i] = Vector::cast_from(a * c - b * s);
        y[start + half + i] = Vector::cast_from(b * c + a * s);
        i += units;
    }
}

#[cube(launch_unchecked)]
fn backward_kernel<F: Float, W: Float, N: Size>(
    dy: &[Vector<F, N>],
    x: &[Vector<F, N>],
    weight: &[Vector<W, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    dx: &mut [Vector<F, N>],
    half: u32,
    heads: u32,
    scale: f32,
    eps: f32,
    #[comptime] cube: RowCube,
    #[define(F, W)] _dtypes: [ElemType; 2],
) {
    let head = own_head(cube);
    let half = half as usize;
    let start = head * 2 * half;
    if start >= dx.len() {
        terminate!();
    }
    let angle = head / heads as usize * half;
    let units = comptime!(UNITS as usize);

    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut products = Vector::<f32, N>::new(0.0f32);
    let mut i = own_place(cube);
    while i < half {
        let a = Vector::<f32, N>::cast_from(x[start + i]);
        let b = Vector::<f32, N>::cast_from(x[start + half + i]);
        squares += a * a + b * b;
        let da = Vector::<f32, N>::cast_from(dy[start + i]);
        let db = Vector::<f32, N>::cast_from(dy[start + half + i]);
        let c = cos[angle + i];
        let s = sin[angle + i];
        let ga = (da * c + db * s) * Vector::<f32, N>::cast_from(weight[i]);
        let gb = (db * c - da * s) * Vector::<f32, N>::cast_from(weight[half + i]);
        products += ga * a + gb * b;
        i += units;
    }
    let mean = sum_head(sum_lanes(squares), cube) * scale;
    if comptime!(!cube.planes) {
        // The sum's shared memory is used again.
        sync_cube();
    }
    let r = 1.0f32 / (mean + eps).sqrt();
    let c0 = Vector::<f32, N>::new(sum_head(sum_lanes(products), cube) * r * r * scale);
    let r = Vector::<f32, N>::new(r);
    let mut i = own_place(cube);
    while i < half {
        let a = Vector::<f32, N>::cast_from(x[start + i]);
        let b = Vector::<f32, N>::cast_from(x[start + half + i]);
        let da = Vector::<f32, N>::cast_from(dy[start + i]);
        let db = Vector::<f32, N>::cast_from(dy[start + half + i]);
        let c = cos[angle + i];
        let s = sin[angle + i];
        let ga = (da * c + db * s) * Vector::<f32, N>::cast_from(weight[i]);
        let gb = (db * c - da * s) * Vector::<f32, N>::cast_from(weight[half + i]);
        dx[start + i] = Vector::cast_from((ga - a * c0) * r);
        dx[start + half + i] = Vector::cast_from((gb - b * c0) * r);
        i += units;
    }
}
