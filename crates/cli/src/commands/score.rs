//! `score`: logits and losses for given token ids.

use std::path::PathBuf;

use clap::Args;

use crate::args::ModelArgs;
use crate::commands::Context;
use crate::error::CliError;

/// Write the logits and the loss of every token for given token ids
///
/// The ids are a JSON list, or a list of lists of one length. The output holds `logits` [b, s, v] and
/// `nll` [b, s - 1], in float32.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  backdraft score --model model.gguf --ids ids.json --out scores.safetensors")]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// JSON file with the token ids
    #[arg(long, value_name = "FILE")]
    pub(crate) ids: PathBuf,

    /// safetensors file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,

    /// Replace the output file if it exists
    #[arg(long)]
    pub(crate) force: bool,
}

pub(crate) fn run(_args: &ScoreArgs, _context: Context) -> Result<(), CliError> {
    Err(CliError::usage("`score` is not part of this build yet"))
}
