//! `generate`: let a model write.

use clap::Args;

use crate::args::{ModelArgs, SamplingArgs};
use crate::commands::Context;
use crate::error::CliError;

/// Let a model, with or without an adapter, answer a prompt
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft generate --model HuggingFaceTB/SmolLM2-135M-Instruct \"What is the capital of France?\"
  backdraft generate --model model.gguf --temperature 0.7 --top-p 0.9 \"Tell a story\"
  backdraft generate --model model.gguf --adapter outputs/adapter --chat")]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// What to say to the model
    #[arg(value_name = "PROMPT", required_unless_present = "chat")]
    pub(crate) prompt: Option<String>,

    /// Talk to the model line by line
    #[arg(long, conflicts_with = "raw")]
    pub(crate) chat: bool,

    /// Give the prompt to the model as it is, without its chat template
    #[arg(long)]
    pub(crate) raw: bool,

    /// System message before the prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub(crate) system: Option<String>,

    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

pub(crate) fn run(_args: &GenerateArgs, _context: Context) -> Result<(), CliError> {
    Err(CliError::usage("`generate` is not part of this build yet"))
}
