//! A training run.
//!
//! [`Recipe`](recipe::Recipe) says what to do, [`prepare`](run::prepare) reads model and data, and
//! [`Run::train`](run::Run::train) goes through the optimiser steps: [`step`] computes one,
//! [`strategy`] drives burn-train's learner through them, evaluates, and saves.
//! Nothing here prints: a [`Reporter`](report::Reporter) hears of everything.
//!
//! Start reading at [`strategy`].
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod activation;
pub mod checkpoint;
pub mod diagnosis;
pub mod early_stopping;
pub mod error;
pub mod evaluate;
pub mod loader;
pub mod memory;
pub mod metrics;
pub mod optimizer;
pub mod recipe;
pub mod report;
pub mod run;
pub mod schedule;
pub mod step;
pub mod strategy;
pub mod trainee;

pub use error::TrainError;
