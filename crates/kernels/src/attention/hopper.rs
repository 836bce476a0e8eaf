//! Attention on the tensor cores of compute capability 9.0, for 16-bit values.
//!
//! Two groups of four warps share a cube and its tiles in shared memory; each has 64 rows. The copy engine brings the tiles,
//! up to two blocks ahead, and the groups wait for tiles alone, never for each other: while one makes its weights, the other
//! has the tensor cores. Rows of a tile beyond its document are the next document's, whose weights are zeros. Softmax statistics
//! and sums are f32, factors of products 16 bits. The backward pass is two kernels, one for the rows of dq and
//! one for those of dk and dv, each of which sums in registers, in a fixed order: scores are computed twice,
//! but nothing is added atomically, so that the same inputs give the same bits.
//!
//! A unit holds rows `r` and `r + 8` of its group's result, `r` = 16·warp + lane / 4, in columns
//! `8·j + 2·(lane % 4)` and the next: value `4·j + 2·h + c` is row `r + 8·h`, column `8·j + 2·(lane % 4) + c`.
//! Packed in pairs, such values are the left factor of the next product as they stand.
//!
//! # Source
//! Dao 2023, arXiv:2307.08691; Shah et al. 2024, arXiv:2407.08608.

use burn::tensor::DType;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::tiles::{FIELDS, NEVER, Side, first_seen, tiles};
use super::{HeadLayout, Qkv};
use crate::cube::{CubeTensor, argument, elem, empty, tensor};
use crate::hopper::ring::{
    Ring, RingShape, arrive_with_copies, copy_word, fill, filled, give_back, panel_map, place,
    read_pair, ring, show_barriers, tensor_map_address, wait_for, wait_until_free,
};
use crate::hopper::{
    GROUP, Half, Lie, Product, arrived, descriptor, exp2, global_address, is_hopper, max_quad,
    multiply, multiply_add, pack, pack_in_place, shared_address, start_add, start_product,
    sum_quad,
};
use crate::segments::Segments;

/// Units of a cube: two groups.
const UNITS: u32 = 2 * GROUP;

/// Rows of a cube.
const ROWS: usize = 128;

/// What the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    half: Half,
    heads: u32,
    kv_heads: u32,
    head_dim: usize,
    /// Keys that a query sees, itself included; 0 for all.
    window: u32,
}

impl Shape {
    /// Tiles of `rows` rows, `places` of which are in shared memory at once.
    fn ring(self, rows: usize, places: usize) -> RingShape {
        RingShape {
            rows,
            columns: self.head_dim,
            places,
            readers: (UNITS / 32) as usize,
            beside: 0,
        }
    }

    /// Columns of a sum: C++ has no structures aligned to other than powers of two. Those beyond a head are
    /// made of whatever is in the panels, and nobody looks at them.
    fn columns(self) -> usize {
        self.head_dim.next_power_of_two()
    }

    /// rows · othersᵀ, over the features of a head.
    fn scores(self, rows: usize, others: usize) -> Product {
        Product {
            half: self.half,
            n: others,
            steps: self.head_dim / 16,
            b: Lie::Along,
            a_rows: rows,
            b_rows: others,
        }
    }

    /// Sum over `others` rows of a tile, weighted by values in registers.
    fn sums(self, others: usize) -> Product {
        Product {
            half: self.half,
            n: self.columns(),
            steps: others / 16,
            b: Lie::Down,
            a_rows: 0,
            b_rows: others,
        }
    }
}

/// Whether [`forward`] and [`backward`] are for tensors such as `q`.
pub(super) fn applies(q: &CubeTensor, layout: HeadLayout) -> bool {
    Half::of(q.dtype).is_some()
        && layout.head_dim.is_multiple_of(16)
        && layout.head_dim <= 128
        && layout.softcap.is_none()
        && is_hopper(q)
}

fn shape(q: &CubeTensor, layout: HeadLayout) -> Shape {
    Shape {
        half: Half::of(q.dtype).unwrap_or_else(|| panic!("{:?} on tensor cores", q.dtype)),
        heads: layout.heads as u32,
        kv_heads: layout.kv_heads as u32,
        head_dim: layout.head_dim,
        window: layout.window.unwrap_or(0) as u32,
    }
}

/// Two 16-bit values as a word.
#[expect(unsafe_code, reason = "CubeCL takes lengths on trust")]
pub(super) fn words(x: &CubeTensor) -> BufferArg {
    // SAFETY: a row has an even number of values, so half as many words fit.
    unsafe { BufferArg::from_raw_parts(x.handle.clone(), crate::cube::len(x) / 2) }
}

/// Keys of a block of the forward pass.
const KEYS: usize = 128;

pub(super) fn forward(
    [q, k, v]: [&CubeTensor; 3],
    segments: &Segments,
    layout: HeadLayout,
) -> (CubeTensor, CubeTensor) {
    let rows = segments.queries();
    let out = empty(q, [rows, layout.heads * layout.head_dim], q.dtype);
    let lse = empty(q, [rows, layout.heads], DType::F32);
    let tiles = tiles(segments, Side::Queries, ROWS, q);
    let count = CubeCount::Static(layout.heads as u32, tiles.count as u32, 1);
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: tiles name rows of the tensors, whose widths follow from the layout, as the caller checked.
    unsafe {
        forward_kernel::launch_unchecked(
            &q.client.clone(),
            count,
            CubeDim::new_1d(UNITS),
            panel_map(q, ROWS),
            panel_map(k, KEYS),
            panel_map(v, KEYS),
            tiles.argument(),
            words(&out),
            argument(&lse, 1),
            layout.scale,
            shape(q, layout),
            elem(q.dtype),
        );
    }
    (out, lse)
}

/// Keys of a block of [`queries_kernel`].
const BLOCK_KEYS: usize = 128;

/// Queries of a block of [`keys_kernel`].
const BLOCK: usize = 64;

pub(super) fn backward(
    d_out: &CubeTensor,
    [q, k, v]: [&CubeTensor; 3],
    (lse, delta): (&CubeTensor, &CubeTensor),
    segments: &Segments,
    layout: HeadLayout,
) -> Qkv {
    let [dq, dk, dv] = [q, k, v].map(|x| {
        let dims = [x.meta.shape()[0], x.meta.shape()[1]];
        empty(x, dims, x.dtype)
    });
    let client = q.client.clone();
    let shape = shape(q, layout);
    let queries = tiles(segments, Side::Queries, ROWS, q);
    let keys = tiles(segments, Side::Keys, ROWS, q);
    #[expect(unsafe_code, reason = "kernels without bounds checks")]
    // SAFETY: tiles name rows of the tensors, whose widths follow from the layout, as the caller checked.
    unsafe {
        queries_kernel::launch_unchecked(
            &client,
            CubeCount::Static(layout.heads as u32, queries.count as u32, 1),
            CubeDim::new_1d(UNITS),
            panel_map(q, ROWS),
            panel_map(k, BLOCK_KEYS),
            panel_map(v, BLOCK_KEYS),
            panel_map(d_out, ROWS),
            argument(lse, 1),
            argument(delta, 1),
            queries.argument(),
            words(&dq),
            layout.scale,
            shape,
            elem(q.dtype),
        );
        keys_kernel::launch_unchecked(
            &client,
            CubeCount::Static(layout.kv_heads as u32, keys.count as u32, 1),
            CubeDim::new_1d(UNITS),
            panel_map(q, BLOCK),
            panel_map(k, ROWS),
            panel_map(v, ROWS),
            panel_map(d_out, BLOCK),
            argument(lse, 1),
            argument(delta, 1),
            keys.argument(),
            words(&dk),
            words(&dv),
            layout.scale,
            shape,
            elem(q.dtype),
        );
    }
    Qkv {
        q: tensor(dq),
        k: tensor(dk),
        v: tensor(dv),
    }
}

/// The first row of a unit within its cube's.
#[cube]
fn own_row() -> u32 {
    UNIT_POS / 128u32 * 64u32 + UNIT_POS % 128u32 / 32u32 * 16u32 + UNIT_POS % 32u32 / 4u32
}

/// `score`, or next to nothing where the query at key position `query` does not see `key`.
#[cube]
pub(super) fn visible(
    score: f32,
    key: u32,
    query: u32,
    keys_end: u32,
    #[comptime] window: u32,
) -> f32 {
    let mut seen = key <= query && key < keys_end;
    if comptime!(window > 0) {
        seen = seen && key + window > query;
    }
    select(seen, score, NEVER)
}

/// Where queries are among the keys: what [`seen`] asks.
#[derive(CubeType)]
struct Bounds {
    /// The first query of the cube.
    first: u32,
    /// The one after its last.
    end: u32,
    /// The key after the last.
    keys_end: u32,
    /// This unit's first query.
    query: u32,
    /// Its first column.
    column: u32,
}

/// Scores of a block of keys, with next to nothing where a query does not see a key.
#[cube]
fn seen<S: Size>(
    scores: Vector<f32, S>,
    key: u32,
    bounds: &Bounds,
    #[comptime] keys: usize,
    #[comptime] window: u32,
) -> Vector<f32, S> {
    let mut scores = scores;
    let mut partly = key + comptime!(keys as u32) > min(bounds.keys_end, bounds.first + 1u32);
    if comptime!(window > 0) {
        partly = partly || key + window < bounds.end;
    }
    if partly {
        #[unroll]
        for i in 0..comptime!(keys / 2) {
            let at = key + bounds.column + comptime!((i / 4 * 8 + i % 2) as u32);
            let query = bounds.query + comptime!((i / 2 % 2 * 8) as u32);
            let score = scores.extract(i);
            scores.insert(i, visible(score, at, query, bounds.keys_end, window));
        }
    }
    scores
}

/// The highest score of a unit's upper or lower row (`h`), or `before`.
#[cube]
fn highest<S: Size>(scores: Vector<f32, S>, before: f32, #[comptime] h: usize) -> f32 {
    let mut top = before;
    #[unroll]
    for i in 0..comptime!(KEYS / 2) {
        if comptime!(i / 2 % 2 == h) {
            top = max(top, scores.extract(i));
        }
    }
    max_quad(top)
}

/// 2^(score · scale − offset) with the offset of each row.
#[cube]
fn exponentials<S: Size>(
    scores: Vector<f32, S>,
    #[comptime] keys: usize,
    log_scale: f32,
    offset_0: f32,
    offset_1: f32,
) -> Vector<f32, S> {
    let mut weights = Vector::<f32, S>::empty();
    #[unroll]
    for i in 0..comptime!(keys / 2) {
        let offset = if comptime!(i / 2 % 2 == 0) {
            offset_0
        } else {
            offset_1
        };
        weights.insert(i, exp2(scores.extract(i) * log_scale - offset));
    }
    weights
}

/// The sum of a unit's values in its upper or lower row.
#[cube]
fn sum_of_row<S: Size>(values: Vector<f32, S>, #[comptime] h: usize) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..comptime!(KEYS / 4) {
        if comptime!(i % 2 == h) {
            sum += values.extract(2 * i) + values.extract(2 * i + 1);
        }
    }
    sum
}

/// Weights as the left factor of a product that comes after this.
#[cube]
fn packed<S: Size, P: Size>(
    weights: Vector<f32, S>,
    #[comptime] keys: usize,
    #[comptime] half: Half,
) -> Vector<u32, P> {
    let mut words = Vector::<u32, P>::empty();
    #[unroll]
    for i in 0..comptime!(keys / 4) {
        let word = pack_in_place(weights.extract(2 * i), weights.extract(2 * i + 1), half);
        words.insert(i, word);
    }
    words
}

/// Gradients of the scores over `scale`: weight · (its gradient − δ of the row).
#[cube]
fn d_scores_of<S: Size>(
    weights: Vector<f32, S>,
    d_weights: Vector<f32, S>,
    delta_0: f32,
    delta_1: f32,
) -> Vector<f32, S> {
    let mut d = Vector::<f32, S>::empty();
    #[unroll]
    for i in 0..comptime!(BLOCK_KEYS / 2) {
        let delta = if comptime!(i / 2 % 2 == 0) {
            delta_0
        } else {
            delta_1
        };
        d.insert(i, weights.extract(i) * (d_weights.extract(i) - delta));
    }
    d
}

#[cube(launch_unchecked)]
fn forward_kernel<F: Float>(
    q: &TensorMap<F, Tiled>,
    k: &TensorMap<F, Tiled>,
    v: &TensorMap<F, Tiled>,
    tiles: &[u32],
    out: &mut [u32],
    lse: &mut [f32],
    scale: f32,
    #[comptime] shape: Shape,
    #[define(F)] _dtype: ElemType,
) {
    let head = CUBE_POS_X;
    let record = CUBE_POS_Y as usize * FIELDS;
    let first = tiles[record];
    let end = tiles[record + 1];
    let keys_first = tiles[record + 2];
    let keys_end = tiles[record + 3];
    let shift = tiles[record + 4];
    let window = comptime!(shape.window);
    let head_dim = comptime!(shape.head_dim);
    let half = comptime!(shape.half);

    let own = comptime!(shape.ring(ROWS, 1));
    let others = comptime!(shape.ring(KEYS, 3));
    let memory = Shared::<[u32]>::new_aligned_slice(
        comptime!((own.bytes() + 2 * others.bytes()) / 4),
        1024usize,
    );
    let barriers = Shared::<[u64]>::new_slice(comptime!(own.barriers() + 2 * others.barriers()));
    let base = shared_address::<u32>(&memory);
    let barriers = shared_address::<u64>(&barriers);
    let keys_at = base + comptime!(own.bytes() as u32);
    let keys_barriers = barriers + comptime!(8 * own.barriers() as u32);
    let queries = ring(base, barriers, own);
    let keys = ring(keys_at, keys_barriers, others);
    let values = ring(
        keys_at + comptime!(others.bytes() as u32),
        keys_barriers + comptime!(8 * others.barriers() as u32),
        others,
    );
    show_barriers();

    let q_map = tensor_map_address::<F, Tiled>(q);
    let k_map = tensor_map_address::<F, Tiled>(k);
    let v_map = tensor_map_address::<F, Tiled>(v);
    let own_column = head * comptime!(head_dim as u32);
    let kv_head = head / comptime!(shape.heads / shape.kv_heads);
    let other_column = kv_head * comptime!(head_dim as u32);

    let start = first_seen(first, shift, keys_first, window);
    let stop = min(keys_end, end + shift);
    let blocks = (stop - start + comptime!(KEYS as u32 - 1)) / comptime!(KEYS as u32);

    // Keys come a block before values.
    let loads = UNIT_POS == 0u32;
    if loads {
        fill(&queries, 0u32, q_map, own_column, first, own);
        #[unroll]
        for block in 0..2u32 {
            if block < blocks {
                let key = start + comptime!(block * KEYS as u32);
                fill(&keys, block, k_map, other_column, key, others);
                fill(&values, block, v_map, other_column, key, others);
            }
        }
        if blocks > 2u32 {
            let key = start + comptime!(2 * KEYS as u32);
            fill(&keys, 2u32, k_map, other_column, key, others);
        }
    }

    // Which rows this unit has, and where the queries are among the keys.
    let row = first + own_row();
    let position = row + shift;
    let column = UNIT_POS % 4u32 * 2u32;
    let group_offset = UNIT_POS / 128u32 * comptime!((64 * crate::hopper::ROW) as u32);
    let q_descriptor = descriptor(base + group_offset, ROWS);

    let size!(S) = comptime!(KEYS / 2);
    let size!(P) = comptime!(KEYS / 4);
    let size!(O) = comptime!(shape.columns() / 2);
    let log_scale = scale * std::f32::consts::LOG2_E;
    let scores_of = comptime!(shape.scores(ROWS, KEYS));
    let sums_of = comptime!(shape.sums(KEYS));
    // The first block's scores have nothing to wait beside.
    wait_for(&queries, 0u32, own);
    wait_for(&keys, 0u32, others);
    let scores = multiply::<S>(q_descriptor, descriptor(keys_at, KEYS), scores_of);
    give_back(&keys, 0u32, others);
    let bounds = Bounds {
        first: first + shift,
        end: end + shift,
        keys_end,
        query: position,
        column,
    };
    let mut scores = seen::<S>(scores, start, &bounds, KEYS, window);
    let mut top_0 = highest::<S>(scores, NEVER.runtime(), 0usize);
    let mut top_1 = highest::<S>(scores, NEVER.runtime(), 1usize);
    scores = exponentials::<S>(
        scores,
        KEYS,
        log_scale,
        top_0 * log_scale,
        top_1 * log_scale,
    );
    let mut total_0 = sum_of_row::<S>(scores, 0usize);
    let mut total_1 = sum_of_row::<S>(scores, 1usize);
    let mut weights = packed::<S, P>(scores, KEYS, half);
    let mut sums = Vector::<f32, O>::new(0.0f32);

    let mut block = 1u32;
    while block < blocks {
        let key = start + block * comptime!(KEYS as u32);
        // Scores of this block and sums of the one before are made while its weights are.
        wait_for(&keys, block, others);
        let fresh = start_product::<S>(
            q_descriptor,
            descriptor(place(&keys, block, others), KEYS),
            scores_of,
        );
        wait_for(&values, block - 1u32, others);
        let before = place(&values, block - 1u32, others);
        let running = start_add::<O, P>(sums, weights, descriptor(before, KEYS), sums_of);
        if loads {
            if block + 1u32 < blocks {
                let next = key + comptime!(KEYS as u32);
                fill(&values, block + 1u32, v_map, other_column, next, others);
            }
            if block + 2u32 < blocks {
                let next = key + comptime!(2 * KEYS as u32);
                fill(&keys, block + 2u32, k_map, other_column, next, others);
            }
        }
        let fresh = arrived::<S>(fresh, comptime!(KEYS / 2), 1usize);
        give_back(&keys, block, others);
        let fresh = seen::<S>(fresh, key, &bounds, KEYS, window);
        let highest_0 = highest::<S>(fresh, top_0, 0usize);
        let highest_1 = highest::<S>(fresh, top_1, 1usize);
        let shrink_0 = exp2((top_0 - highest_0) * log_scale);
        let shrink_1 = exp2((top_1 - highest_1) * log_scale);
        top_0 = highest_0;
        top_1 = highest_1;
        let fresh = exponentials::<S>(
            fresh,
            KEYS,
            log_scale,
            highest_0 * log_scale,
            highest_1 * log_scale,
        );
        total_0 = total_0 * shrink_0 + sum_of_row::<S>(fresh, 0usize);
        total_1 = total_1 * shrink_1 + sum_of_row::<S>(fresh, 1usize);
        let mut done = arrived::<O>(running, comptime!(shape.columns() / 2), 0usize);
        give_back(&values, block - 1u32, others);
        weights = packed::<S, P>(fresh, KEYS, half);
        #[unroll]
        for i in 0..comptime!(head_dim / 2) {
            let value = done.extract(i);
            if comptime!(i / 2 % 2 == 0) {
                done.insert(i, value * shrink_0);
            } else {
                done.insert(i, value * shrink_1);
            }
        }
        sums = done;
        block += 1u32;
    }
    // The values of the last block.
    wait_for(&values, blocks - 1u32, others);
    let last = place(&values, blocks - 1u32, others);
    sums = multiply_add::<O, P>(sums, weights, descriptor(last, KEYS), sums_of);

    let total_0 = sum_quad(total_0);
    let total_1 = sum_quad(total_1);
    write_rows::<O>(
        sums,
        1.0f32 / total_0,
        1.0f32 / total_1,
        out,
        row,
        end,
        head,
        comptime!(shape.heads),
        half,
        head_dim,
    );
    let lane = UNIT_POS % 4u32;
    if lane == 0u32 {
        let heads = comptime!(shape.heads);
        if row < end {
            lse[(row * heads + head) as usize] = top_0 * scale + total_0.ln();
        }
        if row + 8u32 < end {
            lse[((row + 8u32) * heads + head) as usize] = top_1 * scale + total_1.ln();
        }
    }
}

/// Writes a result of 64 rows, each times its factor.
#[cube]
fn write_rows<N: Size>(
    values: Vector<f32, N>,
    factor_0: f32,
    factor_1: f32,
    out: &mut [u32],
    row: u32,
    end: u32,
    head: u32,
    #[comptime] heads: u32,
    #[comptime] half: Half,
    #[comptime] head_dim: usize,
) {
    let words = comptime!(head_dim as u32 / 2);
    let lane = UNIT_POS % 4u32;
    #[unroll]
    for h in 0..2u32 {
        let at = row + comptime!(h * 8);
        let factor = select(comptime!(h == 0).runtime(), factor_0, factor_1);
        if at < end {
            let start = (at * heads + head) * words + lane;
            #[unroll]
            for j in 0..comptime!(head_dim / 8) {
                let low = values.extract(comptime!(4 * j + 2 * h as usize)) * factor;
                let high = values.extract(comptime!(4 * j + 2 * h as usize + 1)) * factor;
                out[(start + comptime!(4 * j as u32)) as usize] = pack(low, high, half);
            }
        }
    }
}

/// dq: each group has 64 queries, and goes through the keys that they see.
#[cube(launch_unchecked)]
fn queries_kernel<F: Float>(
    q: &TensorMap<F, Tiled>,
    k: &TensorMap<F, Tiled>,
    v: &TensorMap<F, Tiled>,
    d_out: &TensorMap<F, Tiled>,
    lse: &[f32],
    delta: &[f32],
    tiles: &[u32],
    dq: &mut [u32],
    scale: f32,
    #[comptime] shape: Shape,
    #[define(F)] _dtype: ElemType,
) {
    let head = CUBE_POS_X;
    let record = CUBE_POS_Y as usize * FIELDS;
    let first = tiles[record];
    let end = tiles[record + 1];
    let keys_first = tiles[record + 2];
    let keys_end = tiles[record + 3];
    let shift = tiles[record + 4];
    let window = comptime!(shape.window);
    let head_dim = comptime!(shape.head_dim);
    let half = comptime!(shape.half);
    let heads = comptime!(shape.heads);

    let own = comptime!(shape.ring(ROWS, 2));
    // Keys are read again a block later.
    let of_keys = comptime!(shape.ring(BLOCK_KEYS, 3));
    let of_values = comptime!(shape.ring(BLOCK_KEYS, 2));
    let memory = Shared::<[u32]>::new_aligned_slice(
        comptime!((own.bytes() + of_keys.bytes() + of_values.bytes()) / 4),
        1024usize,
    );
    let barriers = Shared::<[u64]>::new_slice(comptime!(
        own.barriers() + of_keys.barriers() + of_values.barriers()
    ));
    let base = shared_address::<u32>(&memory);
    let barriers = shared_address::<u64>(&barriers);
    let keys_at = base + comptime!(own.bytes() as u32);
    let keys_barriers = barriers + comptime!(8 * own.barriers() as u32);
    // Queries, and the gradients of what they gave.
    let queries = ring(base, barriers, own);
    let keys = ring(keys_at, keys_barriers, of_keys);
    let values = ring(
        keys_at + comptime!(of_keys.bytes() as u32),
        keys_barriers + comptime!(8 * of_keys.barriers() as u32),
        of_values,
    );
    show_barriers();

    let q_map = tensor_map_address::<F, Tiled>(q);
    let k_map = tensor_map_address::<F, Tiled>(k);
    let v_map = tensor_map_address::<F, Tiled>(v);
    let d_map = tensor_map_address::<F, Tiled>(d_out);
    let own_column = head * comptime!(head_dim as u32);
    let kv_head = head / comptime!(shape.heads / shape.kv_heads);
    let other_column = kv_head * comptime!(head_dim as u32);

    let start = first_seen(first, shift, keys_first, window);
    let stop = min(keys_end, end + shift);
    let blocks = (stop - start + comptime!(BLOCK_KEYS as u32 - 1)) / comptime!(BLOCK_KEYS as u32);

    let loads = UNIT_POS == 0u32;
    if loads {
        fill(&queries, 0u32, q_map, own_column, first, own);
        fill(&queries, 1u32, d_map, own_column, first, own);
        #[unroll]
        for block in 0..2u32 {
            if block < blocks {
                let key = start + comptime!(block * BLOCK_KEYS as u32);
                fill(&keys, block, k_map, other_column, key, of_keys);
                fill(&values, block, v_map, other_column, key, of_values);
            }
        }
    }

    let row = first + own_row();
    let position = row + shift;
    let column = UNIT_POS % 4u32 * 2u32;
    let group_offset = UNIT_POS / 128u32 * comptime!((64 * crate::hopper::ROW) as u32);
    let q_descriptor = descriptor(base + group_offset, ROWS);
    let d_descriptor = descriptor(place(&queries, 1u32, own) + group_offset, ROWS);

    let log2e = std::f32::consts::LOG2_E;
    let log_scale = scale * log2e;
    let at_0 = (min(row, end - 1u32) * heads + head) as usize;
    let at_1 = (min(row + 8u32, end - 1u32) * heads + head) as usize;
    let lse_0 = lse[at_0] * log2e;
    let lse_1 = lse[at_1] * log2e;
    let delta_0 = delta[at_0];
    let delta_1 = delta[at_1];

    let size!(S) = comptime!(BLOCK_KEYS / 2);
    let size!(P) = comptime!(BLOCK_KEYS / 4);
    let size!(O) = comptime!(shape.columns() / 2);
    let mut sums = Vector::<f32, O>::new(0.0f32);

    let product = comptime!(shape.scores(ROWS, BLOCK_KEYS));
    let sums_of = comptime!(shape.sums(BLOCK_KEYS));
    let bounds = Bounds {
        first: first + shift,
        end: end + shift,
        keys_end,
        query: position,
        column,
    };

    wait_for(&queries, 0u32, own);
    wait_for(&keys, 0u32, of_keys);
    let scores = start_product::<S>(q_descriptor, descriptor(keys_at, BLOCK_KEYS), product);
    wait_for(&queries, 1u32, own);
    wait_for(&values, 0u32, of_values);
    let first_values = place(&values, 0u32, of_values);
    let d_weights = start_product::<S>(d_descriptor, descriptor(first_values, BLOCK_KEYS), product);
    let scores = arrived::<S>(scores, comptime!(BLOCK_KEYS / 2), 1usize);
    let scores = seen::<S>(scores, start, &bounds, BLOCK_KEYS, window);
    let weights = exponentials::<S>(scores, BLOCK_KEYS, log_scale, lse_0, lse_1);
    let d_weights = arrived::<S>(d_weights, comptime!(BLOCK_KEYS / 2), 0usize);
    give_back(&values, 0u32, of_values);
    let d = d_scores_of::<S>(weights, d_weights, delta_0, delta_1);
    let mut d_scores = packed::<S, P>(d, BLOCK_KEYS, half);

    let mut block = 1u32;
    while block < blocks {
        let key = start + block * comptime!(BLOCK_KEYS as u32);
        wait_for(&keys, block, of_keys);
        let k_here = place(&keys, block, of_keys);
        let scores = start_product::<S>(q_descriptor, descriptor(k_here, BLOCK_KEYS), product);
        wait_for(&values, block, of_values);
        let v_here = place(&values, block, of_values);
        let d_weights = start_product::<S>(d_descriptor, descriptor(v_here, BLOCK_KEYS), product);
        let k_before = place(&keys, block - 1u32, of_keys);
        let running = start_add::<O, P>(sums, d_scores, descriptor(k_before, BLOCK_KEYS), sums_of);
        if loads && block + 1u32 < blocks {
            let next = key + comptime!(BLOCK_KEYS as u32);
            fill(&keys, block + 1u32, k_map, other_column, next, of_keys);
        }
        let scores = arrived::<S>(scores, comptime!(BLOCK_KEYS / 2), 2usize);
        let scores = seen::<S>(scores, key, &bounds, BLOCK_KEYS, window);
        let weights = exponentials::<S>(scores, BLOCK_KEYS, log_scale, lse_0, lse_1);
        let d_weights = arrived::<S>(d_weights, comptime!(BLOCK_KEYS / 2), 1usize);
        give_back(&values, block, of_values);
        // No earlier: the other group may still read the place that these values go to.
        if loads && block + 1u32 < blocks {
            let next = key + comptime!(BLOCK_KEYS as u32);
            fill(&values, block + 1u32, v_map, other_column, next, of_values);
        }
        let d = d_scores_of::<S>(weights, d_weights, delta_0, delta_1);
        sums = arrived::<O>(running, comptime!(shape.columns() / 2), 0usize);
        give_back(&keys, block - 1u32, of_keys);
        d_scores = packed::<S, P>(d, BLOCK_KEYS, half);
        block += 1u32;
    }
    let last = place(&keys, blocks - 1u32, of_keys);
    sums = multiply_add::<O, P>(sums, d_scores, descriptor(last, BLOCK_KEYS), sums_of);
    write_rows::<O>(
        sums, scale, scale, dq, row, end, head, heads, half, head_dim,
    );
}

/// Blocks of queries that [`keys_kernel`] has in shared memory at once.
const PLACES: usize = 3;

/// Where [`keys_kernel`] has the queries from.
#[derive(CubeType)]
struct Source {
    /// The first query.
    start: u32,
    /// Blocks of queries of each head.
    blocks: u32,
    queries_end: u32,
    first_head: u32,
    q_map: u64,
    d_map: u64,
    /// Addresses of the rows' log-sum-exp and δ.
    lse: u64,
    delta: u64,
    /// Where they go.
    statistics: u32,
}

/// Starts bringing a block of queries, the gradients of what they gave, and the statistics of their rows.
#[cube]
fn bring(
    source: &Source,
    round: u32,
    queries: &Ring,
    gradients: &Ring,
    #[comptime] of_queries: RingShape,
    #[comptime] shape: Shape,
) {
    let of_gradients = comptime!(RingShape {
        beside: 0,
        ..of_queries
    });
    let head = source.first_head + round / source.blocks;
    let query = source.start + round % source.blocks * comptime!(BLOCK as u32);
    if UNIT_POS < comptime!(BLOCK as u32) {
        wait_until_free(queries, round, of_queries);
        let row = min(query + UNIT_POS, source.queries_end - 1u32);
        let from = u64::cast_from(4u32 * (row * comptime!(shape.heads) + head));
        let to = source.statistics
            + 4u32 * (round % comptime!(PLACES as u32) * comptime!(2 * BLOCK as u32) + UNIT_POS);
        copy_word(source.lse + from, to);
        copy_word(source.delta + from, to + comptime!(4 * BLOCK as u32));
        arrive_with_copies(filled(queries, round, of_queries));
    }
    if UNIT_POS == 0u32 {
        let column = head * comptime!(shape.head_dim as u32);
        fill(queries, round, source.q_map, column, query, of_queries);
        fill(gradients, round, source.d_map, column, query, of_gradients);
    }
}

/// dk and dv: each group has 64 keys of one head, and goes through the queries of the heads that share it.
#[cube(launch_unchecked)]
fn keys_kernel<F: Float>(
    q: &TensorMap<F, Tiled>,
    k: &TensorMap<F, Tiled>,
    v: &TensorMap<F, Tiled>,
    d_out: &TensorMap<F, Tiled>,
    lse: &[f32],
    delta: &[f32],
    tiles: &[u32],
    dk: &mut [u32],
    dv: &mut [u32],
    scale: f32,
    #[comptime] shape: Shape,
    #[define(F)] _dtype: ElemType,
) {
    let kv_head = CUBE_POS_X;
    let record = CUBE_POS_Y as usize * FIELDS;
    let first = tiles[record];
    let end = tiles[record + 1];
    let queries_first = tiles[record + 2];
    let queries_end = tiles[record + 3];
    let shift = tiles[record + 4];
    let window = comptime!(shape.window);
    let head_dim = comptime!(shape.head_dim);
    let half = comptime!(shape.half);

    let own = comptime!(shape.ring(ROWS, 2));
    let of_gradients = comptime!(shape.ring(BLOCK, PLACES));
    // With each block of queries come the statistics of its rows.
    let of_queries = comptime!(RingShape {
        beside: BLOCK,
        ..of_gradients
    });
    let memory = Shared::<[u32]>::new_aligned_slice(
        comptime!((own.bytes() + of_queries.bytes() + of_gradients.bytes()) / 4),
        1024usize,
    );
    // Of each place the lse of its rows, and their δ.
    let statistics = Shared::<[f32]>::new_aligned_slice(comptime!(2 * BLOCK * PLACES), 16usize);
    let barriers = Shared::<[u64]>::new_slice(comptime!(
        own.barriers() + of_queries.barriers() + of_gradients.barriers()
    ));
    let base = shared_address::<u32>(&memory);
    let barriers = shared_address::<u64>(&barriers);
    let queries_at = base + comptime!(own.bytes() as u32);
    let queries_barriers = barriers + comptime!(8 * own.barriers() as u32);
    // Keys, and values.
    let keys = ring(base, barriers, own);
    let queries = ring(queries_at, queries_barriers, of_queries);
    let gradients = ring(
        queries_at + comptime!(of_queries.bytes() as u32),
        queries_barriers + comptime!(8 * of_queries.barriers() as u32),
        of_gradients,
    );
    show_barriers();

    let q_map = tensor_map_address::<F, Tiled>(q);
    let k_map = tensor_map_address::<F, Tiled>(k);
    let v_map = tensor_map_address::<F, Tiled>(v);
    let d_map = tensor_map_address::<F, Tiled>(d_out);
    let group = comptime!(shape.heads / shape.kv_heads);
    let own_column = kv_head * comptime!(head_dim as u32);

    // Query r sees key c if c <= r + shift: from the first key's first viewer on.
    let mut start = queries_first;
    if first > queries_first + shift {
        start = first - shift;
    }
    let mut stop = queries_end;
    if comptime!(window > 0) {
        // The last key's last viewer.
        let beyond = end - 1u32 + window;
        if beyond < queries_end + shift {
            stop = max(beyond - shift, start);
        }
    }
    let blocks = (stop - start + comptime!(BLOCK as u32 - 1)) / comptime!(BLOCK as u32);
    let rounds = blocks * group;

    let loads = UNIT_POS == 0u32;
    let source = Source {
        start,
        blocks,
        queries_end,
        first_head: kv_head * group,
        q_map,
        d_map,
        lse: global_address::<f32>(lse),
        delta: global_address::<f32>(delta),
        statistics: shared_address::<f32>(&statistics),
    };
    if loads {
        fill(&keys, 0u32, k_map, own_column, first, own);
        fill(&keys, 1u32, v_map, own_column, first, own);
    }
    #[unroll]
    for round in 0..2u32 {
        if round < rounds {
            bring(&source, round, &queries, &gradients, of_queries, shape);
        }
    }

    let row = first + own_row();
    let column = UNIT_POS % 4u32 * 2u32;
    let group_offset = UNIT_POS / 128u32 * comptime!((64 * crate::hopper::ROW) as u32);
    let k_descriptor = descriptor(base + group_offset, ROWS);
    let v_descriptor = descriptor(place(&keys, 1u32, own) + group_offset, ROWS);
    let log_scale = scale * std::f32::consts::LOG2_E;

    let size!(S) = comptime!(BLOCK / 2);
    let size!(P) = comptime!(BLOCK / 4);
    let size!(O) = comptime!(shape.columns() / 2);
    let size!(Two) = 2usize;
    let mut dk_sums = Vector::<f32, O>::new(0.0f32);
    let mut dv_sums = Vector::<f32, O>::new(0.0f32);

    wait_for(&keys, 0u32, own);
    wait_for(&keys, 1u32, own);
    let mut round = 0u32;
    while round < rounds {
        let query = start + round % blocks * comptime!(BLOCK as u32);
        let product = comptime!(shape.scores(ROWS, BLOCK));
        wait_for(&queries, round, of_queries);
        let q_descriptor = descriptor(place(&queries, round, of_queries), BLOCK);
        let scores = start_product::<S>(k_descriptor, q_descriptor, product);
        wait_for(&gradients, round, of_gradients);
        let d_descriptor = descriptor(place(&gradients, round, of_gradients), BLOCK);
        let d_weights = start_product::<S>(v_descriptor, d_descriptor, product);
        if round + 2u32 < rounds {
            bring(
                &source,
                round + 2u32,
                &queries,
                &gradients,
                of_queries,
                shape,
            );
        }
        let mut scores = arrived::<S>(scores, comptime!(BLOCK / 2), 1usize);
        // Rows are keys, columns queries.
        let mut partly = query + shift < end || query + comptime!(BLOCK as u32) > queries_end;
        if comptime!(window > 0) {
            partly = partly || first + window < query + comptime!(BLOCK as u32) + shift;
        }
        if partly {
            #[unroll]
            for i in 0..comptime!(BLOCK / 2) {
                let at = query + column + comptime!((i / 4 * 8 + i % 2) as u32);
                let key = row + comptime!((i / 2 % 2 * 8) as u32);
                let mut seen = key <= at + shift && at < queries_end;
                if comptime!(window > 0) {
                    seen = seen && key + window > at + shift;
                }
                let score = scores.extract(i);
                scores.insert(i, select(seen, score, NEVER));
            }
        }
        let of_rows = source.statistics
            + 4u32 * (round % comptime!(PLACES as u32) * comptime!(2 * BLOCK as u32) + column);
        #[unroll]
        for j in 0..comptime!(BLOCK / 8) {
            let lse = read_pair::<Two>(of_rows + comptime!(32 * j as u32));
            #[unroll]
            for c in 0..2usize {
                let lse = lse.extract(c) * std::f32::consts::LOG2_E;
                let i = comptime!(4 * j + c);
                let upper = exp2(scores.extract(i) * log_scale - lse);
                let lower = exp2(scores.extract(comptime!(i + 2)) * log_scale - lse);
                scores.insert(i, upper);
                scores.insert(comptime!(i + 2), lower);
            }
        }
        let d_weights = arrived::<S>(d_weights, comptime!(BLOCK / 2), 0usize);
        let weights = packed::<S, P>(scores, BLOCK, half);
        #[unroll]
        for j in 0..comptime!(BLOCK / 8) {
            let delta = read_pair::<Two>(of_rows + comptime!(4 * (8 * j + BLOCK) as u32));
            #[unroll]
            for c in 0..2usize {
                let delta = delta.extract(c);
                #[unroll]
                for h in 0..2usize {
                    let i = comptime!(4 * j + 2 * h + c);
                    scores.insert(i, scores.extract(i) * (d_weights.extract(i) - delta));
                }
            }
        }
        let d_scores = packed::<S, P>(scores, BLOCK, half);
        let sums = comptime!(shape.sums(BLOCK));
        let dv_running = start_add::<O, P>(dv_sums, weights, d_descriptor, sums);
        let dk_running = start_add::<O, P>(dk_sums, d_scores, q_descriptor, sums);
        dv_sums = arrived::<O>(dv_running, comptime!(shape.columns() / 2), 1usize);
        dk_sums = arrived::<O>(dk_running, comptime!(shape.columns() / 2), 0usize);
        give_back(&queries, round, of_queries);
        give_back(&gradients, round, of_gradients);
        round += 1u32;
    }
    let kv_heads = comptime!(shape.kv_heads);
    write_rows::<O>(
        dk_sums, scale, scale, dk, row, end, kv_head, kv_heads, half, head_dim,
    );
    write_rows::<O>(
        dv_sums, 1.0f32, 1.0f32, dv, row, end, kv_head, kv_heads, half, head_dim,
    );
}
