//! Tasks around the project: `cargo xtask help`.

#![expect(clippy::print_stdout, reason = "a command-line program")]

mod bench_activation;
mod bench_cpu;
mod bench_data;
mod bench_gpu;
mod bench_plan;
mod bench_quantize;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod circles;
mod diagnosis;
mod plot;
mod random_model;
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
    /// Write docs/recipe.md from the table of recipe keys.
    Docs,
    /// Write a model of a real shape with random bf16 weights, sharded.
    RandomModel {
        /// 8b or 1b.
        #[arg(long, default_value = "8b")]
        shape: String,
        /// Directory to write.
        #[arg(long)]
        out: PathBuf,
    },
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
        /// Only those rows: padded, padding-free and packed.
        #[arg(long, requires = "rows")]
        batching: bool,
        /// Timed optimiser steps of each case.
        #[arg(long, default_value_t = 5)]
        steps: usize,
    },
    /// Step time and peak of each activation policy, and of `smart` at budgets between them.
    Activation(bench_activation::ActivationArgs),
    /// Tokenising and packing chat rows on all cores: MB/s, rows/s, peak memory, and against Python.
    Data(bench_data::DataArgs),
    /// The diagnosis on generated curves: the confusion matrix, into BENCHMARKS.md.
    Diagnosis {
        /// Seeds of the curves.
        #[arg(long, value_delimiter = ',', default_values_t = [77_001, 77_002, 77_003])]
        seeds: Vec<u64>,
        /// Curves of each class and seed.
        #[arg(long, default_value_t = 100)]
        per_class: usize,
    },
    /// LoRA steps of a random model on a CUDA device: loss, time, memory. Build with `--features cuda`.
    Gpu(bench_gpu::GpuArgs),
    /// Time to find an activation plan for 8B and 70B, and what the plans save.
    Plan,
    /// Quantising a matrix of 1024 x 4096 on the processor: GB/s of input.
    Quantize,
    /// Reading a model into NF4: memory over time.
    Load {
        /// A directory or a .gguf file.
        #[arg(long)]
        model: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Bench(Bench::Cpu {
            model,
            rows,
            batching,
            steps,
        }) => bench_cpu::run(model, rows, batching, steps),
        Task::Bench(Bench::Data(args)) => bench_data::run(&args),
        Task::Bench(Bench::Quantize) => bench_quantize::throughput(),
        Task::Bench(Bench::Plan) => bench_plan::run(),
        Task::Bench(Bench::Activation(args)) => bench_activation::run(&args),
        Task::Bench(Bench::Diagnosis { seeds, per_class }) => diagnosis::run(&seeds, per_class),
        Task::Bench(Bench::Gpu(args)) => bench_gpu::run(&args),
        Task::Bench(Bench::Load { model }) => bench_quantize::load(&model),
        Task::Docs => docs(),
        Task::RandomModel { shape, out } => random_model::write(&shape, &out),
    }
}

/// Writes the pages that are made from the code.
fn docs() -> anyhow::Result<()> {
    let docs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs");
    std::fs::create_dir_all(&docs)?;
    std::fs::write(docs.join("recipe.md"), backdraft_recipe::page())?;
    Ok(())
}
