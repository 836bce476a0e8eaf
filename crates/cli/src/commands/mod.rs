//! One file per command: its flags and what it does.

pub(crate) mod chat;
pub(crate) mod combine;
pub(crate) mod completions;
pub(crate) mod data;
pub(crate) mod devices;
pub(crate) mod doctor;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod generate;
pub(crate) mod init;
pub(crate) mod inspect;
pub(crate) mod man;
pub(crate) mod merge;
pub(crate) mod plan;
pub(crate) mod push;
pub(crate) mod quantize;
pub(crate) mod quickstart;
pub(crate) mod report;
pub(crate) mod score;
pub(crate) mod serve;
pub(crate) mod train;
pub(crate) mod tune;
pub(crate) mod watch;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use backdraft_formats::{AtomicFile, Existing};
use backdraft_quant::QuantizationPlan;
use clap::Parser;

use crate::args::{Cli, Command, Global};
use crate::error::{self, CliError};
use crate::output::Output;
use crate::usage;

/// What every command is given besides its own flags.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) output: Output,
}

/// Reads the command line, runs the command, reports its error.
pub(crate) fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let json = usage::wants_json(&words);
    error::install_panic_hook(json);
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) => return usage::answer(error, &words, json),
    };
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(json),
    }
}

fn start(cli: Cli) -> Result<(), CliError> {
    let (before, behind) = (cli.device, cli.command.device());
    if before.is_some() && behind.is_none() {
        return Err(CliError::usage("--device does not apply to this command"));
    }
    let global = Global {
        device: behind.flatten().or(before),
        ..cli.global
    };
    if cli.command.may_compute() {
        crate::find_libraries();
    }
    let output = Output::new(global.json);
    run(cli.command, Context { global, output })
}

fn run(command: Command, context: Context) -> Result<(), CliError> {
    match command {
        Command::Train(args) => train::run(&args, context),
        Command::Tune(args) => tune::run(&args, context),
        Command::Data(args) => data::run(&args, context),
        Command::Plan(args) => plan::run(&args, context),
        Command::Generate(args) => generate::run(&args, context),
        Command::Eval(args) => eval::run(&args, context),
        Command::Score(args) => score::run(&args, context),
        Command::Serve(args) => serve::run(&args, context),
        Command::Merge(args) => merge::run(&args, context),
        Command::Combine(args) => combine::run(&args, context),
        Command::Quantize(args) => quantize::run(&args, context),
        Command::Export(args) => export::run(&args, context),
        Command::Push(args) => push::run(&args, context),
        Command::Inspect(args) => inspect::run(&args, context),
        Command::Init(args) => init::run(&args, context),
        Command::Watch(args) => watch::run(&args, context),
        Command::Report(args) => report::run(&args, context),
        Command::Quickstart(args) => quickstart::run(&args, context),
        Command::Devices(args) => devices::run(&args, context),
        Command::Doctor(_) => doctor::run(context),
        Command::Completions(args) => completions::run(&args, context),
        Command::Man(args) => man::run(&args, context),
    }
}

/// Refuses a file that cannot be written, or that is made of what it would replace, before any work is done for it.
pub(crate) fn new_file(path: &Path, force: bool, inputs: &[PathBuf]) -> Result<Existing, CliError> {
    let existing = match force {
        true => Existing::Replace,
        false => Existing::Refuse,
    };
    let target = path.canonicalize().ok();
    let holds = |input: &&PathBuf| {
        let input = input.canonicalize().ok();
        input.is_some_and(|input| {
            (target.as_ref()).is_some_and(|target| target.is_file() && target.starts_with(input))
        })
    };
    if let Some(input) = inputs.iter().find(holds) {
        let of = match input.is_dir() {
            true => format!(", of {},", input.display()),
            false => String::new(),
        };
        return Err(CliError::user(format!(
            "{}{of} is read by this command and is not replaced",
            path.display()
        ))
        .hint("choose another name"));
    }
    // What cannot be started cannot be finished; nothing is left of it.
    AtomicFile::create(path, existing)?;
    Ok(existing)
}

/// Says which modules are to be left unquantized and are not there.
pub(crate) fn warn_unmatched(plan: &QuantizationPlan, paths: &[String], output: Output) {
    // A standard that also stands for the embedding of a tied head.
    for module in plan
        .unmatched(paths)
        .iter()
        .filter(|skip| **skip != "lm_head")
    {
        output.warn(format!(
            "the model has no module {module} to leave unquantized"
        ));
    }
}

/// Refuses to write a directory in the place of one that it is made of, with --force too.
pub(crate) fn keep_inputs(out: &Path, inputs: &[&Path]) -> Result<(), CliError> {
    let Ok(target) = out.canonicalize() else {
        return Ok(());
    };
    let is_input = |input: &&&Path| input.canonicalize().is_ok_and(|input| input == target);
    match inputs.iter().find(is_input) {
        None => Ok(()),
        Some(input) => Err(CliError::user(format!(
            "--out {} is {}, which is read: nothing of it would be left",
            out.display(),
            input.display()
        ))
        .hint("choose another directory")),
    }
}
