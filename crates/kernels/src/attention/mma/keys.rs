//! dk and dv.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::tiles::{FIELDS, NEVER};
use super::rows::{capped, d_score, own_place, own_row, packed, scaled, write_group};
use super::{Pass, Shape};
use crate::hopper::{exp2, global_address, shared_address};
use crate::mma::{along_rows, commit, down_rows, load, multiply, multiply_add, wait};

/// Scores of a cube's keys, `first..end`, with a block of queries from `query` on, with next to nothing where a key is not seen.
#[cube]
fn seen_by<S: Size>(
    scores: Vector<f32, S>,
    query: u32,
    first: u32,
    end: u32,
    queries_end: u32,
    shift: u32,
    #[comptime] shape: Shape,
) -> Vector<f32, S> {
    let mut scores = scores;
    let window = comptime!(shape.window);
    let beyond = query + comptime!(shape.cut.others as u32);
    let mut partly = query + shift < end || beyond > queries_end;
    if comptime!(window > 0) {
        partly = partly || first + window < beyond + shift;
    }
    if partly {
        let row = first + own_row(shape);
        let column = UNIT_POS % 4u32 * 2u32;
        #[unroll]
        for i in 0..comptime!(shape.values()) {
            let at = query + column + comptime!(shape.column(i, shape.values()));
            let key = row + comptime!(shape.row(shape.row_of(i, shape.values())));
            let mut seen = key <= at + shift && at < queries_end;
            if comptime!(window > 0) {
                seen = seen && key + window > at + shift;
            }
            let score = scores.extract(i);
            scores.insert(i, select(seen, score, NEVER));
        }
    }
    scores
}

/// dk, dv or both: a cube has keys of one head, and goes through the queries of the heads that share it.
#[cube(launch_unchecked)]
pub(super) fn keys_kernel<F: Float>(
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
    factor: f32,
    within: f32,
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
    let generation = comptime!(shape.generation);
    let heads = comptime!(shape.heads);
    let kv_heads = comptime!(shape.kv_heads);
    let share = comptime!(shape.heads / shape.kv_heads);
    let others = comptime!(shape.cut.others as u32);
    let makes_dk = comptime!(shape.pass != Pass::Dv);
    let makes_dv = comptime!(shape.pass != Pass::Dk);

    let memory = Shared::<[u32]>::new_aligned_slice(comptime!(shape.tiles_bytes() / 4), 1024usize);
    let mut statistics = Shared::<[f32]>::new_slice(comptime!(shape.statistics()));
    let base = shared_address::<u32>(&memory);
    // Keys; values where dk is made; queries; what comes from above.
    let own_bytes = comptime!(shape.own().bytes() as u32);
    let v_base = base + own_bytes;
    let queries = base
        + comptime!(if shape.pass == Pass::Dv {
            own_bytes
        } else {
            2 * own_bytes
        });
    let above = queries + comptime!(shape.other().bytes() as u32);

    let q_stride = u64::cast_from(comptime!(shape.heads * shape.head_dim as u32 * 2).runtime());
    let kv_stride = u64::cast_from(comptime!(shape.kv_heads * shape.head_dim as u32 * 2).runtime());
    let width = comptime!(shape.head_dim as u32 * 2);
    let part = CUBE_POS_Z * comptime!(shape.columns() as u32 * 2);
    let q_from = global_address::<F>(q);
    let mut d_from = global_address::<F>(d_out);
    if comptime!(shape.pass == Pass::Dv) {
        d_from += u64::cast_from(part);
    }
    let k_from = global_address::<F>(k) + u64::cast_from(kv_head * width);
    let v_from = global_address::<F>(v) + u64::cast_from(kv_head * width);
    let own = comptime!(shape.own());
    let other = comptime!(shape.other());
    let d_tile = comptime!(if shape.pass == Pass::Dv {
        shape.other_part()
    } else {
        shape.other()
    });

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
    let rest = others - 1u32;
    let blocks = (stop - start + rest) / others;
    let rounds = blocks * share;

    // What the first product of a round reads is loaded a round ahead: queries for dv, else what comes from above.
    load(k_from, kv_stride, base, first, end, own, generation);
    if comptime!(makes_dk) {
        load(v_from, kv_stride, v_base, first, end, own, generation);
    }
    let head = kv_head * share;
    if rounds > 0u32 {
        if comptime!(makes_dk) {
            let from = d_from + u64::cast_from(head * width);
            load(
                from,
                q_stride,
                above,
                start,
                queries_end,
                d_tile,
                generation,
            );
        } else {
            let from = q_from + u64::cast_from(head * width);
            load(
                from,
                q_stride,
                queries,
                start,
                queries_end,
                other,
                generation,
            );
        }
        if UNIT_POS < others {
            let at = (min(start + UNIT_POS, queries_end - 1u32) * heads + head) as usize;
            statistics[UNIT_POS as usize] = lse[at] * std::f32::consts::LOG2_E;
            statistics[(UNIT_POS + others) as usize] = delta[at];
        }
    }
    commit(generation);

    let row = first + own_row(shape);
    let k_here = base + own_place(shape);
    let v_here = v_base + own_place(shape);
    let q_along = queries + along_rows();
    let d_along = above + along_rows();
    let mut q_down = queries + down_rows();
    if comptime!(makes_dk) {
        q_down += CUBE_POS_Z * comptime!(shape.part_bytes() as u32);
    }
    let d_down = above + down_rows();
    let log_scale = factor * std::f32::consts::LOG2_E;

    let size!(S) = comptime!(shape.values());
    let size!(P) = comptime!(shape.values() / 2);
    let size!(G) = comptime!(shape.group_values());
    let size!(R) = comptime!(2 * shape.cut.blocks);
    let mut dk_sums = Array::<Vector<f32, G>>::new(comptime!(shape.groups()));
    let mut dv_sums = Array::<Vector<f32, G>>::new(comptime!(shape.groups()));
    #[unroll]
    for group in 0..comptime!(shape.groups()) {
        dk_sums[group] = Vector::new(0.0f32);
        dv_sums[group] = Vector::new(0.0f32);
    }

    let mut round = 0u32;
    while round < rounds {
        let query = start + round % blocks * others;
        let head = kv_head * share + round / blocks;
        let offset = u64::cast_from(head * width);
        let next = round + 1u32;
        let next_query = start + next % blocks * others;
        let next_head = kv_head * share + next / blocks;
        let next_offset = u64::cast_from(next_head * width);
        // What was loaded a round ahead is there, and nobody reads the tile that was summed last.
        wait(generation);
        sync_cube();
        let mut d_weights = Vector::<f32, S>::new(0.0f32);
        if comptime!(makes_dk) {
            load(
                q_from + offset,
                q_stride,
                queries,
                query,
                queries_end,
                other,
                generation,
            );
            commit(generation);
            d_weights = multiply::<S>(v_here, d_along, comptime!(shape.scores()));
            wait(generation);
            sync_cube();
        } else {
            load(
                d_from + offset,
                q_stride,
                above,
                query,
                queries_end,
                d_tile,
                generation,
            );
            commit(generation);
        }
        let scores = multiply::<S>(k_here, q_along, comptime!(shape.scores()));
        if comptime!(!makes_dv) {
            // Known only when the kernel runs.
            if next < rounds {
                let from = d_from + next_offset;
                load(
                    from,
                    q_stride,
                    above,
                    next_query,
                    queries_end,
                    d_tile,
                    generation,
                );
                commit(generation);
            }
        }
        let scores = capped::<S>(scores, within, shape);
        let buffer = round % 2u32 * (2u32 * others) + UNIT_POS % 4u32 * 2u32;
        if comptime!(makes_dk) {
            #[unroll]
            for i in 0..comptime!(shape.values()) {
                let at = buffer + comptime!(shape.column(i, shape.values()) + others);
                let delta = statistics[at as usize];
                let d = d_score(scores.extract(i), d_weights.extract(i), delta, shape);
                d_weights.insert(i, d);
            }
        }
        let mut weights = seen_by::<S>(scores, query, first, end, queries_end, shift, shape);
        #[unroll]
        for i in 0..comptime!(shape.values()) {
            let at = buffer + comptime!(shape.column(i, shape.values()));
            let lse = statistics[at as usize];
            let score = weights.extract(i);
            weights.insert(i, exp2(score * log_scale - lse));
        }
        if comptime!(makes_dv) {
            let weights = packed::<S, P>(weights, shape);
            if comptime!(!makes_dk) {
                wait(generation);
                sync_cube();
                if next < rounds {
                    let from = q_from + next_offset;
                    load(
                        from,
                        q_stride,
                        queries,
                        next_query,
                        queries_end,
                        other,
                        generation,
                    );
                    commit(generation);
                }
            }
            #[unroll]
            for group in 0..comptime!(shape.groups()) {
                dv_sums[group] = multiply_add::<G, P>(
                    dv_sums[group],
                    weights,
                    d_down,
                    comptime!(shape.sums(group)),
                );
            }
        }
        if next < rounds {
            if comptime!(makes_dk && makes_dv) {
                sync_cube();
                let from = d_from + next_offset;
                load(
                    from,
                    q_stride,
                    above,
                    next_query,
                    queries_end,
                    d_tile,
                    generation,
                );
                commit(generation);
            }
            if UNIT_POS < others {
                let at = min(next_query + UNIT_POS, queries_end - 1u32) * heads + next_head;
                let to = next % 2u32 * (2u32 * others) + UNIT_POS;
                statistics[to as usize] = lse[at as usize] * std::f32::consts::LOG2_E;
                statistics[(to + others) as usize] = delta[at as usize];
            }
        }
        if comptime!(makes_dk) {
            let d_scores = packed::<S, P>(weights * d_weights, shape);
            #[unroll]
            for group in 0..comptime!(shape.groups()) {
                dk_sums[group] = multiply_add::<G, P>(
                    dk_sums[group],
                    d_scores,
                    q_down,
                    comptime!(shape.sums(group)),
                );
            }
        }
        round += 1u32;
    }
    let mut scales = Vector::<f32, R>::empty();
    #[unroll]
    for r in 0..comptime!(2 * shape.cut.blocks) {
        scales.insert(r, scale);
    }
    #[unroll]
    for group in 0..comptime!(shape.groups()) {
        if comptime!(makes_dk) {
            let sums = scaled::<G, R>(dk_sums[group], scales, shape);
            write_group::<G>(sums, dk, row, end, kv_head, kv_heads, group, shape);
        }
        if comptime!(makes_dv) {
            write_group::<G>(
                dv_sums[group],
                dv,
                row,
                end,
                kv_head,
                kv_heads,
                group,
                shape,
            );
        }
    }
}
