//! Frozen weights, whatever they are stored as.
//!
//! A base model never trains, so its weights stand outside Burn's `Param`: they are not recorded in
//! checkpoints, not visited by optimisers, and may be stored as anything that can be multiplied with.

mod weight;

pub use weight::Weight;
