//! An adapter apart from the model it belongs to.

use std::collections::BTreeMap;

use burn::tensor::Tensor;

use backdraft_arch::LoraConfig;

/// The factors of every adapted projection, by module path such as
/// `model.layers.0.self_attn.q_proj`.
#[derive(Clone, Debug)]
pub struct AdapterWeights {
    /// Rank, scale and targets.
    pub config: LoraConfig,
    /// A `[r, in]` and B `[out, r]`.
    pub factors: BTreeMap<String, (Tensor<2>, Tensor<2>)>,
}
