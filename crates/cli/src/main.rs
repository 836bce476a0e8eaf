//! The `backdraft` program.
#![cfg_attr(test, allow(clippy::unwrap_used))]
#![allow(dead_code, reason = "the commands that need a model are wired next")]

mod args;
mod commands;
mod error;
#[cfg_attr(
    not(test),
    allow(dead_code, reason = "for the commands that need a model")
)]
mod output;
mod plain;

use std::process::ExitCode;

fn main() -> ExitCode {
    error::install_panic_hook();
    std::panic::catch_unwind(commands::main).unwrap_or(ExitCode::from(error::INTERNAL))
}
