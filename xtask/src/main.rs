//! Tasks around the project: `cargo xtask help`.
//!
//! The tasks that need the library, and with it Burn, are behind the feature `bench`: without it this program builds
//! in seconds, and starts itself again with the feature when one of them is asked for.

#![expect(clippy::print_stdout, reason = "a command-line program")]

#[cfg(feature = "bench")]
mod bench;
mod ci;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod circles;
mod dist;
#[cfg(not(feature = "bench"))]
mod library;
#[cfg(any(feature = "bench", test))]
#[cfg_attr(not(feature = "bench"), allow(dead_code, reason = "only tested"))]
mod plot;
mod section;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tidy;
mod timings;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[cfg(feature = "bench")]
use crate::bench as library;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks around the project")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run the project's checks: all stages, or those named.
    Ci(ci::CiArgs),
    /// What a release consists of: archives, wheels, Debian packages, licences, a bill of materials, sums.
    Dist(dist::DistArgs),
    /// Where a build's time goes, by crate, from the page of `cargo build --timings`.
    Timings(timings::TimingsArgs),
    #[command(flatten)]
    Library(library::LibraryTask),
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().task {
        Task::Ci(args) => ci::run(&args),
        Task::Dist(args) => dist::run(args).map(|()| ExitCode::SUCCESS),
        Task::Timings(args) => timings::run(&args).map(|()| ExitCode::SUCCESS),
        Task::Library(task) => library::run(task).map(|()| ExitCode::SUCCESS),
    }
}
