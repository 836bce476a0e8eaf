//! A running mean of the factors, which is what is evaluated and saved.
//!
//! m₁ = w₁; mₜ = mₜ₋₁ + (1 − d)(wₜ − mₜ₋₁).
//!
//! Nothing else of it is in a checkpoint: its adapter is the mean, and the trained factors lie beside the optimiser's state, as those
//! of a rule that learns a mean by itself do.
//!
//! # Source
//! Polyak & Juditsky 1992; `torch.optim.swa_utils.AveragedModel` with `get_ema_multi_avg_fn(d)`, updated after every step.

use std::collections::HashMap;

use backdraft_kernels::flat::Flat;
use burn::module::ParamId;
use burn::tensor::Tensor;

/// Means of factors that lie in tensors of their own.
#[derive(Clone, Debug)]
pub(super) struct Mean {
    pub(super) decay: f64,
    of: HashMap<ParamId, Tensor<1>>,
}

impl Mean {
    pub(super) fn new(decay: f64) -> Self {
        Self {
            decay,
            of: HashMap::new(),
        }
    }

    /// Takes a factor's new values in.
    pub(super) fn update(&mut self, id: ParamId, values: &Tensor<1>) {
        let next = match self.of.remove(&id) {
            Some(mean) => mean.clone() + (values.clone() - mean).mul_scalar(1.0 - self.decay),
            None => values.clone(),
        };
        self.of.insert(id, next);
    }

    /// Goes on from there.
    pub(super) fn set(&mut self, id: ParamId, mean: Tensor<1>) {
        self.of.insert(id, mean);
    }

    pub(super) fn get(&self, id: ParamId) -> Option<&Tensor<1>> {
        self.of.get(&id)
    }

    /// Memory of the means.
    pub(super) fn num_bytes(&self) -> usize {
        let bytes = |mean: &Tensor<1>| 4 * mean.shape().num_elements();
        self.of.values().map(bytes).sum()
    }
}

/// [`Mean::update`] of factors in one buffer; `t` counts from 1.
pub(super) fn update_flat(mean: &Flat, values: &Flat, (decay, t): (f64, u64)) {
    mean.approach(values, if t == 1 { 1.0 } else { 1.0 - decay });
}
