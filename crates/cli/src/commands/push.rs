//! `push`: an adapter, a model or exported files to a repository of the hub.

mod base;
mod card;
mod evaluation;
mod files;
mod recipe;
mod token;
mod told;
mod verdict;

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};

use backdraft_formats::gguf::GgufFile;
use backdraft_formats::hub::HubName;
use backdraft_formats::hub::push::{Push, PushError, PushFile, PushOptions, Remote};
use backdraft_formats::{CardHead, Existing, FormatError, PeftDir, trained_model_in, write_file};
use backdraft_journal::run_files::RunFiles;
use backdraft_train::trained_with::{TrainedWith, adapter_in};
use clap::Args;
use glob::Pattern;
use serde_json::Value;

use self::card::{Facts, Kind};
use self::evaluation::Evaluation;
use self::files::{Choice, Rules};
use self::told::Told;
use crate::commands::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::provenance;

/// Send an adapter, a model or exported files to the hub, with a model card
///
/// Lists what will be sent and what replaces something there, and asks before it sends. A new repository is private. Only
/// files of a model are sent; rows, training state, records of the run, pickles and hidden files stay here. The access token
/// is read from HF_TOKEN; HF_ENDPOINT names another hub. All files appear in one commit, or none does.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft push outputs --repo me/my-adapter --dry-run
  backdraft push outputs --repo me/my-adapter
  backdraft push gguf --run outputs --repo me/my-model-gguf --public --yes")]
pub(crate) struct PushArgs {
    /// Directory to send: an adapter's, the output directory of a run (its adapter is sent), a merged or exported one
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,

    /// Repository that receives it: org/name
    #[arg(long, value_name = "ORG/NAME")]
    pub(crate) repo: String,

    /// Branch to commit to, made where there is none [default: main]
    #[arg(long, visible_alias = "branch", value_name = "BRANCH")]
    pub(crate) revision: Option<String>,

    /// Let everybody read a new repository, or send to one that everybody can read
    #[arg(long)]
    pub(crate) public: bool,

    /// Message of the commit
    #[arg(long, value_name = "TEXT")]
    pub(crate) message: Option<String>,

    /// Hub id of the base, in place of a path in the adapter's files
    #[arg(long, value_name = "ORG/NAME")]
    pub(crate) base_model: Option<String>,

    /// Output directory of the run that it comes from, for the card [default: the one that an adapter lies in]
    #[arg(long, value_name = "DIR")]
    pub(crate) run: Option<PathBuf>,

    /// What `eval --json` printed, for the card: scores without and with the adapter
    #[arg(long, value_name = "FILE")]
    pub(crate) evaluation: Option<PathBuf>,

    /// Send files too that are left out otherwise, hidden ones and secrets excepted (repeatable)
    #[arg(long, value_name = "GLOB", value_parser = Pattern::new)]
    pub(crate) include: Vec<Pattern>,

    /// Leave files out (repeatable)
    #[arg(long, value_name = "GLOB", value_parser = Pattern::new)]
    pub(crate) exclude: Vec<Pattern>,

    /// Show the list and the card, and ask the hub nothing
    #[arg(long, conflicts_with = "write_card")]
    pub(crate) dry_run: bool,

    /// Write the card to README.md in the directory, to be edited, and send nothing
    #[arg(long)]
    pub(crate) write_card: bool,

    /// Send without asking
    #[arg(long)]
    pub(crate) yes: bool,
}

pub(crate) fn run(args: &PushArgs, context: Context) -> Result<(), CliError> {
    let output = context.output;
    let name = repository(args)?;
    if let Some(base) = &args.base_model
        && HubName::parse(base).is_none()
    {
        return Err(CliError::usage(format!(
            "--base-model {base:?} is no hub id; expected org/name"
        )));
    }
    let directory = directory(&args.directory, output)?;
    let mut choice = Choice::of(
        &directory,
        &Rules {
            include: args.include.clone(),
            exclude: args.exclude.clone(),
        },
    )?;
    let kind = kind(&choice).ok_or_else(|| nothing(&directory, &choice))?;
    for named in base::rename(&mut choice, &directory, args.base_model.as_deref()) {
        let base::Named { file, path } = named;
        match &args.base_model {
            Some(base) => output.progress(format!("{file} will name {base} in place of {path}")),
            None => output.warn(format!(
                "{file} names the base by a path of this machine, {path}; --base-model ORG/NAME puts its hub id there"
            )),
        }
    }
    let card = match choice.has(CardHead::FILE) && !args.write_card {
        // What somebody wrote is sent as it is.
        true => None,
        false => Some(card(args, &name, (kind, &directory, &choice), output)?),
    };
    if args.write_card {
        return write_card(&directory, card.as_deref().unwrap_or_default(), output);
    }
    if let Some(card) = &card {
        let card = PushFile::of_bytes(CardHead::FILE, card.clone().into_bytes());
        choice.files.push(card);
    }
    let told = Told {
        name: &name,
        choice: &choice,
        card: card.as_deref(),
        public: args.public,
    };
    if args.dry_run {
        return told.dry_run(output);
    }
    if !args.yes && !output.is_terminal() {
        return Err(CliError::usage(
            "nothing is sent without being asked for, and there is nobody to ask here",
        )
        .hint("add --yes to send, or --dry-run to see what would be sent"));
    }
    send(args, &told, output)
}

/// Looks at the repository, asks the user, and sends.
fn send(args: &PushArgs, told: &Told<'_>, output: Output) -> Result<(), CliError> {
    let name = told.name;
    let options = PushOptions::from_env(name.repository())?;
    let push = Push::new(name, &options);
    let remote = push.look()?;
    check_visibility(args, name, remote.as_ref(), output)?;
    told.list(remote.as_ref(), output)?;
    if !args.yes && !confirmed(&told.question(remote.as_ref()), output)? {
        return output.line("Nothing was sent.");
    }
    let message = args.message.clone().unwrap_or_else(|| told.message());
    let mut progress = told::Upload::new(output, told.bytes());
    let pushed = push.send(
        &told.choice.files,
        remote.as_ref(),
        (&message, args.public),
        &mut progress,
    )?;
    told.done(&pushed, remote.as_ref(), output)
}

fn repository(args: &PushArgs) -> Result<HubName, CliError> {
    let unusable = || PushError::Name {
        name: args.repo.clone(),
    };
    let name = HubName::parse(&args.repo).ok_or_else(unusable)?;
    let Some(revision) = &args.revision else {
        return Ok(name);
    };
    if name.has_revision() {
        return Err(CliError::usage(format!(
            "--repo {} names a branch already",
            args.repo
        )));
    }
    name.at(revision).ok_or_else(|| {
        CliError::usage(format!(
            "--revision {revision:?} is no branch; expected letters, digits, -, _ and ., in parts with / between"
        ))
    })
}

/// The directory itself, or the adapter of a run that it is.
fn directory(path: &Path, output: Output) -> Result<PathBuf, CliError> {
    if !path.is_dir() {
        let error = match path.exists() {
            true => CliError::user(format!("{} is no directory", path.display())),
            false => FormatError::NotFound { path: path.into() }.into(),
        };
        return Err(error.hint("name a directory with an adapter, a model or GGUF files"));
    }
    let found = adapter_in(path);
    if found != path && !path.join("config.json").is_file() {
        output.progress(format!("the adapter of that run: {}", found.display()));
        return Ok(found);
    }
    if let Some(model) = trained_model_in(path) {
        output.progress(format!("the model of that run: {}", model.display()));
        return Ok(model);
    }
    Ok(path.to_owned())
}

fn kind(choice: &Choice) -> Option<Kind> {
    if choice.has("adapter_config.json") {
        return Some(Kind::Adapter);
    }
    if choice.has("config.json") && choice.ending(".safetensors").next().is_some() {
        return Some(Kind::Model);
    }
    choice.ending(".gguf").next().map(|_| Kind::Gguf)
}

fn nothing(directory: &Path, choice: &Choice) -> CliError {
    let left = match choice.left_out.len() {
        0 => "it is empty".to_owned(),
        _ => {
            let left = choice.left_out.iter().take(5);
            let left = left.map(|left| format!("{} ({})", left.name, left.why));
            format!("left out were {}", left.collect::<Vec<_>>().join(", "))
        }
    };
    CliError::user(format!(
        "{} holds no model to send: neither adapter_config.json, nor config.json with safetensors, nor GGUF files; {left}",
        directory.display()
    ))
    .hint("name an adapter's directory, the output directory of a run, or one that `merge` or `export` wrote")
}

fn card(
    args: &PushArgs,
    name: &HubName,
    (kind, directory, choice): (Kind, &Path, &Choice),
    output: Output,
) -> Result<String, CliError> {
    let run = match &args.run {
        Some(run) => Some(RunFiles::read(run).map_err(|error| {
            CliError::from(error).hint("--run takes the output directory of a run")
        })?),
        None => provenance::run_of(directory)?,
    };
    let adapter = match kind {
        Kind::Adapter => Some(PeftDir::read(directory)?.config),
        Kind::Model | Kind::Gguf => None,
    };
    // Of a merged model the run's adapter tells how it was trained.
    let noted = match (&adapter, &run) {
        (None, Some(run)) => TrainedWith::read(&adapter_in(&run.directory))?,
        _ => TrainedWith::read(directory)?,
    };
    let said = base::said(directory)
        .or_else(|| base_in_gguf(directory, choice))
        .or_else(|| Some(run.as_ref()?.note.as_ref()?.info.model.clone()));
    let base = args.base_model.clone().or_else(|| said.clone());
    let base = base.filter(|base| provenance::is_hub_id(base));
    let of_base = base
        .iter()
        .chain(&said)
        .map(|base| provenance::card_of(base));
    let of_base = of_base
        .into_iter()
        .find(|card| *card != CardHead::default());
    if base.is_none() {
        output.warn("the card cannot name the base: no hub id of it is known; --base-model ORG/NAME says it");
    }
    if run.is_none() {
        output.progress(
            "no run is known to the card: --run OUTPUT_DIR adds data, recipe, losses and memory",
        );
    }
    let evaluation = args.evaluation.as_deref().map(evaluation).transpose()?;
    Ok(card::card(&Facts {
        kind,
        repository: name,
        base: base.as_deref(),
        of_base: of_base.unwrap_or_default(),
        adapter: adapter.as_ref(),
        noted: noted.as_ref(),
        run: run.as_ref(),
        evaluation: evaluation.as_ref(),
        files: &choice.files,
    }))
}

/// The base that an exported file names, where it is one of the hub's.
fn base_in_gguf(directory: &Path, choice: &Choice) -> Option<String> {
    let first = choice.ending(".gguf").next()?;
    let file = GgufFile::open(directory.join(&first.name)).ok()?;
    let url = file
        .metadata()
        .str("general.base_model.0.repo_url")
        .ok()??;
    Some(url.strip_prefix("https://huggingface.co/")?.to_owned())
}

/// The scores among the lines that `eval --json` printed.
fn evaluation(path: &Path) -> Result<Evaluation, CliError> {
    let text = std::fs::read_to_string(path).map_err(FormatError::io(path, "read"))?;
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut lines = lines.filter(|line| line["event"] == "evaluation");
    lines.find_map(|line| Evaluation::of(&line)).ok_or_else(|| {
        CliError::user(format!(
            "{} holds no scores of an evaluation",
            path.display()
        ))
        .hint("`backdraft eval recipe.toml --json > FILE` writes them")
    })
}

fn write_card(directory: &Path, card: &str, output: Output) -> Result<(), CliError> {
    let path = directory.join(CardHead::FILE);
    // What is there may be somebody's work.
    write_file(&path, card.as_bytes(), Existing::Refuse).map_err(|error| match error {
        FormatError::TargetExists { path } => {
            CliError::user(format!("{} exists, and is sent as it is", path.display()))
                .hint("remove it to have a card written anew")
        }
        error => error.into(),
    })?;
    output.record("card", &serde_json::json!({ "card": path }))?;
    output.line(format!("Wrote {}", path.display()))
}

fn check_visibility(
    args: &PushArgs,
    name: &HubName,
    remote: Option<&Remote>,
    output: Output,
) -> Result<(), CliError> {
    match remote {
        Some(remote) if !remote.private && !args.public => Err(PushError::Public {
            name: name.repository().to_owned(),
        }
        .into()),
        Some(remote) if remote.private && args.public => {
            output.warn(format!(
                "{} is private and stays so: --public is for new repositories; the hub's settings change it",
                name.repository()
            ));
            Ok(())
        }
        _ => Ok(()),
    }
}

fn confirmed(question: &str, output: Output) -> Result<bool, CliError> {
    output.stream(&format!("{question} [y/N] "))?;
    let _ = std::io::stdout().flush();
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| CliError::user("cannot read the answer").because(error))?;
    Ok(["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()))
}
