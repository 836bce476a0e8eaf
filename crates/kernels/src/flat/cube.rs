//! The kernels of flat buffers. They write into memory that views share, on purpose.

use burn::tensor::{DType, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::{Flat, FlatMoments, FlatParams};
use crate::adamw::AdamWParams;
use crate::adamw::cube::{Constants, ConstantsLaunch, constants};
use crate::adamw8bit;
use crate::cube::{
    CubeTensor, RowCube, UNITS, argument, elem, elementwise, empty, floats, len, line, on_cube,
    sum_cube, sum_lanes, tensor,
};
use crate::views::cube::cut;

pub(super) fn on_device(x: &Tensor<1>) -> Option<()> {
    on_cube(x).then_some(())
}

/// `dims` values from `start` on, in the memory of `buffer`.
pub(super) fn view(buffer: &Tensor<1>, place: (usize, [usize; 2])) -> Option<Tensor<2>> {
    Some(cut(&floats(buffer)?, place))
}

/// Cubes that share a norm; their sums are added by one cube.
const SUMS: usize = 1024;

pub(crate) fn norm(x: &Tensor<1>) -> Option<Tensor<1>> {
    let x = floats(x)?;
    let line = line(x.dtype, len(&x));
    let vectors = len(&x) / line;
    let cube = RowCube::new(&x, UNITS as usize, UNITS);
    let sums = empty(&x, [SUMS], DType::F32);
    let norm = empty(&x, [1], DType::F32);
    let client = x.client.clone();
    #[expect(unsafe_code, reason = "kernels without bounds checks")]
    // SAFETY: the first kernel reads up to the last vector and writes a sum for each of its cubes; the second
    // reads these.
    unsafe {
        squares_kernel::launch_unchecked(
            &client,
            CubeCount::Static(SUMS as u32, 1, 1),
            cube.dim(),
            line,
            argument(&x, line),
            argument(&sums, 1),
            vectors as u32,
            cube,
            elem(x.dtype),
        );
        root_kernel::launch_unchecked(
            &client,
            CubeCount::Static(1, 1, 1),
            cube.dim(),
            argument(&sums, 1),
            argument(&norm, 1),
            cube,
        );
    }
    Some(tensor(norm))
}

#[cube(launch_unchecked)]
fn squares_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    sums: &mut [f32],
    vectors: u32,
    #[comptime] cube: RowCube,
    #[define(F)] _dtype: ElemType,
) {
    let units = comptime!(cube.units as usize);
    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut i = CUBE_POS * units + UNIT_POS as usize;
    while i < vectors as usize {
        let v = Vector::<f32, N>::cast_from(x[i]);
        squares += v * v;
        i += units * SUMS;
    }
    let sum = sum_cube(sum_lanes(squares), cube);
    if UNIT_POS == 0 {
        sums[CUBE_POS] = sum;
    }
}

#[cube(launch_unchecked)]
fn root_kernel(sums: &[f32], norm: &mut [f32], #[comptime] cube: RowCube) {
    let mut sum = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < SUMS {
        sum += sums[i];
        i += comptime!(cube.units as usize);
    }
    let total = sum_cube(sum, cube);
    if UNIT_POS == 0 {
        norm[0] = total.sqrt();
    }
}

pub(super) fn adamw(
    params: FlatParams<'_>,
    grads: &Flat,
    factor: Option<&Tensor<1>>,
    moments: &FlatMoments,
    (lr, t): (f64, u64),
    p: &AdamWParams,
) -> Option<()> {
    let w = floats(&params.values.buffer)?;
    let g = floats(&grads.buffer)?;
    // Without a copy the parameters stand in for it, and nothing is written.
    let rounded = match params.rounded {
        Some(rounded) => Some(floats(&rounded.buffer)?),
        None => None,
    };
    let one = match factor {
        Some(factor) => floats(factor)?,
        None => floats(&Tensor::<1>::ones(
            [1],
            (&grads.buffer.device(), DType::F32),
        ))?,
    };
    let constants = constants((lr, t), p);
    match moments {
        FlatMoments::F32 { m, v } => {
            let (m, v) = (floats(&m.buffer)?, floats(&v.buffer)?);
            launch_f32(&w, rounded.as_ref(), &g, &one, [&m, &v], constants);
        }
        FlatMoments::Bits8(moments, guard) => {
            adamw8bit::cube::launch(&w, rounded.as_ref(), &g, &one, moments, constants, *guard)?;
        }
    }
    Some(())
}

fn launch_f32(
    w: &CubeTensor,
    rounded: Option<&CubeTensor>,
    g: &CubeTensor,
    factor: &CubeTensor,
    [m, v]: [&CubeTensor; 2],
    constants: ConstantsLaunch,
) {
    const LINE: usize = 4;
    let (count, dim) = elementwise(len(w) / LINE);
    let (copy, dtype) = match rounded {
        Some(copy) => (argument(copy, LINE), copy.dtype),
        None => (argument(w, LINE), w.dtype),
    };
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: flat buffers of the same matrices have as many values, a multiple of the line, and the kernel
    // does not go beyond the last.
    unsafe {
        kernel::launch_unchecked(
            &w.client,
            count,
            dim,
            LINE,
            argument(w, LINE),
            copy,
            argument(g, LINE),
            argument(factor, 1),
            argument(m, LINE),
            argument(v, LINE),
            constants,
            rounded.is_some(),
            elem(dtype),
        );
    }
}

#[cube(launch_unchecked)]
fn kernel<R: Float, N: Size>(
    w: &mut [Vector<f32, N>],
    rounded: &mut [Vector<R, N>],
    grad: &[Vector<f32, N>],
    factor: &[f32],
    m: &mut [Vector<f32, N>],
    v: &mut [Vector<f32, N>],
    c: &Constants,
    #[comptime] rounds: bool,
    #[define(R)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i < w.len() {
        let g = grad[i] * Vector::new(factor[0]);
        let new_m = m[i] * Vector::new(c.beta1) + g * Vector::new(c.rest1);
        let new_v = v[i] * Vector::new(c.beta2) + g * g * Vector::new(c.rest2);
        let denominator = new_v.sqrt() * Vector::new(c.root) + Vector::new(c.epsilon);
        let new_w = w[i] * Vector::new(c.decay) - new_m / denominator * Vector::new(c.step_size);
        w[i] = new_w;
        m[i] = new_m;
        v[i] = new_v;
        if comptime!(rounds) {
            rounded[i] = Vector::cast_from(new_w);
        }
    }
}
