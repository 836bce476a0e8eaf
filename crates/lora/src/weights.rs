//! An adapter apart from the model it belongs to.

use std::collections::BTreeMap;

use backdraft_arch::LoraConfig;

use crate::adapter::Adapter;

/// The adapter of every adapted projection, by module path such as
/// `model.layers.0.self_attn.q_proj`.
#[derive(Clone, Debug)]
pub struct AdapterWeights {
    /// Rank, scale and targets.
    pub config: LoraConfig,
    /// By module path.
    pub adapters: BTreeMap<String, Adapter>,
}
