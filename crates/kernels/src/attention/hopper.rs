//! Attention on the tensor cores of compute capability 9.0, for 16-bit values.
//!
//! Two groups of four warps share a cube and its tiles in shared memory; each has 64 rows. Softmax statistics
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

use super::tiles::{FIELDS, Side, tiles};
use super::{HeadLayout, Qkv};
use crate::cube::{CubeTensor, argument, elem, empty, tensor};
use crate::hopper::{
    GROUP, Half, Lie, Product, TileShape, arrived, commit_copies, descriptor, exp2, global_address,
    is_hopper, load_tile, max_quad, multiply, multiply_add, pack, pack_in_place, shared_address,
    show_to_tensor_cores, start_add, start_product, sum_quad, wait_for_copies,
};
use crate::segments::Segments;

/// Units of a cube: two groups.
const UNITS: u32 = 2 * GROUP;

/// Rows of a cube.
const ROWS: usize = 128;

/// A score that no softmax notices.
const NEVER: f32 = -1.0e30;

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
    fn tile(self, rows: usize) -> TileShape {
        TileShape {
            rows,
            columns: self.head_dim,
            units: UNITS as usize,
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
fn words(x: &CubeTensor) -> BufferArg {
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
            argument(q, 1),
            argument(k, 1),
            argument(v, 1),
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

/// Queries, or keys, of a block of the backward passes.
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
            argument(q, 1),
            argument(k, 1),
            argument(v, 1),
            argument(d_out, 1),
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
            argument(q, 1),
            argument(k, 1),
            argument(v, 1),
            argument(d_out, 1),
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

/// The first block of keys that a tile's queries see: `first` is their first row.
#[cube]
fn first_seen(first: u32, shift: u32, keys_first: u32, #[comptime] window: u32) -> u32 {
    let mut seen = keys_first;
    if comptime!(window > 0) {
        let end = first + shift + 1u32;
        if end > keys_first + window {
            seen = end - window;
        }
    }
    seen
}

/// `score`, or next to nothing where the query at key position `query` does not see `key`.
#[cube]
fn visible(score: f32, key: u32, query: u32, keys_end: u32, #[comptime] window: u32) -> f32 {
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
    for i in 0..comptime!(BLOCK / 2) {
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
    q: &[F],
    k: &[F],
    v: &[F],
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

    let q_tile = comptime!(shape.tile(ROWS));
    let kv_tile = comptime!(shape.tile(KEYS));
    let q_bytes = comptime!(q_tile.bytes() as u32);
    let kv_bytes = comptime!(kv_tile.bytes() as u32);
    let memory = Shared::<[u32]>::new_aligned_slice(
        comptime!((q_tile.bytes() + 4 * kv_tile.bytes()) / 4),
        1024usize,
    );
    let base = shared_address::<u32>(&memory);

    let q_stride = u64::cast_from(comptime!(shape.heads * shape.head_dim as u32 * 2).runtime());
    let kv_stride = u64::cast_from(comptime!(shape.kv_heads * shape.head_dim as u32 * 2).runtime());
    let kv_head = head / comptime!(shape.heads / shape.kv_heads);
    let width = comptime!(shape.head_dim as u32 * 2);
    let q_from = global_address::<F>(q) + u64::cast_from(head * width);
    let k_from = global_address::<F>(k) + u64::cast_from(kv_head * width);
    let v_from = global_address::<F>(v) + u64::cast_from(kv_head * width);

    let start = first_seen(first, shift, keys_first, window);
    let stop = min(keys_end, end + shift);
    let blocks = (stop - start + comptime!(KEYS as u32 - 1)) / comptime!(KEYS as u32);

    // Keys come a block before values.
    let keys = base + q_bytes;
    let values = keys + comptime!(2 * kv_tile.bytes() as u32);
    load_tile(q_from, q_stride, base, first, end, q_tile);
    load_tile(k_from, kv_stride, keys, start, keys_end, kv_tile);
    commit_copies();
    load_tile(v_from, kv_stride, values, start, keys_end, kv_tile);
    let second = start + comptime!(KEYS as u32);
    if blocks > 1u32 {
        load_tile(
            k_from,
            kv_stride,
            keys + kv_bytes,
            second,
            keys_end,
            kv_tile,
        );
    }
    commit_copies();

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
    wait_for_copies(1usize);
    show_to_tensor_cores();
    sync_cube();
    let scores = multiply::<S>(q_descriptor, descriptor(keys, KEYS), scores_of);
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
        let odd = block % 2u32;
        // Keys of this block and values of the one before are there, and nobody reads what came before those.
        wait_for_copies(0usize);
        show_to_tensor_cores();
        sync_cube();
        // Scores of this block and sums of the one before are made while its weights are.
        let fresh = start_product::<S>(
            q_descriptor,
            descriptor(keys + odd * kv_bytes, KEYS),
            scores_of,
        );
        let before = values + (1u32 - odd) * kv_bytes;
        let running = start_add::<O, P>(sums, weights, descriptor(before, KEYS), sums_of);
        load_tile(
            v_from,
            kv_stride,
            values + odd * kv_bytes,
            key,
            keys_end,
            kv_tile,
        );
        if block + 1u32 < blocks {
            load_tile(
                k_from,
                kv_stride,
                keys + (1u32 - odd) * kv_bytes,
                key + comptime!(KEYS as u32),
                keys_end,
                kv_tile,
            );
        }
        commit_copies();
        let fresh = arrived::<S>(fresh, comptime!(KEYS / 2), 1usize);
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
    wait_for_copies(0usize);
    show_to_tensor_cores();
    sync_cube();
    let last = values + (blocks - 1u32) % 2u32 * kv_bytes;
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
    q: &[F],
    k: &[F],
    v: &[F],
    d_out: &[F],
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

    let q_tile = comptime!(shape.tile(ROWS));
    let kv_tile = comptime!(shape.tile(BLOCK));
    let q_bytes = comptime!(q_tile.bytes() as u32);
    let kv_bytes = comptime!(kv_tile.bytes() as u32);
    let memory = Shared::<[u32]>::new_aligned_slice(
        comptime!((2 * q_tile.bytes() + 5 * kv_tile.bytes()) / 4),
        1024usize,
    );
    let base = shared_address::<u32>(&memory);

    let q_stride = u64::cast_from(comptime!(shape.heads * shape.head_dim as u32 * 2).runtime());
    let kv_stride = u64::cast_from(comptime!(shape.kv_heads * shape.head_dim as u32 * 2).runtime());
    let kv_head = head / comptime!(shape.heads / shape.kv_heads);
    let width = comptime!(shape.head_dim as u32 * 2);
    let q_from = global_address::<F>(q) + u64::cast_from(head * width);
    let d_from = global_address::<F>(d_out) + u64::cast_from(head * width);
    let k_from = global_address::<F>(k) + u64::cast_from(kv_head * width);
    let v_from = global_address::<F>(v) + u64::cast_from(kv_head * width);

    let start = first_seen(first, shift, keys_first, window);
    let stop = min(keys_end, end + shift);
    let blocks = (stop - start + comptime!(BLOCK as u32 - 1)) / comptime!(BLOCK as u32);

    load_tile(q_from, q_stride, base, first, end, q_tile);
    load_tile(d_from, q_stride, base + q_bytes, first, end, q_tile);
    // Keys are read again a block later, so they have three places.
    let keys = base + comptime!(2 * q_tile.bytes() as u32);
    let values = keys + comptime!(3 * kv_tile.bytes() as u32);
    load_tile(k_from, kv_stride, keys, start, keys_end, kv_tile);
    load_tile(v_from, kv_stride, values, start, keys_end, kv_tile);
    commit_copies();
    if blocks > 1u32 {
        let second = start + comptime!(BLOCK as u32);
        let (k_to, v_to) = (keys + kv_bytes, values + kv_bytes);
        load_tile(k_from, kv_stride, k_to, second, keys_end, kv_tile);
        load_tile(v_from, kv_stride, v_to, second, keys_end, kv_tile);
    }
    commit_copies();

    let row = first + own_row();
    let position = row + shift;
    let column = UNIT_POS % 4u32 * 2u32;
    let group_offset = UNIT_POS / 128u32 * comptime!((64 * crate::hopper::ROW) as u32);
    let q_descriptor = descriptor(base + group_offset, ROWS);
    let d_descriptor = descriptor(base + q_bytes + group_offset, ROWS);

    let log2e = std::f32::consts::LOG2_E;
    let log_scale = scale * log2e;
    let at_0 = (min(row, end - 1u32) * heads + head) as usize;
    let at_1 = (min(row + 8u32, end - 1u32) * heads + head) as usize;
    let lse_0 = lse[at_0] * log2e;
    let lse_1 = lse[at_1] * log2e;
    let delta_0 = delta[at_0];
    let delta_1 = delta[at_1];

    let size!(S) = comptime!(BLOCK / 2);
    let size!(P) = comptime!(BLOCK / 4);
    let size!(O) = comptime!(shape.columns() / 2);
    let mut sums = Vector::<f32, O>::new(0.0f32);

    let product = comptime!(shape.scores(ROWS, BLOCK));
    let sums_of = comptime!(shape.sums(BLOCK));
    let bounds = Bounds {
        first: first + shift,
        end: end + shift,
        keys_end,
        query: position,
        column,
    };

    wait_for_copies(1usize);
    show_to_tensor_cores();
    sync_cube();
    let scores = start_product::<S>(q_descriptor, descriptor(keys, BLOCK), product);
    let d_weights = start_product::<S>(d_descriptor, descriptor(values, BLOCK), product);
    let scores = arrived::<S>(scores, comptime!(BLOCK / 2), 1usize);
    let scores = seen::<S>(scores, start, &bounds, BLOCK, window);
    let weights = exponentials::<S>(scores, BLOCK, log_scale, lse_0, lse_1);
    let d_weights = arrived::<S>(d_weights, comptime!(BLOCK / 2), 0usize);
    let d = d_scores_of::<S>(weights, d_weights, delta_0, delta_1);
    let mut d_scores = packed::<S, P>(d, BLOCK, half);

    let mut block = 1u32;
    while block < blocks {
        let key = start + block * comptime!(BLOCK as u32);
        // Keys and values of this block are there; nobody reads the values of the one before, or the keys of the one
        // before that.
        wait_for_copies(0usize);
        show_to_tensor_cores();
        sync_cube();
        let k_here = keys + block % 3u32 * kv_bytes;
        let v_here = values + block % 2u32 * kv_bytes;
        let k_before = keys + (block - 1u32) % 3u32 * kv_bytes;
        let scores = start_product::<S>(q_descriptor, descriptor(k_here, BLOCK), product);
        let d_weights = start_product::<S>(d_descriptor, descriptor(v_here, BLOCK), product);
        let running = start_add::<O, P>(sums, d_scores, descriptor(k_before, BLOCK), sums_of);
        if block + 1u32 < blocks {
            let next = key + comptime!(BLOCK as u32);
            let k_to = keys + (block + 1u32) % 3u32 * kv_bytes;
            let v_to = values + (block + 1u32) % 2u32 * kv_bytes;
            load_tile(k_from, kv_stride, k_to, next, keys_end, kv_tile);
            load_tile(v_from, kv_stride, v_to, next, keys_end, kv_tile);
        }
        commit_copies();
        let scores = arrived::<S>(scores, comptime!(BLOCK / 2), 2usize);
        let scores = seen::<S>(scores, key, &bounds, BLOCK, window);
        let weights = exponentials::<S>(scores, BLOCK, log_scale, lse_0, lse_1);
        let d_weights = arrived::<S>(d_weights, comptime!(BLOCK / 2), 1usize);
        let d = d_scores_of::<S>(weights, d_weights, delta_0, delta_1);
        sums = arrived::<O>(running, comptime!(shape.columns() / 2), 0usize);
        d_scores = packed::<S, P>(d, BLOCK, half);
        block += 1u32;
    }
    let last = keys + (blocks - 1u32) % 3u32 * kv_bytes;
    sums = multiply_add::<O, P>(sums, d_scores, descriptor(last, BLOCK), sums_of);
    write_rows::<O>(
        sums, scale, scale, dq, row, end, head, heads, half, head_dim,
    );
}

/// dk and dv: each group has 64 keys of one head, and goes through the queries of the heads that share it.
#[cube(launch_unchecked)]
fn keys_kernel<F: Float>(
    q: &[F],
    k: &[F],
    v: &[F],
    d_out: &[F],
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
    let heads = comptime!(shape.heads);

    let kv_tile = comptime!(shape.tile(ROWS));
    let q_tile = comptime!(shape.tile(BLOCK));
    let kv_bytes = comptime!(kv_tile.bytes() as u32);
    let q_bytes = comptime!(q_tile.bytes() as u32);
    let memory = Shared::<[u32]>::new_aligned_slice(
        comptime!((2 * kv_tile.bytes() + 4 * q_tile.bytes()) / 4),
        1024usize,
    );
    // lse and delta of the queries of a block, in the same two buffers.
    let mut statistics = Shared::<[f32]>::new_slice(comptime!(4 * BLOCK));
    let base = shared_address::<u32>(&memory);

    let q_stride = u64::cast_from(comptime!(shape.heads * shape.head_dim as u32 * 2).runtime());
    let kv_stride = u64::cast_from(comptime!(shape.kv_heads * shape.head_dim as u32 * 2).runtime());
    let width = comptime!(shape.head_dim as u32 * 2);
    let group = comptime!(shape.heads / shape.kv_heads);
    let q_from = global_address::<F>(q);
    let d_from = global_address::<F>(d_out);
    let k_from = global_address::<F>(k) + u64::cast_from(kv_head * width);
    let v_from = global_address::<F>(v) + u64::cast_from(kv_head * width);

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

    load_tile(k_from, kv_stride, base, first, end, kv_tile);
    load_tile(v_from, kv_stride, base + kv_bytes, first, end, kv_tile);
    let q_base = base + comptime!(2 * kv_tile.bytes() as u32);
    let head = kv_head * group;
    let offset = u64::cast_from(head * width);
    if rounds > 0u32 {
        load_tile(
            q_from + offset,
            q_stride,
            q_base,
            start,
            queries_end,
            q_tile,
        );
        load_tile(
            d_from + offset,
            q_stride,
            q_base + q_bytes,
            start,
            queries_end,
            q_tile,
        );
        if UNIT_POS < comptime!(BLOCK as u32) {
            let at = (min(start + UNIT_POS, queries_end - 1u32) * heads + head) as usize;
            statistics[UNIT_POS as usize] = lse[at] * std::f32::consts::LOG2_E;
            statistics[UNIT_POS as usize + BLOCK] = delta[at];
        }
    }
    commit_copies();

    let row = first + own_row();
    let column = UNIT_POS % 4u32 * 2u32;
    let group_offset = UNIT_POS / 128u32 * comptime!((64 * crate::hopper::ROW) as u32);
    let k_descriptor = descriptor(base + group_offset, ROWS);
    let v_descriptor = descriptor(base + kv_bytes + group_offset, ROWS);
    let log_scale = scale * std::f32::consts::LOG2_E;

    let size!(S) = comptime!(BLOCK / 2);
    let size!(P) = comptime!(BLOCK / 4);
    let size!(O) = comptime!(shape.columns() / 2);
    let mut dk_sums = Vector::<f32, O>::new(0.0f32);
    let mut dv_sums = Vector::<f32, O>::new(0.0f32);

    let mut round = 0u32;
    while round < rounds {
        let query = start + round % blocks * comptime!(BLOCK as u32);
        let here = q_base + round % 2u32 * comptime!(2 * q_tile.bytes() as u32);
        sync_cube();
        if round + 1u32 < rounds {
            let next_round = round + 1u32;
            let next = q_base + next_round % 2u32 * comptime!(2 * q_tile.bytes() as u32);
            let next_query = start + next_round % blocks * comptime!(BLOCK as u32);
            let head = kv_head * group + next_round / blocks;
            let offset = u64::cast_from(head * width);
            load_tile(
                q_from + offset,
                q_stride,
                next,
                next_query,
                queries_end,
                q_tile,
            );
            load_tile(
                d_from + offset,
                q_stride,
                next + q_bytes,
                next_query,
                queries_end,
                q_tile,
            );
            if UNIT_POS < comptime!(BLOCK as u32) {
                let at = (min(next_query + UNIT_POS, queries_end - 1u32) * heads + head) as usize;
                let to = (next_round % 2u32 * comptime!(2 * BLOCK as u32) + UNIT_POS) as usize;
                statistics[to] = lse[at] * std::f32::consts::LOG2_E;
                statistics[to + BLOCK] = delta[at];
            }
        }
        commit_copies();
        wait_for_copies(1usize);
        show_to_tensor_cores();
        sync_cube();

        let product = comptime!(shape.scores(ROWS, BLOCK));
        let q_descriptor = descriptor(here, BLOCK);
        let d_descriptor = descriptor(here + q_bytes, BLOCK);
        let scores = start_product::<S>(k_descriptor, q_descriptor, product);
        let d_weights = start_product::<S>(v_descriptor, d_descriptor, product);
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
        let buffer = (round % 2u32 * comptime!(2 * BLOCK as u32) + column) as usize;
        #[unroll]
        for j in 0..comptime!(BLOCK / 8) {
            #[unroll]
            for c in 0..2usize {
                let lse = statistics[buffer + comptime!(8 * j + c)];
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
            #[unroll]
            for c in 0..2usize {
                let delta = statistics[buffer + comptime!(8 * j + BLOCK + c)];
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
