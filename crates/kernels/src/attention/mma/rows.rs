//! What a unit has of its rows: scores, weights, sums, and where they go.

use cubecl::prelude::*;

use super::super::hopper::visible;
use super::Shape;
use crate::hopper::{exp2, max_quad};
use crate::mma::{down_rows, hyperbolic_tangent, pack};

impl Shape {
    /// Which of a unit's rows value `i` of `values` is in: two of each block.
    pub(super) fn row_of(self, i: usize, values: usize) -> usize {
        i / (values / self.cut.blocks) * 2 + i / 2 % 2
    }

    /// The values of row `r`, of which a unit holds `values` in all.
    pub(super) fn value(self, r: usize, j: usize, values: usize) -> usize {
        r / 2 * (values / self.cut.blocks) + j / 2 * 4 + r % 2 * 2 + j % 2
    }

    /// How far row `r` of a unit is from its first.
    pub(super) fn row(self, r: usize) -> u32 {
        (r / 2 * 16 + r % 2 * 8) as u32
    }

    /// How far the column of value `i` is from a unit's first.
    pub(super) fn column(self, i: usize, values: usize) -> u32 {
        (i % (values / self.cut.blocks) / 4 * 8 + i % 2) as u32
    }
}

/// The first row of a unit within its cube's.
#[cube]
pub(super) fn own_row(#[comptime] shape: Shape) -> u32 {
    UNIT_POS / 32u32 * comptime!(shape.warp_rows() as u32) + UNIT_POS % 32u32 / 4u32
}

/// Where a unit's warp begins in the cube's tile, with [`down_rows`].
#[cube]
pub(super) fn own_place(#[comptime] shape: Shape) -> u32 {
    UNIT_POS / 32u32 * comptime!((shape.warp_rows() * crate::hopper::ROW) as u32) + down_rows()
}

/// tanh of scores times `within`, where they are capped.
#[cube]
pub(super) fn capped<S: Size>(
    scores: Vector<f32, S>,
    within: f32,
    #[comptime] shape: Shape,
) -> Vector<f32, S> {
    let mut scores = scores;
    if comptime!(shape.capped) {
        #[unroll]
        for i in 0..comptime!(shape.values()) {
            let score = scores.extract(i);
            scores.insert(i, hyperbolic_tangent(score * within));
        }
    }
    scores
}

/// Where queries are among the keys: what [`seen`] asks.
#[derive(CubeType)]
pub(super) struct Bounds {
    /// The first query of the cube.
    pub(super) first: u32,
    /// The one after its last.
    pub(super) end: u32,
    /// The key after the last.
    pub(super) keys_end: u32,
    /// This unit's first query.
    pub(super) query: u32,
}

/// Scores of a block of keys from `key` on, with next to nothing where a query does not see a key.
#[cube]
pub(super) fn seen<S: Size>(
    scores: Vector<f32, S>,
    key: u32,
    bounds: &Bounds,
    #[comptime] shape: Shape,
) -> Vector<f32, S> {
    let mut scores = scores;
    let window = comptime!(shape.window);
    let mut partly =
        key + comptime!(shape.cut.others as u32) > min(bounds.keys_end, bounds.first + 1u32);
    if comptime!(window > 0) {
        partly = partly || key + window < bounds.end;
    }
    if partly {
        let column = UNIT_POS % 4u32 * 2u32;
        #[unroll]
        for i in 0..comptime!(shape.values()) {
            let at = key + column + comptime!(shape.column(i, shape.values()));
            let query = bounds.query + comptime!(shape.row(shape.row_of(i, shape.values())));
            let score = scores.extract(i);
            scores.insert(i, visible(score, at, query, bounds.keys_end, window));
        }
    }
    scores
}

/// 2^(score · log_scale − offset) with the offset of each row.
#[cube]
pub(super) fn exponentials<S: Size, R: Size>(
    scores: Vector<f32, S>,
    log_scale: f32,
    offsets: Vector<f32, R>,
    #[comptime] shape: Shape,
) -> Vector<f32, S> {
    let mut scores = scores;
    #[unroll]
    for i in 0..comptime!(shape.values()) {
        let offset = offsets.extract(comptime!(shape.row_of(i, shape.values())));
        let score = scores.extract(i);
        scores.insert(i, exp2(score * log_scale - offset));
    }
    scores
}

/// The highest score of row `r`, or `before`.
#[cube]
pub(super) fn highest<S: Size>(
    scores: Vector<f32, S>,
    before: f32,
    #[comptime] r: usize,
    #[comptime] shape: Shape,
) -> f32 {
    let mut top = before;
    #[unroll]
    for j in 0..comptime!(shape.cut.others / 4) {
        top = max(
            top,
            scores.extract(comptime!(shape.value(r, j, shape.values()))),
        );
    }
    max_quad(top)
}

/// The sum of a unit's values in row `r`.
#[cube]
pub(super) fn sum_of_row<S: Size>(
    values: Vector<f32, S>,
    #[comptime] r: usize,
    #[comptime] shape: Shape,
) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for j in 0..comptime!(shape.cut.others / 4) {
        sum += values.extract(comptime!(shape.value(r, j, shape.values())));
    }
    sum
}

/// Weights as the left factor of a product.
#[cube]
pub(super) fn packed<S: Size, P: Size>(
    weights: Vector<f32, S>,
    #[comptime] shape: Shape,
) -> Vector<u32, P> {
    let mut words = Vector::<u32, P>::empty();
    #[unroll]
    for i in 0..comptime!(shape.values() / 2) {
        let low = weights.extract(comptime!(2 * i));
        let high = weights.extract(comptime!(2 * i + 1));
        words.insert(
            i,
            pack(
                low,
                high,
                comptime!(shape.half),
                comptime!(shape.generation),
            ),
        );
    }
    words
}

/// A group of sums, each row times its factor.
#[cube]
pub(super) fn scaled<G: Size, R: Size>(
    sums: Vector<f32, G>,
    factors: Vector<f32, R>,
    #[comptime] shape: Shape,
) -> Vector<f32, G> {
    let mut sums = sums;
    #[unroll]
    for i in 0..comptime!(shape.group_values()) {
        let factor = factors.extract(comptime!(shape.row_of(i, shape.group_values())));
        let sum = sums.extract(i);
        sums.insert(i, sum * factor);
    }
    sums
}

/// Writes the `group`th columns of this cube's part of a head.
#[cube]
pub(super) fn write_group<G: Size>(
    sums: Vector<f32, G>,
    out: &mut [u32],
    row: u32,
    end: u32,
    head: u32,
    #[comptime] heads: u32,
    #[comptime] group: usize,
    #[comptime] shape: Shape,
) {
    let words = comptime!(shape.head_dim as u32 / 2);
    let column = CUBE_POS_Z * comptime!(shape.columns() as u32 / 2)
        + comptime!((group * shape.group() / 2) as u32)
        + UNIT_POS % 4u32;
    #[unroll]
    for r in 0..comptime!(2 * shape.cut.blocks) {
        let at = row + comptime!(shape.row(r));
        if at < end {
            let start = (at * heads + head) * words + column;
            #[unroll]
            for j in 0..comptime!(shape.group() / 8) {
                let low = sums.extract(comptime!(shape.value(r, 2 * j, shape.group_values())));
                let high = sums.extract(comptime!(shape.value(r, 2 * j + 1, shape.group_values())));
                let word = pack(
                    low,
                    high,
                    comptime!(shape.half),
                    comptime!(shape.generation),
                );
                out[(start + comptime!(4 * j as u32)) as usize] = word;
            }
        }
    }
}

/// (gradient of a weight − δ of its row), times the slope of the cap at `score`.
#[cube]
pub(super) fn d_score(score: f32, d_weight: f32, delta: f32, #[comptime] shape: Shape) -> f32 {
    let d = d_weight - delta;
    if comptime!(shape.capped) {
        d * (1.0f32 - score * score)
    } else {
        d
    }
}
