//! `merge`: fold an adapter into its model.

use std::path::PathBuf;

use clap::Args;

use crate::commands::Context;
use crate::error::CliError;

/// Fold an adapter into a new Hugging Face directory, in the base model's number format
#[derive(Debug, Args)]
#[command(after_help = "Example:
  backdraft merge --model HuggingFaceTB/SmolLM2-135M-Instruct --adapter outputs/adapter --out merged")]
pub(crate) struct MergeArgs {
    /// Base model: directory, .gguf file, or hub id (org/name)
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: String,

    /// PEFT adapter directory
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: PathBuf,

    /// Directory to write
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Replace the output directory if it exists
    #[arg(long)]
    pub(crate) force: bool,
}

pub(crate) fn run(_args: &MergeArgs, _context: Context) -> Result<(), CliError> {
    Err(CliError::usage("`merge` is not part of this build yet"))
}
