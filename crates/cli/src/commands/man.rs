//! `man`: manual pages, made from the same text as `--help`.

use std::path::{Path, PathBuf};

use backdraft_formats::{Existing, write_file};
use clap::{Args, Command, CommandFactory};
use clap_mangen::Man;
use serde_json::json;

use crate::args::Cli;
use crate::commands::Context;
use crate::error::CliError;
use crate::plain::count;

/// Write manual pages, one for each command
#[derive(Debug, Args)]
#[command(after_help = "Example:
  backdraft man --out ~/.local/share/man/man1")]
pub(crate) struct ManArgs {
    /// Directory for the pages
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

pub(crate) fn run(args: &ManArgs, context: Context) -> Result<(), CliError> {
    std::fs::create_dir_all(&args.out).map_err(|error| {
        CliError::user(format!("cannot make {}", args.out.display())).because(error)
    })?;
    let mut cli = Cli::command().disable_help_subcommand(true);
    cli.build();
    let mut pages = Vec::new();
    write_pages(&cli, &args.out, &mut pages)?;
    context
        .output
        .record("man_pages", &json!({ "out": args.out, "pages": pages }))?;
    let (pages, directory) = (count(pages.len() as u64, "page"), args.out.display());
    context.output.line(format!("Wrote {pages} to {directory}"))
}

/// The page of a command, then those of its subcommands.
fn write_pages(
    command: &Command,
    directory: &Path,
    pages: &mut Vec<String>,
) -> Result<(), CliError> {
    let name = command
        .get_display_name()
        .unwrap_or(command.get_name())
        .to_owned();
    let mut page = Vec::new();
    Man::new(command.clone())
        .render(&mut page)
        .map_err(CliError::internal)?;
    let file = format!("{name}.1");
    write_file(directory.join(&file), &page, Existing::Replace)?;
    pages.push(file);
    for sub in command.get_subcommands() {
        write_pages(sub, directory, pages)?;
    }
    Ok(())
}
