//! The forward pass.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::tiles::{FIELDS, NEVER, first_seen};
use super::Shape;
use super::rows::{
    Bounds, capped, exponentials, highest, own_place, own_row, packed, scaled, seen, sum_of_row,
    write_group,
};
use crate::hopper::{exp2, global_address, shared_address, sum_quad};
use crate::mma::{along_rows, commit, down_rows, load, multiply, multiply_add, wait};

#[cube(launch_unchecked)]
pub(super) fn forward_kernel<F: Float>(
    q: &[F],
    k: &[F],
    v: &[F],
    tiles: &[u32],
    out: &mut [u32],
    lse: &mut [f32],
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
    let keys = base + comptime!(shape.own().bytes() as u32);
    let values = keys + comptime!(shape.other().bytes() as u32);

    let q_stride = u64::cast_from(comptime!(shape.heads * shape.head_dim as u32 * 2).runtime());
    let kv_stride = u64::cast_from(comptime!(shape.kv_heads * shape.head_dim as u32 * 2).runtime());
    let width = comptime!(shape.head_dim as u32 * 2);
    let kv_head = head / comptime!(shape.heads / shape.kv_heads);
    let part = CUBE_POS_Z * comptime!(shape.columns() as u32 * 2);
    let q_from = global_address::<F>(q) + u64::cast_from(head * width);
    let k_from = global_address::<F>(k) + u64::cast_from(kv_head * width);
    let v_from = global_address::<F>(v) + u64::cast_from(kv_head * width + part);
    let own = comptime!(shape.own());
    let other = comptime!(shape.other());
    let other_part = comptime!(shape.other_part());

    let start = first_seen(first, shift, keys_first, window);
    let stop = min(keys_end, end + shift);
    let rest = others - 1u32;
    let blocks = (stop - start + rest) / others;
    load(q_from, q_stride, base, first, end, own, generation);
    load(k_from, kv_stride, keys, start, keys_end, other, generation);
    commit(generation);

    let row = first + own_row(shape);
    let bounds = Bounds {
        first: first + shift,
        end: end + shift,
        keys_end,
        query: row + shift,
    };
    let q_here = base + own_place(shape);
    let k_here = keys + along_rows();
    let v_here = values + down_rows();
    let log_scale = factor * std::f32::consts::LOG2_E;

    let size!(S) = comptime!(shape.values());
    let size!(P) = comptime!(shape.values() / 2);
    let size!(G) = comptime!(shape.group_values());
    let size!(R) = comptime!(2 * shape.cut.blocks);
    let mut tops = Vector::<f32, R>::new(NEVER.runtime());
    let mut totals = Vector::<f32, R>::new(0.0f32);
    let mut sums = Array::<Vector<f32, G>>::new(comptime!(shape.groups()));
    #[unroll]
    for group in 0..comptime!(shape.groups()) {
        sums[group] = Vector::new(0.0f32);
    }

    let mut block = 0u32;
    while block < blocks {
        let key = start + block * others;
        // Keys of this block are there, and nobody reads the values of the one before.
        wait(generation);
        sync_cube();
        load(
            v_from, kv_stride, values, key, keys_end, other_part, generation,
        );
        commit(generation);
        let scores = multiply::<S>(q_here, k_here, comptime!(shape.scores()));
        let scores = capped::<S>(scores, within, shape);
        let scores = seen::<S>(scores, key, &bounds, shape);
        let mut shrinks = Vector::<f32, R>::empty();
        let mut offsets = Vector::<f32, R>::empty();
        #[unroll]
        for r in 0..comptime!(2 * shape.cut.blocks) {
            let before = tops.extract(r);
            let top = highest::<S>(scores, before, r, shape);
            shrinks.insert(r, exp2((before - top) * log_scale));
            offsets.insert(r, top * log_scale);
            tops.insert(r, top);
        }
        let weights = exponentials::<S, R>(scores, log_scale, offsets, shape);
        #[unroll]
        for r in 0..comptime!(2 * shape.cut.blocks) {
            let total = totals.extract(r) * shrinks.extract(r);
            totals.insert(r, total + sum_of_row::<S>(weights, r, shape));
        }
        let weights = packed::<S, P>(weights, shape);
        // Values of this block are there, and nobody reads its keys.
        wait(generation);
        sync_cube();
        if block + 1u32 < blocks {
            load(
                k_from,
                kv_stride,
                keys,
                key + others,
                keys_end,
                other,
                generation,
            );
            commit(generation);
        }
        #[unroll]
        for group in 0..comptime!(shape.groups()) {
            let before = scaled::<G, R>(sums[group], shrinks, shape);
            sums[group] =
                multiply_add::<G, P>(before, weights, v_here, comptime!(shape.sums(group)));
        }
        block += 1u32;
    }

    let mut shares = Vector::<f32, R>::empty();
    #[unroll]
    for r in 0..comptime!(2 * shape.cut.blocks) {
        let total = sum_quad(totals.extract(r));
        shares.insert(r, 1.0f32 / total);
        let at = row + comptime!(shape.row(r));
        let lane = UNIT_POS % 4u32;
        if lane == 0u32 && CUBE_POS_Z == 0u32 && at < end {
            lse[(at * heads + head) as usize] = tops.extract(r) * factor + total.ln();
        }
    }
    #[unroll]
    for group in 0..comptime!(shape.groups()) {
        let sums = scaled::<G, R>(sums[group], shares, shape);
        write_group::<G>(sums, out, row, end, head, heads, group, shape);
    }
}
