//! The kernels of an exchange: sums of rows, and checksums.

use burn::tensor::{DType, Int, Tensor, TensorReadError};
use burn_cubecl::CubeBackend;
use cubecl::prelude::*;

use super::reference::FACTORS;
use crate::cube::{CubeTensor, UNITS, argument, elementwise, empty, floats, len, line, tensor};

/// Which rows are added onto which.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pairs {
    rows: usize,
    pairs: Vec<[usize; 2]>,
}

impl Pairs {
    fn new(rows: usize, pairs: &[[usize; 2]]) -> Self {
        let there = |row: &usize| *row < rows;
        assert!(
            rows > 0 && pairs.iter().flatten().all(there),
            "{rows} rows, of which {pairs:?} are added"
        );
        let pairs = pairs.to_vec();
        Self { rows, pairs }
    }
}

/// A float tensor in f32, in its own memory.
pub(super) fn numbers<const D: usize>(x: &Tensor<D>) -> Option<CubeTensor> {
    floats(x).filter(|x| x.dtype == DType::F32)
}

/// `None` elsewhere than on a CubeCL device.
pub(super) fn add_rows(rows: &Tensor<2>, pairs: &[[usize; 2]]) -> Option<Tensor<1>> {
    let [n, width] = rows.dims();
    let rows = numbers(rows)?;
    let out = empty(&rows, [width], DType::F32);
    add_rows_into(&rows, (n, pairs), &out);
    Some(tensor(out))
}

/// `rows` are `n`, one after the other and as long as `out`, whatever else their memory holds.
pub(super) fn add_rows_into(
    rows: &CubeTensor,
    (n, pairs): (usize, &[[usize; 2]]),
    out: &CubeTensor,
) {
    let width = len(out);
    assert!(len(rows) >= n * width, "{n} rows of {width}");
    if width == 0 {
        return;
    }
    let line = line(DType::F32, width);
    let (count, dim) = elementwise(width / line);
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: the rows are there, and the kernel does not go beyond the output's last vector.
    unsafe {
        add_rows_kernel::launch_unchecked(
            &rows.client,
            count,
            dim,
            line,
            argument(rows, line),
            argument(out, line),
            (width / line) as u32,
            Pairs::new(n, pairs),
        );
    }
}

/// `width` is told: where rows are padded, a buffer says that it is longer than its tensor.
#[cube(launch_unchecked)]
fn add_rows_kernel<N: Size>(
    rows: &[Vector<f32, N>],
    out: &mut [Vector<f32, N>],
    width: u32,
    #[comptime] pairs: Pairs,
) {
    let i = ABSOLUTE_POS;
    let width = width as usize;
    if i < width {
        let mut sums = Array::<Vector<f32, N>>::new(comptime!(pairs.rows));
        #[unroll]
        for row in 0..comptime!(pairs.rows) {
            sums[row] = rows[row * width + i];
        }
        #[unroll]
        for pair in 0..comptime!(pairs.pairs.len()) {
            let from = sums[comptime!(pairs.pairs[pair][1])];
            sums[comptime!(pairs.pairs[pair][0])] += from;
        }
        out[i] = sums[0usize];
    }
}

/// Adds `from` onto `onto`, in its memory.
pub(super) fn add_onto(onto: &CubeTensor, from: &CubeTensor) {
    let line = line(DType::F32, len(onto));
    let (count, dim) = elementwise(len(onto) / line);
    assert_eq!(len(onto), len(from), "numbers of a sum");
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: both have as many vectors, and the kernel does not go beyond the last.
    unsafe {
        add_onto_kernel::launch_unchecked(
            &onto.client,
            count,
            dim,
            line,
            argument(onto, line),
            argument(from, line),
        );
    }
}

#[cube(launch_unchecked)]
fn add_onto_kernel<N: Size>(onto: &mut [Vector<f32, N>], from: &[Vector<f32, N>]) {
    let i = ABSOLUTE_POS;
    if i < onto.len() {
        onto[i] += from[i];
    }
}

/// Writes `n` values of `from` over those of `to`, each from a place on, or zeroes where there is nothing to write.
///
/// Places are numbers of the kernel: WebGPU binds buffers at few of them.
pub(super) fn write(
    (to, to_start): (&CubeTensor, usize),
    from: Option<(&CubeTensor, usize)>,
    n: usize,
) {
    let from_start = from.map_or(0, |(_, start)| start);
    assert!(to_start + n <= len(to), "{n} of {} numbers", len(to));
    assert!(from.is_none_or(|(from, start)| start + n <= len(from)));
    if n == 0 {
        return;
    }
    let line = line(
        DType::F32,
        to_start | from_start | n | len(to) | from.map_or(0, |(from, _)| len(from)),
    );
    let (count, dim) = elementwise(n / line);
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: both have as many vectors from their places on, and the kernel does not go beyond the last; what stands in for
    // nothing is not read.
    unsafe {
        write_kernel::launch_unchecked(
            &to.client,
            count,
            dim,
            line,
            argument(to, line),
            match from {
                Some((from, _)) => argument(from, line),
                None => BufferArg::alias(0, len(to) / line),
            },
            (to_start / line) as u32,
            (from_start / line) as u32,
            (n / line) as u32,
            from.is_none(),
        );
    }
}

#[cube(launch_unchecked)]
fn write_kernel<N: Size>(
    to: &mut [Vector<f32, N>],
    from: &[Vector<f32, N>],
    to_start: u32,
    from_start: u32,
    vectors: u32,
    #[comptime] zeroes: bool,
) {
    let i = ABSOLUTE_POS;
    if i < vectors as usize {
        if comptime!(zeroes) {
            to[to_start as usize + i] = Vector::new(0.0f32);
        } else {
            to[to_start as usize + i] = from[from_start as usize + i];
        }
    }
}

/// Cubes that share a checksum.
const SUMS: u32 = 256;

/// Of each cube two sums; `None` elsewhere than on a CubeCL device.
pub(super) fn checksums(values: &Tensor<1>) -> Option<Result<Vec<u32>, TensorReadError>> {
    let values = numbers(values)?;
    let sums = empty(&values, [2 * SUMS as usize], DType::U32);
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: the kernel reads up to the last value, and writes two numbers for each cube.
    unsafe {
        checksum_kernel::launch_unchecked(
            &values.client,
            CubeCount::Static(SUMS, 1, 1),
            CubeDim::new_1d(UNITS),
            argument(&values, 1),
            argument(&sums, 1),
            len(&values) as u32,
        );
    }
    let sums = Tensor::<1, Int>::from_primitive::<CubeBackend>(sums);
    let sums = sums.try_into_data().map_err(TensorReadError::from);
    Some(sums.map(|sums| sums.iter::<u32>().collect()))
}

/// Values are the bits of the first `count` floats.
#[cube(launch_unchecked)]
fn checksum_kernel(values: &[u32], sums: &mut [u32], count: u32) {
    let units = comptime!(UNITS as usize);
    let mut first = 0u32;
    let mut second = 0u32;
    let mut i = CUBE_POS * units + UNIT_POS as usize;
    while i < count as usize {
        let bits = values[i];
        let place = i as u32 + 1u32;
        first += mixed(bits, place, comptime!(FACTORS[0]), comptime!(FACTORS[1]));
        second += mixed(bits, place, comptime!(FACTORS[2]), comptime!(FACTORS[3]));
        i += units * comptime!(SUMS as usize);
    }
    let mut partial = Shared::<[u32]>::new_slice(comptime!(2 * UNITS as usize));
    partial[UNIT_POS as usize] = first;
    partial[units + UNIT_POS as usize] = second;
    sync_cube();
    let mut half = comptime!(UNITS / 2).runtime();
    while half > 0 {
        if UNIT_POS < half {
            let other = partial[(UNIT_POS + half) as usize];
            partial[UNIT_POS as usize] += other;
            let other = partial[units + (UNIT_POS + half) as usize];
            partial[units + UNIT_POS as usize] += other;
        }
        sync_cube();
        half /= 2;
    }
    if UNIT_POS == 0 {
        sums[2 * CUBE_POS] = partial[0];
        sums[2 * CUBE_POS + 1] = partial[units];
    }
}

#[cube]
fn mixed(bits: u32, place: u32, #[comptime] of_place: u32, #[comptime] factor: u32) -> u32 {
    let mut x = bits ^ (place * of_place);
    x = (x ^ (x >> 16u32)) * factor;
    x ^ (x >> 13u32)
}
