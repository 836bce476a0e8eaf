//! The `backdraft` program.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod about;
mod args;
mod commands;
mod counter;
mod dashboard;
mod data_summary;
mod devices;
mod envelope;
mod error;
mod noted;
mod output;
mod plain;
mod provenance;
mod ranks;
mod reporter;
mod rows;
mod session;
mod shell;
mod signals;
mod tracker;
mod usage;

use std::process::ExitCode;

fn main() -> ExitCode {
    #[expect(unsafe_code, reason = "sets the allocator up")]
    // SAFETY: there is no other thread yet.
    unsafe {
        backdraft_allocator::configure();
    }
    std::panic::catch_unwind(commands::main).unwrap_or(ExitCode::from(error::INTERNAL))
}

/// Has NVIDIA's libraries found where the system has none; to be called before anything starts a thread.
pub(crate) fn find_libraries() {
    let cache = session::cache_dir().unwrap_or_else(std::env::temp_dir);
    #[expect(unsafe_code, reason = "the environment is changed")]
    // SAFETY: commands start no thread before this.
    unsafe {
        backdraft_kernels::device::prepare(&cache);
    }
}
