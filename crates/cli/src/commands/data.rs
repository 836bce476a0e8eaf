//! `data`: look at rows before they are trained on.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use backdraft_data::preview::{TextLook, preview};
use backdraft_data::{BrokenKind, Format, Outcome};
use backdraft_formats::{ModelSource, write_file};
use backdraft_recipe::{DataFormat, EvalRecipe, ObjectiveRecipe, Recipe, ReferenceStart};
use backdraft_train::data::{self, DataCheck, DataSources, plain, tokenize_options};
use clap::{Args, Subcommand};

use crate::args::choice;
use crate::commands::{self, Context, train};
use crate::data_summary;
use crate::error::CliError;
use crate::output::Output;
use crate::session::{self, Loading, quote};

/// Preview and check rows before training
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft data preview recipe.toml
  backdraft data check recipe.toml")]
pub(crate) struct DataArgs {
    #[command(subcommand)]
    pub(crate) command: DataCommand,
}

/// What to do with the rows.
#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    Preview(PreviewArgs),
    Check(CheckArgs),
}

/// Which rows, and how they are read.
#[derive(Debug, Args)]
pub(crate) struct RowsArgs {
    /// A recipe (.toml), or rows: file, folder, glob, or hub data set (org/name:split)
    #[arg(value_name = "WHAT")]
    pub(crate) what: String,

    /// Model whose tokenizer and chat template are used; required where WHAT is not a recipe
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,

    /// Format of the rows [same as --set data.format=FORMAT]
    #[arg(long, value_parser = choice::format())]
    pub(crate) format: Option<DataFormat>,

    /// Set a key of the recipe; repeatable
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<String>,

    /// Skip up to this many bad rows [same as --set data.skip_bad_rows=N]
    #[arg(long, value_name = "N")]
    pub(crate) skip_bad_rows: Option<u64>,
}

impl RowsArgs {
    fn is_recipe(&self) -> bool {
        self.what.ends_with(".toml")
    }

    fn recipe(&self) -> Result<Recipe, CliError> {
        let model = self.model.as_deref();
        let format = self.format.map(DataFormat::name);
        let flags = [
            ("data.format", format.map(quote)),
            (
                "data.skip_bad_rows",
                self.skip_bad_rows.map(|rows| rows.to_string()),
            ),
        ];
        let flags = flags
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)));
        let sets = self.set.iter().map(|set| {
            let (key, value) = set.split_once('=').unwrap_or((set, ""));
            (key.to_owned(), value.to_owned())
        });
        let others = sets.chain(flags.map(|(key, value)| (key.to_owned(), value)));
        if self.is_recipe() {
            let model = model.map(|model| ("model".to_owned(), quote(model)));
            let overrides: Vec<String> = others
                .chain(model)
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            return Ok(Recipe::load(self.what.as_ref(), &overrides)?);
        }
        let Some(model) = model else {
            return Err(CliError::usage(
                "rows alone do not say which tokenizer and chat template they are for",
            )
            .hint("name the model with --model, or give a recipe"));
        };
        session::recipe_for(&self.what, model, others)
    }

    /// Files and folders that are read.
    fn files(&self, recipe: &Recipe) -> Vec<PathBuf> {
        let eval = match &recipe.data.eval {
            Some(EvalRecipe::Sources(sources)) => sources.0.as_slice(),
            _ => &[],
        };
        let rows = recipe.data.train.0.iter().chain(eval);
        rows.map(|source| PathBuf::from(&source.path))
            .chain([PathBuf::from(&self.what)])
            .collect()
    }
}

/// Show rows as the model sees them, supervised tokens marked
///
/// Rows are rendered by the chat template. Supervised tokens are between ⟦ and ⟧ (in colour on a terminal), truncated
/// ones after ✂. Counts, lengths and findings of all rows follow.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft data preview recipe.toml --rows 5 --ids
  backdraft data preview recipe.toml --html preview.html
  backdraft data preview train.jsonl --model model.gguf --set max_seq_length=1024")]
pub(crate) struct PreviewArgs {
    #[command(flatten)]
    pub(crate) rows_args: RowsArgs,

    /// Rows to show
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) rows: u64,

    /// Show the token ids too
    #[arg(long)]
    pub(crate) ids: bool,

    /// Write an HTML page instead of text
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,

    /// Replace the page if it exists
    #[arg(long)]
    pub(crate) force: bool,
}

/// Read all rows and fail if training on them is likely to go wrong
///
/// Problems are rows that cannot be used, rows without a supervised token, empty answers that are trained, answers that
/// do not end in EOS or an end-of-turn token, and text that looks like a special token but is not one in this
/// tokenizer. Each kind is listed with its count and its first rows. Truncated and duplicate rows are notes. The exit
/// code is 1 if there is a problem.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft data check recipe.toml
  backdraft data check recipe.toml --skip-bad-rows 10
  backdraft data check data/*.parquet --model model.gguf --format alpaca")]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) rows_args: RowsArgs,

    /// Write the rows that are skipped to this file, as JSON lines
    #[arg(long, value_name = "FILE")]
    pub(crate) skipped: Option<PathBuf>,
}

pub(crate) fn run(args: &DataArgs, context: Context) -> Result<(), CliError> {
    match &args.command {
        DataCommand::Preview(args) => run_preview(args, context),
        DataCommand::Check(args) => run_check(args, context),
    }
}

fn run_preview(args: &PreviewArgs, context: Context) -> Result<(), CliError> {
    let output = context.output;
    let recipe = args.rows_args.recipe()?;
    let inputs = args.rows_args.files(&recipe);
    let page = match &args.html {
        Some(path) => Some((path, commands::new_file(path, args.force, &inputs)?)),
        None => None,
    };
    let _pipes = data::pipes(&recipe.data);
    let model = session::open_trained(&recipe, output)?;
    let tokenizer = data::tokenizer_of(&recipe.data, &model)?;
    let sources = find_any(&recipe, output)?;
    let options = tokenize_options(&recipe)?;
    let preview = preview(
        &plain(&sources.train),
        &options,
        &tokenizer,
        usize::try_from(args.rows).unwrap_or(usize::MAX),
    )?;
    if args.html.is_none() {
        output.record("preview", &preview)?;
        let look = TextLook {
            colour: output.wants_colour(),
            token_ids: args.ids,
        };
        output.line(preview.to_text(look))?;
    }
    let check = check((&recipe, args.rows_args.is_recipe()), &model, output)?;
    if let Some((path, existing)) = page {
        let page = preview.to_html(Some(&check.train), args.ids);
        write_file(path, page.as_bytes(), existing)?;
        output.record("preview_page", &serde_json::json!({ "html": path }))?;
        return output.line(format!("Wrote {}", path.display()));
    }
    output.line(lengths(&check))
}

fn run_check(args: &CheckArgs, context: Context) -> Result<(), CliError> {
    let output = context.output;
    let recipe = args.rows_args.recipe()?;
    if let Some(path) = &args.skipped {
        let inputs = args.rows_args.files(&recipe);
        commands::new_file(path, is_list_of_skipped(path), &inputs)
            .map_err(|error| error.hint("choose another name"))?;
    }
    let model = session::open_trained(&recipe, output)?;
    let check = check((&recipe, args.rows_args.is_recipe()), &model, output)?;
    output.line(lengths(&check))?;
    if let Some(path) = &args.skipped
        && check.write_skipped(path)?
    {
        output.line(format!("skipped rows are listed in {}", path.display()))?;
    }
    if check.is_sound() {
        return output.line("no problems");
    }
    Err(has_problems())
}

/// Whether a file is a list of skipped rows, by its first line.
fn is_list_of_skipped(path: &Path) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    let mut line = String::new();
    // Longer than any such line is what may be a file of one line.
    let read = BufReader::new(file.take(1 << 16)).read_line(&mut line);
    let object: Option<serde_json::Map<String, serde_json::Value>> =
        read.ok().and_then(|_| serde_json::from_str(&line).ok());
    let keys = ["path", "line", "problem"];
    object.is_some_and(|object| {
        object.len() == keys.len() && keys.iter().all(|key| object.contains_key(*key))
    })
}

/// Looks at all rows. Where some cannot be used, all of them are told, and the look is a failure.
fn check(
    (recipe, is_recipe): (&Recipe, bool),
    model: &ModelSource,
    output: Output,
) -> Result<DataCheck, CliError> {
    // A pipe can be read once: its rows are kept until all looks are over.
    let _pipes = data::pipes(&recipe.data);
    let recipe = &match is_recipe {
        true => recipe.clone(),
        false => suited(recipe, output),
    };
    let error = match train::check_data(recipe, model, output) {
        Ok(data) => return Ok(data.check),
        Err(error) => error,
    };
    // What is wrong with the command, the recipe or the model is no matter of rows.
    let (sources, is_guess) = match find_any(recipe, output) {
        Ok(sources) => (sources, false),
        Err(_) => match find_as_text(recipe, output) {
            Ok(sources) => (sources, true),
            Err(_) => return Err(error),
        },
    };
    let tokenizer = data::tokenizer_of(&recipe.data, model)?;
    let mut shown = Loading::new(output);
    let surveyed = data::survey(recipe, &sources, &tokenizer, &mut |progress| {
        shown.show(progress);
    });
    match surveyed {
        Ok(outcome) if outcome.broken.rows() > 0 && !(is_guess && says_fields(&outcome)) => {
            output.line(data_summary::survey(&outcome, output.columns()))?;
            Err(has_problems().problems(data_summary::broken_kinds(&outcome.broken)))
        }
        _ => Err(error),
    }
}

/// The recipe with an objective that learns from answers to compare, where rows are such and nobody named one: rows alone do
/// not say what they are for.
fn suited(recipe: &Recipe, output: Output) -> Recipe {
    let mut recipe = recipe.clone();
    let found = find_any(&recipe, output);
    let sources = found.iter().flat_map(|found| &found.train);
    let formats = sources.filter_map(|found| Some(found.source.rows.as_ref()?.format));
    let formats: Vec<Format> = formats.collect();
    if recipe.objective == ObjectiveRecipe::Sft && formats.iter().any(|format| format.compares()) {
        // Each reads all that its rows can have.
        recipe.objective = match formats.iter().all(|format| *format == Format::Preference) {
            true => ObjectiveRecipe::Reward {
                gamma: 0.0,
                center_rewards_coefficient: 0.0,
            },
            false => ObjectiveRecipe::Kto {
                beta: 0.1,
                desirable_weight: 1.0,
                undesirable_weight: 1.0,
                reference: ReferenceStart::Start,
            },
        };
    }
    recipe
}

/// Finds rows of which none can be read: their format makes no difference, and text needs no template.
fn find_as_text(recipe: &Recipe, output: Output) -> Result<DataSources, CliError> {
    let mut data = recipe.data.clone();
    data.format = DataFormat::Named(Format::Text);
    session::find_data(&data, output)
}

/// Whether a row can be read and lacks fields.
fn says_fields(outcome: &Outcome) -> bool {
    let fields = |kind: &BrokenKind| kind.kind.starts_with("field ");
    outcome.report.kept > 0 || outcome.broken.kinds().iter().any(fields)
}

fn has_problems() -> CliError {
    CliError::user("the data has problems; each is named above")
        .hint("`backdraft data preview` shows rows as the model will see them")
}

/// Finds the rows, whose format is known by those that can be read.
fn find_any(recipe: &Recipe, output: Output) -> Result<DataSources, CliError> {
    let mut data = recipe.data.clone();
    data.skip_bad_rows = usize::MAX;
    session::find_data(&data, output).or_else(|_| session::find_data(&recipe.data, output))
}

/// The rows by length.
fn lengths(check: &DataCheck) -> String {
    let classes = check.train.report.lengths.classes();
    let classes: Vec<_> = classes.filter(|class| class.2 > 0).collect();
    let most = classes.iter().map(|class| class.2).max().unwrap_or(1);
    let mut text = "lengths in tokens, before truncation:".to_owned();
    for (shortest, longest, rows) in classes {
        let bar = "█".repeat((40 * rows).div_ceil(most));
        text.push_str(&format!("\n{shortest:>9} – {longest:<9}{rows:>12}  {bar}"));
    }
    text
}
