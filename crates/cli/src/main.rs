//! The `backdraft` program.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod args;
mod commands;
mod dashboard;
mod data_summary;
mod error;
mod output;
mod plain;
mod reporter;
mod session;
mod signals;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    error::install_panic_hook();
    std::panic::catch_unwind(commands::main).unwrap_or(ExitCode::from(error::INTERNAL))
}
