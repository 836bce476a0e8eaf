//! dq.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::tiles::{FIELDS, first_seen};
use super::Shape;
use super::rows::{
    Bounds, capped, d_score, exponentials, own_place, own_row, packed, scaled, seen, write_group,
};
use crate::hopper::{global_address, shared_address};
use crate::mma::{along_rows, commit, down_rows, load, multiply, multiply_add, wait};

/// dq: a cube has queries of one head, and goes through the keys that they see.
#[cube(launch_unchecked)]
pub(super) fn queries_kernel<F: Float>(
    q: &[F],
    k: &[F],
    v: &[F],
    d_out: &[F],
    lse: &[f32],
    delta: &[f32],
    tiles: &[u32],
    dq: &mut [u32],
    scale: f32,
    factor: f32,
    within: f32,
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
    let generation = comptime!(shape.generation);
    let heads = comptime!(shape.heads);
    let others = comptime!(shape.cut.others as u32);

    let memory = Shared::<[u32]>::new_aligned_slice(comptime!(shape.tiles_bytes() / 4), 1024usize);
    let base = shared_address::<u32>(&memory);
    let d_base = base + comptime!(shape.own().bytes() as u32);
    let keys = d_base + comptime!(shape.own().bytes() as u32);
    let values = keys + comptime!(shape.other().bytes() as u32);

    let q_stride = u64::cast_from(comptime!(shape.heads * shape.head_dim as u32 * 2).runtime());
    let kv_stride = u64::cast_from(comptime!(shape.kv_heads * shape.head_dim as u32 * 2).runtime());
    let width = comptime!(shape.head_dim as u32 * 2);
    let kv_head = head / comptime!(shape.heads / shape.kv_heads);
    let q_from = global_address::<F>(q) + u64::cast_from(head * width);
    let d_from = global_address::<F>(d_out) + u64::cast_from(head * width);
    let k_from = global_address::<F>(k) + u64::cast_from(kv_head * width);
    let v_from = global_address::<F>(v) + u64::cast_from(kv_head * width);
    let own = comptime!(shape.own());
    let other = comptime!(shape.other());

    let start = first_seen(first, shift, keys_first, window);
    let stop = min(keys_end, end + shift);
    let rest = others - 1u32;
    let blocks = (stop - start + rest) / others;
    load(q_from, q_stride, base, first, end, own, generation);
    load(d_from, q_stride, d_base, first, end, own, generation);
    load(
        v_from, kv_stride, values, start, keys_end, other, generation,
    );
    commit(generation);

    let row = first + own_row(shape);
    let bounds = Bounds {
        first: first + shift,
        end: end + shift,
        keys_end,
        query: row + shift,
    };
    let q_here = base + own_place(shape);
    let d_here = d_base + own_place(shape);
    let k_here = keys + along_rows();
    let v_here = values + along_rows();
    let k_down = keys + down_rows() + CUBE_POS_Z * comptime!(shape.part_bytes() as u32);
    let log2e = std::f32::consts::LOG2_E;
    let log_scale = factor * log2e;

    let size!(S) = comptime!(shape.values());
    let size!(P) = comptime!(shape.values() / 2);
    let size!(G) = comptime!(shape.group_values());
    let size!(R) = comptime!(2 * shape.cut.blocks);
    let mut offsets = Vector::<f32, R>::empty();
    let mut deltas = Vector::<f32, R>::empty();
    let mut scales = Vector::<f32, R>::empty();
    #[unroll]
    for r in 0..comptime!(2 * shape.cut.blocks) {
        let at = (min(row + comptime!(shape.row(r)), end - 1u32) * heads + head) as usize;
        offsets.insert(r, lse[at] * log2e);
        deltas.insert(r, delta[at]);
        scales.insert(r, scale);
    }
    let mut sums = Array::<Vector<f32, G>>::new(comptime!(shape.groups()));
    #[unroll]
    for group in 0..comptime!(shape.groups()) {
        sums[group] = Vector::new(0.0f32);
    }

    let mut block = 0u32;
    while block < blocks {
        let key = start + block * others;
        // Values of this block are there, and nobody reads the keys of the one before.
        wait(generation);
        sync_cube();
        load(k_from, kv_stride, keys, key, keys_end, other, generation);
        commit(generation);
        let d_weights = multiply::<S>(d_here, v_here, comptime!(shape.scores()));
        // Keys of this block are there, and nobody reads its values.
        wait(generation);
        sync_cube();
        if block + 1u32 < blocks {
            load(
                v_from,
                kv_stride,
                values,
                key + others,
                keys_end,
                other,
                generation,
            );
            commit(generation);
        }
        let scores = multiply::<S>(q_here, k_here, comptime!(shape.scores()));
        let scores = capped::<S>(scores, within, shape);
        let mut d_scores = Vector::<f32, S>::empty();
        #[unroll]
        for i in 0..comptime!(shape.values()) {
            let delta = deltas.extract(comptime!(shape.row_of(i, shape.values())));
            d_scores.insert(
                i,
                d_score(scores.extract(i), d_weights.extract(i), delta, shape),
            );
        }
        let scores = seen::<S>(scores, key, &bounds, shape);
        let weights = exponentials::<S, R>(scores, log_scale, offsets, shape);
        let d_scores = packed::<S, P>(d_scores * weights, shape);
        #[unroll]
        for group in 0..comptime!(shape.groups()) {
            sums[group] =
                multiply_add::<G, P>(sums[group], d_scores, k_down, comptime!(shape.sums(group)));
        }
        block += 1u32;
    }
    #[unroll]
    for group in 0..comptime!(shape.groups()) {
        let sums = scaled::<G, R>(sums[group], scales, shape);
        write_group::<G>(sums, dq, row, end, head, heads, group, shape);
    }
}
