//! Gradients of a chunk from what the scans left, all chunks at once: of queries and keys for each key head, which sums over
//! its value heads in their order, and of the gates for each value head.

use backdraft_arch::sizes::DELTA_CHUNK as CHUNK;
use burn::tensor::DType;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::gates::{BETA, GROWN, KEY, LISTS, QUERY, TOTAL, load_gates};
use super::prepare::Prepared;
use super::product::{DOWN, Panel, Product, clear, load, multiply};
use super::scan::{Before, Behind};
use super::{Device, PANEL, Shape};
use crate::cube::{CubeTensor, RowCube, argument, elem, empty, sum_cube};
use crate::runs::RUN;

/// Units of a cube.
const UNITS: usize = DOWN * DOWN;

/// A product of pairs of tokens.
const PAIRS: Product = Product {
    rows: CHUNK,
    columns: CHUNK,
    across: DOWN,
    inner: PANEL,
    pitch: CHUNK + 1,
};

impl Shape {
    /// A row for each token, a column for each feature of a key.
    const fn of_keys(self) -> Product {
        Product {
            columns: self.key_padded(),
            pitch: self.key_padded() + 1,
            ..PAIRS
        }
    }
}

const fn panel(outer: usize, turned: bool, weighted: bool) -> Panel {
    Panel {
        outer,
        inner: PANEL,
        turned,
        weighted,
        units: UNITS,
    }
}

/// Gradients of queries and keys, into `d_qkv`; dO·O of each token and value head is the result.
pub(super) fn of_queries_and_keys(
    x: &Device,
    d_out: &CubeTensor,
    prepared: &Prepared,
    (before, behind): (&Before, &Behind),
    d_qkv: &CubeTensor,
) -> CubeTensor {
    let shape = x.shape;
    let read = empty(&x.qkv, [x.tokens(), shape.value_heads], DType::F32);
    let count = || CubeCount::Static(shape.key_heads as u32, x.runs.count as u32, 1);
    let dim = CubeDim::new_2d(DOWN as u32, DOWN as u32);
    let (scale, elem) = ((shape.key as f32).sqrt(), elem(x.qkv.dtype));
    #[expect(unsafe_code, reason = "kernels without bounds checks")]
    // SAFETY: runs name rows of the tensors, whose widths follow from the layout, as the caller checked; there is a state and a
    // block of values for each run and value head.
    unsafe {
        queries_kernel::launch_unchecked(
            &x.qkv.client,
            count(),
            dim,
            argument(d_out, 1),
            argument(&x.qkv, 1),
            argument(&x.beta, 1),
            argument(&prepared.totals, 1),
            argument(&prepared.norms, 1),
            x.runs.runs(),
            argument(&before.states, 1),
            argument(&before.updates, 1),
            argument(d_qkv, 1),
            argument(&read, 1),
            scale,
            shape,
            elem,
        );
        keys_kernel::launch_unchecked(
            &x.qkv.client,
            count(),
            dim,
            argument(d_out, 1),
            argument(&x.qkv, 1),
            argument(&x.beta, 1),
            argument(&prepared.totals, 1),
            argument(&prepared.norms, 1),
            x.runs.runs(),
            argument(&before.states, 1),
            argument(&before.updates, 1),
            argument(&behind.states, 1),
            argument(&behind.updates, 1),
            argument(d_qkv, 1),
            shape,
            elem,
        );
    }
    read
}

/// dβ and dg, given dO·O of each token and value head.
pub(super) fn of_gates(
    x: &Device,
    read: &CubeTensor,
    (before, behind): (&Before, &Behind),
) -> [CubeTensor; 2] {
    let shape = x.shape;
    let [d_beta, d_decay] =
        [(); 2].map(|()| empty(&x.qkv, [x.tokens(), shape.value_heads], DType::F32));
    let cube = RowCube::new(&x.qkv, UNITS, UNITS as u32);
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: as above.
    unsafe {
        gates_kernel::launch_unchecked(
            &x.qkv.client,
            CubeCount::Static(shape.value_heads as u32, x.runs.count as u32, 1),
            CubeDim::new_2d(DOWN as u32, DOWN as u32),
            argument(&x.qkv, 1),
            argument(&x.beta, 1),
            argument(read, 1),
            x.runs.runs(),
            argument(&before.states, 1),
            argument(&before.updates, 1),
            argument(&behind.states, 1),
            argument(&behind.updates, 1),
            argument(&d_beta, 1),
            argument(&d_decay, 1),
            shape,
            cube,
            elem(x.qkv.dtype),
        );
    }
    [d_beta, d_decay]
}

/// Adds `left`·Uᵀ, sums over the values of each pair of tokens: `left` begins at `start`.
#[cube]
fn add_pairs<F: Float>(
    left: &[F],
    start: usize,
    stride: usize,
    rows: usize,
    updates: &[f32],
    of_updates: usize,
    gates: &[f32],
    a: &mut [f32],
    b: &mut [f32],
    sums: &mut Array<f32>,
    #[comptime] shape: Shape,
) {
    for n in 0..comptime!(shape.value_padded() / PANEL) {
        let column = n * PANEL;
        sync_cube();
        load::<F>(
            left,
            a,
            start,
            stride,
            rows,
            comptime!(shape.value),
            0usize,
            column,
            gates,
            BETA,
            comptime!(panel(CHUNK, false, false)),
        );
        load::<f32>(
            updates,
            b,
            of_updates,
            comptime!(shape.value),
            rows,
            comptime!(shape.value),
            0usize,
            column,
            gates,
            BETA,
            comptime!(panel(CHUNK, false, true)),
        );
        sync_cube();
        multiply(&*a, 0usize, &*b, 0usize, sums, PAIRS);
    }
}

/// Adds values of tokens, times the factors of a list, times a state turned.
#[cube]
fn add_through_state<F: Float>(
    left: &[F],
    start: usize,
    stride: usize,
    rows: usize,
    factors: &[f32],
    list: usize,
    states: &[f32],
    of_state: usize,
    a: &mut [f32],
    b: &mut [f32],
    sums: &mut Array<f32>,
    #[comptime] shape: Shape,
) {
    for n in 0..comptime!(shape.value_padded() / PANEL) {
        let column = n * PANEL;
        sync_cube();
        load::<F>(
            left,
            a,
            start,
            stride,
            rows,
            comptime!(shape.value),
            0usize,
            column,
            factors,
            list,
            comptime!(panel(CHUNK, false, true)),
        );
        load::<f32>(
            states,
            b,
            of_state,
            comptime!(shape.value),
            comptime!(shape.key),
            comptime!(shape.value),
            0usize,
            column,
            factors,
            list,
            comptime!(panel(shape.key_padded(), false, false)),
        );
        sync_cube();
        multiply(&*a, 0usize, &*b, 0usize, sums, comptime!(shape.of_keys()));
    }
}

/// Adds a square of pairs in shared memory, inner tokens in its rows, times keys or queries of the chunk.
#[cube]
fn add_tokens<F: Float>(
    square: &[f32],
    qkv: &[F],
    start: usize,
    rows: usize,
    gates: &[f32],
    list: usize,
    b: &mut [f32],
    sums: &mut Array<f32>,
    #[comptime] shape: Shape,
) {
    for n in 0..comptime!(CHUNK / PANEL) {
        let first = n * PANEL;
        sync_cube();
        load::<F>(
            qkv,
            b,
            start,
            comptime!(shape.width()),
            rows,
            comptime!(shape.key),
            first,
            0usize,
            gates,
            list,
            comptime!(panel(shape.key_padded(), true, true)),
        );
        sync_cube();
        multiply(
            square,
            first * comptime!(CHUNK + 1),
            &*b,
            0usize,
            sums,
            comptime!(shape.of_keys()),
        );
    }
}

/// Σ over the features of each token of what units have of it, into the first values of `sums`: `partial` of DOWN for each.
#[cube]
fn sum_rows(partial: &[f32], sums: &mut [f32]) {
    let unit = UNIT_POS as usize;
    sync_cube();
    if unit < CHUNK {
        let mut sum = 0.0f32;
        for i in 0..DOWN {
            sum += partial[i * CHUNK + unit];
        }
        sums[unit] = sum;
    }
    sync_cube();
}

/// What units have of x·d, where x is a normed key or query in memory.
#[cube]
fn project<F: Float>(
    qkv: &[F],
    start: usize,
    rows: usize,
    gates: &[f32],
    list: usize,
    d: &Array<f32>,
    partial: &mut [f32],
    #[comptime] shape: Shape,
) {
    let product = comptime!(shape.of_keys());
    sync_cube();
    #[unroll]
    for i in 0..comptime!(product.down()) {
        let t = UNIT_POS_Y as usize + comptime!(i * DOWN);
        let mut sum = 0.0f32;
        #[unroll]
        for j in 0..comptime!(product.own()) {
            let feature = UNIT_POS_X as usize + comptime!(j * DOWN);
            if t < rows && feature < comptime!(shape.key) {
                let value = f32::cast_from(qkv[start + t * comptime!(shape.width()) + feature]);
                sum += value * d[comptime!(i * product.own() + j)];
            }
        }
        partial[UNIT_POS_X as usize * CHUNK + t] = sum * gates[list + t];
    }
}

/// From gradients `d` of normed keys or queries x to those of what was normed: norm∘(d − scale²·x·⟨x, d⟩), where x has the
/// length 1 / scale, and `along` is ⟨x, d⟩.
#[cube]
fn write<F: Float>(
    qkv: &[F],
    start: usize,
    rows: usize,
    gates: &[f32],
    list: usize,
    d: &Array<f32>,
    along: &[f32],
    scale: f32,
    to: &mut [F],
    #[comptime] shape: Shape,
) {
    let product = comptime!(shape.of_keys());
    #[unroll]
    for i in 0..comptime!(product.down()) {
        let t = UNIT_POS_Y as usize + comptime!(i * DOWN);
        let norm = gates[list + t];
        #[unroll]
        for j in 0..comptime!(product.own()) {
            let feature = UNIT_POS_X as usize + comptime!(j * DOWN);
            if t < rows && feature < comptime!(shape.key) {
                let at = start + t * comptime!(shape.width()) + feature;
                let x = f32::cast_from(qkv[at]) * norm * scale * scale;
                let value = norm * (d[comptime!(i * product.own() + j)] - x * along[t]);
                to[at] = F::cast_from(value);
            }
        }
    }
}

#[cube(launch_unchecked)]
fn queries_kernel<F: Float>(
    d_out: &[F],
    qkv: &[F],
    beta: &[f32],
    totals: &[f32],
    norms: &[f32],
    runs: &[u32],
    states: &[f32],
    updates: &[f32],
    d_qkv: &mut [F],
    read: &mut [f32],
    scale: f32,
    #[comptime] shape: Shape,
    #[define(F)] _dtype: ElemType,
) {
    let (key_head, run) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let first = runs[run * RUN] as usize;
    let rows = runs[run * RUN + 1] as usize - first;
    let heads = comptime!(shape.value_heads);
    let queries = first * comptime!(shape.width()) + key_head * comptime!(shape.key);
    let keys = queries + comptime!(shape.key_width());
    let product = comptime!(shape.of_keys());

    let mut gates = Shared::<[f32]>::new_slice(comptime!(LISTS * CHUNK));
    let mut along = Shared::<[f32]>::new_slice(CHUNK);
    let mut square = Shared::<[f32]>::new_slice(comptime!(CHUNK * (CHUNK + 1)));
    let mut a = Shared::<[f32]>::new_slice(comptime!(PANEL * (CHUNK + 1)));
    let mut b = Shared::<[f32]>::new_slice(comptime!(shape.panel_values()));
    let mut pairs = Array::<f32>::new(comptime!(PAIRS.sums()));
    let mut own = Array::<f32>::new(comptime!(product.sums()));
    let mut all = Array::<f32>::new(comptime!(product.sums()));
    clear(&mut all, comptime!(product.sums()));
    for member in 0..comptime!(shape.group()) {
        let head = key_head * comptime!(shape.group()) + member;
        let of_head = run * heads + head;
        let of_out = (first * heads + head) * comptime!(shape.value);
        sync_cube();
        load_gates(beta, totals, norms, runs, run, head, &mut gates, shape);
        clear(&mut pairs, comptime!(PAIRS.sums()));
        add_pairs::<F>(
            d_out,
            of_out,
            comptime!(shape.value_heads * shape.value),
            rows,
            updates,
            of_head * comptime!(CHUNK * shape.value),
            &gates,
            &mut a,
            &mut b,
            &mut pairs,
            shape,
        );
        // dA, earlier tokens in its rows.
        #[unroll]
        for i in 0..comptime!(PAIRS.down()) {
            let t = UNIT_POS_Y as usize + comptime!(i * DOWN);
            #[unroll]
            for j in 0..comptime!(PAIRS.own()) {
                let s = UNIT_POS_X as usize + comptime!(j * DOWN);
                let mut pair = 0.0f32;
                if s <= t {
                    pair = pairs[comptime!(i * PAIRS.own() + j)]
                        * (gates[TOTAL + t] - gates[TOTAL + s]).exp();
                }
                square[s * comptime!(CHUNK + 1) + t] = pair;
            }
        }
        clear(&mut own, comptime!(product.sums()));
        add_tokens::<F>(
            &square, qkv, keys, rows, &gates, KEY, &mut b, &mut own, shape,
        );
        add_through_state::<F>(
            d_out,
            of_out,
            comptime!(shape.value_heads * shape.value),
            rows,
            &gates,
            GROWN,
            states,
            of_head * comptime!(shape.state()),
            &mut a,
            &mut b,
            &mut own,
            shape,
        );
        // dO·O is q·dq.
        project::<F>(qkv, queries, rows, &gates, QUERY, &own, &mut a, shape);
        sum_rows(&a, &mut along);
        let unit = UNIT_POS as usize;
        if unit < rows {
            read[(first + unit) * heads + head] = along[unit];
        }
        #[unroll]
        for i in 0..comptime!(product.sums()) {
            all[i] += own[i];
        }
    }
    project::<F>(qkv, queries, rows, &gates, QUERY, &all, &mut a, shape);
    sum_rows(&a, &mut along);
    write::<F>(
        qkv, queries, rows, &gates, QUERY, &all, &along, scale, d_qkv, shape,
    );
}

#[cube(launch_unchecked)]
fn keys_kernel<F: Float>(
    d_out: &[F],
    qkv: &[F],
    beta: &[f32],
    totals: &[f32],
    norms: &[f32],
    runs: &[u32],
    states: &[f32],
    updates: &[f32],
    d_states: &[f32],
    d_updates: &[f32],
    d_qkv: &mut [F],
    #[comptime] shape: Shape,
    #[define(F)] _dtype: ElemType,
) {
    let (key_head, run) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let first = runs[run * RUN] as usize;
    let rows = runs[run * RUN + 1] as usize - first;
    let heads = comptime!(shape.value_heads);
    let queries = first * comptime!(shape.width()) + key_head * comptime!(shape.key);
    let keys = queries + comptime!(shape.key_width());
    let product = comptime!(shape.of_keys());

    let mut gates = Shared::<[f32]>::new_slice(comptime!(LISTS * CHUNK));
    // Factors of dB, and of U / β.
    let mut factors = Shared::<[f32]>::new_slice(comptime!(2 * CHUNK));
    let mut square = Shared::<[f32]>::new_slice(comptime!(CHUNK * (CHUNK + 1)));
    let mut a = Shared::<[f32]>::new_slice(comptime!(PANEL * (CHUNK + 1)));
    let mut b = Shared::<[f32]>::new_slice(comptime!(shape.panel_values()));
    let mut pairs = Array::<f32>::new(comptime!(PAIRS.sums()));
    let mut sums = Array::<f32>::new(comptime!(product.sums()));
    clear(&mut sums, comptime!(product.sums()));
    for member in 0..comptime!(shape.group()) {
        let head = key_head * comptime!(shape.group()) + member;
        let of_head = run * heads + head;
        let of_out = (first * heads + head) * comptime!(shape.value);
        let of_updates = of_head * comptime!(CHUNK * shape.value);
        let of_state = of_head * comptime!(shape.state());
        sync_cube();
        load_gates(beta, totals, norms, runs, run, head, &mut gates, shape);
        sync_cube();
        let t = UNIT_POS as usize;
        if t < CHUNK {
            let last = gates[comptime!(TOTAL + CHUNK - 1)];
            factors[t] = -gates[BETA + t] * gates[GROWN + t];
            factors[CHUNK + t] = gates[BETA + t] * (last - gates[TOTAL + t]).exp();
        }
        // dAᵀ·Q.
        clear(&mut pairs, comptime!(PAIRS.sums()));
        add_pairs::<F>(
            d_out,
            of_out,
            comptime!(shape.value_heads * shape.value),
            rows,
            updates,
            of_updates,
            &gates,
            &mut a,
            &mut b,
            &mut pairs,
            shape,
        );
        #[unroll]
        for i in 0..comptime!(PAIRS.down()) {
            let t = UNIT_POS_Y as usize + comptime!(i * DOWN);
            #[unroll]
            for j in 0..comptime!(PAIRS.own()) {
                let s = UNIT_POS_X as usize + comptime!(j * DOWN);
                let mut pair = 0.0f32;
                if s <= t {
                    pair = pairs[comptime!(i * PAIRS.own() + j)]
                        * (gates[TOTAL + t] - gates[TOTAL + s]).exp();
                }
                square[t * comptime!(CHUNK + 1) + s] = pair;
            }
        }
        add_tokens::<F>(
            &square, qkv, queries, rows, &gates, QUERY, &mut b, &mut sums, shape,
        );
        // (dM + dMᵀ)·K.
        clear(&mut pairs, comptime!(PAIRS.sums()));
        add_pairs::<f32>(
            d_updates,
            of_updates,
            comptime!(shape.value),
            rows,
            updates,
            of_updates,
            &gates,
            &mut a,
            &mut b,
            &mut pairs,
            shape,
        );
        #[unroll]
        for i in 0..comptime!(PAIRS.down()) {
            let t = UNIT_POS_Y as usize + comptime!(i * DOWN);
            #[unroll]
            for j in 0..comptime!(PAIRS.own()) {
                let s = UNIT_POS_X as usize + comptime!(j * DOWN);
                if s < t {
                    let pair = -pairs[comptime!(i * PAIRS.own() + j)]
                        * gates[BETA + t]
                        * (gates[TOTAL + t] - gates[TOTAL + s]).exp();
                    square[t * comptime!(CHUNK + 1) + s] = pair;
                    square[s * comptime!(CHUNK + 1) + t] = pair;
                } else if s == t {
                    square[t * comptime!(CHUNK + 1) + t] = 0.0f32;
                }
            }
        }
        add_tokens::<F>(
            &square, qkv, keys, rows, &gates, KEY, &mut b, &mut sums, shape,
        );
        // dX·S₀ᵀ and e^(G_c − G)∘(U·dSᵀ).
        add_through_state::<f32>(
            d_updates,
            of_updates,
            comptime!(shape.value),
            rows,
            &factors,
            0usize,
            states,
            of_state,
            &mut a,
            &mut b,
            &mut sums,
            shape,
        );
        add_through_state::<f32>(
            updates,
            of_updates,
            comptime!(shape.value),
            rows,
            &factors,
            CHUNK,
            d_states,
            of_state,
            &mut a,
            &mut b,
            &mut sums,
            shape,
        );
    }
    project::<F>(qkv, keys, rows, &gates, KEY, &sums, &mut a, shape);
    sum_rows(&a, &mut factors);
    write::<F>(
        qkv, keys, rows, &gates, KEY, &sums, &factors, 1.0f32, d_qkv, shape,
    );
}

#[cube(launch_unchecked)]
fn gates_kernel<F: Float>(
    qkv: &[F],
    beta: &[f32],
    read: &[f32],
    runs: &[u32],
    states: &[f32],
    updates: &[f32],
    d_states: &[f32],
    d_updates: &[f32],
    d_beta: &mut [f32],
    d_decay: &mut [f32],
    #[comptime] shape: Shape,
    #[comptime] cube: RowCube,
    #[define(F)] _dtype: ElemType,
) {
    let (head, run) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let first = runs[run * RUN] as usize;
    let end = runs[run * RUN + 1] as usize;
    let document_end = runs[run * RUN + 3] as usize;
    let rows = end - first;
    let heads = comptime!(shape.value_heads);
    let of_head = run * heads + head;
    let unit = UNIT_POS as usize;

    // ⟨S, dS⟩ behind the chunk, where the document goes on: S is the state before the next one.
    let mut product = 0.0f32;
    if end < document_end {
        let of_state = of_head * comptime!(shape.state());
        let mut i = unit;
        while i < comptime!(shape.state()) {
            let next = of_state + comptime!(shape.value_heads * shape.state()) + i;
            product += states[next] * d_states[of_state + i];
            i += UNITS;
        }
    }
    let behind = sum_cube(product, cube);

    // dB·U/β and dB·V of each token.
    let mut of_updates = Shared::<[f32]>::new_slice(comptime!(CHUNK * DOWN));
    let mut of_values = Shared::<[f32]>::new_slice(comptime!(CHUNK * DOWN));
    let start = of_head * comptime!(CHUNK * shape.value);
    let values = first * comptime!(shape.width())
        + comptime!(2 * shape.key_width())
        + head * comptime!(shape.value);
    #[unroll]
    for i in 0..comptime!(CHUNK / DOWN) {
        let t = UNIT_POS_Y as usize + comptime!(i * DOWN);
        let mut with_update = 0.0f32;
        let mut with_value = 0.0f32;
        if t < rows {
            let mut feature = UNIT_POS_X as usize;
            while feature < comptime!(shape.value) {
                let at = start + t * comptime!(shape.value) + feature;
                let d = d_updates[at];
                with_update += d * updates[at];
                with_value +=
                    d * f32::cast_from(qkv[values + t * comptime!(shape.width()) + feature]);
                feature += DOWN;
            }
        }
        of_updates[UNIT_POS_X as usize * CHUNK + t] = with_update;
        of_values[UNIT_POS_X as usize * CHUNK + t] = with_value;
    }
    let mut changes = Shared::<[f32]>::new_slice(CHUNK);
    sync_cube();
    if unit < rows {
        let at = (first + unit) * heads + head;
        let mut with_update = 0.0f32;
        let mut with_value = 0.0f32;
        for i in 0..DOWN {
            with_update += of_updates[i * CHUNK + unit];
            with_value += of_values[i * CHUNK + unit];
        }
        d_beta[at] = with_update;
        changes[unit] = read[at] - beta[at] * with_value;
    }
    sync_cube();
    if unit < rows {
        let mut sum = behind;
        let mut t = rows;
        while t > unit {
            t -= 1;
            sum += changes[t];
        }
        d_decay[(first + unit) * heads + head] = sum;
    }
}
