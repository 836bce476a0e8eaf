//! What a step keeps of its forward pass, and what it computes again.
//!
//! [`tensors`] runs a layer on sizes (`size_ops`) for the bytes and the work of its tensors, [`cost`] turns work into time,
//! [`predict`] simulates the memory of a whole step under a plan (and `pages` how CubeCL's allocator lays it out), [`solver`] finds the best plan for a budget,
//! [`policies`] chooses by the recipe, and [`plan`] is what the step obeys.

pub mod cost;
pub mod device;
mod heap;
mod pages;
pub mod plan;
pub mod policies;
pub mod predict;
pub mod running;
pub mod setup;
mod size_ops;
pub mod solver;
pub mod tensors;

pub use device::{DeviceFacts, host_room};
pub use plan::{ActivationPlan, Segment};
pub use policies::{Lowered, Planned, Planner};
pub use predict::{Moment, Peak, Prediction, Shortage, StepShape};
pub use running::{Activations, Exhausted, Limit, StepFailure};
pub use setup::{Advice, Setup};

#[cfg(test)]
mod tests;
