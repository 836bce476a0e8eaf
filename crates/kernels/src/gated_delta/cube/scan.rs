//! Along the chunks of documents: forwards with the state, backwards with its gradient. Columns of a state do not see each
//! other, so a cube has some columns of one value head, in shared memory, and goes through the chunks of one document.

use backdraft_arch::sizes::DELTA_CHUNK as CHUNK;
use burn::tensor::DType;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::gates::{BETA, FADING, GROWN, KEY, LISTS, QUERY, load_gates};
use super::prepare::Prepared;
use super::product::{DOWN, Panel, Product, clear, load, multiply};
use super::{Columns, Device, Shape};
use crate::cube::{CubeTensor, argument, elem, empty};
use crate::runs::{DOCUMENT, RUN};

/// From states, or from zeros, what is read of them; and the states behind each document where it went on from some.
///
/// # Shapes
/// `start` and what is left `[documents, value_heads·key·value]`; `out` `[t, value_width]`.
pub(super) fn forward(
    x: &Device,
    prepared: &Prepared,
    (start, left): (Option<&CubeTensor>, Option<&CubeTensor>),
    out: &CubeTensor,
) {
    let continues = start.is_some() && left.is_some();
    // Stand-ins that are neither read nor written.
    let unused = || empty(&x.qkv, [1], DType::F32);
    let (start, left) = match (start, left) {
        (Some(start), Some(left)) => (start.clone(), left.clone()),
        _ => (unused(), unused()),
    };
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: runs and documents name rows of the tensors, squares and states, whose sizes follow from the layout, as the caller
    // checked.
    unsafe {
        forward_kernel::launch_unchecked(
            &x.qkv.client,
            x.columns.count(x),
            x.columns.dim(),
            argument(&x.qkv, 1),
            argument(&x.beta, 1),
            argument(&prepared.solve, 1),
            argument(&prepared.pairs, 1),
            argument(&prepared.totals, 1),
            argument(&prepared.norms, 1),
            x.runs.runs(),
            x.runs.documents(),
            argument(&start, 1),
            argument(out, 1),
            argument(&left, 1),
            continues,
            x.shape,
            x.columns,
            elem(x.qkv.dtype),
        );
    }
}

/// What the gradients of a chunk take that only the chunks before it tell.
pub(super) struct Before {
    /// S₀ of each chunk, `[chunks, value_heads, key·value]`, f32.
    pub(super) states: CubeTensor,
    /// U / β of each chunk, `[chunks, value_heads, CHUNK·value]`, f32.
    pub(super) updates: CubeTensor,
}

/// The states once more, from zeros.
pub(super) fn again(x: &Device, prepared: &Prepared) -> Before {
    let before = Before {
        states: x.states(),
        updates: x.values(),
    };
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: as in `forward`; there is a state and a block of values for each run and value head.
    unsafe {
        again_kernel::launch_unchecked(
            &x.qkv.client,
            x.columns.count(x),
            x.columns.dim(),
            argument(&x.qkv, 1),
            argument(&x.beta, 1),
            argument(&prepared.solve, 1),
            argument(&prepared.totals, 1),
            argument(&prepared.norms, 1),
            x.runs.runs(),
            x.runs.documents(),
            argument(&before.states, 1),
            argument(&before.updates, 1),
            x.shape,
            x.columns,
            elem(x.qkv.dtype),
        );
    }
    before
}

/// What they take that only the chunks behind it tell.
pub(super) struct Behind {
    /// dS, as [`Before::states`].
    pub(super) states: CubeTensor,
    /// dB, as [`Before::updates`].
    pub(super) updates: CubeTensor,
}

/// Chunks last to first; gradients of values go to `d_qkv`.
pub(super) fn backward(
    x: &Device,
    d_out: &CubeTensor,
    prepared: &Prepared,
    d_qkv: &CubeTensor,
) -> Behind {
    let behind = Behind {
        states: x.states(),
        updates: x.values(),
    };
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: as in `again`; d_out has as many values for each row as there are, and d_qkv is as qkv.
    unsafe {
        backward_kernel::launch_unchecked(
            &x.qkv.client,
            x.columns.count(x),
            x.columns.dim(),
            argument(d_out, 1),
            argument(&x.qkv, 1),
            argument(&x.beta, 1),
            argument(&prepared.solve, 1),
            argument(&prepared.pairs, 1),
            argument(&prepared.totals, 1),
            argument(&prepared.norms, 1),
            x.runs.runs(),
            x.runs.documents(),
            argument(d_qkv, 1),
            argument(&behind.states, 1),
            argument(&behind.updates, 1),
            x.shape,
            x.columns,
            elem(x.qkv.dtype),
        );
    }
    behind
}

impl Columns {
    fn count(self, x: &Device) -> CubeCount {
        let across = x.shape.value.div_ceil(self.columns) * x.shape.value_heads;
        CubeCount::Static(across as u32, x.runs.document_count as u32, 1)
    }

    fn dim(self) -> CubeDim {
        CubeDim::new_2d(self.across() as u32, DOWN as u32)
    }

    /// A row for each token of a chunk.
    const fn of_tokens(self) -> Product {
        Product {
            rows: CHUNK,
            columns: self.columns,
            across: self.across(),
            inner: self.panel,
            pitch: self.columns,
        }
    }

    /// A row for each feature of a key.
    const fn of_keys(self, shape: Shape) -> Product {
        Product {
            rows: shape.key_padded(),
            ..self.of_tokens()
        }
    }

    /// Panels whose outer side is `outer`.
    const fn panel(self, outer: usize, turned: bool, weighted: bool) -> Panel {
        Panel {
            outer,
            inner: self.panel,
            turned,
            weighted,
            units: self.across() * DOWN,
        }
    }
}

/// Adds keys or queries of a chunk, which begin at `start`, times the columns of a state.
#[cube]
fn add_read<F: Float>(
    qkv: &[F],
    panel: &mut [f32],
    start: usize,
    rows: usize,
    gates: &[f32],
    list: usize,
    state: &[f32],
    sums: &mut Array<f32>,
    #[comptime] shape: Shape,
    #[comptime] columns: Columns,
) {
    for n in 0..comptime!(shape.key_padded() / columns.panel) {
        let column = n * comptime!(columns.panel);
        sync_cube();
        load::<F>(
            qkv,
            panel,
            start,
            comptime!(shape.width()),
            rows,
            comptime!(shape.key),
            0usize,
            column,
            gates,
            list,
            comptime!(columns.panel(CHUNK, false, true)),
        );
        sync_cube();
        multiply(
            &*panel,
            0usize,
            state,
            column * comptime!(columns.columns),
            sums,
            comptime!(columns.of_tokens()),
        );
    }
}

/// Adds keys or queries of a chunk, turned, times rows of it.
#[cube]
fn add_written<F: Float>(
    qkv: &[F],
    panel: &mut [f32],
    start: usize,
    rows: usize,
    gates: &[f32],
    list: usize,
    block: &[f32],
    sums: &mut Array<f32>,
    #[comptime] shape: Shape,
    #[comptime] columns: Columns,
) {
    for n in 0..comptime!(CHUNK / columns.panel) {
        let first = n * comptime!(columns.panel);
        sync_cube();
        load::<F>(
            qkv,
            panel,
            start,
            comptime!(shape.width()),
            rows,
            comptime!(shape.key),
            first,
            0usize,
            gates,
            list,
            comptime!(columns.panel(shape.key_padded(), true, true)),
        );
        sync_cube();
        multiply(
            &*panel,
            0usize,
            block,
            first * comptime!(columns.columns),
            sums,
            comptime!(columns.of_keys(shape)),
        );
    }
}

/// Adds a square of pairs of tokens, which begins at `start`, or that turned, times rows of the chunk.
#[cube]
fn add_pairs(
    square: &[f32],
    panel: &mut [f32],
    start: usize,
    gates: &[f32],
    block: &[f32],
    sums: &mut Array<f32>,
    #[comptime] turned: bool,
    #[comptime] columns: Columns,
) {
    for n in 0..comptime!(CHUNK / columns.panel) {
        let inner = n * comptime!(columns.panel);
        let mut first = 0usize;
        let mut column = inner;
        if comptime!(turned) {
            first = inner;
            column = 0usize;
        }
        sync_cube();
        load::<f32>(
            square,
            panel,
            start,
            CHUNK,
            CHUNK,
            CHUNK,
            first,
            column,
            gates,
            0usize,
            comptime!(columns.panel(CHUNK, turned, false)),
        );
        sync_cube();
        multiply(
            &*panel,
            0usize,
            block,
            inner * comptime!(columns.columns),
            sums,
            comptime!(columns.of_tokens()),
        );
    }
}

/// A state's own sums times `factor`, in `sums`.
#[cube]
fn fetch(state: &[f32], factor: f32, sums: &mut Array<f32>, #[comptime] product: Product) {
    #[unroll]
    for i in 0..comptime!(product.down()) {
        let row = (UNIT_POS_Y as usize + comptime!(i * DOWN)) * comptime!(product.pitch);
        #[unroll]
        for j in 0..comptime!(product.own()) {
            let at = row + UNIT_POS_X as usize + comptime!(j * product.across);
            sums[comptime!(i * product.own() + j)] = state[at] * factor;
        }
    }
}

/// Own sums into a block or a state.
#[cube]
fn store(sums: &Array<f32>, to: &mut [f32], #[comptime] product: Product) {
    #[unroll]
    for i in 0..comptime!(product.down()) {
        let row = (UNIT_POS_Y as usize + comptime!(i * DOWN)) * comptime!(product.pitch);
        #[unroll]
        for j in 0..comptime!(product.own()) {
            let at = row + UNIT_POS_X as usize + comptime!(j * product.across);
            to[at] = sums[comptime!(i * product.own() + j)];
        }
    }
}

/// The columns of a state in memory, from shared memory; `at` is where the state begins.
#[cube]
fn keep_state(
    state: &[f32],
    to: &mut [f32],
    at: usize,
    column: usize,
    #[comptime] shape: Shape,
    #[comptime] columns: Columns,
) {
    let across = comptime!(columns.columns);
    let mut i = UNIT_POS as usize;
    while i < comptime!(shape.key * columns.columns) {
        let (row, own) = (i / across, i % across);
        if column + own < comptime!(shape.value) {
            to[at + row * comptime!(shape.value) + column + own] = state[row * across + own];
        }
        i += comptime!(columns.across() * DOWN);
    }
}

/// R = U/β of a chunk into `rest`, U into `block`.
#[cube]
fn solve_chunk<F: Float>(
    qkv: &[F],
    solve: &[f32],
    square: usize,
    first: usize,
    rows: usize,
    head: usize,
    column: usize,
    gates: &[f32],
    state: &[f32],
    panel: &mut [f32],
    block: &mut [f32],
    rest: &mut Array<f32>,
    sums: &mut Array<f32>,
    #[comptime] shape: Shape,
    #[comptime] columns: Columns,
) {
    let product = comptime!(columns.of_tokens());
    let start = first * comptime!(shape.width());
    let keys = start
        + comptime!(shape.key_width())
        + head / comptime!(shape.group()) * comptime!(shape.key);
    clear(sums, comptime!(product.sums()));
    add_read::<F>(
        qkv, panel, keys, rows, gates, KEY, state, sums, shape, columns,
    );
    // V − e^G∘X, and β times it for the others.
    let values = start + comptime!(2 * shape.key_width()) + head * comptime!(shape.value);
    #[unroll]
    for i in 0..comptime!(product.down()) {
        let t = UNIT_POS_Y as usize + comptime!(i * DOWN);
        #[unroll]
        for j in 0..comptime!(product.own()) {
            let own = UNIT_POS_X as usize + comptime!(j * product.across);
            let sum = comptime!(i * product.own() + j);
            let mut value = 0.0f32;
            if t < rows && column + own < comptime!(shape.value) {
                value = f32::cast_from(qkv[values + t * comptime!(shape.width()) + column + own]);
            }
            let left = value - gates[GROWN + t] * sums[sum];
            rest[sum] = left;
            block[t * comptime!(columns.columns) + own] = gates[BETA + t] * left;
        }
    }
    clear(sums, comptime!(product.sums()));
    add_pairs(solve, panel, square, gates, &*block, sums, false, columns);
    sync_cube();
    #[unroll]
    for i in 0..comptime!(product.down()) {
        let t = UNIT_POS_Y as usize + comptime!(i * DOWN);
        #[unroll]
        for j in 0..comptime!(product.own()) {
            let own = UNIT_POS_X as usize + comptime!(j * product.across);
            let sum = comptime!(i * product.own() + j);
            let update = rest[sum] - sums[sum];
            rest[sum] = update;
            block[t * comptime!(columns.columns) + own] = gates[BETA + t] * update;
        }
    }
}

/// S = e^(G_c)·S₀ + K̃ᵀ·U, in place.
#[cube]
fn advance<F: Float>(
    qkv: &[F],
    first: usize,
    rows: usize,
    head: usize,
    gates: &[f32],
    panel: &mut [f32],
    block: &[f32],
    state: &mut [f32],
    sums: &mut Array<f32>,
    #[comptime] shape: Shape,
    #[comptime] columns: Columns,
) {
    let product = comptime!(columns.of_keys(shape));
    let keys = first * comptime!(shape.width())
        + comptime!(shape.key_width())
        + head / comptime!(shape.group()) * comptime!(shape.key);
    fetch(&*state, gates[comptime!(GROWN + CHUNK - 1)], sums, product);
    add_written::<F>(
        qkv, panel, keys, rows, gates, FADING, block, sums, shape, columns,
    );
    store(&*sums, state, product);
}

/// Values of a chunk in memory, from a unit's own sums; `at` is where they begin.
#[cube]
fn keep_values(
    sums: &Array<f32>,
    to: &mut [f32],
    at: usize,
    column: usize,
    #[comptime] shape: Shape,
    #[comptime] columns: Columns,
) {
    let product = comptime!(columns.of_tokens());
    #[unroll]
    for i in 0..comptime!(product.down()) {
        let t = UNIT_POS_Y as usize + comptime!(i * DOWN);
        #[unroll]
        for j in 0..comptime!(product.own()) {
            let own = column + UNIT_POS_X as usize + comptime!(j * product.across);
            if own < comptime!(shape.value) {
                to[at + t * comptime!(shape.value) + own] = sums[comptime!(i * product.own() + j)];
            }
        }
    }
}

#[cube(launch_unchecked)]
fn forward_kernel<F: Float>(
    qkv: &[F],
    beta: &[f32],
    solve: &[f32],
    pairs: &[f32],
    totals: &[f32],
    norms: &[f32],
    runs: &[u32],
    documents: &[u32],
    start: &[f32],
    out: &mut [F],
    left: &mut [f32],
    #[comptime] continues: bool,
    #[comptime] shape: Shape,
    #[comptime] columns: Columns,
    #[define(F)] _dtype: ElemType,
) {
    let blocks = comptime!(shape.value.div_ceil(columns.columns));
    let head = CUBE_POS_X as usize / blocks;
    let column = CUBE_POS_X as usize % blocks * comptime!(columns.columns);
    let heads = comptime!(shape.value_heads);
    let record = CUBE_POS_Y as usize * DOCUMENT;
    let mut run = documents[record] as usize;
    let last = documents[record + 1] as usize;
    let at = (documents[record + 2] as usize * heads + head) * comptime!(shape.state());

    let mut gates = Shared::<[f32]>::new_slice(comptime!(LISTS * CHUNK));
    let mut state = Shared::<[f32]>::new_slice(comptime!(columns.state(shape)));
    let mut block = Shared::<[f32]>::new_slice(comptime!(CHUNK * columns.columns));
    let mut panel = Shared::<[f32]>::new_slice(comptime!(columns.panel_values(shape)));
    let across = comptime!(columns.columns);
    let mut i = UNIT_POS as usize;
    while i < comptime!(columns.state(shape)) {
        let mut value = 0.0f32;
        if comptime!(continues) {
            let (row, own) = (i / across, column + i % across);
            if row < comptime!(shape.key) && own < comptime!(shape.value) {
                value = start[at + row * comptime!(shape.value) + own];
            }
        }
        state[i] = value;
        i += comptime!(columns.across() * DOWN);
    }

    let product = comptime!(columns.of_tokens());
    let mut rest = Array::<f32>::new(comptime!(product.sums()));
    let mut sums = Array::<f32>::new(comptime!(product.sums()));
    let mut of_keys = Array::<f32>::new(comptime!(columns.of_keys(shape).sums()));
    while run < last {
        let first = runs[run * RUN] as usize;
        let rows = runs[run * RUN + 1] as usize - first;
        let square = (run * heads + head) * comptime!(CHUNK * CHUNK);
        sync_cube();
        load_gates(beta, totals, norms, runs, run, head, &mut gates, shape);
        solve_chunk::<F>(
            qkv, solve, square, first, rows, head, column, &gates, &state, &mut panel, &mut block,
            &mut rest, &mut sums, shape, columns,
        );
        // e^G∘Y + P·U.
        let queries = first * comptime!(shape.width())
            + head / comptime!(shape.group()) * comptime!(shape.key);
        clear(&mut sums, comptime!(product.sums()));
        add_read::<F>(
            qkv, &mut panel, queries, rows, &gates, QUERY, &state, &mut sums, shape, columns,
        );
        #[unroll]
        for i in 0..comptime!(product.down()) {
            let grown = gates[GROWN + UNIT_POS_Y as usize + comptime!(i * DOWN)];
            #[unroll]
            for j in 0..comptime!(product.own()) {
                sums[comptime!(i * product.own() + j)] *= grown;
            }
        }
        add_pairs(
            pairs, &mut panel, square, &gates, &block, &mut sums, false, columns,
        );
        #[unroll]
        for i in 0..comptime!(product.down()) {
            let t = UNIT_POS_Y as usize + comptime!(i * DOWN);
            #[unroll]
            for j in 0..comptime!(product.own()) {
                let own = column + UNIT_POS_X as usize + comptime!(j * product.across);
                if t < rows && own < comptime!(shape.value) {
                    let to = ((first + t) * heads + head) * comptime!(shape.value) + own;
                    out[to] = F::cast_from(sums[comptime!(i * product.own() + j)]);
                }
            }
        }
        advance::<F>(
            qkv,
            first,
            rows,
            head,
            &gates,
            &mut panel,
            &block,
            &mut state,
            &mut of_keys,
            shape,
            columns,
        );
        run += 1;
    }
    if comptime!(continues) {
        sync_cube();
        keep_state(&state, left, at, column, shape, columns);
    }
}

#[cube(launch_unchecked)]
fn again_kernel<F: Float>(
    qkv: &[F],
    beta: &[f32],
    solve: &[f32],
    totals: &[f32],
    norms: &[f32],
    runs: &[u32],
    documents: &[u32],
    states: &mut [f32],
    updates: &mut [f32],
    #[comptime] shape: Shape,
    #[comptime] columns: Columns,
    #[define(F)] _dtype: ElemType,
) {
    let blocks = comptime!(shape.value.div_ceil(columns.columns));
    let head = CUBE_POS_X as usize / blocks;
    let column = CUBE_POS_X as usize % blocks * comptime!(columns.columns);
    let heads = comptime!(shape.value_heads);
    let record = CUBE_POS_Y as usize * DOCUMENT;
    let mut run = documents[record] as usize;
    let last = documents[record + 1] as usize;

    let mut gates = Shared::<[f32]>::new_slice(comptime!(LISTS * CHUNK));
    let mut state = Shared::<[f32]>::new_slice(comptime!(columns.state(shape)));
    let mut block = Shared::<[f32]>::new_slice(comptime!(CHUNK * columns.columns));
    let mut panel = Shared::<[f32]>::new_slice(comptime!(columns.panel_values(shape)));
    let mut i = UNIT_POS as usize;
    while i < comptime!(columns.state(shape)) {
        state[i] = 0.0f32;
        i += comptime!(columns.across() * DOWN);
    }

    let product = comptime!(columns.of_tokens());
    let mut rest = Array::<f32>::new(comptime!(product.sums()));
    let mut sums = Array::<f32>::new(comptime!(product.sums()));
    let mut of_keys = Array::<f32>::new(comptime!(columns.of_keys(shape).sums()));
    while run < last {
        let first = runs[run * RUN] as usize;
        let rows = runs[run * RUN + 1] as usize - first;
        let of_head = run * heads + head;
        sync_cube();
        load_gates(beta, totals, norms, runs, run, head, &mut gates, shape);
        keep_state(
            &state,
            states,
            of_head * comptime!(shape.state()),
            column,
            shape,
            columns,
        );
        solve_chunk::<F>(
            qkv,
            solve,
            of_head * comptime!(CHUNK * CHUNK),
            first,
            rows,
            head,
            column,
            &gates,
            &state,
            &mut panel,
            &mut block,
            &mut rest,
            &mut sums,
            shape,
            columns,
        );
        keep_values(
            &rest,
            updates,
            of_head * comptime!(CHUNK * shape.value),
            column,
            shape,
            columns,
        );
        advance::<F>(
            qkv,
            first,
            rows,
            head,
            &gates,
            &mut panel,
            &block,
            &mut state,
            &mut of_keys,
            shape,
            columns,
        );
        run += 1;
    }
}

#[cube(launch_unchecked)]
fn backward_kernel<F: Float>(
    d_out: &[F],
    qkv: &[F],
    beta: &[f32],
    solve: &[f32],
    pairs: &[f32],
    totals: &[f32],
    norms: &[f32],
    runs: &[u32],
    documents: &[u32],
    d_qkv: &mut [F],
    states: &mut [f32],
    updates: &mut [f32],
    #[comptime] shape: Shape,
    #[comptime] columns: Columns,
    #[define(F)] _dtype: ElemType,
) {
    let blocks = comptime!(shape.value.div_ceil(columns.columns));
    let head = CUBE_POS_X as usize / blocks;
    let column = CUBE_POS_X as usize % blocks * comptime!(columns.columns);
    let heads = comptime!(shape.value_heads);
    let record = CUBE_POS_Y as usize * DOCUMENT;
    let begin = documents[record] as usize;
    let mut left = documents[record + 1] as usize - begin;

    let mut gates = Shared::<[f32]>::new_slice(comptime!(LISTS * CHUNK));
    let mut state = Shared::<[f32]>::new_slice(comptime!(columns.state(shape)));
    let mut block = Shared::<[f32]>::new_slice(comptime!(CHUNK * columns.columns));
    let mut panel = Shared::<[f32]>::new_slice(comptime!(columns.panel_values(shape)));
    let mut i = UNIT_POS as usize;
    while i < comptime!(columns.state(shape)) {
        state[i] = 0.0f32;
        i += comptime!(columns.across() * DOWN);
    }

    let product = comptime!(columns.of_tokens());
    let of_state = comptime!(columns.of_keys(shape));
    let mut sums = Array::<f32>::new(comptime!(product.sums()));
    let mut of_keys = Array::<f32>::new(comptime!(of_state.sums()));
    while left > 0 {
        left -= 1;
        let run = begin + left;
        let first = runs[run * RUN] as usize;
        let rows = runs[run * RUN + 1] as usize - first;
        let of_head = run * heads + head;
        let square = of_head * comptime!(CHUNK * CHUNK);
        let queries = first * comptime!(shape.width())
            + head / comptime!(shape.group()) * comptime!(shape.key);
        let keys = queries + comptime!(shape.key_width());
        let values = first * comptime!(shape.width())
            + comptime!(2 * shape.key_width())
            + head * comptime!(shape.value);
        sync_cube();
        load_gates(beta, totals, norms, runs, run, head, &mut gates, shape);
        keep_state(
            &state,
            states,
            of_head * comptime!(shape.state()),
            column,
            shape,
            columns,
        );
        // dU = Pᵀ·dO + K̃·dS.
        let of_out = (first * heads + head) * comptime!(shape.value);
        let mut d = Array::<f32>::new(comptime!(product.sums()));
        #[unroll]
        for i in 0..comptime!(product.down()) {
            let t = UNIT_POS_Y as usize + comptime!(i * DOWN);
            #[unroll]
            for j in 0..comptime!(product.own()) {
                let own = UNIT_POS_X as usize + comptime!(j * product.across);
                let mut value = 0.0f32;
                if t < rows && column + own < comptime!(shape.value) {
                    let at = of_out + t * comptime!(shape.value_heads * shape.value) + column + own;
                    value = f32::cast_from(d_out[at]);
                }
                d[comptime!(i * product.own() + j)] = value;
            }
        }
        store(&d, &mut block, product);
        clear(&mut sums, comptime!(product.sums()));
        add_pairs(
            pairs, &mut panel, square, &gates, &block, &mut sums, true, columns,
        );
        add_read::<F>(
            qkv, &mut panel, keys, rows, &gates, FADING, &state, &mut sums, shape, columns,
        );
        // dB = dU − Nᵀ·(β∘dU).
        sync_cube();
        #[unroll]
        for i in 0..comptime!(product.down()) {
            let t = UNIT_POS_Y as usize + comptime!(i * DOWN);
            #[unroll]
            for j in 0..comptime!(product.own()) {
                let own = UNIT_POS_X as usize + comptime!(j * product.across);
                block[t * comptime!(columns.columns) + own] =
                    -gates[BETA + t] * sums[comptime!(i * product.own() + j)];
            }
        }
        add_pairs(
            solve, &mut panel, square, &gates, &block, &mut sums, true, columns,
        );
        keep_values(
            &sums,
            updates,
            of_head * comptime!(CHUNK * shape.value),
            column,
            shape,
            columns,
        );
        // dV = β∘dB, dX = −e^G∘dV.
        sync_cube();
        #[unroll]
        for i in 0..comptime!(product.down()) {
            let t = UNIT_POS_Y as usize + comptime!(i * DOWN);
            #[unroll]
            for j in 0..comptime!(product.own()) {
                let own = UNIT_POS_X as usize + comptime!(j * product.across);
                let dv = gates[BETA + t] * sums[comptime!(i * product.own() + j)];
                block[t * comptime!(columns.columns) + own] = -gates[GROWN + t] * dv;
                if t < rows && column + own < comptime!(shape.value) {
                    let at = values + t * comptime!(shape.width()) + column + own;
                    d_qkv[at] = F::cast_from(dv);
                }
            }
        }
        // dS₀ = e^(G_c)·dS + Kᵀ·dX + Qᵀ·dY, with dY = e^G∘dO.
        fetch(
            &state,
            gates[comptime!(GROWN + CHUNK - 1)],
            &mut of_keys,
            of_state,
        );
        add_written::<F>(
            qkv,
            &mut panel,
            keys,
            rows,
            &gates,
            KEY,
            &block,
            &mut of_keys,
            shape,
            columns,
        );
        sync_cube();
        #[unroll]
        for i in 0..comptime!(product.down()) {
            let t = UNIT_POS_Y as usize + comptime!(i * DOWN);
            #[unroll]
            for j in 0..comptime!(product.own()) {
                let own = UNIT_POS_X as usize + comptime!(j * product.across);
                block[t * comptime!(columns.columns) + own] =
                    gates[GROWN + t] * d[comptime!(i * product.own() + j)];
            }
        }
        add_written::<F>(
            qkv,
            &mut panel,
            queries,
            rows,
            &gates,
            QUERY,
            &block,
            &mut of_keys,
            shape,
            columns,
        );
        store(&of_keys, &mut state, of_state);
    }
}
