//! x·Wᵀ for a few rows of x straight from codes in blocks, as generation needs it: what moves is the codes, once.
//!
//! Each group of 32 units has a few rows of W. A unit goes through them in vectors of eight or sixteen codes, a group's
//! vectors side by side, and multiplies what they stand for with the rows of x, which stay in the cache; scales are
//! applied to sums of eight products. In the end each sum of the group is one unit's to write.

use burn::tensor::Tensor;
use cubecl::features::Plane;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::blocks::{CODES, Parts, Planes, code_of, eight, scale};
use crate::cube::{CubeTensor, argument, cubes, elem, empty, floats, sum_lanes, tensor};
use crate::dequantize::{BlockFormat, Blocks};

/// Rows of x at most. Beyond, a product with dequantised values has enough to do with each of them.
pub(super) const MOST: usize = 8;

/// Units of a group.
pub(super) const GROUP: usize = 32;

/// Groups of a cube.
pub(super) const GROUPS: usize = 4;

/// What the kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    /// Rows of x, a power of two: those there are, and perhaps some that are not written.
    tokens: usize,
    /// Rows of W of a group.
    rows: usize,
    /// Times eight codes that a unit reads at once.
    words: usize,
    /// Such vectors of a block.
    block: usize,
    /// Where a code's bits are.
    codes: Planes,
    /// Whether scales are in codes.
    double: bool,
    /// Whether something is added to.
    adds: bool,
    /// Whether groups are planes, which can sum among themselves.
    planes: bool,
}

impl Shape {
    /// Groups of eight codes with further bits; one at least, as arrays have.
    fn rest(self) -> usize {
        if self.codes.low > 0 {
            self.rows * self.words
        } else {
            1
        }
    }

    fn sums(self) -> usize {
        self.rows * self.tokens
    }
}

/// `x · Wᵀ`, added to `sum` where there is one, which is written over if nothing else holds it; `Err` hands it
/// back elsewhere than on a CubeCL device, beyond [`MOST`] rows, and where rows or blocks do not begin with
/// eight codes.
pub(in super::super) fn matmul<F: BlockFormat>(
    x: &Tensor<2>,
    matrix: &Blocks<F>,
    sum: Option<&Tensor<2>>,
) -> Option<Tensor<2>> {
    let [t, input] = x.dims();
    let out = matrix.dims[0];
    let whole_words = input.is_multiple_of(CODES) && matrix.block_size.is_multiple_of(CODES);
    if t == 0 || t > MOST || out * input == 0 || !whole_words {
        return None;
    }
    let (x, parts) = (floats(x)?, Parts::of(matrix)?);
    let sum = match sum {
        Some(sum) => Some(floats(sum).filter(|sum| sum.dtype == x.dtype)?),
        None => None,
    };
    Some(tensor(launch(&x, matrix, &parts, sum.as_ref())))
}

fn launch<F: BlockFormat>(
    x: &CubeTensor,
    matrix: &Blocks<F>,
    parts: &Parts,
    sum: Option<&CubeTensor>,
) -> CubeTensor {
    let [out, input] = matrix.dims;
    let t = x.meta.shape()[0];
    let hardware = &x.client.properties().hardware;
    let group = GROUP as u32;
    let planes = (hardware.plane_size_min, hardware.plane_size_max) == (group, group)
        && x.client.features().plane.contains(Plane::Ops);
    // Vectors neither cross rows nor blocks.
    let fits = |words: &usize| {
        let codes = CODES * words;
        input.is_multiple_of(codes) && matrix.block_size.is_multiple_of(codes)
    };
    let words = [2, 1].into_iter().find(fits).unwrap_or(1);
    let shape = Shape {
        tokens: t.next_power_of_two(),
        // Without planes sums go through shared memory, of which there may be little.
        rows: if planes { 4 } else { 2 },
        words,
        block: matrix.block_size / (CODES * words),
        codes: parts.planes,
        double: parts.double,
        adds: sum.is_some(),
        planes,
    };
    let y = empty(x, [t, out], x.dtype);
    // Pairs are read a word at a time: eight codes are half of one.
    let line = if parts.planes.high == 4 { words } else { 1 };
    let count = cubes(out.div_ceil(GROUPS * shape.rows));
    let dim = CubeDim::new_2d(group, GROUPS as u32);
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: W has `out` rows of `input` codes and a scale for each started block, x `t` rows of `input` values,
    // and what is added and y `t` rows of `out` values; the kernel clamps its rows to those.
    unsafe {
        kernel::launch_unchecked(
            &x.client,
            count,
            dim,
            line,
            CODES,
            parts.high(line),
            parts.low(),
            parts.scale_codes(),
            parts.scales(),
            parts.code_table(),
            parts.scale_table(),
            argument(x, CODES),
            argument(sum.unwrap_or(x), 1),
            argument(&y, 1),
            out as u32,
            (input / (CODES * words)) as u32,
            t as u32,
            parts.offset,
            shape,
            elem(x.dtype),
        );
    }
    y
}

#[cube(launch_unchecked)]
fn kernel<F: Float, W: Size, N: Size>(
    packed: &[Vector<u32, W>],
    low: &[u32],
    scale_codes: &[u32],
    scales: &[f32],
    code: &[f32],
    map: &[f32],
    x: &[Vector<F, N>],
    added: &[F],
    y: &mut [F],
    out: u32,
    vectors: u32,
    t: u32,
    offset: f32,
    #[comptime] shape: Shape,
    #[define(F)] _dtype: ElemType,
) {
    let (out, vectors, t) = (out as usize, vectors as usize, t as usize);
    let (lane, group) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let mut lookup = Shared::<[f32]>::new_slice(comptime!(shape.codes.values()));
    if UNIT_POS < comptime!(shape.codes.values() as u32) {
        lookup[UNIT_POS as usize] = code[UNIT_POS as usize];
    }
    sync_cube();

    let first = (CUBE_POS * GROUPS + group) * comptime!(shape.rows);
    let mut sums = Array::<f32>::new(comptime!(shape.sums()));
    #[unroll]
    for i in 0..comptime!(shape.sums()) {
        sums[i] = 0.0f32;
    }
    let mut at = lane;
    while at < vectors {
        let mut codes = Array::<u32>::new(comptime!(shape.rows * shape.words));
        let mut rest = Array::<u32>::new(comptime!(shape.rest()));
        let mut factors = Array::<f32>::new(comptime!(shape.rows));
        #[unroll]
        for r in 0..comptime!(shape.rows) {
            let position = min(first + r, out - 1) * vectors + at;
            if comptime!(shape.codes.high == 4) {
                let vector = packed[position];
                #[unroll]
                for w in 0..comptime!(shape.words) {
                    codes[comptime!(r * shape.words + w)] = vector.extract(w);
                }
            } else {
                #[unroll]
                for w in 0..comptime!(shape.words) {
                    let group = position * comptime!(shape.words) + w;
                    let word = packed[group / comptime!(4 / shape.codes.high)].extract(0usize);
                    let part = group % comptime!(4 / shape.codes.high);
                    let shift = (part * comptime!(CODES * shape.codes.high)) as u32;
                    codes[comptime!(r * shape.words + w)] = word >> shift;
                }
            }
            if comptime!(shape.codes.low > 0) {
                #[unroll]
                for w in 0..comptime!(shape.words) {
                    let group = position * comptime!(shape.words) + w;
                    rest[comptime!(r * shape.words + w)] =
                        eight(low, group, comptime!(shape.codes.low));
                }
            }
            let block = position / comptime!(shape.block);
            factors[r] = scale(
                block,
                scale_codes,
                scales,
                map,
                offset,
                comptime!(shape.double),
            );
        }
        #[unroll]
        for w in 0..comptime!(shape.words) {
            let column = at * comptime!(shape.words) + w;
            let mut values = Array::<Vector<f32, N>>::new(comptime!(shape.rows));
            #[unroll]
            for r in 0..comptime!(shape.rows) {
                let upper = codes[comptime!(r * shape.words + w)];
                let lower = if comptime!(shape.codes.low > 0) {
                    rest[comptime!(r * shape.words + w)]
                } else {
                    upper
                };
                let mut vector = Vector::<f32, N>::empty();
                #[unroll]
                for i in 0..CODES {
                    let index = code_of(upper, lower, i, shape.codes);
                    vector.insert(i, lookup[index as usize]);
                }
                values[r] = vector;
            }
            #[unroll]
            for token in 0..comptime!(shape.tokens) {
                let row = min(token, t - 1) * vectors * comptime!(shape.words);
                let input = Vector::<f32, N>::cast_from(x[row + column]);
                #[unroll]
                for r in 0..comptime!(shape.rows) {
                    let i = comptime!(r * shape.tokens + token);
                    sums[i] += sum_lanes(values[r] * input) * factors[r];
                }
            }
        }
        at += GROUP;
    }

    // Unit `i` of a group gets sum `i`.
    let mut own = 0.0f32;
    if comptime!(shape.planes) {
        #[unroll]
        for i in 0..comptime!(shape.sums()) {
            own = select(lane == i, plane_sum(sums[i]), own);
        }
    } else {
        let mut partial = Shared::<[f32]>::new_slice(comptime!(shape.sums() * GROUPS * GROUP));
        #[unroll]
        for i in 0..comptime!(shape.sums()) {
            partial[(i * GROUPS + group) * GROUP + lane] = sums[i];
        }
        sync_cube();
        if lane < comptime!(shape.sums()) {
            #[unroll]
            for other in 0..GROUP {
                own += partial[(lane * GROUPS + group) * GROUP + other];
            }
        }
    }
    let row = first + lane / comptime!(shape.tokens);
    let token = lane % comptime!(shape.tokens);
    if lane < comptime!(shape.sums()) && row < out && token < t {
        let i = token * out + row;
        if comptime!(shape.adds) {
            own += f32::cast_from(added[i]);
        }
        y[i] = F::cast_from(own);
    }
}
