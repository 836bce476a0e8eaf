//! Attention on CubeCL devices: on tensor cores where [`hopper`](super::hopper) or [`mma`](super::mma) applies, else by
//! square tiles in shared memory, in f32.
//!
//! A cube of `tile × tile` units has the rows of a tile and goes through the other side in blocks of as many;
//! unit (x, y) has row `y`, and its score with row `x` of the block.

use burn::tensor::{DType, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::tiles::{FIELDS, NEVER, Side, first_seen, tiles};
use super::{HeadLayout, Path, Qkv};
use crate::cube::{
    CubeTensor, argument, elem, elementwise, empty, floats, line, sum_lanes, tensor,
};
#[cfg(feature = "cuda")]
use crate::mma::Generation;
use crate::segments::Segments;

/// What the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// Rows of a tile, units along each side of a cube.
    tile: usize,
    /// Keys that a query sees, itself included; 0 for all.
    window: u32,
    /// Whether scores are capped.
    capped: bool,
}

impl Shape {
    /// `arrays` tiles stand in shared memory beside two of scores.
    fn new(like: &CubeTensor, layout: HeadLayout, arrays: usize) -> Self {
        let memory = like.client.properties().hardware.max_shared_memory_size;
        let units = like.client.properties().hardware.max_units_per_cube as usize;
        let fits = |tile: usize| {
            4 * (arrays * tile * (layout.head_dim + 1) + 2 * tile * (tile + 1)) <= memory
                && tile * tile <= units
        };
        let tile = [16, 8, 4, 2, 1].into_iter().find(|&tile| fits(tile));
        Self {
            heads: layout.heads,
            kv_heads: layout.kv_heads,
            head_dim: layout.head_dim,
            tile: tile.unwrap_or(1),
            window: layout.window.unwrap_or(0) as u32,
            capped: layout.softcap.is_some(),
        }
    }

    fn dim(self) -> CubeDim {
        CubeDim::new_2d(self.tile as u32, self.tile as u32)
    }
}

/// On `path`, `None` where that does not apply; by default on the fastest.
pub(super) fn forward(
    path: Option<Path>,
    qkv: &Qkv,
    segments: &Segments,
    layout: HeadLayout,
) -> Option<(Tensor<2>, Tensor<2>)> {
    let [q, k, v] = operands([&qkv.q, &qkv.k, &qkv.v])?;
    let path = path.unwrap_or_else(|| Path::of(&q, layout));
    if !path.applies(&q, layout) {
        return None;
    }
    if segments.queries() == 0 {
        let lse = empty(&q, [0, layout.heads], DType::F32);
        return Some((qkv.q.clone(), tensor(lse)));
    }
    let qkv = [&q, &k, &v];
    let (out, lse) = match path {
        #[cfg(feature = "cuda")]
        Path::Hopper => super::hopper::forward(qkv, segments, layout),
        #[cfg(feature = "cuda")]
        Path::Sm80 => super::mma::forward(qkv, segments, layout, Generation::Ampere),
        #[cfg(feature = "cuda")]
        Path::Sm75 => super::mma::forward(qkv, segments, layout, Generation::Turing),
        _ => forward_scalar(qkv, segments, layout),
    };
    Some((tensor(out), tensor(lse)))
}

fn forward_scalar(
    [q, k, v]: [&CubeTensor; 3],
    segments: &Segments,
    layout: HeadLayout,
) -> (CubeTensor, CubeTensor) {
    let rows = segments.queries();
    let out = empty(q, [rows, layout.heads * layout.head_dim], q.dtype);
    let lse = empty(q, [rows, layout.heads], DType::F32);
    let shape = Shape::new(q, layout, 3);
    let tiles = tiles(segments, Side::Queries, shape.tile, q);
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: tiles name rows of the tensors, whose widths follow from the layout, as the caller checked.
    unsafe {
        forward_kernel::launch_unchecked(
            &q.client,
            CubeCount::Static(layout.heads as u32, tiles.count as u32, 1),
            shape.dim(),
            argument(q, 1),
            argument(k, 1),
            argument(v, 1),
            tiles.argument(),
            argument(&out, 1),
            argument(&lse, 1),
            layout.scale,
            layout.softcap.unwrap_or(1.0),
            shape,
            elem(q.dtype),
        );
    }
    (out, lse)
}

/// As [`forward`].
pub(super) fn backward(
    path: Option<Path>,
    d_out: &Tensor<2>,
    qkv: &Qkv,
    (out, lse): (&Tensor<2>, &Tensor<2>),
    segments: &Segments,
    layout: HeadLayout,
) -> Option<Qkv> {
    let [q, k, v] = operands([&qkv.q, &qkv.k, &qkv.v])?;
    let [d_out, out] = operands([d_out, out])?;
    let lse = floats(lse)?;
    if d_out.dtype != q.dtype || out.dtype != q.dtype || lse.dtype != DType::F32 {
        return None;
    }
    let path = path.unwrap_or_else(|| Path::of(&q, layout));
    if !path.applies(&q, layout) {
        return None;
    }
    if segments.queries() == 0 {
        return Some(Qkv {
            q: qkv.q.zeros_like(),
            k: qkv.k.zeros_like(),
            v: qkv.v.zeros_like(),
        });
    }
    let delta = delta(&d_out, &out, layout);
    let (qkv, saved) = ([&q, &k, &v], (&lse, &delta));
    Some(match path {
        #[cfg(feature = "cuda")]
        Path::Hopper => super::hopper::backward(&d_out, qkv, saved, segments, layout),
        #[cfg(feature = "cuda")]
        Path::Sm80 => {
            super::mma::backward(&d_out, qkv, saved, segments, layout, Generation::Ampere)
        }
        #[cfg(feature = "cuda")]
        Path::Sm75 => {
            super::mma::backward(&d_out, qkv, saved, segments, layout, Generation::Turing)
        }
        _ => backward_scalar(&d_out, qkv, saved, segments, layout),
    })
}

fn backward_scalar(
    d_out: &CubeTensor,
    [q, k, v]: [&CubeTensor; 3],
    (lse, delta): (&CubeTensor, &CubeTensor),
    segments: &Segments,
    layout: HeadLayout,
) -> Qkv {
    let [dq, dk, dv] = [q, k, v].map(|x| {
        let shape = x.meta.shape();
        empty(x, [shape[0], shape[1]], x.dtype)
    });
    let shape = Shape::new(q, layout, 4);
    let cap = layout.softcap.unwrap_or(1.0);
    for (side, heads) in [(Side::Queries, layout.heads), (Side::Keys, layout.kv_heads)] {
        let tiles = tiles(segments, side, shape.tile, q);
        let count = CubeCount::Static(heads as u32, tiles.count as u32, 1);
        let [q_in, k_in, v_in, d_in] = [q, k, v, d_out].map(|x| argument(x, 1));
        let [lse, delta] = [lse, delta].map(|x| argument(x, 1));
        let elem = elem(q.dtype);
        #[expect(unsafe_code, reason = "kernels without bounds checks")]
        // SAFETY: tiles name rows of the tensors, whose widths follow from the layout, as the caller checked.
        unsafe {
            match side {
                Side::Queries => queries_kernel::launch_unchecked(
                    &q.client,
                    count,
                    shape.dim(),
                    q_in,
                    k_in,
                    v_in,
                    d_in,
                    lse,
                    delta,
                    tiles.argument(),
                    argument(&dq, 1),
                    layout.scale,
                    cap,
                    shape,
                    elem,
                ),
                Side::Keys => keys_kernel::launch_unchecked(
                    &q.client,
                    count,
                    shape.dim(),
                    q_in,
                    k_in,
                    v_in,
                    d_in,
                    lse,
                    delta,
                    tiles.argument(),
                    argument(&dk, 1),
                    argument(&dv, 1),
                    layout.scale,
                    cap,
                    shape,
                    elem,
                ),
            }
        }
    }
    Qkv {
        q: tensor(dq),
        k: tensor(dk),
        v: tensor(dv),
    }
}

/// Contiguous operands of one dtype.
fn operands<const N: usize>(tensors: [&Tensor<2>; N]) -> Option<[CubeTensor; N]> {
    let found: Option<Vec<CubeTensor>> = tensors.into_iter().map(floats).collect();
    let found: [CubeTensor; N] = found?.try_into().ok()?;
    found
        .iter()
        .all(|x| x.dtype == found[0].dtype)
        .then_some(found)
}

/// Σ of dO∘O over each head.
///
/// # Shapes
/// `[t, h]`, f32.
fn delta(d_out: &CubeTensor, out: &CubeTensor, layout: HeadLayout) -> CubeTensor {
    let rows = out.meta.shape()[0];
    let delta = empty(out, [rows, layout.heads], DType::F32);
    let line = line(out.dtype, layout.head_dim);
    let (count, dim) = elementwise(rows * layout.heads);
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: `delta` has a value for each head of each row, and the kernel does not go beyond the last.
    unsafe {
        delta_kernel::launch_unchecked(
            &out.client,
            count,
            dim,
            line,
            argument(d_out, line),
            argument(out, line),
            argument(&delta, 1),
            layout.head_dim / line,
            elem(out.dtype),
        );
    }
    delta
}

#[cube(launch_unchecked)]
fn delta_kernel<F: Float, N: Size>(
    d_out: &[Vector<F, N>],
    out: &[Vector<F, N>],
    delta: &mut [f32],
    #[comptime] vectors: usize,
    #[define(F)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i < delta.len() {
        let mut sum = Vector::<f32, N>::new(0.0f32);
        for j in 0..vectors {
            let a = Vector::<f32, N>::cast_from(d_out[i * vectors + j]);
            let b = Vector::<f32, N>::cast_from(out[i * vectors + j]);
            sum += a * b;
        }
        delta[i] = sum_lanes(sum);
    }
}

/// Row `row` of head `head` into row `UNIT_POS_Y` of a tile; zeros if there is no such row.
#[cube]
fn load_row<F: Float>(
    from: &[F],
    to: &mut [f32],
    row: u32,
    end: u32,
    head: usize,
    #[comptime] heads: usize,
    #[comptime] shape: Shape,
) {
    let head_dim = comptime!(shape.head_dim);
    let start = UNIT_POS_Y as usize * comptime!(head_dim + 1);
    let source = (row as usize * heads + head) * head_dim;
    let mut i = UNIT_POS_X as usize;
    while i < head_dim {
        let mut value = 0.0f32;
        if row < end {
            value = f32::cast_from(from[source + i]);
        }
        to[start + i] = value;
        i += comptime!(shape.tile);
    }
}

/// Row `a` of one tile times row `b` of another.
#[cube]
fn dot(a: &[f32], a_row: usize, b: &[f32], b_row: usize, #[comptime] head_dim: usize) -> f32 {
    let width = comptime!(head_dim + 1);
    let mut sum = 0.0f32;
    for i in 0..head_dim {
        sum += a[a_row * width + i] * b[b_row * width + i];
    }
    sum
}

/// Whether the query at `position` among the keys sees `key`.
#[cube]
fn sees(position: u32, key: u32, #[comptime] window: u32) -> bool {
    let mut seen = key <= position;
    if comptime!(window > 0) {
        seen = seen && key + window > position;
    }
    seen
}

/// A score from a product of query and key, before the softmax.
#[cube]
fn scored(product: f32, scale: f32, cap: f32, #[comptime] capped: bool) -> f32 {
    let score = product * scale;
    if comptime!(capped) {
        cap * hyperbolic_tangent(score / cap)
    } else {
        score
    }
}

/// The derivative of [`scored`] by its product, from its result.
#[cube]
fn slope(score: f32, scale: f32, cap: f32, #[comptime] capped: bool) -> f32 {
    if comptime!(capped) {
        let share = score / cap;
        scale * (1.0f32 - share * share)
    } else {
        scale
    }
}

/// tanh(x), without overflow.
#[cube]
fn hyperbolic_tangent(x: f32) -> f32 {
    let e = (-2.0f32 * x.abs()).exp();
    let t = (1.0f32 - e) / (1.0f32 + e);
    select(x < 0.0f32, -t, t)
}

#[cube(launch_unchecked)]
fn forward_kernel<F: Float>(
    q: &[F],
    k: &[F],
    v: &[F],
    tiles: &[u32],
    out: &mut [F],
    lse: &mut [f32],
    scale: f32,
    cap: f32,
    #[comptime] shape: Shape,
    #[define(F)] _dtype: ElemType,
) {
    let record = CUBE_POS_Y as usize * FIELDS;
    let first = tiles[record];
    let end = tiles[record + 1];
    let keys_first = tiles[record + 2];
    let keys_end = tiles[record + 3];
    let shift = tiles[record + 4];
    let head = CUBE_POS_X as usize;
    let kv_head = head / comptime!(shape.heads / shape.kv_heads);
    let tile = comptime!(shape.tile);
    let width = comptime!(shape.head_dim + 1);
    let window = comptime!(shape.window);
    let capped = comptime!(shape.capped);

    let mut qs = Shared::<[f32]>::new_slice(comptime!(shape.tile * (shape.head_dim + 1)));
    let mut ks = Shared::<[f32]>::new_slice(comptime!(shape.tile * (shape.head_dim + 1)));
    let mut vs = Shared::<[f32]>::new_slice(comptime!(shape.tile * (shape.head_dim + 1)));
    let mut scores = Shared::<[f32]>::new_slice(comptime!(shape.tile * (shape.tile + 1)));
    let (x, y) = (UNIT_POS_X, UNIT_POS_Y);
    let row = first + y;
    let position = row + shift;
    load_row::<F>(q, &mut qs, row, end, head, comptime!(shape.heads), shape);

    let mut sums = Array::<f32>::new(comptime!(shape.head_dim.div_ceil(shape.tile)));
    #[unroll]
    for i in 0..comptime!(shape.head_dim.div_ceil(shape.tile)) {
        sums[i] = 0.0f32;
    }
    let mut top = NEVER.runtime();
    let mut total = 0.0f32;
    let mut key = first_seen(first, shift, keys_first, window);
    let stop = min(keys_end, end + shift);
    while key < stop {
        sync_cube();
        load_row::<F>(
            k,
            &mut ks,
            key + y,
            keys_end,
            kv_head,
            comptime!(shape.kv_heads),
            shape,
        );
        load_row::<F>(
            v,
            &mut vs,
            key + y,
            keys_end,
            kv_head,
            comptime!(shape.kv_heads),
            shape,
        );
        sync_cube();
        let product = dot(&qs, y as usize, &ks, x as usize, comptime!(shape.head_dim));
        let own = key + x;
        let mut score = NEVER.runtime();
        if own < keys_end && sees(position, own, window) {
            score = scored(product, scale, cap, capped);
        }
        let line = y as usize * comptime!(shape.tile + 1);
        scores[line + x as usize] = score;
        sync_cube();
        let mut highest = top;
        for i in 0..tile {
            highest = max(highest, scores[line + i]);
        }
        let shrink = (top - highest).exp();
        top = highest;
        total *= shrink;
        #[unroll]
        for i in 0..comptime!(shape.head_dim.div_ceil(shape.tile)) {
            sums[i] *= shrink;
        }
        for other in 0..tile {
            let weight = (scores[line + other] - highest).exp();
            total += weight;
            #[unroll]
            for i in 0..comptime!(shape.head_dim.div_ceil(shape.tile)) {
                let column = x as usize + comptime!(i * shape.tile);
                if column < comptime!(shape.head_dim) {
                    sums[i] += weight * vs[other * width + column];
                }
            }
        }
        key += tile as u32;
    }
    if row < end {
        let start = (row as usize * comptime!(shape.heads) + head) * comptime!(shape.head_dim);
        #[unroll]
        for i in 0..comptime!(shape.head_dim.div_ceil(shape.tile)) {
            let column = x as usize + comptime!(i * shape.tile);
            if column < comptime!(shape.head_dim) {
                out[start + column] = F::cast_from(sums[i] / total);
            }
        }
        if x == 0u32 {
            lse[row as usize * comptime!(shape.heads) + head] = top + total.ln();
        }
    }
}

#[cube(launch_unchecked)]
fn queries_kernel<F: Float>(
    q: &[F],
    k: &[F],
    v: &[F],
    d_out: &[F],
    lse: &[f32],
    delta: &[f32],
    tiles: &[u32],
    dq: &mut [F],
    scale: f32,
    cap: f32,
    #[comptime] shape: Shape,
    #[define(F)] _dtype: ElemType,
) {
    let record = CUBE_POS_Y as usize * FIELDS;
    let first = tiles[record];
    let end = tiles[record + 1];
    let keys_first = tiles[record + 2];
    let keys_end = tiles[record + 3];
    let shift = tiles[record + 4];
    let head = CUBE_POS_X as usize;
    let kv_head = head / comptime!(shape.heads / shape.kv_heads);
    let tile = comptime!(shape.tile);
    let width = comptime!(shape.head_dim + 1);
    let window = comptime!(shape.window);
    let capped = comptime!(shape.capped);

    let mut qs = Shared::<[f32]>::new_slice(comptime!(shape.tile * (shape.head_dim + 1)));
    let mut ds = Shared::<[f32]>::new_slice(comptime!(shape.tile * (shape.head_dim + 1)));
    let mut ks = Shared::<[f32]>::new_slice(comptime!(shape.tile * (shape.head_dim + 1)));
    let mut vs = Shared::<[f32]>::new_slice(comptime!(shape.tile * (shape.head_dim + 1)));
    let mut slopes = Shared::<[f32]>::new_slice(comptime!(shape.tile * (shape.tile + 1)));
    let (x, y) = (UNIT_POS_X, UNIT_POS_Y);
    let row = first + y;
    let position = row + shift;
    load_row::<F>(q, &mut qs, row, end, head, comptime!(shape.heads), shape);
    load_row::<F>(
        d_out,
        &mut ds,
        row,
        end,
        head,
        comptime!(shape.heads),
        shape,
    );
    let at = min(row, end - 1u32) as usize * comptime!(shape.heads) + head;
    let row_lse = lse[at];
    let row_delta = delta[at];

    let mut sums = Array::<f32>::new(comptime!(shape.head_dim.div_ceil(shape.tile)));
    #[unroll]
    for i in 0..comptime!(shape.head_dim.div_ceil(shape.tile)) {
        sums[i] = 0.0f32;
    }
    let mut key = first_seen(first, shift, keys_first, window);
    let stop = min(keys_end, end + shift);
    while key < stop {
        sync_cube();
        load_row::<F>(
            k,
            &mut ks,
            key + y,
            keys_end,
            kv_head,
            comptime!(shape.kv_heads),
            shape,
        );
        load_row::<F>(
            v,
            &mut vs,
            key + y,
            keys_end,
            kv_head,
            comptime!(shape.kv_heads),
            shape,
        );
        sync_cube();
        let own = key + x;
        let mut d_product = 0.0f32;
        if row < end && own < keys_end && sees(position, own, window) {
            let product = dot(&qs, y as usize, &ks, x as usize, comptime!(shape.head_dim));
            let score = scored(product, scale, cap, capped);
            let d_weight = dot(&ds, y as usize, &vs, x as usize, comptime!(shape.head_dim));
            d_product =
                (score - row_lse).exp() * (d_weight - row_delta) * slope(score, scale, cap, capped);
        }
        let line = y as usize * comptime!(shape.tile + 1);
        slopes[line + x as usize] = d_product;
        sync_cube();
        for other in 0..tile {
            let d = slopes[line + other];
            #[unroll]
            for i in 0..comptime!(shape.head_dim.div_ceil(shape.tile)) {
                let column = x as usize + comptime!(i * shape.tile);
                if column < comptime!(shape.head_dim) {
                    sums[i] += d * ks[other * width + column];
                }
            }
        }
        key += tile as u32;
    }
    if row < end {
        let start = (row as usize * comptime!(shape.heads) + head) * comptime!(shape.head_dim);
        #[unroll]
        for i in 0..comptime!(shape.head_dim.div_ceil(shape.tile)) {
            let column = x as usize + comptime!(i * shape.tile);
            if column < comptime!(shape.head_dim) {
                dq[start + column] = F::cast_from(sums[i]);
            }
        }
    }
}

#[cube(launch_unchecked)]
fn keys_kernel<F: Float>(
    q: &[F],
    k: &[F],
    v: &[F],
    d_out: &[F],
    lse: &[f32],
    delta: &[f32],
    tiles: &[u32],
    dk: &mut [F],
    dv: &mut [F],
    scale: f32,
    cap: f32,
    #[comptime] shape: Shape,
    #[define(F)] _dtype: ElemType,
) {
    let record = CUBE_POS_Y as usize * FIELDS;
    let first = tiles[record];
    let end = tiles[record + 1];
    let queries_first = tiles[record + 2];
    let queries_end = tiles[record + 3];
    let shift = tiles[record + 4];
    let kv_head = CUBE_POS_X as usize;
    let group = comptime!(shape.heads / shape.kv_heads);
    let tile = comptime!(shape.tile);
    let width = comptime!(shape.head_dim + 1);
    let window = comptime!(shape.window);
    let capped = comptime!(shape.capped);

    let mut ks = Shared::<[f32]>::new_slice(comptime!(shape.tile * (shape.head_dim + 1)));
    let mut vs = Shared::<[f32]>::new_slice(comptime!(shape.tile * (shape.head_dim + 1)));
    let mut qs = Shared::<[f32]>::new_slice(comptime!(shape.tile * (shape.head_dim + 1)));
    let mut ds = Shared::<[f32]>::new_slice(comptime!(shape.tile * (shape.head_dim + 1)));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(shape.tile * (shape.tile + 1)));
    let mut slopes = Shared::<[f32]>::new_slice(comptime!(shape.tile * (shape.tile + 1)));
    let (x, y) = (UNIT_POS_X, UNIT_POS_Y);
    let row = first + y;
    load_row::<F>(
        k,
        &mut ks,
        row,
        end,
        kv_head,
        comptime!(shape.kv_heads),
        shape,
    );
    load_row::<F>(
        v,
        &mut vs,
        row,
        end,
        kv_head,
        comptime!(shape.kv_heads),
        shape,
    );

    let mut dk_sums = Array::<f32>::new(comptime!(shape.head_dim.div_ceil(shape.tile)));
    let mut dv_sums = Array::<f32>::new(comptime!(shape.head_dim.div_ceil(shape.tile)));
    #[unroll]
    for i in 0..comptime!(shape.head_dim.div_ceil(shape.tile)) {
        dk_sums[i] = 0.0f32;
        dv_sums[i] = 0.0f32;
    }
    let mut start = queries_first;
    if first > queries_first + shift {
        start = first - shift;
    }
    for member in 0..group {
        let head = kv_head * group + member;
        let mut query = start;
        while query < queries_end {
            sync_cube();
            load_row::<F>(
                q,
                &mut qs,
                query + y,
                queries_end,
                head,
                comptime!(shape.heads),
                shape,
            );
            load_row::<F>(
                d_out,
                &mut ds,
                query + y,
                queries_end,
                head,
                comptime!(shape.heads),
                shape,
            );
            sync_cube();
            let own = query + x;
            let mut weight = 0.0f32;
            let mut d_product = 0.0f32;
            if row < end && own < queries_end && sees(own + shift, row, window) {
                let at = own as usize * comptime!(shape.heads) + head;
                let product = dot(&qs, x as usize, &ks, y as usize, comptime!(shape.head_dim));
                let score = scored(product, scale, cap, capped);
                let d_weight = dot(&ds, x as usize, &vs, y as usize, comptime!(shape.head_dim));
                weight = (score - lse[at]).exp();
                d_product = weight * (d_weight - delta[at]) * slope(score, scale, cap, capped);
            }
            let line = y as usize * comptime!(shape.tile + 1);
            weights[line + x as usize] = weight;
            slopes[line + x as usize] = d_product;
            sync_cube();
            for other in 0..tile {
                let w = weights[line + other];
                let d = slopes[line + other];
                #[unroll]
                for i in 0..comptime!(shape.head_dim.div_ceil(shape.tile)) {
                    let column = x as usize + comptime!(i * shape.tile);
                    if column < comptime!(shape.head_dim) {
                        dk_sums[i] += d * qs[other * width + column];
                        dv_sums[i] += w * ds[other * width + column];
                    }
                }
            }
            query += tile as u32;
        }
    }
    if row < end {
        let start =
            (row as usize * comptime!(shape.kv_heads) + kv_head) * comptime!(shape.head_dim);
        #[unroll]
        for i in 0..comptime!(shape.head_dim.div_ceil(shape.tile)) {
            let column = x as usize + comptime!(i * shape.tile);
            if column < comptime!(shape.head_dim) {
                dk[start + column] = F::cast_from(dk_sums[i]);
                dv[start + column] = F::cast_from(dv_sums[i]);
            }
        }
    }
}
