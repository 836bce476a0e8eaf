//! Frozen weights, whatever they are stored as.
//!
//! A base model never trains, so its weights stand outside Burn's `Param`: they are not recorded in
//! checkpoints, not visited by optimisers, and may be stored as anything that can be multiplied with:
//! [`Weight`] lists what. A module holds them in [`Frozen`], so that they move with it. The codes and the products with them are operations of `backdraft-kernels`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod errors;
mod frozen;
mod streamed;
mod weight;

pub use backdraft_arch::{FourBitFormat, NestedFormat, Precision, QuantizationPlan, Scheme};
pub use backdraft_kernels::offload::slots::{Block, PinError, Slots};
pub use errors::{SquaredErrors, squared_errors};
pub use frozen::{Frozen, Movable};
pub use streamed::{Streamed, stream};
pub use weight::{Quantizer, Weight};
