//! [`attention`](super::attention) in plain tensors, with the scores materialised.

use std::ops::Range;

use burn::tensor::{Bool, DType, Device, Int, Tensor};

use super::{HeadLayout, Qkv};
use crate::segments::Segments;

/// Output and log-sum-exp; differentiable through Burn's autodiff.
pub fn forward(qkv: &Qkv, segments: &Segments, layout: HeadLayout) -> (Tensor<2>, Tensor<2>) {
    let (outs, lses) = segments
        .iter()
        .filter(|(queries, _)| !queries.is_empty())
        .map(|(queries, keys)| {
            let document = Document::cut(qkv, &queries, &keys, layout);
            let scores = document.masked(document.scores(layout), layout);
            let top = scores.clone().max_dim(2).detach();
            let lse = (scores.clone() - top.clone()).exp().sum_dim(2).log() + top;
            let out = (scores - lse.clone()).exp().matmul(document.v);
            (
                rows(out).cast(qkv.q.dtype()),
                lse.squeeze_dim::<2>(2).transpose(),
            )
        })
        .unzip();
    (Tensor::cat(outs, 0), Tensor::cat(lses, 0))
}

/// Gradients of queries, keys and values.
pub fn backward(
    d_out: &Tensor<2>,
    qkv: &Qkv,
    (out, lse): (&Tensor<2>, &Tensor<2>),
    segments: &Segments,
    layout: HeadLayout,
) -> Qkv {
    let dtype = qkv.q.dtype();
    let mut grads: [Vec<Tensor<2>>; 3] = Default::default();
    for (queries, keys) in segments.iter().filter(|(queries, _)| !queries.is_empty()) {
        let document = Document::cut(qkv, &queries, &keys, layout);
        let d_out = heads(d_out, &queries, layout.heads);
        let out = heads(out, &queries, layout.heads);
        let lse = lse
            .clone()
            .slice([queries.clone(), 0..layout.heads])
            .transpose()
            .unsqueeze_dim::<3>(2);
        let scores = document.scores(layout);
        let slope = match layout.softcap {
            None => scores.ones_like(),
            Some(cap) => scores
                .clone()
                .div_scalar(cap)
                .square()
                .neg()
                .add_scalar(1.0),
        };
        let p = (document.masked(scores, layout) - lse).exp();
        let delta = (d_out.clone() * out).sum_dim(2);
        let ds = p.clone() * (d_out.clone().matmul(document.v.swap_dims(1, 2)) - delta);
        let ds = (ds * slope).mul_scalar(layout.scale);
        let dq = ds.clone().matmul(document.k);
        let dk = ds.swap_dims(1, 2).matmul(document.q);
        let dv = p.swap_dims(1, 2).matmul(d_out);
        let parts = [dq, ungroup(dk, layout), ungroup(dv, layout)];
        for (all, part) in grads.iter_mut().zip(parts) {
            all.push(rows(part).cast(dtype));
        }
    }
    let [q, k, v] = grads.map(|parts| Tensor::cat(parts, 0));
    Qkv { q, k, v }
}

/// One document in `[heads, tokens, head_dim]`, f32, keys and values repeated over their group.
struct Document {
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
}

impl Document {
    fn cut(qkv: &Qkv, queries: &Range<usize>, keys: &Range<usize>, layout: HeadLayout) -> Self {
        let group = layout.group();
        let kv = |x| {
            let x = heads(x, keys, layout.kv_heads);
            let [_, t, d] = x.dims();
            x.unsqueeze_dim::<4>(1)
                .repeat_dim(1, group)
                .reshape([layout.heads, t, d])
        };
        Self {
            q: heads(&qkv.q, queries, layout.heads),
            k: kv(&qkv.k),
            v: kv(&qkv.v),
        }
    }

    /// Scaled and capped scores.
    fn scores(&self, layout: HeadLayout) -> Tensor<3> {
        let scores = self.q.clone().matmul(self.k.clone().swap_dims(1, 2));
        let scores = scores.mul_scalar(layout.scale);
        match layout.softcap {
            None => scores,
            Some(cap) => scores.div_scalar(cap).tanh().mul_scalar(cap),
        }
    }

    /// −∞ where a query may not look.
    fn masked(&self, scores: Tensor<3>, layout: HeadLayout) -> Tensor<3> {
        let [_, queries, keys] = scores.dims();
        let hidden = hidden(queries, keys, layout.window, &scores.device());
        scores.mask_fill(hidden.unsqueeze(), f32::NEG_INFINITY)
    }
}

fn heads(x: &Tensor<2>, tokens: &Range<usize>, heads: usize) -> Tensor<3> {
    let width = x.dims()[1];
    x.clone()
        .slice([tokens.clone(), 0..width])
        .cast(DType::F32)
        .reshape([tokens.len(), heads, width / heads])
        .swap_dims(0, 1)
}

fn rows(x: Tensor<3>) -> Tensor<2> {
    let [heads, tokens, d] = x.dims();
    x.swap_dims(0, 1).reshape([tokens, heads * d])
}

/// Sums the gradient of each group into its key–value head.
fn ungroup(x: Tensor<3>, layout: HeadLayout) -> Tensor<3> {
    let [_, t, d] = x.dims();
    x.reshape([layout.kv_heads, layout.group(), t, d])
        .sum_dim(1)
        .squeeze_dim(1)
}

/// Keys behind a query, and those before its window.
fn hidden(queries: usize, keys: usize, window: Option<usize>, device: &Device) -> Tensor<2, Bool> {
    let position = Tensor::<1, Int>::arange(0..queries as i64, device)
        .add_scalar((keys - queries) as i64)
        .unsqueeze_dim::<2>(1);
    let key = Tensor::<1, Int>::arange(0..keys as i64, device).unsqueeze_dim::<2>(0);
    let future = key.clone().greater(position.clone());
    match window {
        None => future,
        Some(window) => {
            let past = key.add_scalar(window as i64).lower_equal(position);
            future.bool_or(past)
        }
    }
}
