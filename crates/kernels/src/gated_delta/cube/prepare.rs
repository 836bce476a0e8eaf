//! What a chunk's tokens are to each other, all chunks and value heads at once.

use backdraft_arch::sizes::DELTA_CHUNK as CHUNK;
use burn::tensor::DType;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::EPS;
use super::product::{DOWN, Panel, Product, clear, load, multiply};
use super::{Device, PANEL, Shape};
use crate::cube::{CubeTensor, argument, elem, empty};
use crate::runs::RUN;

/// What the other kernels start from.
pub(super) struct Prepared {
    /// N = (1 + D∘(K·Kᵀ)∘β)⁻¹·D∘(K·Kᵀ) below the diagonal, zero elsewhere: the decayed products themselves, and what they do to
    /// each other. `[chunks, value_heads, CHUNK, CHUNK]`, f32.
    pub(super) solve: CubeTensor,
    /// P, likewise.
    pub(super) pairs: CubeTensor,
    /// G, `[t, value_heads]`, f32.
    pub(super) totals: CubeTensor,
    /// √key times less of the length of each query, then of each key: `[t, 2, key_heads]`, f32.
    pub(super) norms: CubeTensor,
}

/// A product of pairs of tokens.
const PAIRS: Product = Product {
    rows: CHUNK,
    columns: CHUNK,
    across: DOWN,
    inner: PANEL,
    pitch: CHUNK + 1,
};

/// Features of tokens.
const TOKENS: Panel = Panel {
    outer: CHUNK,
    inner: PANEL,
    turned: false,
    weighted: false,
    units: DOWN * DOWN,
};

pub(super) fn prepare(x: &Device) -> Prepared {
    let (t, shape) = (x.tokens(), x.shape);
    let square = || {
        let shape = [x.runs.count * shape.value_heads, CHUNK * CHUNK];
        empty(&x.qkv, shape, DType::F32)
    };
    let prepared = Prepared {
        solve: square(),
        pairs: square(),
        totals: empty(&x.qkv, [t, shape.value_heads], DType::F32),
        norms: empty(&x.qkv, [t, 2 * shape.key_heads], DType::F32),
    };
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: runs name rows of the tensors, whose widths follow from the layout, as the caller checked; there is a square for
    // each run and value head.
    unsafe {
        kernel::launch_unchecked(
            &x.qkv.client,
            CubeCount::Static(shape.value_heads as u32, x.runs.count as u32, 1),
            CubeDim::new_2d(DOWN as u32, DOWN as u32),
            argument(&x.qkv, 1),
            argument(&x.beta, 1),
            argument(&x.decay, 1),
            x.runs.runs(),
            argument(&prepared.solve, 1),
            argument(&prepared.pairs, 1),
            argument(&prepared.totals, 1),
            argument(&prepared.norms, 1),
            (shape.key as f32).sqrt().recip(),
            shape,
            elem(x.qkv.dtype),
        );
    }
    prepared
}

#[cube(launch_unchecked)]
fn kernel<F: Float>(
    qkv: &[F],
    beta: &[f32],
    decay: &[f32],
    runs: &[u32],
    solve: &mut [f32],
    pairs: &mut [f32],
    totals: &mut [f32],
    norms: &mut [f32],
    scale: f32,
    #[comptime] shape: Shape,
    #[define(F)] _dtype: ElemType,
) {
    let (head, run) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let first = runs[run * RUN] as usize;
    let rows = runs[run * RUN + 1] as usize - first;
    let key_head = head / comptime!(shape.group());
    let heads = comptime!(shape.value_heads);
    let unit = UNIT_POS as usize;

    // β, g and G of each token, and the reciprocal lengths of its key and query.
    let mut gates = Shared::<[f32]>::new_slice(comptime!(5 * CHUNK));
    if unit < CHUNK {
        let at = (first + min(unit, rows - 1)) * heads + head;
        gates[unit] = select(unit < rows, beta[at], 0.0f32);
        gates[CHUNK + unit] = select(unit < rows, decay[at], 0.0f32);
    }

    let mut q = Shared::<[f32]>::new_slice(comptime!(PANEL * (CHUNK + 1)));
    let mut k = Shared::<[f32]>::new_slice(comptime!(PANEL * (CHUNK + 1)));
    let mut of_keys = Array::<f32>::new(comptime!(PAIRS.sums()));
    let mut of_queries = Array::<f32>::new(comptime!(PAIRS.sums()));
    clear(&mut of_keys, comptime!(PAIRS.sums()));
    clear(&mut of_queries, comptime!(PAIRS.sums()));
    let mut squares = 0.0f32;
    let start = first * comptime!(shape.width()) + key_head * comptime!(shape.key);
    for n in 0..comptime!(shape.key_padded() / PANEL) {
        let column = n * PANEL;
        sync_cube();
        load::<F>(
            qkv,
            &mut q,
            start,
            comptime!(shape.width()),
            rows,
            comptime!(shape.key),
            0usize,
            column,
            &gates,
            0usize,
            TOKENS,
        );
        load::<F>(
            qkv,
            &mut k,
            start + comptime!(shape.key_width()),
            comptime!(shape.width()),
            rows,
            comptime!(shape.key),
            0usize,
            column,
            &gates,
            0usize,
            TOKENS,
        );
        sync_cube();
        multiply(&k, 0usize, &k, 0usize, &mut of_keys, PAIRS);
        multiply(&q, 0usize, &k, 0usize, &mut of_queries, PAIRS);
        if unit < CHUNK {
            for i in 0..PANEL {
                let value = k[i * comptime!(CHUNK + 1) + unit];
                squares += value * value;
            }
        } else if unit < comptime!(2 * CHUNK) {
            for i in 0..PANEL {
                let value = q[i * comptime!(CHUNK + 1) + unit - CHUNK];
                squares += value * value;
            }
        }
    }
    if unit < comptime!(2 * CHUNK) {
        let row = unit % CHUNK;
        let mut norm = 1.0f32 / (squares + EPS).sqrt();
        let mut at = (first + row) * comptime!(2 * shape.key_heads) + key_head;
        if unit < CHUNK {
            at += comptime!(shape.key_heads);
        } else {
            norm *= scale;
        }
        gates[comptime!(3 * CHUNK) + unit] = norm;
        if row < rows && head % comptime!(shape.group()) == 0 {
            norms[at] = norm;
        }
    }
    if unit < CHUNK {
        let mut total = 0.0f32;
        let mut i = CHUNK.runtime();
        while i <= CHUNK + unit {
            total += gates[i];
            i += 1;
        }
        gates[comptime!(2 * CHUNK) + unit] = total;
        if unit < rows {
            totals[(first + unit) * heads + head] = total;
        }
    }
    sync_cube();

    // Below the diagonal stands D∘(K·Kᵀ), above it N, turned: a unit has a row of that.
    let mut square = Shared::<[f32]>::new_slice(comptime!(CHUNK * (CHUNK + 1)));
    let (x, y) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let base = (run * heads + head) * comptime!(CHUNK * CHUNK);
    #[unroll]
    for i in 0..comptime!(PAIRS.down()) {
        let t = y + comptime!(i * DOWN);
        #[unroll]
        for j in 0..comptime!(PAIRS.own()) {
            let s = x + comptime!(j * DOWN);
            let sum = comptime!(i * PAIRS.own() + j);
            let mut pair = 0.0f32;
            if s <= t {
                let faded = (gates[comptime!(2 * CHUNK) + t] - gates[comptime!(2 * CHUNK) + s])
                    .exp()
                    * gates[comptime!(3 * CHUNK) + s];
                pair = of_queries[sum] * faded * gates[comptime!(4 * CHUNK) + t];
                square[t * comptime!(CHUNK + 1) + s] =
                    of_keys[sum] * faded * gates[comptime!(3 * CHUNK) + t];
            }
            pairs[base + t * CHUNK + s] = pair;
        }
    }
    sync_cube();
    if unit < CHUNK {
        let own = unit * comptime!(CHUNK + 1);
        let mut t = unit + 1;
        while t < CHUNK {
            let row = t * comptime!(CHUNK + 1);
            let mut value = square[row + unit];
            let mut s = unit + 1;
            while s < t {
                value -= square[row + s] * gates[s] * square[own + s];
                s += 1;
            }
            square[own + t] = value;
            t += 1;
        }
    }
    sync_cube();
    let mut i = unit;
    while i < comptime!(CHUNK * CHUNK) {
        let (t, s) = (i / CHUNK, i % CHUNK);
        let mut value = 0.0f32;
        if s < t {
            value = square[s * comptime!(CHUNK + 1) + t];
        }
        solve[base + i] = value;
        i += comptime!(DOWN * DOWN);
    }
}
