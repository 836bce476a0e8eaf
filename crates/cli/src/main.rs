//! The `backdraft` program.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod about;
mod args;
mod commands;
mod counter;
mod dashboard;
mod data_summary;
mod envelope;
mod error;
mod noted;
mod output;
mod plain;
mod provenance;
mod reporter;
mod rows;
mod session;
mod shell;
mod signals;
mod usage;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    std::panic::catch_unwind(commands::main).unwrap_or(ExitCode::from(error::INTERNAL))
}
