//! What low-rank adapters of the tables of tokens compute.
//!
//! An embedding E `[vocab, hidden]` gives E[id] + s·B·A[:, id]: A has a column for each token.
//!
//! A head W `[vocab, hidden]` gives h·Wᵀ + s·(h·Aᵀ)·Bᵀ, in chunks of tokens. A is applied once, to all hidden states, and what comes
//! of it stands behind them as r more columns of what the head reads; B stands behind W in the same way
//! ([`TokenMatrix::widened`](crate::TokenMatrix::widened)). So whoever makes logits of hidden states, and gradients of those, knows
//! of no adapter, and nothing of it is there for more than a chunk but r columns.
//!
//! # Source
//! PEFT 0.21: `lora.Embedding`, which drops nothing out, and `lora.Linear`, which drops out what A reads.

use backdraft_kernels::embedding;
use backdraft_kernels::gemm::{Op, gemm, linear};
use backdraft_kernels::lora_linear::Factors;
use burn::tensor::{DType, Tensor};

use crate::gradients::AdapterGrads;
use crate::lora_adapter::LoraAdapter;
use crate::tokens::index;

impl LoraAdapter {
    /// Rows of an embedding with what the adapter adds to them; tracked by autodiff where the factors are.
    ///
    /// # Shapes
    /// `rows` and the result `[ids, hidden]`.
    pub fn add_to_rows(&self, rows: Tensor<2>, ids: &[u32]) -> Tensor<2> {
        let dtype = rows.dtype();
        if self.lora_b.val().is_tracked() {
            let Factors { a, b, scaling, .. } = self.factors(dtype, None);
            let columns = a.clone().select(1, index(ids, &a.device().inner()));
            let added = linear(columns.transpose(), b);
            return on_tape(rows) + added.mul_scalar(scaling);
        }
        let Factors { a, b, scaling, .. } = self.plain_factors(dtype, None);
        let columns = a.clone().select(1, index(ids, &a.device()));
        // As rows along r: a product of few such rows gives each the same bits whatever stands beside it, as a decoder's must.
        let read = columns.transpose();
        gemm((Op::N, &read), (Op::T, &b), scaling, Some(rows))
    }

    /// Adds the gradients of an embedding's factors, `dh` being that of what it gave, which was multiplied by `multiplier`.
    ///
    /// With g = s·multiplier: dB = g·dhᵀ·A[:, ids]ᵀ, and column id of dA is the sum of g·Bᵀ·dh over where the token stands, in an order
    /// that is always the same.
    ///
    /// # Shapes
    /// `dh` `[ids, hidden]`.
    pub fn add_embedding_grad(
        &self,
        grads: &mut AdapterGrads,
        (ids, dh): (&[u32], &Tensor<2>),
        multiplier: f32,
    ) {
        let Factors { a, b, scaling, .. } = self.plain_factors(dh.dtype(), None);
        let (alpha, [rank, vocab]) = (scaling * multiplier, a.dims());
        let columns = a.select(1, index(ids, &dh.device()));
        grads.add_product(self.lora_b.id, (Op::T, dh), (Op::T, &columns), alpha);
        let through = gemm((Op::N, dh), (Op::N, &b), 1.0, None);
        let device = dh.device();
        grads.add_to(self.lora_a.id, ([rank, vocab], &device), |sum| {
            let zeros = Tensor::zeros([vocab, rank], (&device, DType::F32));
            let rows = embedding::add_rows(zeros, &through, ids, alpha);
            sum + rows.transpose()
        });
    }

    /// What a head with this adapter reads: hidden states, and behind them s·h·Aᵀ, of dropped out h where a seed is given.
    ///
    /// # Shapes
    /// `hidden` `[n, hidden]`, result `[n, hidden + r]`, without autodiff.
    pub fn widen(&self, hidden: Tensor<2>, dropout_seed: Option<u64>) -> Tensor<2> {
        let factors = self.plain_factors(hidden.dtype(), dropout_seed);
        let read = dropped(&factors, hidden.clone());
        let more = gemm((Op::N, &read), (Op::T, &factors.a), factors.scaling, None);
        Tensor::cat(vec![hidden, more], 1)
    }

    /// As [`widen`](Self::widen), differentiable.
    ///
    /// # Shapes
    /// As [`widen`](Self::widen).
    pub fn widen_tracked(&self, hidden: Tensor<2>, dropout_seed: Option<u64>) -> Tensor<2> {
        let factors = self.factors(hidden.dtype(), dropout_seed);
        let hidden = on_tape(hidden);
        let read = match factors.dropout {
            None => hidden.clone(),
            Some(dropout) => {
                let ones = Tensor::ones(hidden.dims(), (&hidden.device().inner(), hidden.dtype()));
                hidden.clone() * on_tape(dropout.apply(ones))
            }
        };
        let more = linear(read, factors.a);
        Tensor::cat(vec![hidden, more.mul_scalar(factors.scaling)], 1)
    }

    /// The way back of [`widen`](Self::widen): adds the gradient of A, and returns that of the hidden states.
    ///
    /// # Shapes
    /// `read`, as `widen` gave it, and its gradient `d_read` `[n, hidden + r]`; result `[n, hidden]`.
    pub fn widen_backward(
        &self,
        grads: &mut AdapterGrads,
        (read, d_read): (&Tensor<2>, &Tensor<2>),
        dropout_seed: Option<u64>,
    ) -> Tensor<2> {
        let factors = self.plain_factors(d_read.dtype(), dropout_seed);
        let [rank, width] = factors.a.dims();
        let hidden = read.clone().narrow(1, 0, width);
        let d_hidden = d_read.clone().narrow(1, 0, width);
        let d_more = d_read.clone().narrow(1, width, rank);
        let seen = dropped(&factors, hidden);
        grads.add_product(
            self.lora_a.id,
            (Op::T, &d_more),
            (Op::N, &seen),
            factors.scaling,
        );
        drop(seen);
        let of_a = (Op::N, &factors.a);
        match factors.dropout {
            None => gemm((Op::N, &d_more), of_a, factors.scaling, Some(d_hidden)),
            Some(dropout) => {
                let back = gemm((Op::N, &d_more), of_a, factors.scaling, None);
                dropout.add_to(&back, d_hidden)
            }
        }
    }

    /// Adds the gradient of a head's B, from what the head read and the gradient of what it gave.
    ///
    /// # Shapes
    /// `read` `[n, hidden + r]`, as [`widen`](Self::widen) gave it, `d_logits` `[n, vocab]`.
    pub fn add_head_grad(&self, grads: &mut AdapterGrads, read: &Tensor<2>, d_logits: &Tensor<2>) {
        let [rank, width] = self.lora_a.dims();
        let more = read.clone().narrow(1, width, rank);
        grads.add_product(self.lora_b.id, (Op::T, d_logits), (Op::N, &more), 1.0);
    }
}

fn dropped(factors: &Factors, x: Tensor<2>) -> Tensor<2> {
    match factors.dropout {
        None => x,
        Some(dropout) => dropout.apply(x),
    }
}

fn on_tape(x: Tensor<2>) -> Tensor<2> {
    match x.is_tracked() {
        true => x,
        false => x.autodiff(),
    }
}

#[cfg(test)]
mod tests;
