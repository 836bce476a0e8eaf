//! In place on a CubeCL device; a unit turns one vector of pairs.

use burn::tensor::{DType, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::RotaryTables;
use crate::cube::{
    InPlace, argument, elem, elementwise, floats, into_floats, len, line, on_cube, tensor,
};

/// `Err` hands `x` back when it is not on a CubeCL device.
pub(super) fn rotate(
    x: Tensor<2>,
    tables: &RotaryTables,
    sign: f32,
) -> Result<Tensor<2>, Tensor<2>> {
    let (true, Some(cos), Some(sin)) = (on_cube(&x), floats(&tables.cos), floats(&tables.sin))
    else {
        return Err(x);
    };
    if cos.dtype != DType::F32 || sin.dtype != DType::F32 {
        return Err(x);
    }
    let half = tables.cos.dims()[1];
    let heads = x.dims()[1] / (2 * half.max(1));
    let x = into_floats(x)?;
    let (dtype, line) = (x.dtype, line(x.dtype, half));
    let (count, dim) = elementwise(len(&x) / line / 2);
    if len(&x) == 0 {
        return Ok(tensor(x));
    }
    let out = InPlace::over(&x, line, 0);
    let [from, cos, sin] = [&x, &cos, &sin].map(|x| argument(x, line));
    let (half, heads) = ((half / line) as u32, heads as u32);
    let (client, to, elem) = (&x.client, out.argument, elem(dtype));
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: `to` has as many vectors as `from`; the tables have half a head for each token, as the
    // caller checked.
    unsafe {
        kernel::launch_unchecked(
            client, count, dim, line, from, cos, sin, to, half, heads, sign, elem,
        );
    }
    Ok(tensor(out.tensor))
}

#[cube(launch_unchecked)]
fn kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    y: &mut [Vector<F, N>],
    half: u32,
    heads: u32,
    sign: f32,
    #[define(F)] _dtype: ElemType,
) {
    let pair = ABSOLUTE_POS;
    if pair < y.len() / 2 {
        let half = half as usize;
        let (head, i) = (pair / half, pair % half);
        let first = head * 2 * half + i;
        let second = first + half;
        let angle = head / (heads as usize) * half + i;
        let c = cos[angle];
        let s = sin[angle] * Vector::new(sign);
        let a = Vector::<f32, N>::cast_from(x[first]);
        let b = Vector::<f32, N>::cast_from(x[second]);
        y[first] = Vector::cast_from(a * c - b * s);
        y[second] = Vector::cast_from(b * c + a * s);
    }
}
