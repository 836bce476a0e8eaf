//! Instructions of NVIDIA's compute capability 9.0 that CubeCL has no functions for: matrix products by a
//! group of four warps (`wgmma`), and [copies](ring) into shared memory by the copy engine.
//!
//! A factor lies in shared memory as panels of 64 columns of 16 bits: rows of 128 bytes whose eight chunks
//! of 16 bytes are exchanged, chunk `c` of row `r` standing at `c ^ (r % 8)`, so that neither loads nor
//! products meet bank conflicts. A panel begins at a multiple of 1024 bytes.
//!
//! A product's assembly contains its fence, all its instructions and the wait for them: the registers of its
//! result are complete when the statement is. Other groups of warps keep the tensor cores busy meanwhile.
//!
//! # Source
//! PTX ISA 8.7, chapter "Asynchronous warpgroup level matrix instructions".

pub(crate) mod ring;

use std::fmt::Write;

use burn::tensor::DType;
use cubecl::prelude::*;

use crate::cube::CubeTensor;

/// Bytes of a row of a panel.
pub(crate) const ROW: usize = 128;

/// Columns of a panel.
pub(crate) const COLUMNS: usize = 64;

/// Units that make a product together.
pub(crate) const GROUP: u32 = 128;

/// Whether the tensor's device is one these instructions are for.
pub(crate) fn is_hopper(x: &CubeTensor) -> bool {
    let cubecl::Device::Cuda(device) = &x.device else {
        return false;
    };
    compute_capability(device.index) == Some((9, 0))
}

/// The generation of a CUDA device; `None`, which is not remembered, where the driver does not know it or is not up yet.
pub(crate) fn compute_capability(index: usize) -> Option<(i32, i32)> {
    use std::collections::BTreeMap;
    use std::sync::{Mutex, PoisonError};

    use cudarc::driver::result::device;
    use cudarc::driver::sys::CUdevice_attribute as Attribute;
    static KNOWN: Mutex<BTreeMap<usize, (i32, i32)>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(capability) = known.get(&index) {
        return Some(*capability);
    }
    #[expect(unsafe_code, reason = "calls the driver")]
    // SAFETY: the driver refuses, where nobody has initialised it yet.
    let capability = unsafe {
        let device = device::get(index as i32).ok()?;
        let ask = |attribute| device::get_attribute(device, attribute).ok();
        let major = ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        (major, minor)
    };
    known.insert(index, capability);
    Some(capability)
}

/// Types of 16 bits that the tensor cores multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Half {
    F16,
    Bf16,
}

impl Half {
    pub(crate) fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F16 => Some(Self::F16),
            DType::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

/// How a factor lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lie {
    /// The inner dimension runs along rows: `[m, k]`, or `[n, k]`.
    Along,
    /// The inner dimension runs down the rows: `[k, n]`.
    Down,
}

/// A product of `64 × n` by `steps` steps of 16, known when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Product {
    pub(crate) half: Half,
    /// Columns of the result, a multiple of 8.
    pub(crate) n: usize,
    /// Steps along the inner dimension.
    pub(crate) steps: usize,
    /// How B lies.
    pub(crate) b: Lie,
    /// Rows of the tile that A is part of, where A is in shared memory.
    pub(crate) a_rows: usize,
    /// Rows of the tile that B is part of.
    pub(crate) b_rows: usize,
}

impl Product {
    /// Registers of the result that each unit holds.
    pub(crate) fn results(self) -> usize {
        self.n / 2
    }

    /// Where step `step` of a factor begins, in units of 16 bytes.
    fn offset(lie: Lie, rows: usize, step: usize) -> usize {
        let bytes = match lie {
            Lie::Along => step * 16 / COLUMNS * rows * ROW + step * 16 % COLUMNS * 2,
            Lie::Down => step * 16 * ROW,
        };
        bytes / 16
    }

    /// One instruction of `step`, whose A is named by `a`.
    fn instruction(self, text: &mut String, step: usize, a: &str, accumulates: bool) {
        let (half, n) = (self.half.name(), self.n);
        let b = Self::offset(self.b, self.b_rows, step);
        let _ = writeln!(text, "add.s64 b, B, {b};");
        let add = if accumulates { "yes" } else { "no" };
        let down = u8::from(self.b == Lie::Down);
        // A in shared memory lies along its rows, which its own flag (0) says.
        let flags = if a.starts_with('{') {
            format!("1, 1, {down}")
        } else {
            format!("1, 1, 0, {down}")
        };
        let _ = writeln!(
            text,
            "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{half}.{half} $0, {a}, b, {add}, {flags};"
        );
    }

    const HEAD: &str = "{\n.reg .pred yes, no;\n.reg .b32 zero;\n.reg .b64 a, b, A, B;\n\
        mov.b32 zero, 0;\nsetp.eq.b32 yes, zero, 0;\nsetp.ne.b32 no, zero, 0;\n";

    /// Where the result is there, and where it is not yet.
    const TAILS: [&str; 2] = [
        "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n}",
        "wgmma.commit_group.sync.aligned;\n}",
    ];

    /// A and B by descriptors: `$0 = A·B`.
    fn text_for_memory(self, in_flight: bool) -> String {
        let mut text = Self::HEAD.to_owned();
        text.push_str("mov.b64 A, $1;\nmov.b64 B, $2;\nwgmma.fence.sync.aligned;\n");
        for step in 0..self.steps {
            let a = Self::offset(Lie::Along, self.a_rows, step);
            let _ = writeln!(text, "add.s64 a, A, {a};");
            self.instruction(&mut text, step, "a", step > 0);
        }
        text + Self::TAILS[usize::from(in_flight)]
    }

    /// A in registers, B by a descriptor: `$0 = $1 + A·B`.
    fn text_for_registers(self, in_flight: bool) -> String {
        let results = self.results();
        let mut text = Self::HEAD.to_owned();
        // Assembly cannot take an operand that is both read and written; the assembler sees through the
        // copies. `%i` numbers registers of all operands in order: results, what is added, A.
        for i in 0..results {
            let _ = writeln!(text, "mov.b32 %{i}, %{};", results + i);
        }
        text.push_str("// $1 $2\nmov.b64 B, $3;\nwgmma.fence.sync.aligned;\n");
        for step in 0..self.steps {
            let first = 2 * results + 4 * step;
            let a = format!(
                "{{%{}, %{}, %{}, %{}}}",
                first,
                first + 1,
                first + 2,
                first + 3
            );
            self.instruction(&mut text, step, &a, true);
        }
        text + Self::TAILS[usize::from(in_flight)]
    }
}

/// `value` as it is now, in registers: assembly takes no variables.
#[cube]
pub(crate) fn loaded<T: CubePrimitive>(value: T) -> T {
    intrinsic!(|scope| value.read_value(scope).into())
}

/// A·B, both in shared memory. Units of a group must call it together.
///
/// # Shapes
/// A `[64, 16·steps]`, B as `product` says; the result lies as [`row_and_column`] says.
#[cube]
pub(crate) fn multiply<N: Size>(a: u64, b: u64, #[comptime] product: Product) -> Vector<f32, N> {
    started::<N>(a, b, product, false)
}

/// As [`multiply`]; the product is in flight until it has [`arrived`], and nothing else may be done with the result before.
///
/// The assembler keeps it in flight only while no instruction defines a register that a product takes as its left
/// factor, see [`pack_in_place`]; otherwise it waits for each product at once, which is slower and nothing else.
#[cube]
pub(crate) fn start_product<N: Size>(
    a: u64,
    b: u64,
    #[comptime] product: Product,
) -> Vector<f32, N> {
    started::<N>(a, b, product, true)
}

#[cube]
fn started<N: Size>(
    a: u64,
    b: u64,
    #[comptime] product: Product,
    #[comptime] in_flight: bool,
) -> Vector<f32, N> {
    let text = comptime!(product.text_for_memory(in_flight));
    let a = loaded::<u64>(a);
    let b = loaded::<u64>(b);
    let out: Vector<f32, N>;
    gpu_asm!("{text} // {c} {d} {e}", c = out(_) out, d = in(_) a, e = in(_) b);
    out
}

/// sum + A·B, with A in registers: two values of 16 bits each, as [`pack`] makes them of a result.
#[cube]
pub(crate) fn multiply_add<N: Size, P: Size>(
    sum: Vector<f32, N>,
    a: Vector<u32, P>,
    b: u64,
    #[comptime] product: Product,
) -> Vector<f32, N> {
    added::<N, P>(sum, a, b, product, false)
}

/// As [`multiply_add`], in flight as after [`start_product`].
#[cube]
pub(crate) fn start_add<N: Size, P: Size>(
    sum: Vector<f32, N>,
    a: Vector<u32, P>,
    b: u64,
    #[comptime] product: Product,
) -> Vector<f32, N> {
    added::<N, P>(sum, a, b, product, true)
}

#[cube]
fn added<N: Size, P: Size>(
    sum: Vector<f32, N>,
    a: Vector<u32, P>,
    b: u64,
    #[comptime] product: Product,
    #[comptime] in_flight: bool,
) -> Vector<f32, N> {
    let text = comptime!(product.text_for_registers(in_flight));
    let sum = loaded::<Vector<f32, N>>(sum);
    let a = loaded::<Vector<u32, P>>(a);
    let b = loaded::<u64>(b);
    let out: Vector<f32, N>;
    gpu_asm!(
        "{text} // {c} {d} {e} {f}",
        c = out(_) out, d = in(_) sum, e = in(_) a, f = in(_) b
    );
    out
}

/// A result that was in flight, once all products but the last `left` that were started have ended.
#[cube]
pub(crate) fn arrived<N: Size>(
    result: Vector<f32, N>,
    #[comptime] registers: usize,
    #[comptime] left: usize,
) -> Vector<f32, N> {
    let text = comptime!(text_of_arrival(registers, left));
    let result = loaded::<Vector<f32, N>>(result);
    let out: Vector<f32, N>;
    gpu_asm!("{text} // {c} {d}", c = out(_) out, d = in(_) result);
    out
}

fn text_of_arrival(registers: usize, left: usize) -> String {
    let mut text = format!("wgmma.wait_group.sync.aligned {left};\n");
    // The assembler sees through the copies, which keep what follows behind the wait.
    for i in 0..registers {
        let _ = writeln!(text, "mov.b32 %{i}, %{};", registers + i);
    }
    text
}

/// What `wgmma` wants to know of a factor: its address and the distances of its parts.
///
/// `rows` is the number of rows of a panel. The hardware undoes the exchange of chunks.
#[cube]
pub(crate) fn descriptor(address: u32, #[comptime] rows: usize) -> u64 {
    // In units of 16 bytes: from panel to panel, and from eight rows to the next eight.
    let constant = comptime!(
        (1u64 << 62) | ((8 * ROW as u64 / 16) << 32) | (((rows * ROW) as u64 / 16) << 16)
    );
    u64::cast_from((address & 0x3FFFFu32) >> 4u32) | constant
}

/// The address of shared memory among shared memory.
#[cube]
pub(crate) fn shared_address<T: CubePrimitive>(memory: &[T]) -> u32 {
    let pointer = memory.as_ptr();
    let address: u32;
    gpu_asm!(
        "{{ .reg .b64 t; cvta.to.shared.u64 t, {p}; cvt.u32.u64 {a}, t; }}",
        a = out(_) address, p = in(_) pointer, options(nomem)
    );
    address
}

/// The address of global memory.
#[cube]
pub(crate) fn global_address<T: CubePrimitive>(memory: &[T]) -> u64 {
    let pointer = memory.as_ptr();
    let address: u64;
    gpu_asm!("mov.b64 {a}, {p};", a = out(_) address, p = in(_) pointer, options(nomem));
    address
}

/// Starts a copy of 16 bytes from global to shared memory, of which the first `bytes` are read and the
/// others are zeros.
#[cube]
fn copy_chunk(from: u64, to: u32, bytes: u32) {
    let from = loaded::<u64>(from);
    let to = loaded::<u32>(to);
    let bytes = loaded::<u32>(bytes);
    gpu_asm!(
        "cp.async.cg.shared.global [{to}], [{from}], 16, {bytes};",
        to = in(_) to, from = in(_) from, bytes = in(_) bytes
    );
}

/// Ends a group of copies.
#[cube]
pub(crate) fn commit_copies() {
    gpu_asm!("cp.async.commit_group;");
}

/// Waits until all but the last `left` groups of this unit's copies have arrived.
#[cube]
pub(crate) fn wait_for_copies(#[comptime] left: usize) {
    gpu_asm!("cp.async.wait_group {left};");
}

/// Makes this unit's writes to shared memory visible to the tensor cores; a barrier has to follow.
#[cube]
pub(crate) fn show_to_tensor_cores() {
    gpu_asm!("fence.proxy.async.shared::cta;");
}

/// A tile of rows of a matrix of 16-bit values, known when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TileShape {
    pub(crate) rows: usize,
    /// A multiple of 16.
    pub(crate) columns: usize,
    /// Units that load it.
    pub(crate) units: usize,
}

impl TileShape {
    /// Whether every unit loads as many chunks.
    pub(crate) fn is_even(self) -> bool {
        (self.rows * self.columns / 8).is_multiple_of(self.units)
    }

    /// Chunks of the unit that loads most of them.
    pub(crate) fn rounds(self) -> usize {
        (self.rows * self.columns / 8).div_ceil(self.units)
    }

    /// Shared memory that it takes.
    pub(crate) fn bytes(self) -> usize {
        self.columns.div_ceil(COLUMNS) * self.rows * ROW
    }
}

/// Row and chunk of a tile that a unit loads in its round `round`; the row may be one beyond an uneven tile.
#[cube]
pub(crate) fn tile_chunk(#[comptime] round: usize, #[comptime] tile: TileShape) -> (u32, u32) {
    let chunks = comptime!(tile.columns as u32 / 8);
    let index = UNIT_POS + comptime!((round * tile.units) as u32);
    (index / chunks, index % chunks)
}

/// Where a chunk lies in a tile, in bytes.
#[cube]
pub(crate) fn tile_place(row: u32, chunk: u32, #[comptime] tile: TileShape) -> u32 {
    (chunk / 8u32) * comptime!((tile.rows * ROW) as u32)
        + row * comptime!(ROW as u32)
        + (((chunk % 8u32) ^ (row % 8u32)) * 16u32)
}

/// Starts loading rows `first..` of a matrix into panels at `to`; rows from `end` on become zeros.
///
/// `from` is the address of the first row's first column, `stride` the bytes from row to row.
#[cube]
pub(crate) fn load_tile(
    from: u64,
    stride: u64,
    to: u32,
    first: u32,
    end: u32,
    #[comptime] tile: TileShape,
) {
    #[unroll]
    for round in 0..comptime!(tile.rounds()) {
        let (row, chunk) = tile_chunk(round, tile);
        let place = tile_place(row, chunk, tile);
        let token = first + row;
        let bytes = select(token < end, 16u32, 0u32);
        let token = min(token, end - 1u32);
        let address = from + u64::cast_from(token) * stride + u64::cast_from(chunk * 16u32);
        if comptime!(tile.is_even()) {
            copy_chunk(address, to + place, bytes);
        } else {
            if row < comptime!(tile.rows as u32) {
                copy_chunk(address, to + place, bytes);
            }
        }
    }
}

/// Two values in the halves of a word, `low` in the lower.
#[cube]
pub(crate) fn pack(low: f32, high: f32, #[comptime] half: Half) -> u32 {
    let name = comptime!(half.name());
    let low = loaded::<f32>(low);
    let high = loaded::<f32>(high);
    let word: u32;
    gpu_asm!(
        "cvt.rn.{name}x2.f32 {w}, {h}, {l};",
        w = out(_) word, h = in(_) high, l = in(_) low, options(pure, nomem)
    );
    word
}

/// As [`pack`], and no earlier than where it stands: the word is the left factor of a product that comes after it, and
/// those before it are to stay in flight until they have [`arrived`].
#[cube]
pub(crate) fn pack_in_place(low: f32, high: f32, #[comptime] half: Half) -> u32 {
    let name = comptime!(half.name());
    let low = loaded::<f32>(low);
    let high = loaded::<f32>(high);
    let word: u32;
    gpu_asm!("cvt.rn.{name}x2.f32 {w}, {h}, {l};", w = out(_) word, h = in(_) high, l = in(_) low);
    word
}

/// 2ˣ, within 2 units in the last place.
#[cube]
pub(crate) fn exp2(x: f32) -> f32 {
    let x = loaded::<f32>(x);
    let y: f32;
    gpu_asm!("ex2.approx.ftz.f32 {y}, {x};", y = out(_) y, x = in(_) x, options(pure, nomem));
    y
}

/// Sum over the four units that hold a row of a result.
#[cube]
pub(crate) fn sum_quad(value: f32) -> f32 {
    let value = value + plane_shuffle_xor(value, 1u32);
    value + plane_shuffle_xor(value, 2u32)
}

/// Largest over the four units that hold a row of a result.
#[cube]
pub(crate) fn max_quad(value: f32) -> f32 {
    let value = max(value, plane_shuffle_xor(value, 1u32));
    max(value, plane_shuffle_xor(value, 2u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_one_statement_that_names_every_operand() {
        let product = Product {
            half: Half::Bf16,
            n: 64,
            steps: 5,
            b: Lie::Down,
            a_rows: 128,
            b_rows: 64,
        };
        let text = product.text_for_memory(false);
        assert_eq!(text.matches("wgmma.mma_async").count(), 5);
        assert_eq!(text.matches("no, 1, 1, 0, 1;").count(), 1);
        // The fifth step of A is in its second panel.
        assert!(text.contains("add.s64 a, A, 1024;"), "{text}");
        assert!(text.contains("add.s64 b, B, 512;"), "{text}");
        let text = product.text_for_registers(false);
        assert!(text.contains("mov.b32 %31, %63;"), "{text}");
        assert!(
            text.contains("$0, {%80, %81, %82, %83}, b, yes, 1, 1, 1;"),
            "{text}"
        );
        for operand in ["$0", "$1", "$2", "$3"] {
            assert!(text.contains(operand));
        }
    }
}
