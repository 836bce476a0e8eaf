//! Low-rank adapters over frozen projections.
//!
//! [`Projection`] is a linear layer whose weight is frozen and which may carry an [`Adapter`];
//! only the adapter's tensors are Burn parameters, and whoever trains or stores them knows them by name. [`LoraConfig`] says which projections of a model
//! get one.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod adapter;
pub mod base;
mod combine;
mod dora;
mod export;
mod full;
mod gradients;
mod lora_adapter;
mod merge;
mod merged_files;
mod orthogonal;
mod param;
mod peft;
mod projection;
mod rows;
mod small;
pub mod start;
mod statistics;
mod table_adapter;
mod tokens;
mod trained_over;
mod weights;
mod whole;

pub use adapter::Adapter;
pub use backdraft_arch::{Bias, LoraConfig, LoraConfigError, TargetModule};
pub use combine::{Combination, CombineError, CombineOptions, MajoritySign, combine};
pub use dora::Magnitude;
pub use export::{ExportReport, export, gguf_decoder};
pub use full::ModelWriteOptions;
pub use gradients::AdapterGrads;
pub use lora_adapter::LoraAdapter;
pub use merge::{MergeBase, MergeError, MergeReport, check_adapter, merge, unties};
pub use param::{AdapterParam, Stored};
pub use projection::{Ahead, Projection, ProjectionSaved};
pub use rows::Rows;
pub use start::{StartFactors, principal_factors, start_factors};
pub use statistics::{Sensitivity, Statistics};
pub use tokens::{TokenMatrix, TrainedTokens};
pub use trained_over::TrainedOver;
pub use weights::AdapterWeights;
pub use whole::TrainedTensor;
