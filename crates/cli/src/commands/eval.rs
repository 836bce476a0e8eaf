//! `eval`: how well a model predicts, or answers, a file.

use std::path::PathBuf;

use clap::Args;

use crate::args::{FormatArg, ModelArgs};
use crate::commands::Context;
use crate::error::CliError;

/// Measure a model on a file, with and without an adapter
///
/// Reports the mean negative log-likelihood per supervised token and the perplexity; with an adapter,
/// both without and with it. With --generate also the share of answers that match exactly, and that
/// start with the same word.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft eval --model model.gguf --adapter outputs/adapter --data test.jsonl
  backdraft eval --model model.gguf --adapter outputs/adapter --data test.jsonl --generate
  backdraft eval --model model.gguf --data book.txt")]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// JSONL file, or a text file (.txt)
    #[arg(long, value_name = "FILE")]
    pub(crate) data: PathBuf,

    /// Shape of the rows [default: seen from the first row]
    #[arg(long, value_enum)]
    pub(crate) format: Option<FormatArg>,

    /// Turns alpaca rows into text, as in a recipe
    #[arg(long, value_name = "TEMPLATE")]
    pub(crate) prompt_template: Option<String>,

    /// Only the first N rows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,

    /// Tokens per row; longer rows are cut and counted
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u64).range(2..))]
    pub(crate) max_seq_length: u64,

    /// Also answer every row and compare with the expected answer
    #[arg(long)]
    pub(crate) generate: bool,

    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_new_tokens: u64,
}

pub(crate) fn run(_args: &EvalArgs, _context: Context) -> Result<(), CliError> {
    Err(CliError::usage("`eval` is not part of this build yet"))
}
