//! What needs the library: benchmarks, random models, generated pages.

mod activation;
mod card;
mod codebook;
mod cpu;
mod data;
mod diagnosis;
mod dither;
mod gpu;
mod plan;
mod precision;
mod preferences;
mod prices;
mod quantize;
mod random_model;
mod sample;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Subcommand;

/// Tasks that need the library.
#[derive(Subcommand)]
pub(crate) enum LibraryTask {
    /// Measure; timing is never a test.
    #[command(subcommand)]
    Bench(Box<Bench>),
    /// Write docs/recipe.md from the table of recipe keys.
    Docs,
    /// The values of nested codes, by numeric integration; fails where those in the library are others.
    Codebook,
    /// Write a model whose weights are off the grid of its file, in f32.
    Dither {
        /// A .gguf file or a directory.
        #[arg(long)]
        model: PathBuf,
        /// Directory to write.
        #[arg(long)]
        out: PathBuf,
        /// How far, in half steps of the file; 0 writes its own values, for programs that read no GGUF.
        #[arg(long, default_value_t = 1.0)]
        amount: f32,
        /// Of the draws.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Write a model of a real shape with random bf16 weights, sharded.
    RandomModel {
        /// 70b, 8b or 1b, Llama's; qwen3-8b, qwen3.5-9b, gemma3-12b or phi4.
        #[arg(long, default_value = "8b")]
        shape: String,
        /// So many of its layers, in place of all.
        #[arg(long)]
        layers: Option<usize>,
        /// Directory to write.
        #[arg(long)]
        out: PathBuf,
    },
}

#[derive(Subcommand)]
pub(crate) enum Bench {
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
    Activation(activation::ActivationArgs),
    /// Tokenising and packing chat rows on all cores: MB/s, rows/s, peak memory, and against Python.
    Data(data::DataArgs),
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
    Gpu(gpu::GpuArgs),
    /// Adaptive precision: many short runs, arm beside arm, paired by seed.
    Precision(precision::PrecisionArgs),
    /// Preferences: each objective's runs on pairs with the model's own wrong answers, beside another trainer's.
    Preferences(preferences::PreferencesArgs),
    /// Adaptive precision: the KL of single projections and of plans, predicted and measured.
    Prices(prices::PricesArgs),
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

/// Runs `task`.
pub(crate) fn run(task: LibraryTask) -> anyhow::Result<()> {
    #[expect(unsafe_code, reason = "sets the allocator up, as the program does")]
    // SAFETY: there is no other thread yet.
    unsafe {
        backdraft_allocator::configure();
    }
    match task {
        LibraryTask::Docs => docs(),
        LibraryTask::Codebook => codebook::run(),
        LibraryTask::RandomModel { shape, layers, out } => {
            random_model::write(&shape, layers, &out)
        }
        LibraryTask::Dither {
            model,
            out,
            amount,
            seed,
        } => dither::write(&model, &out, amount, seed),
        LibraryTask::Bench(bench) => match *bench {
            Bench::Cpu {
                model,
                rows,
                batching,
                steps,
            } => cpu::run(model, rows, batching, steps),
            Bench::Activation(args) => activation::run(&args),
            Bench::Data(args) => data::run(&args),
            Bench::Diagnosis { seeds, per_class } => diagnosis::run(&seeds, per_class),
            Bench::Gpu(args) => gpu::run(&args),
            Bench::Precision(args) => precision::run(&args),
            Bench::Preferences(args) => preferences::run(&args),
            Bench::Prices(args) => prices::run(&args),
            Bench::Plan => plan::run(),
            Bench::Quantize => quantize::throughput(),
            Bench::Load { model } => quantize::load(&model),
        },
    }
}

/// Writes the pages that are made from the code.
fn docs() -> anyhow::Result<()> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    fs::create_dir_all(&docs)?;
    fs::write(docs.join("recipe.md"), backdraft_recipe::page())?;
    Ok(())
}
