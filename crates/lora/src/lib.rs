//! Low-rank adapters over frozen projections.
//!
//! [`Projection`] is a linear layer whose weight is frozen and which may carry an [`LoraAdapter`];
//! only the adapter's factors are Burn parameters. [`LoraConfig`] says which projections of a model
//! get one.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod adapter;
pub mod base;
mod gradients;
mod merge;
mod merged_files;
mod peft;
mod projection;
mod trained_over;
mod weights;

pub use adapter::LoraAdapter;
pub use backdraft_arch::{LoraConfig, LoraConfigError, TargetModule};
pub use gradients::AdapterGrads;
pub use merge::{MergeBase, MergeError, MergeReport, check_adapter, merge};
pub use projection::{Projection, ProjectionSaved};
pub use trained_over::TrainedOver;
pub use weights::AdapterWeights;
