//! Tiles of matrices that the copy engine (TMA) brings into shared memory, in panels as [`hopper`](super) multiplies them;
//! barriers in shared memory (`mbarrier`) tell of their arrival, and of when their places are free again.
//!
//! # Source
//! PTX ISA 8.7, chapters "Data movement and conversion instructions: cp.async.bulk.tensor" and "Parallel synchronization and
//! communication instructions: mbarrier".

use cubecl::prelude::*;
use cubecl::zspace::Shape;
pub(crate) use cubecl_cpp::cuda::ptx::tensor_map_address;

use super::{COLUMNS, ROW, loaded};
use crate::cube::{CubeTensor, elem};

/// Bytes of a barrier.
const BARRIER: u32 = 8;

/// Tiles of a matrix of 16-bit values, known when a kernel is compiled: one place after the other of a [`Ring`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RingShape {
    /// Rows of a tile, at most 256.
    pub(crate) rows: usize,
    /// Columns that are looked at; whole panels are copied.
    pub(crate) columns: usize,
    /// Tiles that there is room for.
    pub(crate) places: usize,
    /// Warps that read each tile.
    pub(crate) readers: usize,
    /// Units that copy something beside each tile, see [`arrive_with_copies`].
    pub(crate) beside: usize,
}

impl RingShape {
    fn panels(self) -> usize {
        self.columns.div_ceil(COLUMNS)
    }

    /// Bytes of a tile.
    pub(crate) fn tile(self) -> usize {
        self.panels() * self.rows * ROW
    }

    /// Bytes of all places; they begin at a multiple of 1024.
    pub(crate) fn bytes(self) -> usize {
        self.places * self.tile()
    }

    /// Barriers, of 8 bytes each: whether a place is filled, and whether it is free.
    pub(crate) fn barriers(self) -> usize {
        2 * self.places
    }
}

/// Places in shared memory through which the tiles of a matrix go: one unit [`fill`]s them by the copy engine, ahead of the
/// warps that [`wait_for`] them, multiply and [`give_back`] their places. Nobody else waits.
#[derive(CubeType)]
pub(crate) struct Ring {
    tiles: u32,
    barriers: u32,
}

/// A ring whose tiles and barriers lie at these addresses; [`show_barriers`] has to follow.
#[cube]
pub(crate) fn ring(tiles: u32, barriers: u32, #[comptime] shape: RingShape) -> Ring {
    if UNIT_POS == 0u32 {
        #[unroll]
        for place in 0..comptime!(shape.places as u32) {
            let filled = barriers + comptime!(place * 2 * BARRIER);
            make_barrier(filled, comptime!(1 + shape.beside as u32));
            make_barrier(filled + BARRIER, comptime!(shape.readers as u32));
        }
    }
    Ring { tiles, barriers }
}

/// Where tile `n` stands.
#[cube]
pub(crate) fn place(ring: &Ring, n: u32, #[comptime] shape: RingShape) -> u32 {
    ring.tiles + n % comptime!(shape.places as u32) * comptime!(shape.tile() as u32)
}

/// The barrier that tells when tile `n` has been filled.
#[cube]
pub(crate) fn filled(ring: &Ring, n: u32, #[comptime] shape: RingShape) -> u32 {
    ring.barriers + n % comptime!(shape.places as u32) * comptime!(2 * BARRIER)
}

/// Waits until whoever read what stood in the place of tile `n` has given it back.
#[cube]
pub(crate) fn wait_until_free(ring: &Ring, n: u32, #[comptime] shape: RingShape) {
    let places = comptime!(shape.places as u32);
    if n >= places {
        wait_for_phase(filled(ring, n, shape) + BARRIER, (n / places + 1u32) % 2u32);
    }
}

/// Starts copying tile `n`: `map` describes the matrix, `column` and `row` are where it begins there. One unit calls it, tile
/// after tile.
#[cube]
pub(crate) fn fill(
    ring: &Ring,
    n: u32,
    map: u64,
    column: u32,
    row: u32,
    #[comptime] shape: RingShape,
) {
    wait_until_free(ring, n, shape);
    let barrier = filled(ring, n, shape);
    expect_bytes(barrier, comptime!(shape.tile() as u32));
    let to = place(ring, n, shape);
    #[unroll]
    for panel in 0..comptime!(shape.panels() as u32) {
        copy_panel(
            map,
            column + comptime!(panel * COLUMNS as u32),
            row,
            to + comptime!(panel * (shape.rows * ROW) as u32),
            barrier,
        );
    }
}

/// Waits until tile `n` is there.
#[cube]
pub(crate) fn wait_for(ring: &Ring, n: u32, #[comptime] shape: RingShape) {
    let places = comptime!(shape.places as u32);
    wait_for_phase(filled(ring, n, shape), n / places % 2u32);
}

/// Says for this warp that it has read tile `n`.
#[cube]
pub(crate) fn give_back(ring: &Ring, n: u32, #[comptime] shape: RingShape) {
    let lane = UNIT_POS % 32u32;
    if lane == 0u32 {
        arrive(filled(ring, n, shape) + BARRIER);
    }
}

/// Makes a barrier that `count` arrivals open.
#[cube]
fn make_barrier(barrier: u32, #[comptime] count: u32) {
    let barrier = loaded::<u32>(barrier);
    gpu_asm!("mbarrier.init.shared::cta.b64 [{b}], {count};", b = in(_) barrier);
}

/// Shows fresh barriers to all units of the cube and to the copy engine. All units call it.
#[cube]
pub(crate) fn show_barriers() {
    gpu_asm!("fence.mbarrier_init.release.cluster;");
    gpu_asm!("fence.proxy.async.shared::cta;");
    sync_cube();
}

#[cube]
fn arrive(barrier: u32) {
    let barrier = loaded::<u32>(barrier);
    gpu_asm!("mbarrier.arrive.shared::cta.b64 _, [{b}];", b = in(_) barrier);
}

/// Arrives, and has the barrier wait for so many bytes of the copy engine.
#[cube]
fn expect_bytes(barrier: u32, #[comptime] bytes: u32) {
    let barrier = loaded::<u32>(barrier);
    gpu_asm!("mbarrier.arrive.expect_tx.shared::cta.b64 _, [{b}], {bytes};", b = in(_) barrier);
}

/// Arrives once this unit's copies by [`copy_word`] have.
#[cube]
pub(crate) fn arrive_with_copies(barrier: u32) {
    let barrier = loaded::<u32>(barrier);
    gpu_asm!("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [{b}];", b = in(_) barrier);
}

/// Waits for the end of a phase, of which the first, third and so on are 0.
#[cube]
fn wait_for_phase(barrier: u32, phase: u32) {
    let barrier = loaded::<u32>(barrier);
    let phase = loaded::<u32>(phase);
    gpu_asm!(
        "{{ .reg .pred done; AGAIN: mbarrier.try_wait.parity.shared::cta.b64 done, [{b}], {p}; @!done bra AGAIN; }}",
        b = in(_) barrier, p = in(_) phase
    );
}

/// Starts copying a panel of the matrix that `map` describes.
#[cube]
fn copy_panel(map: u64, column: u32, row: u32, to: u32, barrier: u32) {
    let map = loaded::<u64>(map);
    let column = loaded::<u32>(column);
    let row = loaded::<u32>(row);
    let to = loaded::<u32>(to);
    let barrier = loaded::<u32>(barrier);
    gpu_asm!(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [{to}], [{map}, {{{x}, {y}}}], [{b}];",
        to = in(_) to, map = in(_) map, x = in(_) column, y = in(_) row, b = in(_) barrier
    );
}

/// Starts a copy of 4 bytes from global to shared memory.
#[cube]
pub(crate) fn copy_word(from: u64, to: u32) {
    let from = loaded::<u64>(from);
    let to = loaded::<u32>(to);
    gpu_asm!(
        "cp.async.ca.shared.global [{to}], [{from}], 4;",
        to = in(_) to, from = in(_) from
    );
}

/// Two values that stand at an address of shared memory now.
#[cube]
pub(crate) fn read_pair<N: Size>(address: u32) -> Vector<f32, N> {
    let address = loaded::<u32>(address);
    let pair: Vector<f32, N>;
    gpu_asm!("ld.shared.v2.f32 {{%0, %1}}, [%2]; // {p} {a}", p = out(_) pair, a = in(_) address);
    pair
}

/// A matrix of 16-bit values for copies of panels of `rows` rows. Rows beyond its last are zeros.
pub(crate) fn panel_map(x: &CubeTensor, rows: usize) -> TensorMapArg<Tiled> {
    let tile = TiledArgs {
        tile_size: Shape::from([rows, COLUMNS]),
    };
    TensorMapArg::new(tile, x.clone().into_tensor_arg(), elem(x.dtype))
        .with_swizzle(TensorMapSwizzle::B128)
        .with_prefetch(TensorMapPrefetch::B256)
}
