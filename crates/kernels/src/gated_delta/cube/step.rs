//! One token of a sequence that goes on: a cube has some columns of one head's state in registers, shared out by keys' features.

use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::super::EPS;
use super::{Device, Shape};
use crate::cube::{CubeTensor, argument, elem};
use crate::runs::{DOCUMENT, RUN, Runs};

/// Columns of a cube.
const ACROSS: usize = 32;
/// Units that share a column.
const PARTS: usize = 8;

/// The documents of `ones`, each of one token, from `start` to `left`.
pub(super) fn step(
    x: &Device,
    ones: &Runs,
    (start, left): (&CubeTensor, &CubeTensor),
    out: &CubeTensor,
) {
    let shape = x.shape;
    let across = shape.value.div_ceil(ACROSS) * shape.value_heads;
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: runs and documents name rows of the tensors and states, whose sizes follow from the layout, as the caller checked.
    unsafe {
        kernel::launch_unchecked(
            &x.qkv.client,
            CubeCount::Static(across as u32, ones.document_count as u32, 1),
            CubeDim::new_2d(ACROSS as u32, PARTS as u32),
            argument(&x.qkv, 1),
            argument(&x.beta, 1),
            argument(&x.decay, 1),
            ones.runs(),
            ones.documents(),
            argument(start, 1),
            argument(out, 1),
            argument(left, 1),
            (shape.key as f32).sqrt().recip(),
            shape,
            elem(x.qkv.dtype),
        );
    }
}

/// Σ over the parts of a column.
#[cube]
fn sum_parts(value: f32, partial: &mut [f32]) -> f32 {
    let (x, y) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    sync_cube();
    partial[y * ACROSS + x] = value;
    sync_cube();
    let mut sum = 0.0f32;
    for part in 0..PARTS {
        sum += partial[part * ACROSS + x];
    }
    sum
}

#[cube(launch_unchecked)]
fn kernel<F: Float>(
    qkv: &[F],
    beta: &[f32],
    decay: &[f32],
    runs: &[u32],
    documents: &[u32],
    start: &[f32],
    out: &mut [F],
    left: &mut [f32],
    scale: f32,
    #[comptime] shape: Shape,
    #[define(F)] _dtype: ElemType,
) {
    let blocks = comptime!(shape.value.div_ceil(ACROSS));
    let head = CUBE_POS_X as usize / blocks;
    let column = CUBE_POS_X as usize % blocks * ACROSS + UNIT_POS_X as usize;
    let part = UNIT_POS_Y as usize;
    let heads = comptime!(shape.value_heads);
    let record = CUBE_POS_Y as usize * DOCUMENT;
    let row = runs[documents[record] as usize * RUN] as usize;
    let of_state = (documents[record + 2] as usize * heads + head) * comptime!(shape.state());
    let there = column < comptime!(shape.value);

    let mut q = Shared::<[f32]>::new_slice(comptime!(shape.key));
    let mut k = Shared::<[f32]>::new_slice(comptime!(shape.key));
    let mut partial = Shared::<[f32]>::new_slice(comptime!(ACROSS * PARTS));
    let queries =
        row * comptime!(shape.width()) + head / comptime!(shape.group()) * comptime!(shape.key);
    let mut i = UNIT_POS as usize;
    while i < comptime!(shape.key) {
        q[i] = f32::cast_from(qkv[queries + i]);
        k[i] = f32::cast_from(qkv[queries + comptime!(shape.key_width()) + i]);
        i += comptime!(ACROSS * PARTS);
    }
    sync_cube();
    let mut of_queries = 0.0f32;
    let mut of_keys = 0.0f32;
    for i in 0..comptime!(shape.key) {
        of_queries += q[i] * q[i];
        of_keys += k[i] * k[i];
    }
    let query_norm = scale / (of_queries + EPS).sqrt();
    let key_norm = 1.0f32 / (of_keys + EPS).sqrt();

    // The state after forgetting, and what it holds for the key.
    let gate = row * heads + head;
    let kept = decay[gate].exp();
    let mut state = Array::<f32>::new(comptime!(shape.key.div_ceil(PARTS)));
    let mut held = 0.0f32;
    #[unroll]
    for n in 0..comptime!(shape.key.div_ceil(PARTS)) {
        let feature = part + comptime!(n * PARTS);
        let mut value = 0.0f32;
        if there && feature < comptime!(shape.key) {
            value = start[of_state + feature * comptime!(shape.value) + column] * kept;
            held += value * k[feature];
        }
        state[n] = value;
    }
    let held = sum_parts(held, &mut partial) * key_norm;
    let mut value = 0.0f32;
    if there {
        let values = row * comptime!(shape.width())
            + comptime!(2 * shape.key_width())
            + head * comptime!(shape.value);
        value = f32::cast_from(qkv[values + column]);
    }
    let update = beta[gate] * (value - held) * key_norm;
    let mut seen = 0.0f32;
    #[unroll]
    for n in 0..comptime!(shape.key.div_ceil(PARTS)) {
        let feature = part + comptime!(n * PARTS);
        if there && feature < comptime!(shape.key) {
            let value = state[n] + k[feature] * update;
            left[of_state + feature * comptime!(shape.value) + column] = value;
            seen += value * q[feature];
        }
    }
    let seen = sum_parts(seen, &mut partial) * query_norm;
    if there && part == 0 {
        out[gate * comptime!(shape.value) + column] = F::cast_from(seen);
    }
}
