//! The vocabulary head and its loss, in chunks of tokens: the full logits never exist.
//!
//! Where logits l are capped, c·tanh(l / c) is in the place of l, and the gradient has the factor 1 − tanh²(l / c).
//!
//! For hidden state h and target y, nll = logsumexp(h·Wᵀ) − (h·Wᵀ)ᵧ. The gradient with respect to
//! the hidden states is formed in the same pass: of Σ wᵢ·nllᵢ it is dhᵢ = wᵢ·(softmax − onehot)·W. The
//! weights are the caller's: 1 / tokens of a step for a mean, of either sign and different by document for an
//! objective that compares answers. The caller passes supervised positions only.
//!
//! With a [`Penalty`], what is minimised is
//! (1 − e)·nll + e·(logsumexp(l) − mean(l)) + z·logsumexp(l)², whose gradient with respect to the logits is
//! (1 + 2z·logsumexp(l))·softmax − (1 − e)·onehot − e/v. The nll is told beside it.
//!
//! # Source
//! Label smoothing: Szegedy et al. 2015, arXiv:1512.00567, as transformers' `LabelSmoother`. z-loss: Chowdhery et al. 2022,
//! arXiv:2204.02311, section 5.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod reference;

pub use backdraft_arch::sizes::{CHUNK, CUBE_CHUNK};
use burn::backend::DispatchTensor;
use burn::tensor::{DType, Tensor};

use crate::autograd::{Vjp, attach, parent};
use crate::dispatch::on_device;
use crate::frozen_matrix::FrozenMatrix;

/// What is minimised beside the nll of each token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Penalty {
    /// e, in [0, 1): the share of the target that is spread over the whole vocabulary.
    pub label_smoothing: f32,
    /// z, at least 0: what the square of logsumexp counts.
    pub z_loss: f32,
}

/// Losses of the rows of logits.
#[derive(Clone, Debug)]
pub struct RowLosses {
    /// Negative log-likelihoods in nats, `[n]`, f32.
    pub nll: Tensor<1>,
    /// Losses with the penalty, `[n]`, f32; `None` where there is none.
    pub penalized: Option<Tensor<1>>,
    /// d(Σ weightᵢ·lossᵢ) / d(logits), `[n, v]`; `None` where there are no weights.
    pub d_logits: Option<Tensor<2>>,
}

/// Loss and gradient of the hidden states.
#[derive(Clone, Debug)]
pub struct HeadLoss {
    /// Negative log-likelihood of each token in nats, `[n]`, f32.
    pub nll: Tensor<1>,
    /// Loss of each token with the penalty, `[n]`, f32; `None` where there is none.
    pub penalized: Option<Tensor<1>>,
    /// d(Σ weightᵢ·lossᵢ) / d(hidden), `[n, h]`; `None` where there are no weights. The loss is the nll, or the one with
    /// the penalty.
    pub d_hidden: Option<Tensor<2>>,
}

/// Loss of every token, and with `weights` the gradient of Σ weightᵢ·nllᵢ.
///
/// # Shapes
/// `hidden` `[n, h]`, `head` `[v, h]`, `targets` n token ids below v, `weights` `[n]` in f32, of either sign; `cap` is that
/// of logits, where they have one.
///
/// # Panics
/// If `targets` or `weights` have another length than `hidden`, or there is no token at all.
pub fn forward(
    hidden: &Tensor<2>,
    head: &impl FrozenMatrix,
    cap: Option<f32>,
    targets: &[u32],
    weights: Option<&Tensor<1>>,
) -> HeadLoss {
    penalized(hidden, head, cap, targets, weights, None)
}

/// As [`forward`], of the loss with a penalty where there is one.
///
/// # Shapes
/// As [`forward`].
///
/// # Panics
/// As [`forward`].
pub fn penalized(
    hidden: &Tensor<2>,
    head: &impl FrozenMatrix,
    cap: Option<f32>,
    targets: &[u32],
    weights: Option<&Tensor<1>>,
    penalty: Option<Penalty>,
) -> HeadLoss {
    telling(hidden, head, cap, targets, weights, penalty, &mut |_, _| ())
}

/// As [`penalized`]; `told` gets the hidden states of each chunk and, where there are weights, the gradient of its logits
/// before the cap: what the gradient of the head is made of.
///
/// # Shapes
/// As [`forward`]; `told` gets `[tokens of the chunk, h]` and `[tokens of the chunk, v]`.
///
/// # Panics
/// As [`forward`].
pub fn telling(
    hidden: &Tensor<2>,
    head: &impl FrozenMatrix,
    cap: Option<f32>,
    targets: &[u32],
    weights: Option<&Tensor<1>>,
    penalty: Option<Penalty>,
    told: &mut dyn FnMut(&Tensor<2>, &Tensor<2>),
) -> HeadLoss {
    let [n, width] = hidden.dims();
    assert_eq!(n, targets.len(), "one target for each hidden state");
    if let Some(weights) = weights {
        assert_eq!(weights.dims(), [n], "one weight for each hidden state");
    }
    assert!(n > 0, "a loss needs at least one supervised token");
    let (mut nll, mut penalized, mut d_hidden) = (Vec::new(), Vec::new(), Vec::new());
    let tokens = on_device!(cube::chunk(hidden)).unwrap_or(CHUNK);
    for (i, targets) in targets.chunks(tokens).enumerate() {
        let start = i * tokens;
        let chunk = hidden
            .clone()
            .slice([start..start + targets.len(), 0..width]);
        let logits = head.matmul(&chunk);
        let weights = weights.map(|weights| weights.clone().narrow(0, start, targets.len()));
        let losses = row_losses(logits, cap, targets, weights.as_ref(), penalty);
        nll.push(losses.nll);
        penalized.extend(losses.penalized);
        d_hidden.extend(losses.d_logits.map(|d| {
            told(&chunk, &d);
            head.matmul_transposed(&d)
        }));
    }
    HeadLoss {
        nll: Tensor::cat(nll, 0),
        penalized: penalty.map(|_| Tensor::cat(penalized, 0)),
        d_hidden: weights.map(|_| Tensor::cat(d_hidden, 0)),
    }
}

/// Loss of each row of `logits`, capped first where there is a cap, and with `weights` the rows turned into
/// weightᵢ·(softmax − onehot), times the cap's slope.
///
/// # Shapes
/// `logits` `[n, v]`, `weights` `[n]` in f32; result `[n]` and `[n, v]`.
pub fn softmax_nll(
    logits: Tensor<2>,
    cap: Option<f32>,
    targets: &[u32],
    weights: Option<&Tensor<1>>,
) -> (Tensor<1>, Option<Tensor<2>>) {
    let losses = row_losses(logits, cap, targets, weights, None);
    (losses.nll, losses.d_logits)
}

/// As [`softmax_nll`], of the loss with a penalty where there is one.
///
/// # Shapes
/// `logits` `[n, v]`, `weights` `[n]` in f32.
pub fn row_losses(
    logits: Tensor<2>,
    cap: Option<f32>,
    targets: &[u32],
    weights: Option<&Tensor<1>>,
    penalty: Option<Penalty>,
) -> RowLosses {
    cpu::row_losses(logits, cap, targets, weights, penalty)
        .or_else(|logits| {
            on_device!(cube::row_losses(logits, cap, targets, weights, penalty), or logits)
        })
        .unwrap_or_else(|logits| reference::row_losses(logits, cap, targets, weights, penalty))
}

/// Σ nll, in one order, so that the same losses have the same sum.
///
/// # Shapes
/// `nll` `[n]`, result `[1]`.
pub fn total(nll: &Tensor<1>) -> Tensor<1> {
    on_device!(cube::total(nll)).unwrap_or_else(|| nll.clone().sum())
}

/// Σ nll as a differentiable scalar; its gradient is formed here and only scaled in the backward
/// pass.
///
/// # Shapes
/// As [`forward`]; result `[1]`.
pub fn cross_entropy(
    hidden: Tensor<2>,
    head: &impl FrozenMatrix,
    cap: Option<f32>,
    targets: &[u32],
) -> Tensor<1> {
    let parents = [parent(&hidden)];
    let hidden = hidden.inner();
    let ones = || Tensor::ones([targets.len()], (&hidden.device(), DType::F32));
    let weights = parents[0].is_some().then(ones);
    let HeadLoss { nll, d_hidden, .. } = forward(&hidden, head, cap, targets, weights.as_ref());
    match d_hidden {
        Some(d_hidden) => attach(total(&nll), parents, CrossEntropy { d_hidden }),
        None => total(&nll),
    }
}

#[derive(Clone, Debug)]
struct CrossEntropy {
    d_hidden: Tensor<2>,
}

impl Vjp<1> for CrossEntropy {
    fn vjp(self, dy: DispatchTensor, _: [bool; 1]) -> [Option<DispatchTensor>; 1] {
        let dtype = self.d_hidden.dtype();
        let dy = Tensor::<1>::from_dispatch(dy).cast(dtype).unsqueeze();
        [Some((self.d_hidden * dy).into_dispatch())]
    }
}
