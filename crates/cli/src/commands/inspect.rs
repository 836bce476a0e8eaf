//! `inspect`: what a file or directory contains, and what training it would cost.

use clap::Args;

use crate::commands::Context;
use crate::error::CliError;

/// Show what a model, adapter, recipe or data file contains, and what it would cost to train
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft inspect model.gguf
  backdraft inspect outputs/adapter
  backdraft inspect train.jsonl --model model.gguf")]
pub(crate) struct InspectArgs {
    /// Model (directory, .gguf file, hub id), adapter directory, recipe or data file
    #[arg(value_name = "WHAT")]
    pub(crate) what: String,

    /// Model whose tokenizer counts the tokens of a data file
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,

    /// Rank of the adapter whose cost is estimated
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rank: u64,

    /// Rows in one pass, for the estimate
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) micro_batch_size: u64,

    /// Tokens per row, for the estimate
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u64).range(2..))]
    pub(crate) max_seq_length: u64,
}

pub(crate) fn run(_args: &InspectArgs, _context: Context) -> Result<(), CliError> {
    Err(CliError::usage("`inspect` is not part of this build yet"))
}
