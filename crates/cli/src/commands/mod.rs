//! One file per command: its flags and what it does.

pub(crate) mod data;
pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod init;
pub(crate) mod inspect;
pub(crate) mod merge;
pub(crate) mod plan;
pub(crate) mod quantize;
pub(crate) mod quickstart;
pub(crate) mod report;
pub(crate) mod score;
pub(crate) mod train;
pub(crate) mod watch;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command, Global};
use crate::error::CliError;
use crate::output::Output;

/// What every command is given besides its own flags.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) output: Output,
}

/// Reads the command line, runs the command, reports its error.
pub(crate) fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    let context = Context {
        global,
        output: Output::new(global.json),
    };
    match run(command, context) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(global.json),
    }
}

fn run(command: Command, context: Context) -> Result<(), CliError> {
    match command {
        Command::Train(args) => train::run(&args, context),
        Command::Data(args) => data::run(&args, context),
        Command::Plan(args) => plan::run(&args, context),
        Command::Generate(args) => generate::run(&args, context),
        Command::Eval(args) => eval::run(&args, context),
        Command::Score(args) => score::run(&args, context),
        Command::Merge(args) => merge::run(&args, context),
        Command::Quantize(args) => quantize::run(&args, context),
        Command::Inspect(args) => inspect::run(&args, context),
        Command::Init(args) => init::run(&args, context),
        Command::Watch(args) => watch::run(&args, context),
        Command::Report(args) => report::run(&args, context),
        Command::Quickstart(args) => quickstart::run(&args, context),
    }
}
