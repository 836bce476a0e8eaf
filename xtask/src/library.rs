//! Tasks that need the library: this program, built with it, does them.

use std::env;
use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};

/// Tasks that need the library.
#[derive(Subcommand)]
pub(crate) enum LibraryTask {
    /// Measure; timing is never a test.
    #[command(disable_help_flag = true)]
    Bench(Passed),
    /// Write docs/recipe.md from the table of recipe keys.
    #[command(disable_help_flag = true)]
    Docs(Passed),
    /// The values of nested codes, by numeric integration; fails where those in the library are others.
    #[command(disable_help_flag = true)]
    Codebook(Passed),
    /// Write a model whose weights are off the grid of its file, in f32.
    #[command(disable_help_flag = true)]
    Dither(Passed),
    /// Write a model of a real shape with random bf16 weights, sharded.
    #[command(disable_help_flag = true)]
    RandomModel(Passed),
}

/// Arguments that the program with the library reads.
#[derive(Args)]
pub(crate) struct Passed {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    rest: Vec<OsString>,
}

/// Builds this program with the library and lets it do `task`.
pub(crate) fn run(task: LibraryTask) -> anyhow::Result<()> {
    let (name, args) = match task {
        LibraryTask::Bench(args) => ("bench", args),
        LibraryTask::Docs(args) => ("docs", args),
        LibraryTask::Codebook(args) => ("codebook", args),
        LibraryTask::Dither(args) => ("dither", args),
        LibraryTask::RandomModel(args) => ("random-model", args),
    };
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let status = crate::ci::cargo()
        .args(["run", "--release", "--quiet", "--features", "bench"])
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--")
        .arg(name)
        .args(args.rest)
        .status()
        .context("cargo")?;
    ensure!(status.success(), "{name} ended with {status}");
    Ok(())
}
