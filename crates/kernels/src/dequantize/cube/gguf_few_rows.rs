//! x·Wᵀ for a few rows of x straight from blocks of GGUF files, laid out as in [`few_rows`](super::few_rows): each group of
//! 32 units has a few rows of W, and a unit goes through them eight values at a time.

use backdraft_arch::GgufBlock;
use burn::tensor::{DType, Tensor};
use cubecl::features::Plane;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::few_rows::{GROUP, GROUPS, MOST};
use super::gguf::{VALUES, eight};
use super::{codes, words};
use crate::cube::{CubeTensor, argument, cubes, elem, empty, floats, sum_lanes, tensor};
use crate::dequantize::GgufBlocks;

/// What the kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    /// Rows of x, a power of two: those there are, and perhaps some that are not written.
    tokens: usize,
    /// Rows of W of a group.
    rows: usize,
    /// The type of W's blocks.
    kind: GgufBlock,
    /// Whether something is added to.
    adds: bool,
    /// Whether groups are planes, which can sum among themselves.
    planes: bool,
}

impl Shape {
    fn sums(self) -> usize {
        self.rows * self.tokens
    }
}

/// `x · Wᵀ`, added to `sum` where there is one; `None` elsewhere than on a CubeCL device and beyond [`MOST`] rows.
pub(in super::super) fn matmul(
    x: &Tensor<2>,
    matrix: &GgufBlocks,
    sum: Option<&Tensor<2>>,
) -> Option<Tensor<2>> {
    let t = x.dims()[0];
    let [out, input] = matrix.dims;
    if t == 0 || t > MOST || out * input == 0 {
        return None;
    }
    let (x, bytes) = (floats(x)?, codes(&matrix.bytes, DType::U8)?);
    let sum = match sum {
        Some(sum) => Some(floats(sum).filter(|sum| sum.dtype == x.dtype)?),
        None => None,
    };
    Some(tensor(launch(&x, matrix, &bytes, sum.as_ref())))
}

fn launch(
    x: &CubeTensor,
    matrix: &GgufBlocks,
    bytes: &CubeTensor,
    sum: Option<&CubeTensor>,
) -> CubeTensor {
    let [out, input] = matrix.dims;
    let t = x.meta.shape()[0];
    let hardware = &x.client.properties().hardware;
    let group = GROUP as u32;
    let planes = (hardware.plane_size_min, hardware.plane_size_max) == (group, group)
        && x.client.features().plane.contains(Plane::Ops);
    let shape = Shape {
        tokens: t.next_power_of_two(),
        // Without planes sums go through shared memory, of which there may be little.
        rows: if planes { 4 } else { 2 },
        kind: matrix.kind,
        adds: sum.is_some(),
        planes,
    };
    let y = empty(x, [t, out], x.dtype);
    let count = cubes(out.div_ceil(GROUPS * shape.rows));
    let dim = CubeDim::new_2d(group, GROUPS as u32);
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: W has `out` rows of `input` values in whole blocks, x `t` rows of `input` values, and what is added and y
    // `t` rows of `out` values; the kernel clamps its rows to those.
    unsafe {
        kernel::launch_unchecked(
            &x.client,
            count,
            dim,
            VALUES,
            words(bytes, 1),
            argument(x, VALUES),
            argument(sum.unwrap_or(x), 1),
            argument(&y, 1),
            out as u32,
            (input / VALUES) as u32,
            t as u32,
            shape,
            elem(x.dtype),
        );
    }
    y
}

#[cube(launch_unchecked)]
fn kernel<F: Float, N: Size>(
    bytes: &[u32],
    x: &[Vector<F, N>],
    added: &[F],
    y: &mut [F],
    out: u32,
    vectors: u32,
    t: u32,
    #[comptime] shape: Shape,
    #[define(F)] _dtype: ElemType,
) {
    let (out, vectors, t) = (out as usize, vectors as usize, t as usize);
    let (lane, group) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let first = (CUBE_POS * GROUPS + group) * comptime!(shape.rows);
    let mut sums = Array::<f32>::new(comptime!(shape.sums()));
    #[unroll]
    for i in 0..comptime!(shape.sums()) {
        sums[i] = 0.0f32;
    }
    let mut at = lane;
    while at < vectors {
        let mut values = Array::<Vector<f32, N>>::new(comptime!(shape.rows));
        #[unroll]
        for r in 0..comptime!(shape.rows) {
            let position = min(first + r, out - 1) * vectors + at;
            values[r] = eight::<N>(bytes, position * VALUES, comptime!(shape.kind));
        }
        #[unroll]
        for token in 0..comptime!(shape.tokens) {
            let input = Vector::<f32, N>::cast_from(x[min(token, t - 1) * vectors + at]);
            #[unroll]
            for r in 0..comptime!(shape.rows) {
                sums[comptime!(r * shape.tokens + token)] += sum_lanes(values[r] * input);
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
