//! Attention on the tensor cores of every NVIDIA card from compute capability 7.5 up, for 16-bit values.
//!
//! A warp has 16 or 32 rows of its cube's, the cube a block of the other side in shared memory. Softmax statistics and
//! sums are f32, factors of products 16 bits. As in [`hopper`](super::hopper) the backward pass computes scores twice, once
//! for the rows of dq and once for those of dk and dv, and sums in registers in a fixed order, so that the same inputs give
//! the same bits.
//!
//! Every tile of the other side has one place. While a product reads one of two, the other is loaded, so that a block costs
//! two or three barriers, and shared memory holds heads of 256 features on every card. Sums of more than 256 features of
//! a row do not fit the registers: dk and dv then are two kernels, and heads of up to 512 are summed in two parts.
//!
//! # Source
//! Dao 2023, arXiv:2307.08691.

use burn::tensor::DType;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::hopper::{visible, words};
use super::tiles::{FIELDS, NEVER, Side, first_seen, tiles};
use super::{HeadLayout, Qkv};
use crate::cube::{CubeTensor, argument, elem, empty, tensor};
use crate::hopper::{Half, TileShape, exp2, global_address, max_quad, shared_address, sum_quad};
use crate::mma::{
    Generation, WarpProduct, along_rows, commit, down_rows, hyperbolic_tangent, load, multiply,
    multiply_add, pack, wait,
};
use crate::segments::Segments;

/// Columns of a row that registers sum.
const COLUMNS: usize = 256;

/// What a kernel makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Pass {
    Out,
    Dq,
    DkDv,
    Dk,
    Dv,
}

/// How a kernel's work is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Cut {
    warps: usize,
    /// Blocks of 16 rows of a warp.
    blocks: usize,
    /// Rows of a block of the other side.
    others: usize,
}

const fn cut(warps: usize, blocks: usize, others: usize) -> Cut {
    Cut {
        warps,
        blocks,
        others,
    }
}

impl Pass {
    /// The passes that make dk and dv.
    fn of_keys(head_dim: usize) -> &'static [Self] {
        if head_dim <= COLUMNS / 2 {
            &[Self::DkDv]
        } else {
            &[Self::Dk, Self::Dv]
        }
    }

    /// Cuts whose registers do not spill, the best first; shared memory decides. Products with 32 rows of a warp read half as
    /// much of the other side, where two such cubes fit beside each other.
    fn cuts(self, head_dim: usize) -> &'static [Cut] {
        const WIDE: [Cut; 2] = [cut(4, 1, 64), cut(4, 1, 32)];
        const NARROW: [Cut; 5] = [
            cut(4, 1, 32),
            cut(4, 1, 16),
            cut(2, 1, 32),
            cut(2, 1, 16),
            cut(1, 1, 16),
        ];
        const TALL: [Cut; 3] = [cut(4, 2, 32), cut(4, 1, 32), cut(4, 1, 16)];
        match (self, head_dim) {
            (Self::Dq, 65..=128) => &TALL,
            (Self::Out, ..=256) | (_, ..=64) => &WIDE,
            _ => &NARROW,
        }
    }
}

/// What the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    half: Half,
    generation: Generation,
    pass: Pass,
    heads: u32,
    kv_heads: u32,
    head_dim: usize,
    /// Keys that a query sees, itself included; 0 for all.
    window: u32,
    /// Whether scores are capped.
    capped: bool,
    cut: Cut,
}

impl Shape {
    /// `None` if the kernels are not for such heads, or `memory` bytes of shared memory hold no tiles of them.
    fn new(
        pass: Pass,
        (half, generation): (Half, Generation),
        layout: HeadLayout,
        memory: usize,
    ) -> Option<Self> {
        let shape = Self {
            half,
            generation,
            pass,
            heads: layout.heads as u32,
            kv_heads: layout.kv_heads as u32,
            head_dim: layout.head_dim,
            window: layout.window.unwrap_or(0) as u32,
            capped: layout.softcap.is_some(),
            cut: cut(1, 1, 16),
        };
        // A part of a head begins at a panel.
        let whole = match shape.parts() {
            1 => 16,
            parts => parts * crate::hopper::COLUMNS,
        };
        if layout.head_dim == 0 || layout.head_dim > 512 || !layout.head_dim.is_multiple_of(whole) {
            return None;
        }
        let cuts = pass.cuts(layout.head_dim).iter();
        cuts.map(|&cut| Self { cut, ..shape })
            .find(|shape| shape.bytes() * shape.cut.blocks <= memory)
    }

    /// Parts of a head that are summed apart.
    fn parts(self) -> usize {
        self.head_dim.div_ceil(COLUMNS)
    }

    /// Columns of a sum.
    fn columns(self) -> usize {
        self.head_dim / self.parts()
    }

    /// Columns that one statement sums.
    fn group(self) -> usize {
        1 << self.columns().trailing_zeros().min(6)
    }

    fn groups(self) -> usize {
        self.columns() / self.group()
    }

    /// Rows of a warp.
    fn warp_rows(self) -> usize {
        16 * self.cut.blocks
    }

    /// Rows of a cube.
    fn rows(self) -> usize {
        self.cut.warps * self.warp_rows()
    }

    fn units(self) -> usize {
        32 * self.cut.warps
    }

    fn dim(self) -> CubeDim {
        CubeDim::new_1d(self.units() as u32)
    }

    /// A cube for each head, tile and part.
    fn count(self, tiles: usize) -> CubeCount {
        let heads = match self.pass {
            Pass::Out | Pass::Dq => self.heads,
            Pass::DkDv | Pass::Dk | Pass::Dv => self.kv_heads,
        };
        CubeCount::Static(heads, tiles as u32, self.parts() as u32)
    }

    /// Whole heads of so many rows.
    fn tile(self, rows: usize) -> TileShape {
        TileShape {
            rows,
            columns: self.head_dim,
            units: self.units(),
        }
    }

    /// The rows of the cube.
    fn own(self) -> TileShape {
        self.tile(self.rows())
    }

    /// A block of the other side.
    fn other(self) -> TileShape {
        self.tile(self.cut.others)
    }

    /// The same of the columns that are summed.
    fn other_part(self) -> TileShape {
        TileShape {
            columns: self.columns(),
            ..self.other()
        }
    }

    /// Bytes from a tile's first panel to the one of this cube's part.
    fn part_bytes(self) -> usize {
        self.columns() / crate::hopper::COLUMNS * self.cut.others * crate::hopper::ROW
    }

    /// Shared memory of all tiles.
    fn tiles_bytes(self) -> usize {
        let [own, other, part] =
            [self.own(), self.other(), self.other_part()].map(TileShape::bytes);
        match self.pass {
            Pass::Out | Pass::Dv => own + other + part,
            Pass::Dq | Pass::DkDv | Pass::Dk => 2 * own + 2 * other,
        }
    }

    /// Numbers of queries in shared memory: lse and δ of two blocks.
    fn statistics(self) -> usize {
        match self.pass {
            Pass::Out | Pass::Dq => 0,
            Pass::DkDv | Pass::Dk | Pass::Dv => 4 * self.cut.others,
        }
    }

    /// Shared memory, with what aligning costs.
    fn bytes(self) -> usize {
        self.tiles_bytes() + (4 * self.statistics()).next_multiple_of(1024)
    }

    /// own · otherᵀ, over the features of a head.
    fn scores(self) -> WarpProduct {
        WarpProduct {
            half: self.half,
            generation: self.generation,
            blocks: self.cut.blocks,
            n: self.cut.others,
            steps: self.head_dim / 16,
            a_rows: self.rows(),
            b_rows: self.cut.others,
            first: 0,
        }
    }

    /// The `group`th columns of a sum over the rows of a block, weighted by values in registers.
    fn sums(self, group: usize) -> WarpProduct {
        WarpProduct {
            n: self.group(),
            steps: self.cut.others / 16,
            first: group * self.group(),
            ..self.scores()
        }
    }

    /// Values of scores that a unit holds.
    fn values(self) -> usize {
        self.cut.blocks * self.cut.others / 2
    }

    /// Values of a group of sums that a unit holds.
    fn group_values(self) -> usize {
        self.cut.blocks * self.group() / 2
    }
}

/// The type that `generation` multiplies.
fn half(q: &CubeTensor, generation: Generation) -> Option<Half> {
    Half::of(q.dtype).filter(|half| generation == Generation::Ampere || *half == Half::F16)
}

fn shape(pass: Pass, q: &CubeTensor, layout: HeadLayout, generation: Generation) -> Option<Shape> {
    let memory = q.client.properties().hardware.max_shared_memory_size;
    Shape::new(pass, (half(q, generation)?, generation), layout, memory)
}

/// Whether [`forward`] and [`backward`] are for tensors such as `q`.
pub(super) fn applies(q: &CubeTensor, layout: HeadLayout, generation: Generation) -> bool {
    Generation::of(q) >= Some(generation)
        && [Pass::Out, Pass::Dq]
            .iter()
            .chain(Pass::of_keys(layout.head_dim))
            .all(|&pass| shape(pass, q, layout, generation).is_some())
}

fn known(pass: Pass, q: &CubeTensor, layout: HeadLayout, generation: Generation) -> Shape {
    shape(pass, q, layout, generation)
        .unwrap_or_else(|| panic!("{pass:?} of {:?} and {layout:?} on tensor cores", q.dtype))
}

/// Factors that scores are multiplied by: what softmax has before it, and what tanh has.
fn factors(layout: HeadLayout) -> (f32, f32) {
    match layout.softcap {
        None => (layout.scale, 0.0),
        Some(cap) => (cap, layout.scale / cap),
    }
}

pub(super) fn forward(
    [q, k, v]: [&CubeTensor; 3],
    segments: &Segments,
    layout: HeadLayout,
    generation: Generation,
) -> (CubeTensor, CubeTensor) {
    let rows = segments.queries();
    let out = empty(q, [rows, layout.heads * layout.head_dim], q.dtype);
    let lse = empty(q, [rows, layout.heads], DType::F32);
    let shape = known(Pass::Out, q, layout, generation);
    let tiles = tiles(segments, Side::Queries, shape.rows(), q);
    let (factor, within) = factors(layout);
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: tiles name rows of the tensors, whose widths follow from the layout, as the caller checked.
    unsafe {
        forward_kernel::launch_unchecked(
            &q.client,
            shape.count(tiles.count),
            shape.dim(),
            argument(q, 1),
            argument(k, 1),
            argument(v, 1),
            tiles.argument(),
            words(&out),
            argument(&lse, 1),
            factor,
            within,
            shape,
            elem(q.dtype),
        );
    }
    (out, lse)
}

pub(super) fn backward(
    d_out: &CubeTensor,
    [q, k, v]: [&CubeTensor; 3],
    (lse, delta): (&CubeTensor, &CubeTensor),
    segments: &Segments,
    layout: HeadLayout,
    generation: Generation,
) -> Qkv {
    let [dq, dk, dv] = [q, k, v].map(|x| {
        let dims = [x.meta.shape()[0], x.meta.shape()[1]];
        empty(x, dims, x.dtype)
    });
    let (factor, within) = factors(layout);
    let shape = known(Pass::Dq, q, layout, generation);
    let queries = tiles(segments, Side::Queries, shape.rows(), q);
    #[expect(unsafe_code, reason = "kernels without bounds checks")]
    // SAFETY: tiles name rows of the tensors, whose widths follow from the layout, as the caller checked.
    unsafe {
        queries_kernel::launch_unchecked(
            &q.client,
            shape.count(queries.count),
            shape.dim(),
            argument(q, 1),
            argument(k, 1),
            argument(v, 1),
            argument(d_out, 1),
            argument(lse, 1),
            argument(delta, 1),
            queries.argument(),
            words(&dq),
            layout.scale,
            factor,
            within,
            shape,
            elem(q.dtype),
        );
    }
    for &pass in Pass::of_keys(layout.head_dim) {
        let shape = known(pass, q, layout, generation);
        let keys = tiles(segments, Side::Keys, shape.rows(), q);
        #[expect(unsafe_code, reason = "kernels without bounds checks")]
        // SAFETY: as above.
        unsafe {
            keys_kernel::launch_unchecked(
                &q.client,
                shape.count(keys.count),
                shape.dim(),
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
                factor,
                within,
                shape,
                elem(q.dtype),
            );
        }
    }
    Qkv {
        q: tensor(dq),
        k: tensor(dk),
        v: tensor(dv),
    }
}

impl Shape {
    /// Which of a unit's rows value `i` of `values` is in: two of each block.
    fn row_of(self, i: usize, values: usize) -> usize {
        i / (values / self.cut.blocks) * 2 + i / 2 % 2
    }

    /// The values of row `r`, of which a unit holds `values` in all.
    fn value(self, r: usize, j: usize, values: usize) -> usize {
        r / 2 * (values / self.cut.blocks) + j / 2 * 4 + r % 2 * 2 + j % 2
    }

    /// How far row `r` of a unit is from its first.
    fn row(self, r: usize) -> u32 {
        (r / 2 * 16 + r % 2 * 8) as u32
    }

    /// How far the column of value `i` is from a unit's first.
    fn column(self, i: usize, values: usize) -> u32 {
        (i % (values / self.cut.blocks) / 4 * 8 + i % 2) as u32
    }
}

/// The first row of a unit within its cube's.
#[cube]
fn own_row(#[comptime] shape: Shape) -> u32 {
    UNIT_POS / 32u32 * comptime!(shape.warp_rows() as u32) + UNIT_POS % 32u32 / 4u32
}

/// Where a unit's warp begins in the cube's tile, with [`down_rows`].
#[cube]
fn own_place(#[comptime] shape: Shape) -> u32 {
    UNIT_POS / 32u32 * comptime!((shape.warp_rows() * crate::hopper::ROW) as u32) + down_rows()
}

/// tanh of scores times `within`, where they are capped.
#[cube]
fn capped<S: Size>(
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
struct Bounds {
    /// The first query of the cube.
    first: u32,
    /// The one after its last.
    end: u32,
    /// The key after the last.
    keys_end: u32,
    /// This unit's first query.
    query: u32,
}

/// Scores of a block of keys from `key` on, with next to nothing where a query does not see a key.
#[cube]
fn seen<S: Size>(
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
fn exponentials<S: Size, R: Size>(
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
fn highest<S: Size>(
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
fn sum_of_row<S: Size>(
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
fn packed<S: Size, P: Size>(weights: Vector<f32, S>, #[comptime] shape: Shape) -> Vector<u32, P> {
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
fn scaled<G: Size, R: Size>(
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
fn write_group<G: Size>(
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

#[cube(launch_unchecked)]
fn forward_kernel<F: Float>(
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

/// (gradient of a weight − δ of its row), times the slope of the cap at `score`.
#[cube]
fn d_score(score: f32, d_weight: f32, delta: f32, #[comptime] shape: Shape) -> f32 {
    let d = d_weight - delta;
    if comptime!(shape.capped) {
        d * (1.0f32 - score * score)
    } else {
        d
    }
}

/// dq: a cube has queries of one head, and goes through the keys that they see.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Shared memory that a cube may have, by compute capability: 7.5, 8.6 and 8.9, 8.0, 9.0.
    const MEMORY: [usize; 4] = [64, 99, 163, 227];

    fn shapes(head_dim: usize, memory: usize) -> Vec<Option<Shape>> {
        let made = (Half::F16, Generation::Turing);
        let layout = HeadLayout::new(4, 2, head_dim);
        let passes = [Pass::Out, Pass::Dq].iter();
        passes
            .chain(Pass::of_keys(head_dim))
            .map(|&pass| Shape::new(pass, made, layout, memory * 1024))
            .collect()
    }

    #[test]
    fn every_card_holds_heads_of_up_to_256() {
        for memory in MEMORY {
            for head_dim in (16..=256).step_by(16) {
                for shape in shapes(head_dim, memory) {
                    let shape = shape.unwrap_or_else(|| panic!("{head_dim} in {memory} KiB"));
                    assert!(shape.bytes() <= memory * 1024);
                    assert_eq!(shape.groups() * shape.group(), head_dim);
                }
            }
        }
        assert!(shapes(512, 99).iter().all(Option::is_some));
        assert!(shapes(40, 227).iter().all(Option::is_none));
        assert!(shapes(272, 227).iter().all(Option::is_none));
    }

    #[test]
    fn a_units_values_are_numbered_by_block_column_row() {
        let [shape, ..] = shapes(64, 64)[..] else {
            panic!("no shapes")
        };
        let shape = Shape {
            cut: cut(4, 2, 32),
            ..shape.unwrap()
        };
        let values = shape.values();
        assert_eq!(values, 32);
        for i in 0..values {
            let r = shape.row_of(i, values);
            let j = (0..8).find(|&j| shape.value(r, j, values) == i);
            assert!(j.is_some(), "{i}");
        }
        assert_eq!((shape.row_of(22, values), shape.column(22, values)), (3, 8));
        assert_eq!(shape.row(3), 24);
    }
}
