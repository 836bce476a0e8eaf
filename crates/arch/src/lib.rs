//! What a decoder is, without tensors.
//!
//! A layer is told once, in [`layer`]: straight-line code, generic over who executes its [`ops`]. The model
//! executes them on tensors, the planner on sizes and on the allocator's pages, calibration with a clock.
//!
//! | module | noun |
//! |---|---|
//! | [`target`] | [`TargetModule`]: the projections of a layer, and which of them share an input |
//! | [`saved`] | [`SavedTensor`], [`KeepSet`], [`OffloadSet`]: what stays for the backward pass |
//! | [`ops`] | [`Forward`] and [`Backward`]: the ops of a layer, for an executor to implement |
//! | [`layer`] | [`forward`](layer::forward), [`backward`](layer::backward), [`Kept`] |
//!
//! Start reading at [`layer`].

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod layer;
pub mod ops;
pub mod saved;
pub mod target;

pub use layer::{InputGrad, Kept, Projected};
pub use ops::{Backward, Forward, Norm, Values};
pub use saved::{KeepSet, OffloadSet, SavedTensor};
pub use target::{Group, TargetModule, UnknownTarget};
