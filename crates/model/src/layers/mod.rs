//! The parts of a decoder.
//!
//! Each has a differentiable `forward` for programs that use Burn's autodiff and for inference. The decoder
//! layer has a `forward_saving`/`backward` pair beside it that records no tape: a [`KeepSet`] says which
//! tensors stay, the backward pass rebuilds the others from the layer's input with the same ops.

mod attention;
mod decoder;
mod mlp;
mod norm;
mod saved;

use backdraft_kernels::Segments;
use backdraft_kernels::rope::RotaryTables;

pub use attention::Attention;
pub use decoder::DecoderLayer;
pub use mlp::Mlp;
pub use norm::RmsNorm;
pub use saved::{AwaySet, KeepSet, LayerAway, LayerComing, LayerSaved, SavedTensor};

/// What every layer needs to know of the batch.
#[derive(Clone, Debug)]
pub struct Context {
    /// Rotary angles of each token.
    pub tables: RotaryTables,
    /// Where the sequences begin and end.
    pub segments: Segments,
    /// Chooses the dropout masks while training.
    pub dropout_seed: Option<u64>,
}

impl Context {
    /// The seed of one projection in one layer, if there is dropout.
    fn seed(&self, layer: usize, target: backdraft_lora::TargetModule) -> Option<u64> {
        let slot = (layer * backdraft_lora::TargetModule::ALL.len() + target as usize) as u64;
        self.dropout_seed
            .map(|seed| seed ^ (slot + 1).wrapping_mul(0xD134_2543_DE82_EF95))
    }
}
