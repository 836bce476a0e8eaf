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

mod forward;
mod keys;
mod queries;
mod rows;

use burn::tensor::DType;
use cubecl::prelude::*;

use super::hopper::words;
use super::tiles::{Side, tiles};
use super::{HeadLayout, Qkv};
use crate::cube::{CubeTensor, argument, elem, empty, tensor};
use crate::hopper::{Half, TileShape};
use crate::mma::{Generation, WarpProduct};
use crate::segments::Segments;
use forward::forward_kernel;
use keys::keys_kernel;
use queries::queries_kernel;

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
