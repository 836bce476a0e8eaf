//! The gated delta rule: linear attention whose state forgets, and writes the difference to what it already holds.
//!
//! Each value head has a state S `[key, value]`, zero where a document begins. With k and q of length 1 (q also divided by
//! √key), a factor e^g ≤ 1 of forgetting and a step β between 0 and 1, a token does
//!
//! S ← e^g·S; u = β·(v − Sᵀk); S ← S + k·uᵀ; o = Sᵀq.
//!
//! # In chunks
//! Over c tokens from a state S₀, with Gₜ the sum of the chunk's g up to t and Dₜₛ = e^(Gₜ − Gₛ):
//!
//! - L = β∘D∘(K·Kᵀ) below the diagonal, X = K·S₀, (1 + L)·U = β∘(V − e^G∘X): a triangular system;
//! - P = D∘(Q·Kᵀ) on and below the diagonal, Y = Q·S₀, O = e^G∘Y + P·U;
//! - S = e^(G_c)·S₀ + K̃ᵀ·U with K̃ₛ = e^(G_c − Gₛ)·kₛ.
//!
//! Only differences of G are raised, all of them ≤ 0, so nothing overflows however fast a head forgets. A chunk belongs to one
//! document: no decay, and no state, goes from one into the next.
//!
//! # Backwards
//! From dO and dS, the gradient of the state behind the chunk, chunks last to first:
//!
//! - dU = Pᵀ·dO + K̃·dS; (1 + L)ᵀ·dB = dU; dV = β∘dB; dX = −β∘e^G∘dB; dY = e^G∘dO;
//! - dP = dO·Uᵀ, dL = −dB·Uᵀ where P and L are not zero; dA = dP∘D, dM = dL∘β∘D;
//! - dQ = dY·S₀ᵀ + dA·K; dK = dX·S₀ᵀ + dAᵀ·Q + (dM + dMᵀ)·K + e^(G_c − G)∘(U·dSᵀ);
//! - dβ = dB·(V − e^G∘X) + Σₛ dL∘D∘(K·Kᵀ), sums over features or columns;
//! - dG: e^G∘dO·Y + dX·X, plus for each pair dP∘P + dL∘L at t and less the same at s, less K̃·(U·dSᵀ) at s; and at the last
//!   token all of those, and e^(G_c)·⟨S₀, dS⟩; dg is the sum of dG from a token to the chunk's end;
//! - dS₀ = e^(G_c)·dS + Kᵀ·dX + Qᵀ·dY.
//!
//! The states at the chunks' starts are made again from the operands: nothing is kept for the backward pass but these.
//!
//! # Source
//! Yang et al. 2024, arXiv:2412.06464 (the rule); Yang et al. 2024, arXiv:2406.06484 (chunks); normalisation and scale as in
//! Hugging Face's Qwen 3.5.

mod chunk;
mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod gates;
pub mod reference;

use burn::backend::DispatchTensor;
use burn::tensor::Tensor;

use crate::autograd::{Vjp, attach, parent};
use crate::dispatch::on_device;
use crate::segments::Segments;

pub use gates::{gates, gates_backward};

/// Added to the squared length of keys and queries.
const EPS: f32 = 1e-6;

/// The heads of the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaLayout {
    /// Heads of queries and keys.
    pub key_heads: usize,
    /// Heads of values, a multiple: key head h serves those from h·n on, n for each.
    pub value_heads: usize,
    /// Features of a query or a key.
    pub key_dim: usize,
    /// Features of a value.
    pub value_dim: usize,
}

impl DeltaLayout {
    /// Features of all queries, or of all keys.
    pub const fn key_width(self) -> usize {
        self.key_heads * self.key_dim
    }

    /// Features of all values.
    pub const fn value_width(self) -> usize {
        self.value_heads * self.value_dim
    }

    /// Features of queries, keys and values, in this order.
    pub const fn width(self) -> usize {
        2 * self.key_width() + self.value_width()
    }

    /// Values of the states of one sequence.
    pub const fn state(self) -> usize {
        self.value_heads * self.key_dim * self.value_dim
    }

    /// Value heads of a key head.
    const fn group(self) -> usize {
        self.value_heads / self.key_heads
    }
}

/// What the rule reads.
#[derive(Clone, Debug)]
pub struct Operands {
    /// Queries, keys and values as the convolution gives them, `[t, width]`.
    pub qkv: Tensor<2>,
    /// β, `[t, value_heads]`, f32.
    pub beta: Tensor<2>,
    /// g ≤ 0, `[t, value_heads]`, f32.
    pub decay: Tensor<2>,
}

impl Operands {
    fn check(&self, segments: &Segments, layout: DeltaLayout) {
        let t = segments.queries();
        assert_eq!(
            self.qkv.dims(),
            [t, layout.width()],
            "queries, keys, values"
        );
        for gate in [&self.beta, &self.decay] {
            assert_eq!(gate.dims(), [t, layout.value_heads], "a gate of each head");
        }
        assert_eq!(layout.value_heads % layout.key_heads, 0, "value heads");
    }
}

/// What each value head reads of its state, documents from zero states.
///
/// # Shapes
/// Result `[t, value_heads·value_dim]`.
pub fn forward(x: &Operands, segments: &Segments, layout: DeltaLayout) -> Tensor<2> {
    x.check(segments, layout);
    cpu::forward(x, segments, layout)
        .or_else(|| on_device!(cube::forward(x, segments, layout)))
        .unwrap_or_else(|| reference::forward(x, segments, layout))
}

/// As [`forward`], of sequences that go on: each from its own state, which it leaves as it is after its last token.
///
/// # Shapes
/// `states` `[value_heads·key_dim, value_dim]`, f32, one for each document.
pub fn forward_continuing(
    x: &Operands,
    segments: &Segments,
    layout: DeltaLayout,
    states: Vec<Tensor<2>>,
) -> (Tensor<2>, Vec<Tensor<2>>) {
    x.check(segments, layout);
    assert_eq!(states.len(), segments.len(), "a state of each sequence");
    cpu::forward_continuing(x, segments, layout, states)
        .or_else(
            |states| on_device!(cube::forward_continuing(x, segments, layout, states), or states),
        )
        .unwrap_or_else(|states| reference::forward_from(x, segments, layout, states))
}

/// Gradients of the operands, in their places.
///
/// # Shapes
/// `d_out` `[t, value_heads·value_dim]`.
pub fn backward(
    d_out: &Tensor<2>,
    x: &Operands,
    segments: &Segments,
    layout: DeltaLayout,
) -> Operands {
    x.check(segments, layout);
    cpu::backward(d_out, x, segments, layout)
        .or_else(|| on_device!(cube::backward(d_out, x, segments, layout)))
        .unwrap_or_else(|| reference::backward(d_out, x, segments, layout))
}

/// The differentiable form of [`forward`].
pub fn gated_delta(x: Operands, segments: &Segments, layout: DeltaLayout) -> Tensor<2> {
    let parents = [parent(&x.qkv), parent(&x.beta), parent(&x.decay)];
    let x = Operands {
        qkv: x.qkv.inner(),
        beta: x.beta.inner(),
        decay: x.decay.inner(),
    };
    let out = forward(&x, segments, layout);
    let rule = GatedDelta {
        x,
        segments: segments.clone(),
        layout,
    };
    attach(out, parents, rule)
}

#[derive(Clone, Debug)]
struct GatedDelta {
    x: Operands,
    segments: Segments,
    layout: DeltaLayout,
}

impl Vjp<3> for GatedDelta {
    fn vjp(self, dy: DispatchTensor, _: [bool; 3]) -> [Option<DispatchTensor>; 3] {
        let dy = Tensor::from_dispatch(dy);
        let d = backward(&dy, &self.x, &self.segments, self.layout);
        [d.qkv, d.beta, d.decay].map(|d| Some(d.into_dispatch()))
    }
}
