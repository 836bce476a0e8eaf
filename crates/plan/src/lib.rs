//! What a step keeps of its forward pass, what it computes again, and the memory and time that takes: without tensors.
//!
//! | module | noun |
//! |---|---|
//! | [`allocation`] | which matrix gets how many bits
//! | [`setup`] | [`Setup`]: what settings and a model's description say of a step's memory |
//! | [`tensors`] | shapes of layers and passes; a layer run on sizes (`size_ops`), for bytes and work |
//! | [`cost`] | [`CostModel`](cost::CostModel): from work to time |
//! | [`predict`] | [`Prediction`]: the memory of a whole step under a plan; `pages` and `heap` are CubeCL's allocator |
//! | [`solver`] | the best plan for a budget |
//! | [`policies`] | [`ActivationPolicy`], and the [`Planner`] that a run asks before each pass |
//! | [`plan`] | [`ActivationPlan`]: what the step obeys |
//! | [`running`] | [`Activations`]: the planner as the steps of a run share it |
//! | [`memory`] | what the process holds and can get |
//! | [`bytes`] | numbers of bytes as people read them |
//!
//! Start reading at [`predict`].
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod allocation;
pub mod bytes;
pub mod cost;
mod heap;
pub mod memory;
mod pages;
pub mod plan;
pub mod policies;
pub mod predict;
pub mod running;
pub mod setup;
mod size_ops;
pub mod solver;
pub mod tensors;

pub use plan::{ActivationPlan, Segment};
pub use policies::{ActivationPolicy, Lowered, Planned, Planner};
pub use predict::{Moment, Peak, Prediction, Shortage, StepShape};
pub use running::{Activations, Exhausted, Limit, StepFailure};
pub use setup::{Advice, Setup};

#[cfg(test)]
mod tests;
