//! The `backdraft` program.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod args;
mod commands;
mod error;
mod output;
mod plain;

use std::process::ExitCode;

fn main() -> ExitCode {
    error::install_panic_hook();
    std::panic::catch_unwind(commands::main).unwrap_or(ExitCode::from(error::INTERNAL))
}
