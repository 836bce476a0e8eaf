//! One pass on a CubeCL device.

use burn::tensor::Tensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::Dropout;
use crate::cube::{
    CubeTensor, InPlace, argument, elem, elementwise, floats, into_floats, len, line, on_cube,
    tensor,
};
use crate::uniform::cube::uniform;
use crate::uniform::halves;

pub(super) fn apply(dropout: Dropout, x: Tensor<2>) -> Result<Tensor<2>, Tensor<2>> {
    let x = into_floats(x)?;
    let line = lanes(&x);
    let out = InPlace::over(&x, line, 0);
    if len(&x) > 0 {
        let (count, dim) = elementwise(len(&x) / line);
        let [low, high] = halves(dropout.seed);
        #[expect(unsafe_code, reason = "a kernel without bounds checks")]
        // SAFETY: both have as many vectors, and the kernel does not go beyond the last.
        unsafe {
            apply_kernel::launch_unchecked(
                &x.client,
                count,
                dim,
                line,
                argument(&x, line),
                out.argument,
                low,
                high,
                dropout.p,
                dropout.kept(),
                elem(x.dtype),
            );
        }
    }
    Ok(tensor(out.tensor))
}

pub(super) fn add(dropout: Dropout, x: &Tensor<2>, sum: Tensor<2>) -> Result<Tensor<2>, Tensor<2>> {
    let alike = on_cube(x) && x.dtype() == sum.dtype() && x.dims() == sum.dims();
    let Some(x) = alike.then(|| floats(x)).flatten() else {
        return Err(sum);
    };
    let sum = into_floats(sum)?;
    let line = lanes(&x);
    let out = InPlace::over(&sum, line, 1);
    if len(&x) > 0 {
        let (count, dim) = elementwise(len(&x) / line);
        let [low, high] = halves(dropout.seed);
        #[expect(unsafe_code, reason = "a kernel without bounds checks")]
        // SAFETY: all three have as many vectors, and the kernel does not go beyond the last.
        unsafe {
            add_kernel::launch_unchecked(
                &x.client,
                count,
                dim,
                line,
                argument(&x, line),
                argument(&sum, line),
                out.argument,
                low,
                high,
                dropout.p,
                dropout.kept(),
                elem(x.dtype),
            );
        }
    }
    Ok(tensor(out.tensor))
}

/// Values in a vector.
///
/// # Panics
/// If there are more values than 32 bits count: positions would repeat.
fn lanes(x: &CubeTensor) -> usize {
    assert!(
        u32::try_from(len(x)).is_ok(),
        "dropout of {} values at once",
        len(x)
    );
    line(x.dtype, len(x))
}

#[cube(launch_unchecked)]
fn apply_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    out: &mut [Vector<F, N>],
    seed_low: u32,
    seed_high: u32,
    p: f32,
    kept: f32,
    #[define(F)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i < out.len() {
        let values = Vector::<f32, N>::cast_from(x[i]);
        out[i] = Vector::cast_from(masked::<N>(values, i as u32, seed_low, seed_high, p, kept));
    }
}

#[cube(launch_unchecked)]
fn add_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    sum: &[Vector<F, N>],
    out: &mut [Vector<F, N>],
    seed_low: u32,
    seed_high: u32,
    p: f32,
    kept: f32,
    #[define(F)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i < out.len() {
        let values = Vector::<f32, N>::cast_from(x[i]);
        let masked = masked::<N>(values, i as u32, seed_low, seed_high, p, kept);
        out[i] = Vector::cast_from(Vector::<f32, N>::cast_from(sum[i]) + masked);
    }
}

/// Vector `i` under the mask.
#[cube]
fn masked<N: Size>(
    values: Vector<f32, N>,
    i: u32,
    seed_low: u32,
    seed_high: u32,
    p: f32,
    kept: f32,
) -> Vector<f32, N> {
    let mut result = Vector::<f32, N>::empty();
    let first = i * N::value() as u32;
    #[unroll]
    for lane in 0..N::value() {
        let uniform = uniform(first + lane as u32, seed_low, seed_high);
        let value = values.extract(lane) * kept;
        result.insert(lane, select(uniform < p, 0.0f32, value));
    }
    result
}
