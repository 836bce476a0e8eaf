//! Terms of low rank on the tensor cores, in kernels that pass over memory.
//!
//! A warp has 32 rows and 32 columns of the sum. An instruction (`mma.sync`) makes 16 rows and 8 columns, of which a
//! unit gets two neighbours in two rows. Which columns of the sum the instruction's columns stand for is free: unit
//! `c` of each four gets, from four instructions, columns `8·c` to `8·c + 7`, so that it reads and writes 16 bytes at
//! once.
//!
//! # Source
//! PTX ISA 8.7, "Matrix fragments for mma.m16n8k16 with floating point type".

use burn::tensor::{DType, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::LowRank;
use crate::cube::{CubeTensor, InPlace, argument, elem, into_floats, len, tensor};
use crate::hopper::{Half, compute_capability, loaded};

/// Warps of a cube, side by side.
const WARPS: u32 = 4;

/// Columns of a warp.
const COLUMNS: usize = 32;

/// Blocks of 16 rows of a warp.
pub(crate) const BLOCKS: usize = 2;

/// Values of a vector.
pub(crate) const LINE: usize = 8;

/// The largest rank: beyond it the registers are too few.
const LARGEST: usize = 128;

/// The form of a term, known when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    half: Half,
    rank: usize,
    left: Along,
    right: Along,
}

/// What runs along memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Along {
    /// The rank: a matrix by rows.
    Rank,
    /// The rows: the transpose of a matrix by rows.
    Rows,
}

impl Along {
    fn of(x: &CubeTensor) -> Option<Self> {
        let ([rows, rank], [down, across]) = match (&x.meta.shape()[..], &x.meta.strides()[..]) {
            (&[rows, rank], &[down, across]) => ([rows, rank], [down, across]),
            _ => return None,
        };
        // Read in words of two values.
        let whole = (x.handle.offset_start.unwrap_or(0)).is_multiple_of(4);
        match [down, across] {
            _ if !whole => None,
            [down, 1] if down == rank => Some(Self::Rank),
            [1, across] if across == rows => Some(Self::Rows),
            _ => None,
        }
    }
}

/// A term on the device.
pub(crate) struct Term {
    pub(crate) form: Form,
    left: CubeTensor,
    right: CubeTensor,
    pub(crate) scaling: f32,
}

impl Term {
    /// `None` where the kernels do not apply.
    ///
    /// # Shapes
    /// For a sum of `dims`.
    pub(crate) fn of(term: &LowRank, dims: [usize; 2], dtype: DType) -> Option<Self> {
        use burn_cubecl::CubeBackend;
        let [rows, columns] = dims;
        let primitive = |x: &Tensor<2>| x.clone().try_into_primitive::<CubeBackend>().ok();
        let (left, right) = (primitive(&term.left)?, primitive(&term.right)?);
        let [_, rank] = term.left.dims();
        let cubecl::Device::Cuda(device) = &left.device else {
            return None;
        };
        let fits = compute_capability(device.index)? >= (8, 0)
            && [&left, &right].iter().all(|x| x.dtype == dtype)
            && (rank.is_multiple_of(16) && (16..=LARGEST).contains(&rank))
            && (rows > 0 && columns > 0 && columns.is_multiple_of(COLUMNS))
            && term.left.dims() == [rows, rank]
            && term.right.dims() == [columns, rank];
        if !fits {
            return None;
        }
        let form = Form {
            half: Half::of(dtype)?,
            rank,
            left: Along::of(&left)?,
            right: Along::of(&right)?,
        };
        Some(Self {
            form,
            left,
            right,
            scaling: term.scaling,
        })
    }

    /// Left and right in words of two values.
    pub(crate) fn arguments(&self) -> [BufferArg; 2] {
        #[expect(unsafe_code, reason = "CubeCL takes lengths on trust")]
        // SAFETY: both are dense and of an even number of values, since the rank is even.
        [&self.left, &self.right]
            .map(|x| unsafe { BufferArg::from_raw_parts(x.handle.clone(), len(x) / 2) })
    }
}

/// Cubes for a sum of `dims`.
pub(crate) fn cubes([rows, columns]: [usize; 2]) -> (CubeCount, CubeDim) {
    let across = columns.div_ceil(COLUMNS * WARPS as usize);
    let down = rows.div_ceil(16 * BLOCKS);
    let count = CubeCount::Static(across as u32, down as u32, 1);
    (count, CubeDim::new_1d(32 * WARPS))
}

pub(super) fn fits(y: &Tensor<2>, term: &LowRank) -> Result<(), ()> {
    Term::of(term, y.dims(), y.dtype()).map(|_| ()).ok_or(())
}

/// `Err` hands `y` back where the kernel does not apply.
pub(super) fn add(y: Tensor<2>, term: &LowRank) -> Result<Tensor<2>, Tensor<2>> {
    let dims = y.dims();
    let Some(term) = Term::of(term, dims, y.dtype()) else {
        return Err(y);
    };
    let y = into_floats(y)?;
    let out = InPlace::over(&y, LINE, 0);
    let (count, dim) = cubes(dims);
    let [left, right] = term.arguments();
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: rows and columns are those of `y`; the term has as many, as `Term::of` checked, and a warp goes beyond
    // neither.
    unsafe {
        add_kernel::launch_unchecked(
            &y.client,
            count,
            dim,
            LINE,
            argument(&y, LINE),
            left,
            right,
            out.argument,
            term.scaling,
            dims[0] as u32,
            dims[1] as u32,
            term.form,
            elem(y.dtype),
        );
    }
    Ok(tensor(out.tensor))
}

#[cube(launch_unchecked)]
fn add_kernel<F: Float, N: Size>(
    y: &[Vector<F, N>],
    left: &[u32],
    right: &[u32],
    out: &mut [Vector<F, N>],
    scaling: f32,
    rows: u32,
    columns: u32,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let first_column = own_columns();
    if first_column < columns {
        let size!(A) = comptime!(form.left_words());
        let size!(B) = comptime!(form.right_words());
        let b = right_words::<B>(right, first_column, columns, form);
        let mut sums = Array::<Vector<F, N>>::new(comptime!(2 * BLOCKS));
        #[unroll]
        for i in 0..comptime!(2 * BLOCKS) {
            sums[i] = y[place(own_row(i), first_column, rows, columns)];
        }
        #[unroll]
        for block in 0..BLOCKS {
            let row = own_row(2 * block);
            let a = left_words::<A>(left, row, rows, form);
            let term = product::<A, B>(a, b, form);
            #[unroll]
            for half in 0..2usize {
                let row = own_row(2 * block + half);
                let sum = Vector::<f32, N>::cast_from(sums[2 * block + half])
                    + row_of::<N>(term, half) * Vector::new(scaling);
                if row < rows {
                    out[place(row, first_column, rows, columns)] = Vector::cast_from(sum);
                }
            }
        }
    }
}

impl Form {
    fn steps(self) -> usize {
        self.rank / 16
    }

    /// Words of the left factor that a unit holds for 16 rows.
    pub(crate) fn left_words(self) -> usize {
        4 * self.steps()
    }

    /// Words of the right factor that a unit holds for a warp's columns.
    pub(crate) fn right_words(self) -> usize {
        8 * self.steps()
    }
}

/// The first column of this unit's warp.
#[cube]
pub(crate) fn own_columns() -> u32 {
    (CUBE_POS_X * WARPS + UNIT_POS / 32u32) * comptime!(COLUMNS as u32)
}

/// Row `i` of the `2·BLOCKS` of this unit.
#[cube]
pub(crate) fn own_row(#[comptime] i: usize) -> u32 {
    let within = comptime!((i / 2 * 16 + i % 2 * 8) as u32);
    CUBE_POS_Y * comptime!((16 * BLOCKS) as u32) + within + UNIT_POS % 32u32 / 4u32
}

/// Where the unit's vector of a row stands; that of the last row for rows beyond it.
#[cube]
pub(crate) fn place(row: u32, first_column: u32, rows: u32, columns: u32) -> usize {
    let row = min(row, rows - 1u32);
    let line = comptime!(LINE as u32);
    let vector = first_column / line + UNIT_POS % 4u32;
    row as usize * (columns / line) as usize + vector as usize
}

/// Values `rank` and `rank + 1` of a row, in a word.
#[cube]
fn pair(
    memory: &[u32],
    row: u32,
    at: u32,
    rows: u32,
    #[comptime] rank: usize,
    #[comptime] along: Along,
) -> u32 {
    if comptime!(along == Along::Rank) {
        memory[((row * comptime!(rank as u32) + at) / 2u32) as usize]
    } else {
        let low = at * rows + row;
        let high = low + rows;
        half_word(memory, low) | (half_word(memory, high) << 16u32)
    }
}

#[cube]
fn half_word(memory: &[u32], i: u32) -> u32 {
    (memory[(i / 2u32) as usize] >> (i % 2u32 * 16u32)) & 0xFFFFu32
}

/// The left factor's words for 16 rows, of which `row` is this unit's first.
#[cube]
pub(crate) fn left_words<A: Size>(
    left: &[u32],
    row: u32,
    rows: u32,
    #[comptime] form: Form,
) -> Vector<u32, A> {
    let mut words = Vector::<u32, A>::empty();
    #[unroll]
    for i in 0..comptime!(form.left_words()) {
        let row = min(row + comptime!((i % 2 * 8) as u32), rows - 1u32);
        let at = comptime!((i / 4 * 16 + i / 2 % 2 * 8) as u32) + UNIT_POS % 4u32 * 2u32;
        words.insert(
            i,
            pair(
                left,
                row,
                at,
                rows,
                comptime!(form.rank),
                comptime!(form.left),
            ),
        );
    }
    words
}

/// The right factor's words for a warp's columns.
#[cube]
pub(crate) fn right_words<B: Size>(
    right: &[u32],
    first_column: u32,
    columns: u32,
    #[comptime] form: Form,
) -> Vector<u32, B> {
    let unit = UNIT_POS % 32u32;
    let (group, within) = (unit / 4u32, unit % 4u32);
    let mut words = Vector::<u32, B>::empty();
    #[unroll]
    for i in 0..comptime!(form.right_words()) {
        let instruction = comptime!((i / 2 % 4) as u32);
        let column = first_column + group / 2u32 * 8u32 + group % 2u32 + instruction * 2u32;
        let at = comptime!((i / 8 * 16 + i % 2 * 8) as u32) + within * 2u32;
        words.insert(
            i,
            pair(
                right,
                column,
                at,
                columns,
                comptime!(form.rank),
                comptime!(form.right),
            ),
        );
    }
    words
}

/// left·rightᵀ for 16 rows: the eight columns of this unit in its first row, then those in its second.
#[cube]
pub(crate) fn product<A: Size, B: Size>(
    a: Vector<u32, A>,
    b: Vector<u32, B>,
    #[comptime] form: Form,
) -> Vector<f32, Const<16>> {
    let mut all = Vector::<f32, Const<16>>::empty();
    #[unroll]
    for instruction in 0..4usize {
        let mut sum = Vector::<f32, Const<4>>::new(0.0f32);
        #[unroll]
        for step in 0..comptime!(form.steps()) {
            let mut a_words = Vector::<u32, Const<4>>::empty();
            #[unroll]
            for i in 0..4usize {
                a_words.insert(i, a.extract(4 * step + i));
            }
            let mut b_words = Vector::<u32, Const<2>>::empty();
            #[unroll]
            for i in 0..2usize {
                b_words.insert(i, b.extract(8 * step + 2 * instruction + i));
            }
            sum = multiply_add(sum, a_words, b_words, comptime!(form.half));
        }
        #[unroll]
        for i in 0..4usize {
            all.insert(
                comptime!(i / 2 * 8 + 2 * instruction + i % 2),
                sum.extract(i),
            );
        }
    }
    all
}

/// A row of a product.
#[cube]
pub(crate) fn row_of<N: Size>(
    product: Vector<f32, Const<16>>,
    #[comptime] half: usize,
) -> Vector<f32, N> {
    let mut row = Vector::<f32, N>::empty();
    #[unroll]
    for i in 0..LINE {
        row.insert(i, product.extract(comptime!(half * LINE + i)));
    }
    row
}

/// sum + A·B of 16 × 16 by 16 × 8, by the units of a warp together.
#[cube]
fn multiply_add(
    sum: Vector<f32, Const<4>>,
    a: Vector<u32, Const<4>>,
    b: Vector<u32, Const<2>>,
    #[comptime] half: Half,
) -> Vector<f32, Const<4>> {
    let name = comptime!(half.name());
    let sum = loaded::<Vector<f32, Const<4>>>(sum);
    let a = loaded::<Vector<u32, Const<4>>>(a);
    let b = loaded::<Vector<u32, Const<2>>>(b);
    let out: Vector<f32, Const<4>>;
    gpu_asm!(
        "mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32 {o}, {a}, {b}, {s};",
        o = out(_) out, a = in(_) a, b = in(_) b, s = in(_) sum,
        options(nomem)
    );
    out
}
