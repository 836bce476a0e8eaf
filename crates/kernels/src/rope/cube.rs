//! In place on a CubeCL device; a unit turns one vector of pairs.

use burn::tensor::{DType, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::RotaryTables;
use crate::cube::{
    CubeTensor, InPlace, argument, elem, elementwise, floats, into_floats, len, line, on_cube,
    tensor,
};

/// `Err` hands `x` back when it is not on a CubeCL device.
pub(super) fn rotate(
    x: Tensor<2>,
    tables: &RotaryTables,
    sign: f32,
) -> Result<Tensor<2>, Tensor<2>> {
    let Some(Angles { cos, sin, half }) = Angles::of(tables).filter(|_| on_cube(&x)) else {
        return Err(x);
    };
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

/// Both in one launch; `Err` hands them back when one is not on a CubeCL device, has nothing in it, or has another
/// dtype.
pub(super) fn rotate_both(
    q: Tensor<2>,
    k: Tensor<2>,
    tables: &RotaryTables,
    sign: f32,
) -> Result<(Tensor<2>, Tensor<2>), (Tensor<2>, Tensor<2>)> {
    let full = |x: &Tensor<2>| on_cube(x) && x.shape().num_elements() > 0;
    let fit = full(&q) && full(&k) && q.dtype() == k.dtype();
    let Some(Angles { cos, sin, half }) = Angles::of(tables).filter(|_| fit) else {
        return Err((q, k));
    };
    let [heads, kv_heads] = [&q, &k].map(|x| (x.dims()[1] / (2 * half)) as u32);
    let (q, k) = match (into_floats(q), into_floats(k)) {
        (Ok(q), Ok(k)) => (q, k),
        (q, k) => return Err((q.map_or_else(|q| q, tensor), k.map_or_else(|k| k, tensor))),
    };
    let (dtype, line) = (q.dtype, line(q.dtype, half));
    let (count, dim) = elementwise((len(&q) + len(&k)) / line / 2);
    let (out_q, out_k) = (InPlace::over(&q, line, 0), InPlace::over(&k, line, 1));
    let [from_q, from_k, cos, sin] = [&q, &k, &cos, &sin].map(|x| argument(x, line));
    let half = (half / line) as u32;
    let (client, elem) = (&q.client, elem(dtype));
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: outputs have as many vectors as inputs; the tables have half a head for each token, as the
    // caller checked.
    unsafe {
        both_kernel::launch_unchecked(
            client,
            count,
            dim,
            line,
            from_q,
            from_k,
            cos,
            sin,
            out_q.argument,
            out_k.argument,
            half,
            heads,
            kv_heads,
            sign,
            elem,
        );
    }
    Ok((tensor(out_q.tensor), tensor(out_k.tensor)))
}

/// The tables on a CubeCL device.
struct Angles {
    cos: CubeTensor,
    sin: CubeTensor,
    /// Angles of a token.
    half: usize,
}

impl Angles {
    fn of(tables: &RotaryTables) -> Option<Self> {
        let (cos, sin) = (floats(&tables.cos)?, floats(&tables.sin)?);
        let half = tables.cos.dims()[1];
        let fit = cos.dtype == DType::F32 && sin.dtype == DType::F32;
        fit.then_some(Self { cos, sin, half })
    }
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
        turn(x, cos, sin, y, pair, half as usize, heads as usize, sign);
    }
}

/// The pairs of keys come behind those of queries.
#[cube(launch_unchecked)]
fn both_kernel<F: Float, N: Size>(
    q: &[Vector<F, N>],
    k: &[Vector<F, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    y_q: &mut [Vector<F, N>],
    y_k: &mut [Vector<F, N>],
    half: u32,
    heads: u32,
    kv_heads: u32,
    sign: f32,
    #[define(F)] _dtype: ElemType,
) {
    let pair = ABSOLUTE_POS;
    let queries = y_q.len() / 2;
    if pair < queries {
        turn(q, cos, sin, y_q, pair, half as usize, heads as usize, sign);
    } else if pair - queries < y_k.len() / 2 {
        let pair = pair - queries;
        turn(
            k,
            cos,
            sin,
            y_k,
            pair,
            half as usize,
            kv_heads as usize,
            sign,
        );
    }
}

#[cube]
fn turn<F: Float, N: Size>(
    x: &[Vector<F, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    y: &mut [Vector<F, N>],
    pair: usize,
    half: usize,
    heads: usize,
    sign: f32,
) {
    let (head, i) = (pair / half, pair % half);
    let first = head * 2 * half + i;
    let second = first + half;
    let angle = head / heads * half + i;
    let c = cos[angle];
    let s = sin[angle] * Vector::new(sign);
    let a = Vector::<f32, N>::cast_from(x[first]);
    let b = Vector::<f32, N>::cast_from(x[second]);
    y[first] = Vector::cast_from(a * c - b * s);
    y[second] = Vector::cast_from(b * c + a * s);
}
