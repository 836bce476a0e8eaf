//! The parts of a decoder.
//!
//! What a layer does with its parts is told once, in [`backdraft_arch::layer`], for whoever executes it:
//!
//! | executor | for |
//! |---|---|
//! | `device_ops` | training: [`DecoderLayer::forward_saving`] and [`DecoderLayer::backward`] record no tape; a [`KeepSet`] says which tensors stay, the backward pass rebuilds the others from the layer's input with the same ops |
//! | `tape_ops` | programs that use Burn's autodiff: [`DecoderLayer::forward`] |
//! | `decode_ops` | sequences that are continued token by token, over a pool of keys and values ([`decode`](crate::decode)) |
//! | `timed_ops` | calibration of the activation planner: [`DecoderLayer::visit_saved`] |
//!
//! The planner executes it on sizes.
//!
//! [`KeepSet`]: backdraft_arch::KeepSet

mod attention;
mod decode_ops;
mod decoder;
mod delta_net;
mod device_ops;
mod joined;
mod mlp;
mod norm;
mod offload;
mod tape_ops;
mod timed_ops;

use backdraft_kernels::Segments;
use backdraft_kernels::attention::HeadLayout;
use backdraft_kernels::rope::{self, RotaryTables};
use burn::tensor::Tensor;

pub use attention::Attention;
pub use decoder::{DecoderLayer, LayerMixer, StreamNorms};
pub use delta_net::DeltaNet;
pub use device_ops::OnDevice;
pub use joined::Joined;
use joined::Whole;
pub use mlp::Mlp;
pub use norm::RmsNorm;
pub use offload::{LayerSaved, OffloadedLayer, PrefetchedLayer, offload};

/// What every layer needs to know of the batch.
#[derive(Clone, Debug)]
pub struct Context {
    /// Rotary angles of each token.
    pub tables: RotaryTables,
    /// Those of layers with a window, where they are others.
    pub local_tables: Option<RotaryTables>,
    /// Those of queries, times a factor for each token, where a family has one and it is not 1 for all.
    pub query_tables: Option<RotaryTables>,
    /// Where the sequences begin and end.
    pub segments: Segments,
    /// Chooses the dropout masks while training.
    pub dropout_seed: Option<u64>,
}

impl Context {
    /// The rotary angles of a layer with these heads.
    pub(crate) fn tables(&self, layout: HeadLayout) -> &RotaryTables {
        match &self.local_tables {
            Some(local) if layout.window.is_some() => local,
            _ => &self.tables,
        }
    }

    /// The rotary angles of a layer's queries.
    pub(crate) fn query_tables(&self, layout: HeadLayout) -> &RotaryTables {
        match &self.query_tables {
            Some(scaled) => scaled,
            None => self.tables(layout),
        }
    }

    /// Queries and keys of a layer with these heads, turned; no tape is recorded.
    ///
    /// # Shapes
    /// `query` and the first result `[t, heads·d]`, `key` and the second `[t, kv_heads·d]`.
    fn turn(&self, layout: HeadLayout, query: Tensor<2>, key: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        let tables = self.tables(layout);
        match &self.query_tables {
            None => rope::forward_both(query, key, tables),
            Some(scaled) => (rope::forward(query, scaled), rope::forward(key, tables)),
        }
    }

    /// The seed of one projection in one layer, if there is dropout.
    fn seed(&self, layer: usize, target: backdraft_lora::TargetModule) -> Option<u64> {
        // What a mask is drawn from stays what it is when there are more kinds of projections.
        let (usual, target) = (backdraft_lora::TargetModule::USUAL.len(), target as usize);
        let slot = match target < usual {
            true => (layer * usual + target) as u64,
            false => 1 << 32 | (layer << 8 | target) as u64,
        };
        self.dropout_seed.map(|seed| of_slot(seed, slot))
    }
}

/// The seed of what the head's adapter reads, of that of a batch.
pub(crate) const fn head_seed(seed: u64) -> u64 {
    of_slot(seed, 1 << 33)
}

const fn of_slot(seed: u64, slot: u64) -> u64 {
    seed ^ (slot + 1).wrapping_mul(0xD134_2543_DE82_EF95)
}
