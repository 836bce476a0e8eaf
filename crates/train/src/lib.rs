//! A training run.
//!
//! [`Recipe`](backdraft_recipe::Recipe) says what to do, [`data`] reads and checks
//! its rows, [`prepare`](run::prepare) the model, and
//! [`Run::train`](run::Run::train) goes through the optimiser steps: [`step`] computes one,
//! [`strategy`] drives burn-train's learner through them, evaluates, and saves.
//! Nothing here prints: a [`Reporter`](backdraft_journal::report::Reporter) hears of everything.
//!
//! Start reading at [`strategy`].
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod adapt;
pub mod calibrate;
pub mod checkpoint;
mod clear;
pub mod compared;
pub mod control;
pub mod data;
pub mod dataset;
pub mod deal;
pub mod device;
pub mod early_stopping;
pub mod error;
pub mod evaluate;
pub mod held_out;
pub mod known;
pub mod likeness;
pub mod loader;
pub mod lock;
pub mod loss_scale;
pub mod metrics;
pub mod mixing;
pub mod neftune;
pub mod objective;
pub mod optimizer;
mod prefetch;
pub mod preflight;
pub mod ranks;
pub mod release;
mod remove;
pub mod resume;
pub mod run;
mod samples;
pub mod step;
pub mod strategy;
pub mod tokens;
pub mod trained_with;
pub mod trainee;
pub mod tune;

pub use error::TrainError;
