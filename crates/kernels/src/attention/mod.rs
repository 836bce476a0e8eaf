//! Causal attention with grouped key–value heads over documents laid end to end.
//!
//! For query j of a document, o = Σᵢ softmaxᵢ(scale·q·kᵢ)·vᵢ over the keys it may see (see
//! [`Segments`]). Scores are recomputed in the backward pass from the log-sum-exp of each row, so
//! nothing quadratic is kept.
//!
//! # Source
//! Dao et al. 2022, arXiv:2205.14135 (recomputation from the log-sum-exp); Ainslie et al. 2023,
//! arXiv:2305.13245 (grouped heads).

mod cpu;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "cuda")]
mod hopper;
#[cfg(feature = "cuda")]
mod mma;
#[cfg(feature = "cube")]
mod path;
pub mod reference;
#[cfg(feature = "cube")]
mod tiles;

use burn::backend::DispatchTensor;
use burn::tensor::Tensor;

use crate::autograd::{Vjp, attach, parent};
use crate::dispatch::on_device;
use crate::segments::Segments;

#[cfg(feature = "cube")]
pub use path::Path;
#[cfg(feature = "cube")]
pub(crate) use tiles::forget;

/// Head layout and scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadLayout {
    /// Query heads.
    pub heads: usize,
    /// Key–value heads; a divisor of `heads`.
    pub kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Factor on the scores, usually 1/√head_dim.
    pub scale: f32,
    /// Keys that a query sees, itself included: a sliding window. `None` for all before it.
    pub window: Option<usize>,
    /// Scores s become cap·tanh(s / cap). `None` leaves them.
    pub softcap: Option<f32>,
}

impl HeadLayout {
    /// Scores over √head_dim, neither window nor cap.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self {
            heads,
            kv_heads,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            window: None,
            softcap: None,
        }
    }

    /// With this factor on the scores in place of 1/√head_dim.
    #[must_use]
    pub fn with_scale(self, scale: f32) -> Self {
        Self { scale, ..self }
    }

    /// With a sliding window of so many keys.
    #[must_use]
    pub fn with_window(self, window: usize) -> Self {
        Self {
            window: Some(window),
            ..self
        }
    }

    /// Without a window that no document of `segments` is longer than.
    fn within(self, segments: &Segments) -> Self {
        let longest = segments.iter().map(|(_, keys)| keys.len()).max();
        Self {
            window: self.window.filter(|&window| Some(window) < longest),
            ..self
        }
    }

    /// With capped scores.
    #[must_use]
    pub fn with_softcap(self, cap: f32) -> Self {
        Self {
            softcap: Some(cap),
            ..self
        }
    }

    /// Query heads that share one key–value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Queries, keys and values, token-major.
///
/// # Shapes
/// `q` `[tq, h·d]`, `k` and `v` `[tk, kv·d]`.
#[derive(Clone, Debug)]
pub struct Qkv {
    /// Queries.
    pub q: Tensor<2>,
    /// Keys.
    pub k: Tensor<2>,
    /// Values.
    pub v: Tensor<2>,
}

/// Attention output, and the log-sum-exp of each row of scores for the backward pass.
///
/// # Shapes
/// Result `[tq, h·d]` and `[tq, h]` (f32).
///
/// # Panics
/// If the shapes disagree with `layout` or `segments`.
pub fn forward(qkv: &Qkv, segments: &Segments, layout: HeadLayout) -> (Tensor<2>, Tensor<2>) {
    check(qkv, segments, layout);
    let layout = layout.within(segments);
    cpu::forward(qkv, segments, layout)
        .or_else(|| on_device!(cube::forward(None, qkv, segments, layout)))
        .unwrap_or_else(|| reference::forward(qkv, segments, layout))
}

/// Gradients of queries, keys and values.
///
/// With P = exp(S − lse), dV = Pᵀ·dO, dS = P∘(dO·Vᵀ − rowsum(dO∘O)), dQ = scale·dS·K,
/// dK = scale·dSᵀ·Q; a key–value head sums over its group. Where scores s are capped, dS has the factor 1 − (s / cap)².
///
/// # Shapes
/// `d_out` and `out` `[tq, h·d]`, `lse` `[tq, h]`; result as `qkv`.
pub fn backward(
    d_out: &Tensor<2>,
    qkv: &Qkv,
    (out, lse): (&Tensor<2>, &Tensor<2>),
    segments: &Segments,
    layout: HeadLayout,
) -> Qkv {
    let layout = layout.within(segments);
    cpu::backward(d_out, qkv, (out, lse), segments, layout)
        .or_else(|| {
            on_device!(cube::backward(
                None,
                d_out,
                qkv,
                (out, lse),
                segments,
                layout
            ))
        })
        .unwrap_or_else(|| reference::backward(d_out, qkv, (out, lse), segments, layout))
}

/// [`forward`] on one path, for tests and benches; `None` where it does not apply.
#[cfg(feature = "cube")]
pub fn forward_by(
    path: Path,
    qkv: &Qkv,
    segments: &Segments,
    layout: HeadLayout,
) -> Option<(Tensor<2>, Tensor<2>)> {
    check(qkv, segments, layout);
    cube::forward(Some(path), qkv, segments, layout.within(segments))
}

/// [`backward`] on one path, as [`forward_by`].
#[cfg(feature = "cube")]
pub fn backward_by(
    path: Path,
    d_out: &Tensor<2>,
    qkv: &Qkv,
    saved: (&Tensor<2>, &Tensor<2>),
    segments: &Segments,
    layout: HeadLayout,
) -> Option<Qkv> {
    let layout = layout.within(segments);
    cube::backward(Some(path), d_out, qkv, saved, segments, layout)
}

/// The differentiable form of [`forward`].
pub fn attention(qkv: Qkv, segments: &Segments, layout: HeadLayout) -> Tensor<2> {
    let parents = [parent(&qkv.q), parent(&qkv.k), parent(&qkv.v)];
    let qkv = Qkv {
        q: qkv.q.inner(),
        k: qkv.k.inner(),
        v: qkv.v.inner(),
    };
    let (out, lse) = forward(&qkv, segments, layout);
    let rule = Attention {
        qkv,
        out: out.clone(),
        lse,
        segments: segments.clone(),
        layout,
    };
    attach(out, parents, rule)
}

#[derive(Clone, Debug)]
struct Attention {
    qkv: Qkv,
    out: Tensor<2>,
    lse: Tensor<2>,
    segments: Segments,
    layout: HeadLayout,
}

impl Vjp<3> for Attention {
    fn vjp(self, dy: DispatchTensor, _: [bool; 3]) -> [Option<DispatchTensor>; 3] {
        let saved = (&self.out, &self.lse);
        let d_out = Tensor::from_dispatch(dy);
        let Qkv { q, k, v } = backward(&d_out, &self.qkv, saved, &self.segments, self.layout);
        [q, k, v].map(|grad| Some(grad.into_dispatch()))
    }
}

fn check(Qkv { q, k, v }: &Qkv, segments: &Segments, layout: HeadLayout) {
    assert!(
        layout.kv_heads > 0 && layout.heads.is_multiple_of(layout.kv_heads),
        "{} query heads over {} key-value heads",
        layout.heads,
        layout.kv_heads
    );
    let kv = [segments.keys(), layout.kv_heads * layout.head_dim];
    assert_eq!(
        q.dims(),
        [segments.queries(), layout.heads * layout.head_dim],
        "queries"
    );
    assert_eq!(k.dims(), kv, "keys");
    assert_eq!(v.dims(), kv, "values");
}
