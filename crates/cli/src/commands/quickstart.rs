//! `quickstart`: a whole fine-tune with nothing prepared.

use std::path::PathBuf;

use clap::Args;

use crate::commands::Context;
use crate::error::CliError;

/// Fine-tune a small model in a few minutes, with nothing prepared
///
/// Finds or fetches SmolLM2-135M-Instruct, makes a small data set (text to JSON), trains on it, scores
/// held-out rows before and after, and leaves the adapter, the recipe and the logs behind.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  backdraft quickstart")]
pub(crate) struct QuickstartArgs {
    /// Where the data, the recipe and the adapter go
    #[arg(long, value_name = "DIR", default_value = "backdraft-quickstart")]
    pub(crate) output_dir: PathBuf,

    /// Another model than SmolLM2-135M-Instruct: directory, .gguf file, or hub id
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,

    /// Optimiser steps [default: enough for a clear result in a few minutes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_steps: Option<u64>,

    /// Seed of the data set and the training
    #[arg(long, value_name = "SEED", default_value_t = 42, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub(crate) seed: u64,

    /// Replace an earlier quickstart in the same directory
    #[arg(long)]
    pub(crate) force: bool,
}

pub(crate) fn run(_args: &QuickstartArgs, _context: Context) -> Result<(), CliError> {
    Err(CliError::usage(
        "`quickstart` is not part of this build yet",
    ))
}
