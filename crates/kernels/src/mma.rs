//! Matrix products by a warp (`mma.sync`), from NVIDIA's compute capability 7.5 up.
//!
//! Factors lie in shared memory in panels as [`hopper`](crate::hopper) says: rows of 128 bytes whose eight chunks of 16
//! bytes are exchanged by the row's number. An instruction that loads parts of a factor (`ldmatrix`) takes the address of
//! one row of eight values from each unit. Along a panel these addresses differ by an exclusive or with 32, 64 or 96, down
//! the rows and from panel to panel by constants: a unit makes four addresses for each factor.
//!
//! Unit `l` of a warp holds rows `l / 4` and `l / 4 + 8` of each 16 rows of a result, in columns `2·(l % 4)` and the next of
//! each eight. Its values are numbered by block of 16 rows, then by eight columns, then by row, then by column. Packed in
//! pairs, they are the left factor of the next product as they stand.
//!
//! # Source
//! PTX ISA 8.7, "Matrix fragments for mma.m16n8k16 with floating point type", "mma.m16n8k8", "ldmatrix".

use std::fmt::Write;

use cubecl::prelude::*;

use crate::cube::CubeTensor;
use crate::hopper::{
    self, Half, ROW, TileShape, commit_copies, compute_capability, load_tile, loaded, tile_chunk,
    tile_place, wait_for_copies,
};

/// Whose instructions a kernel is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Generation {
    /// From compute capability 7.5: `m16n8k8` in f16, copies through registers.
    Turing,
    /// From compute capability 8.0: `m16n8k16`, copies past the registers.
    Ampere,
}

impl Generation {
    /// The newest that the tensor's device has.
    pub(crate) fn of(x: &CubeTensor) -> Option<Self> {
        let cubecl::Device::Cuda(device) = &x.device else {
            return None;
        };
        match compute_capability(device.index)? {
            capability if capability >= (8, 0) => Some(Self::Ampere),
            capability if capability >= (7, 5) => Some(Self::Turing),
            _ => None,
        }
    }
}

/// A product by one warp, known when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct WarpProduct {
    pub(crate) half: Half,
    pub(crate) generation: Generation,
    /// Blocks of 16 rows of the result.
    pub(crate) blocks: usize,
    /// Columns of the result, a multiple of 16.
    pub(crate) n: usize,
    /// Steps of 16 along the inner dimension.
    pub(crate) steps: usize,
    /// Rows of the tile that A is part of, where A is in shared memory.
    pub(crate) a_rows: usize,
    /// Rows of the tile that B is part of.
    pub(crate) b_rows: usize,
    /// The first column of B that counts, where the inner dimension runs down B's rows.
    pub(crate) first: usize,
}

impl WarpProduct {
    /// Registers of the result that each unit holds.
    fn results(self) -> usize {
        self.blocks * self.n / 2
    }

    /// Four addresses along a panel, from the one in the operand `from`.
    fn addresses(text: &mut String, name: char, from: &str) {
        let _ = writeln!(text, ".reg .b32 {name}<4>;\nmov.b32 {name}0, {from};");
        for i in 1..4 {
            let _ = writeln!(text, "xor.b32 {name}{i}, {name}0, {};", 32 * i);
        }
    }

    /// Loads chunks `2·pair` and `2·pair + 1` of 16 rows from `row` on.
    fn load(to: &str, name: char, pair: usize, row: usize, rows: usize, down: bool) -> String {
        let offset = pair / 4 * rows * ROW + row * ROW;
        let turned = if down { ".trans" } else { "" };
        format!(
            "ldmatrix.sync.aligned.m8n8.x4{turned}.shared.b16 {to}, [{name}{}+{offset}];\n",
            pair % 4
        )
    }

    /// Adds to 16 columns of the result: the right factor is in `b0` to `b3`.
    fn multiply(self, text: &mut String, column: usize, a: impl Fn(usize, usize) -> String) {
        let half = self.half.name();
        for block in 0..self.blocks {
            let a = [0, 1, 2, 3].map(|i| a(block, i));
            for side in 0..2 {
                let first = block * self.n / 2 + column / 2 + 4 * side;
                let [c0, c1, c2, c3] = [0, 1, 2, 3].map(|i| format!("c{}", first + i));
                let sums = format!("{{{c0}, {c1}, {c2}, {c3}}}");
                let [b0, b1] = [format!("b{}", 2 * side), format!("b{}", 2 * side + 1)];
                let [a0, a1, a2, a3] = &a;
                let _ = match self.generation {
                    Generation::Ampere => writeln!(
                        text,
                        "mma.sync.aligned.m16n8k16.row.col.f32.{half}.{half}.f32 {sums}, \
                         {{{a0}, {a1}, {a2}, {a3}}}, {{{b0}, {b1}}}, {sums};"
                    ),
                    Generation::Turing => writeln!(
                        text,
                        "mma.sync.aligned.m16n8k8.row.col.f32.{half}.{half}.f32 {sums}, {{{a0}, {a1}}}, {{{b0}}}, {sums};\n\
                         mma.sync.aligned.m16n8k8.row.col.f32.{half}.{half}.f32 {sums}, {{{a2}, {a3}}}, {{{b1}}}, {sums};"
                    ),
                };
            }
        }
    }

    /// Every register of assembly is its own, so that results overwrite no operand that is still read.
    fn head(self) -> String {
        format!("{{\n.reg .b32 b<4>;\n.reg .f32 c<{}>;\n", self.results())
    }

    fn tail(self, text: &mut String) {
        for i in 0..self.results() {
            let _ = writeln!(text, "mov.f32 %{i}, c{i};");
        }
        text.push('}');
    }

    /// A and B by addresses: `$0 = A·Bᵀ`.
    fn text_for_memory(self) -> String {
        let mut text = self.head();
        let _ = writeln!(text, ".reg .b32 a<{}>;", 4 * self.blocks);
        Self::addresses(&mut text, 'A', "$1");
        Self::addresses(&mut text, 'B', "$2");
        for i in 0..self.results() {
            let _ = writeln!(text, "mov.f32 c{i}, 0f00000000;");
        }
        let register = |block: usize, i: usize| format!("a{}", 4 * block + i);
        for step in 0..self.steps {
            for block in 0..self.blocks {
                let [a0, a1, a2, a3] = [0, 1, 2, 3].map(|i| register(block, i));
                let to = format!("{{{a0}, {a1}, {a2}, {a3}}}");
                text += &Self::load(&to, 'A', step, 16 * block, self.a_rows, false);
            }
            for column in (0..self.n).step_by(16) {
                text += &Self::load("{b0, b1, b2, b3}", 'B', step, column, self.b_rows, false);
                self.multiply(&mut text, column, register);
            }
        }
        self.tail(&mut text);
        text
    }

    /// A in registers, B by an address: `$0 = $1 + A·B`. `%i` numbers registers of all operands in order: results, what is
    /// added, A.
    fn text_for_registers(self) -> String {
        let results = self.results();
        let mut text = self.head();
        Self::addresses(&mut text, 'B', "$3");
        for i in 0..results {
            let _ = writeln!(text, "mov.f32 c{i}, %{};", results + i);
        }
        for step in 0..self.steps {
            let register = |block: usize, i: usize| {
                format!("%{}", 2 * results + 4 * (block * self.steps + step) + i)
            };
            for column in (0..self.n).step_by(16) {
                let pair = (self.first + column) / 16;
                text += &Self::load("{b0, b1, b2, b3}", 'B', pair, 16 * step, self.b_rows, true);
                self.multiply(&mut text, column, register);
            }
        }
        self.tail(&mut text);
        text
    }
}

/// What to add to a tile's address for this unit, where 16 rows of A are loaded, or 16 rows of a B whose inner dimension
/// runs down the rows. A tile begins at a multiple of 128 bytes.
#[cube]
pub(crate) fn down_rows() -> u32 {
    let unit = UNIT_POS % 32u32;
    unit % 16u32 * comptime!(ROW as u32) + ((unit / 16u32) ^ (unit % 8u32)) * 16u32
}

/// The same of a B whose inner dimension runs along the rows.
#[cube]
pub(crate) fn along_rows() -> u32 {
    let unit = UNIT_POS % 32u32;
    let row = unit % 8u32 + unit / 16u32 * 8u32;
    row * comptime!(ROW as u32) + ((unit / 8u32 % 2u32) ^ (unit % 8u32)) * 16u32
}

/// A·Bᵀ, both in shared memory, by the units of a warp together.
///
/// # Shapes
/// A `[16·blocks, 16·steps]` at an address with [`down_rows`], B `[n, 16·steps]` at one with [`along_rows`].
#[cube]
pub(crate) fn multiply<N: Size>(
    a: u32,
    b: u32,
    #[comptime] product: WarpProduct,
) -> Vector<f32, N> {
    let text = comptime!(product.text_for_memory());
    let a = loaded::<u32>(a);
    let b = loaded::<u32>(b);
    let out: Vector<f32, N>;
    gpu_asm!("{text} // {c} {d} {e}", c = out(_) out, d = in(_) a, e = in(_) b);
    out
}

/// sum + A·B, with A in registers, packed in pairs.
///
/// # Shapes
/// A `[16·blocks, 16·steps]`, B `[16·steps, n]` at an address with [`down_rows`].
#[cube]
pub(crate) fn multiply_add<N: Size, P: Size>(
    sum: Vector<f32, N>,
    a: Vector<u32, P>,
    b: u32,
    #[comptime] product: WarpProduct,
) -> Vector<f32, N> {
    let text = comptime!(product.text_for_registers());
    let sum = loaded::<Vector<f32, N>>(sum);
    let a = loaded::<Vector<u32, P>>(a);
    let b = loaded::<u32>(b);
    let out: Vector<f32, N>;
    gpu_asm!(
        "{text} // {c} {d} {e} {f}",
        c = out(_) out, d = in(_) sum, e = in(_) a, f = in(_) b
    );
    out
}

/// Two values in the halves of a word, `low` in the lower.
#[cube]
pub(crate) fn pack(
    low: f32,
    high: f32,
    #[comptime] half: Half,
    #[comptime] generation: Generation,
) -> u32 {
    if comptime!(generation == Generation::Ampere) {
        hopper::pack(low, high, half)
    } else {
        let low = loaded::<f32>(low);
        let high = loaded::<f32>(high);
        let word: u32;
        gpu_asm!(
            "{{ .reg .b16 l, h; cvt.rn.f16.f32 l, {l}; cvt.rn.f16.f32 h, {h}; mov.b32 {w}, {{l, h}}; }}",
            w = out(_) word, l = in(_) low, h = in(_) high, options(pure, nomem)
        );
        word
    }
}

/// tanh(x) = 1 − 2 / (1 + e²ˣ), within 2⁻²¹.
#[cube]
pub(crate) fn hyperbolic_tangent(x: f32) -> f32 {
    let x = loaded::<f32>(x * comptime!(2.0 * std::f32::consts::LOG2_E));
    let y: f32;
    gpu_asm!(
        "{{ .reg .f32 t; ex2.approx.ftz.f32 t, {x}; add.f32 t, t, 0f3F800000; rcp.approx.ftz.f32 t, t; \
         fma.rn.f32 {y}, t, 0fC0000000, 0f3F800000; }}",
        y = out(_) y, x = in(_) x, options(pure, nomem)
    );
    y
}

/// As [`load_tile`]; on Turing the copies have ended when it returns.
#[cube]
pub(crate) fn load(
    from: u64,
    stride: u64,
    to: u32,
    first: u32,
    end: u32,
    #[comptime] tile: TileShape,
    #[comptime] generation: Generation,
) {
    if comptime!(generation == Generation::Ampere) {
        load_tile(from, stride, to, first, end, tile);
    } else {
        load_through_registers(from, stride, to, first, end, tile);
    }
}

/// Ends a group of copies.
#[cube]
pub(crate) fn commit(#[comptime] generation: Generation) {
    if comptime!(generation == Generation::Ampere) {
        commit_copies();
    }
}

/// Waits until this unit's copies have arrived.
#[cube]
pub(crate) fn wait(#[comptime] generation: Generation) {
    if comptime!(generation == Generation::Ampere) {
        wait_for_copies(0usize);
    }
}

/// Chunks that a unit reads before it writes the first.
const AT_ONCE: usize = 4;

#[cube]
fn load_through_registers(
    from: u64,
    stride: u64,
    to: u32,
    first: u32,
    end: u32,
    #[comptime] tile: TileShape,
) {
    let rounds = comptime!(tile.rounds());
    #[unroll]
    for batch in 0..comptime!(rounds.div_ceil(AT_ONCE)) {
        let mut chunks = Array::<Vector<u32, Const<4>>>::new(AT_ONCE);
        #[unroll]
        for i in 0..comptime!(AT_ONCE.min(rounds - batch * AT_ONCE)) {
            let (row, chunk) = tile_chunk(comptime!(batch * AT_ONCE + i), tile);
            let token = first + row;
            let address = from
                + u64::cast_from(min(token, end - 1u32)) * stride
                + u64::cast_from(chunk * 16u32);
            chunks[i] = read_chunk(address, select(token < end, 1u32, 0u32));
        }
        #[unroll]
        for i in 0..comptime!(AT_ONCE.min(rounds - batch * AT_ONCE)) {
            let (row, chunk) = tile_chunk(comptime!(batch * AT_ONCE + i), tile);
            let place = to + tile_place(row, chunk, tile);
            if comptime!(tile.is_even()) {
                write_chunk(place, chunks[i]);
            } else {
                if row < comptime!(tile.rows as u32) {
                    write_chunk(place, chunks[i]);
                }
            }
        }
    }
}

/// 16 bytes, or zeros if there is nothing to read.
#[cube]
fn read_chunk(from: u64, there: u32) -> Vector<u32, Const<4>> {
    let from = loaded::<u64>(from);
    let there = loaded::<u32>(there);
    let out: Vector<u32, Const<4>>;
    gpu_asm!(
        "{{ .reg .pred p; .reg .b32 v<4>; setp.ne.u32 p, {t}, 0; mov.b32 v0, 0; mov.b32 v1, 0; mov.b32 v2, 0; \
         mov.b32 v3, 0; @p ld.global.v4.b32 {{v0, v1, v2, v3}}, [{f}]; mov.b32 %0, v0; mov.b32 %1, v1; mov.b32 %2, v2; \
         mov.b32 %3, v3; }} // {o}",
        o = out(_) out, f = in(_) from, t = in(_) there
    );
    out
}

#[cube]
fn write_chunk(to: u32, chunk: Vector<u32, Const<4>>) {
    let to = loaded::<u32>(to);
    let chunk = loaded::<Vector<u32, Const<4>>>(chunk);
    gpu_asm!("st.shared.v4.b32 [{to}], {c};", to = in(_) to, c = in(_) chunk);
}
