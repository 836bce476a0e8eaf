//! f32 on the CPU: blocks of query rows against the keys they can see, one task per document and
//! head (key–value head in the backward pass, which sums over its group).

use std::ops::Range;

use burn::tensor::Tensor;
use gemm::Parallelism;
use rayon::prelude::*;

use super::{HeadLayout, Qkv};
use crate::cpu::{Shared, capped, exp, f32s, max, simd, sum, sum2, tensor};
use crate::gemm::Op;
use crate::gemm::cpu::{Shape, View, raw};
use crate::segments::Segments;

/// Query rows whose scores exist at a time.
const BLOCK: usize = 64;

pub(super) fn forward(
    qkv: &Qkv,
    segments: &Segments,
    layout: HeadLayout,
) -> Option<(Tensor<2>, Tensor<2>)> {
    let (q, k, v) = (f32s(&qkv.q)?, f32s(&qkv.k)?, f32s(&qkv.v)?);
    let t = segments.queries();
    let (q_width, kv_width) = (
        layout.heads * layout.head_dim,
        layout.kv_heads * layout.head_dim,
    );
    let mut out = vec![0f32; t * q_width];
    let mut lse = vec![0f32; t * layout.heads];
    let (out_ptr, lse_ptr) = (Shared(out.as_mut_ptr()), Shared(lse.as_mut_ptr()));
    tasks(segments, layout.heads)
        .into_par_iter()
        .for_each(|(queries, keys, head)| {
            let kv_column = head / layout.group() * layout.head_dim;
            let column = head * layout.head_dim;
            let mut scores = Vec::new();
            for block in blocks(&queries, &keys, layout.window) {
                let shape = Shape {
                    m: block.rows.len(),
                    n: block.visible.len(),
                    k: layout.head_dim,
                };
                let first = block.rows.start * q_width + column;
                let first_key = block.visible.start * kv_width + kv_column;
                let p = block_scores(
                    &mut scores,
                    shape,
                    View::new(&q[first..], q_width, Op::N),
                    View::new(&k[first_key..], kv_width, Op::T),
                    layout.scale,
                );
                cap(p, layout.softcap);
                for (i, row) in p.chunks_mut(shape.n).enumerate() {
                    let value = simd(
                        #[inline(always)]
                        || softmax(row, block.seen_by(i)),
                    );
                    #[expect(unsafe_code, reason = "tasks write disjoint columns of one buffer")]
                    // SAFETY: only this task writes (row, head) of `lse`, and the row is below t.
                    unsafe {
                        lse_ptr
                            .at((block.rows.start + i) * layout.heads + head)
                            .write(value);
                    }
                }
                let product = Shape {
                    m: shape.m,
                    n: layout.head_dim,
                    k: shape.n,
                };
                #[expect(unsafe_code, reason = "tasks write disjoint columns of one buffer")]
                // SAFETY: only this task writes these rows and columns of `out`; P and V hold the sizes given.
                unsafe {
                    raw(
                        product,
                        (out_ptr.at(first), q_width),
                        false,
                        View::new(p, shape.n, Op::N),
                        View::new(&v[first_key..], kv_width, Op::N),
                        1.0,
                        Parallelism::None,
                    );
                }
            }
        });
    Some((tensor(out, [t, q_width]), tensor(lse, [t, layout.heads])))
}

pub(super) fn backward(
    d_out: &Tensor<2>,
    qkv: &Qkv,
    (out, lse): (&Tensor<2>, &Tensor<2>),
    segments: &Segments,
    layout: HeadLayout,
) -> Option<Qkv> {
    let (q, k, v) = (f32s(&qkv.q)?, f32s(&qkv.k)?, f32s(&qkv.v)?);
    let (d_out, out, lse) = (f32s(d_out)?, f32s(out)?, f32s(lse)?);
    let (tq, tk, d) = (segments.queries(), segments.keys(), layout.head_dim);
    let (q_width, kv_width) = (layout.heads * d, layout.kv_heads * d);
    let mut dq = vec![0f32; tq * q_width];
    let (mut dk, mut dv) = (vec![0f32; tk * kv_width], vec![0f32; tk * kv_width]);
    let [dq_ptr, dk_ptr, dv_ptr] = [&mut dq, &mut dk, &mut dv].map(|x| Shared(x.as_mut_ptr()));
    tasks(segments, layout.kv_heads)
        .into_par_iter()
        .for_each(|(queries, keys, kv_head)| {
            let (mut scores, mut d_scores) = (Vec::new(), Vec::new());
            for head in kv_head * layout.group()..(kv_head + 1) * layout.group() {
                let column = head * d;
                for block in blocks(&queries, &keys, layout.window) {
                    let shape = Shape {
                        m: block.rows.len(),
                        n: block.visible.len(),
                        k: d,
                    };
                    let first = block.rows.start * q_width + column;
                    let first_key = block.visible.start * kv_width + kv_head * d;
                    let key = |op| View::new(&k[first_key..], kv_width, op);
                    let query = View::new(&q[first..], q_width, Op::N);
                    let d_out_block = View::new(&d_out[first..], q_width, Op::N);
                    let p = block_scores(&mut scores, shape, query, key(Op::T), layout.scale);
                    cap(p, layout.softcap);
                    let value = View::new(&v[first_key..], kv_width, Op::T);
                    let ds = block_scores(&mut d_scores, shape, d_out_block, value, 1.0);
                    for (i, (p, ds)) in p
                        .chunks_mut(shape.n)
                        .zip(ds.chunks_mut(shape.n))
                        .enumerate()
                    {
                        let row = block.rows.start + i;
                        let span = row * q_width + column..row * q_width + column + d;
                        let lse = lse[row * layout.heads + head];
                        let (d_out, out) = (&d_out[span.clone()], &out[span]);
                        simd(
                            #[inline(always)]
                            || {
                                let delta = sum2(d_out, out, |a, b| a * b);
                                let delta = match layout.softcap {
                                    None => delta,
                                    Some(cap) => {
                                        through_cap(p, ds, delta, cap);
                                        0.0
                                    }
                                };
                                d_softmax(p, ds, block.seen_by(i), lse, delta, layout.scale);
                            },
                        );
                    }
                    let (p_t, ds_t) = (View::new(p, shape.n, Op::T), View::new(ds, shape.n, Op::T));
                    let to_keys = Shape {
                        m: shape.n,
                        n: d,
                        k: shape.m,
                    };
                    let to_queries = Shape {
                        m: shape.m,
                        n: d,
                        k: shape.n,
                    };
                    let ds = View::new(ds, shape.n, Op::N);
                    let none = Parallelism::None;
                    #[expect(unsafe_code, reason = "tasks write disjoint columns of one buffer")]
                    // SAFETY: this task alone owns the group's columns of dq and its key–value head's columns of
                    // dk and dv within the document; all three buffers are initialised.
                    unsafe {
                        let dk = (dk_ptr.at(first_key), kv_width);
                        let dv = (dv_ptr.at(first_key), kv_width);
                        raw(
                            to_queries,
                            (dq_ptr.at(first), q_width),
                            false,
                            ds,
                            key(Op::N),
                            1.0,
                            none,
                        );
                        raw(to_keys, dk, true, ds_t, query, 1.0, none);
                        raw(to_keys, dv, true, p_t, d_out_block, 1.0, none);
                    }
                }
            }
        });
    Some(Qkv {
        q: tensor(dq, [tq, q_width]),
        k: tensor(dk, [tk, kv_width]),
        v: tensor(dv, [tk, kv_width]),
    })
}

/// Caps scores, where there is a cap.
fn cap(scores: &mut [f32], cap: Option<f32>) {
    let Some(cap) = cap else {
        return;
    };
    simd(
        #[inline(always)]
        || {
            for score in scores {
                *score = capped(*score, cap);
            }
        },
    );
}

/// dP − delta, shrunk by the slope of the cap at each capped score.
#[inline(always)]
fn through_cap(scores: &[f32], dp: &mut [f32], delta: f32, cap: f32) {
    for (dp, score) in dp.iter_mut().zip(scores) {
        let share = score / cap;
        *dp = (*dp - delta) * (1.0 - share * share);
    }
}

/// Turns the scores of a row that are `seen` into probabilities, the rest into zeroes; returns the
/// log-sum-exp.
#[inline(always)]
fn softmax(row: &mut [f32], seen: Range<usize>) -> f32 {
    row[..seen.start].fill(0.0);
    row[seen.end..].fill(0.0);
    let row = &mut row[seen];
    let top = max(row);
    for x in row.iter_mut() {
        *x = exp(*x - top);
    }
    let total = sum(row, |x| x);
    let factor = 1.0 / total;
    for x in row.iter_mut() {
        *x *= factor;
    }
    top + total.ln()
}

/// Turns scores into probabilities and dP into dS, zeroes where they are not `seen`.
#[inline(always)]
fn d_softmax(p: &mut [f32], ds: &mut [f32], seen: Range<usize>, lse: f32, delta: f32, scale: f32) {
    for hidden in [0..seen.start, seen.end..p.len()] {
        p[hidden.clone()].fill(0.0);
        ds[hidden].fill(0.0);
    }
    for (p, ds) in p[seen.clone()].iter_mut().zip(&mut ds[seen]) {
        *p = exp(*p - lse);
        *ds = *p * (*ds - delta) * scale;
    }
}

/// `alpha·a·b` into a buffer that grows to the largest block.
fn block_scores(buffer: &mut Vec<f32>, shape: Shape, a: View, b: View, alpha: f32) -> &mut [f32] {
    let size = shape.m * shape.n;
    if buffer.len() < size {
        buffer.resize(size, 0.0);
    }
    let scores = &mut buffer[..size];
    #[expect(unsafe_code, reason = "the gemm crate takes raw matrices")]
    // SAFETY: `scores` holds m·n values; the views hold the sizes given.
    unsafe {
        let c = (scores.as_mut_ptr(), shape.n);
        raw(shape, c, false, a, b, alpha, Parallelism::None);
    }
    scores
}

/// Some query rows of a document and the keys at least one of them sees.
struct Block {
    rows: Range<usize>,
    visible: Range<usize>,
    window: usize,
}

impl Block {
    /// The visible keys that row `i` of the block sees.
    fn seen_by(&self, i: usize) -> Range<usize> {
        let end = self.visible.len() + 1 + i - self.rows.len();
        end.saturating_sub(self.window)..end
    }
}

fn blocks(
    queries: &Range<usize>,
    keys: &Range<usize>,
    window: Option<usize>,
) -> impl Iterator<Item = Block> {
    let (queries, keys) = (queries.clone(), keys.clone());
    let window = window.unwrap_or(usize::MAX);
    queries.clone().step_by(BLOCK).map(move |start| {
        let end = (start + BLOCK).min(queries.end);
        // One past the last key that the first row sees.
        let seen = keys.end - (queries.end - start) + 1;
        Block {
            rows: start..end,
            visible: keys.start.max(seen.saturating_sub(window))..keys.end - (queries.end - end),
            window,
        }
    })
}

/// Query rows, key rows and head of every task.
fn tasks(segments: &Segments, heads: usize) -> Vec<(Range<usize>, Range<usize>, usize)> {
    segments
        .iter()
        .flat_map(|(q, k)| (0..heads).map(move |head| (q.clone(), k.clone(), head)))
        .collect()
}
