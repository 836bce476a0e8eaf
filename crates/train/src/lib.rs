//! train
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod recipe;
pub mod schedule;
