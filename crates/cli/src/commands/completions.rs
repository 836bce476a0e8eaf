//! `completions`: scripts that complete commands and flags in a shell.

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde_json::json;

use crate::args::Cli;
use crate::commands::Context;
use crate::error::CliError;

/// Print a script that completes commands and flags in your shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft completions bash > ~/.local/share/bash-completion/completions/backdraft
  backdraft completions zsh > ~/.zfunc/_backdraft
  backdraft completions fish > ~/.config/fish/completions/backdraft.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    pub(crate) shell: Shell,
}

pub(crate) fn run(args: &CompletionsArgs, context: Context) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "backdraft", &mut script);
    let script = String::from_utf8_lossy(&script);
    context.output.record(
        "completions",
        &json!({ "shell": args.shell.to_string(), "script": script }),
    )?;
    context.output.line(script.trim_end())
}
