//! In place on a CubeCL device; a unit turns one vector of pairs, or passes two on.

#![allow(
    clippy::if_same_then_else,
    reason = "of two branches that do the same, one is chosen when the kernel is compiled"
)]

use backdraft_arch::RotaryPairs;
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
    let Some(angles) = Angles::of(tables).filter(|_| on_cube(&x)) else {
        return Err(x);
    };
    let heads = angles.heads(&x);
    let x = into_floats(x)?;
    let (dtype, line) = (x.dtype, angles.line(x.dtype));
    let (count, dim) = elementwise(len(&x) / line / 2);
    if len(&x) == 0 {
        return Ok(tensor(x));
    }
    let out = InPlace::over(&x, line, 0);
    let [from, cos, sin] = [&x, &angles.cos, &angles.sin].map(|x| argument(x, line));
    let [half, units] = angles.in_vectors(line);
    let (client, to, elem) = (&x.client, out.argument, elem(dtype));
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: `to` has as many vectors as `from`; the tables have `half` vectors for each token, and no more than `units`, as
    // the caller checked.
    unsafe {
        kernel::launch_unchecked(
            client,
            count,
            dim,
            line,
            from,
            cos,
            sin,
            to,
            half,
            units,
            heads,
            sign,
            angles.turning(),
            elem,
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
    let Some(angles) = Angles::of(tables).filter(|_| fit) else {
        return Err((q, k));
    };
    let [heads, kv_heads] = [&q, &k].map(|x| angles.heads(x));
    let (q, k) = match (into_floats(q), into_floats(k)) {
        (Ok(q), Ok(k)) => (q, k),
        (q, k) => return Err((q.map_or_else(|q| q, tensor), k.map_or_else(|k| k, tensor))),
    };
    let (dtype, line) = (q.dtype, angles.line(q.dtype));
    let (count, dim) = elementwise((len(&q) + len(&k)) / line / 2);
    let (out_q, out_k) = (InPlace::over(&q, line, 0), InPlace::over(&k, line, 1));
    let [from_q, from_k, cos, sin] = [&q, &k, &angles.cos, &angles.sin].map(|x| argument(x, line));
    let [half, units] = angles.in_vectors(line);
    let (client, elem) = (&q.client, elem(dtype));
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: outputs have as many vectors as inputs; the tables have `half` vectors for each token, and no more than `units`,
    // as the caller checked.
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
            units,
            heads,
            kv_heads,
            sign,
            angles.turning(),
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
    /// Features of a head.
    head_dim: usize,
    pairs: RotaryPairs,
}

/// What turns of a head, known when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Turning {
    pairs: RotaryPairs,
    /// All of it.
    whole: bool,
}

impl Angles {
    fn of(tables: &RotaryTables) -> Option<Self> {
        let (cos, sin) = (floats(&tables.cos)?, floats(&tables.sin)?);
        let fit = cos.dtype == DType::F32 && sin.dtype == DType::F32;
        fit.then_some(Self {
            cos,
            sin,
            half: tables.cos.dims()[1],
            head_dim: tables.head_dim,
            pairs: tables.pairs,
        })
    }

    fn heads(&self, x: &Tensor<2>) -> u32 {
        (x.dims()[1] / self.head_dim.max(1)) as u32
    }

    /// Values in a vector: those of neighbours would be of both kinds.
    fn line(&self, dtype: DType) -> usize {
        match self.pairs {
            RotaryPairs::Halves => line(dtype, self.half).min(line(dtype, self.head_dim / 2)),
            RotaryPairs::Neighbours => 1,
        }
    }

    /// Vectors of angles of a token, and pairs of vectors of a head.
    fn in_vectors(&self, line: usize) -> [u32; 2] {
        [self.half, self.head_dim / 2].map(|count| (count / line) as u32)
    }

    fn turning(&self) -> Turning {
        Turning {
            pairs: self.pairs,
            whole: 2 * self.half == self.head_dim,
        }
    }
}

#[cube(launch_unchecked)]
fn kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    y: &mut [Vector<F, N>],
    half: u32,
    units: u32,
    heads: u32,
    sign: f32,
    #[comptime] turning: Turning,
    #[define(F)] _dtype: ElemType,
) {
    let pair = ABSOLUTE_POS;
    if pair < y.len() / 2 {
        let (half, units) = (half as usize, units as usize);
        turn(
            x,
            cos,
            sin,
            y,
            pair,
            half,
            units,
            heads as usize,
            sign,
            turning,
        );
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
    units: u32,
    heads: u32,
    kv_heads: u32,
    sign: f32,
    #[comptime] turning: Turning,
    #[define(F)] _dtype: ElemType,
) {
    let pair = ABSOLUTE_POS;
    let queries = y_q.len() / 2;
    let (half, units) = (half as usize, units as usize);
    if pair < queries {
        let heads = heads as usize;
        turn(q, cos, sin, y_q, pair, half, units, heads, sign, turning);
    } else if pair - queries < y_k.len() / 2 {
        let (pair, heads) = (pair - queries, kv_heads as usize);
        turn(k, cos, sin, y_k, pair, half, units, heads, sign, turning);
    }
}

/// Pair `pair` of vectors: of a head's `units`, the first `half` turn.
#[cube]
fn turn<F: Float, N: Size>(
    x: &[Vector<F, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    y: &mut [Vector<F, N>],
    pair: usize,
    half: usize,
    units: usize,
    heads: usize,
    sign: f32,
    #[comptime] turning: Turning,
) {
    let (head, i) = (pair / units, pair % units);
    let start = head * 2 * units;
    let angle = head / heads * half + i;
    if comptime!(turning.whole) {
        turn_pair(
            x,
            cos,
            sin,
            y,
            start,
            i,
            half,
            angle,
            sign,
            comptime!(turning.pairs),
        );
    } else if i < half {
        turn_pair(
            x,
            cos,
            sin,
            y,
            start,
            i,
            half,
            angle,
            sign,
            comptime!(turning.pairs),
        );
    } else {
        let first = start + 2 * i;
        y[first] = x[first];
        y[first + 1] = x[first + 1];
    }
}

#[cube]
fn turn_pair<F: Float, N: Size>(
    x: &[Vector<F, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    y: &mut [Vector<F, N>],
    start: usize,
    i: usize,
    half: usize,
    angle: usize,
    sign: f32,
    #[comptime] pairs: RotaryPairs,
) {
    let first = if comptime!(pairs == RotaryPairs::Halves) {
        start + i
    } else {
        start + 2 * i
    };
    let second = if comptime!(pairs == RotaryPairs::Halves) {
        first + half
    } else {
        first + 1
    };
    let c = cos[angle];
    let s = sin[angle] * Vector::new(sign);
    let a = Vector::<f32, N>::cast_from(x[first]);
    let b = Vector::<f32, N>::cast_from(x[second]);
    y[first] = Vector::cast_from(a * c - b * s);
    y[second] = Vector::cast_from(b * c + a * s);
}
