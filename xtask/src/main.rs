//! Tasks around the project: `cargo xtask help`.

#![expect(clippy::print_stdout, reason = "a command-line program")]

mod bench_cpu;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tidy;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks around the project")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Measure; timing is never a test.
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Subcommand)]
enum Bench {
    /// LoRA steps of SmolLM2-135M on the processor: tokens/s, rows/s, peak memory.
    Cpu {
        /// The model: a directory or a .gguf file; by default where `quickstart` keeps it.
        #[arg(long)]
        model: Option<PathBuf>,
        /// Chat rows to measure rows/s on.
        #[arg(long)]
        rows: Option<PathBuf>,
        /// Timed optimiser steps of each case.
        #[arg(long, default_value_t = 5)]
        steps: usize,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Bench(Bench::Cpu { model, rows, steps }) => bench_cpu::run(model, rows, steps),
    }
}
