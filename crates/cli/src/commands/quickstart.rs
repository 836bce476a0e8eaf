//! `quickstart`: a whole fine-tune with nothing prepared.

mod place;
mod smollm2;

use std::path::{Path, PathBuf};
use std::time::Instant;

use backdraft_data::synthetic::{self, Split};
use backdraft_data::{
    ChatTokenizer, DataOptions, Format, RowSet, Source, Supervision, TokenizeOptions, load_prompts,
};
use backdraft_formats::{Existing, write_file};
use backdraft_model::CausalLm;
use backdraft_recipe::Recipe;
use backdraft_train::evaluate::evaluate;
use backdraft_train::resume::Resume;
use backdraft_train::run::Start;
use clap::Args;

use crate::args::{DeviceArgs, ModelArgs};
use crate::commands::eval::answer;
use crate::commands::{Context, train};
use crate::counter::Counter;
use crate::error::CliError;
use crate::output::Output;
use crate::plain::{count, filled};
use crate::session::{self, Session};
use crate::shell::CommandLine;
use place::{ANSWERS, Place};

/// Fine-tune a small model in a few minutes, with nothing prepared
///
/// Finds or downloads SmolLM2-135M-Instruct, makes a small data set (sentences to JSON), trains on it, scores
/// held-out rows before and after, and leaves the adapter, the recipe and the logs behind. A quickstart that was
/// stopped is resumed by the same command; after one that has finished, the next goes to another directory.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft quickstart
  backdraft quickstart --output-dir trial --max-steps 20")]
pub(crate) struct QuickstartArgs {
    /// Directory for the data, the recipe and the adapter [default: backdraft-quickstart, or the first of
    /// backdraft-quickstart-2, -3, … that is free]
    #[arg(long, value_name = "DIR")]
    pub(crate) output_dir: Option<PathBuf>,

    /// Another model than SmolLM2-135M-Instruct: directory, .gguf file, or hub id
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,

    /// Optimizer steps [default: one epoch, enough for a clear result]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_steps: Option<u64>,

    /// Seed for the data set and the training
    #[arg(long, value_name = "SEED", default_value_t = 42, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub(crate) seed: u64,

    /// Replace an earlier quickstart in the same directory
    #[arg(long)]
    pub(crate) force: bool,

    /// Print plain lines instead of the dashboard, on a terminal too
    #[arg(long)]
    pub(crate) plain: bool,

    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

pub(crate) fn run(args: &QuickstartArgs, context: Context) -> Result<(), CliError> {
    let output = context.output;
    let began = Instant::now();
    output.line("1. Model")?;
    let model = match &args.model {
        Some(name) => session::find_model(name, output)?,
        None => smollm2::find(output)?,
    };
    // The recipe, in another directory, names it too.
    let model = std::path::absolute(&model)
        .map_err(|error| CliError::user("cannot find the working directory").because(error))?;
    output.line(format!("   {}", model.display()))?;

    output.line("2. Data: sentences to JSON, made from a seed")?;
    let place = place::find(args, |directory| recipe_text(args, &model, directory))?;
    if let Some(note) = place.note() {
        output.line(format!("   {note}"))?;
    }
    let files = write_files(args, &model, &place)?;
    output.line(format!(
        "   {TRAIN_ROWS} training rows, {TEST_ROWS} held out with other names and other sentences"
    ))?;

    // What would stop the training is said before the scoring, which takes minutes.
    let (recipe, start) = start(&files, &place, context)?;
    train::preflight(&recipe, &start, recipe.device, output)?;

    output.line("3. Before training")?;
    let model_args = ModelArgs {
        model: Some(model.display().to_string()),
        adapter: None,
        quantization: None,
        dtype: None,
        device: args.device,
    };
    let Session {
        model: base,
        tokenizer,
        ..
    } = Session::open(&model_args, context)?;
    let before = measure(&base, &tokenizer, &files, output)?;
    drop(base);
    output.line(format!("   {}", before.line()))?;

    output.line("4. Training")?;
    let dashboard = output.is_terminal() && !args.plain;
    let trained = train::train(recipe, context, dashboard, start);
    let again = || {
        format!(
            "\nStopped before its end. To resume:\n  {}",
            command_again(args)
        )
    };
    let (summary, trained) = match trained {
        Ok((summary, _)) if summary.interrupted => return output.line(again()),
        Err(error) if error.is_interruption() => {
            output.go_on(output.line(again()));
            return Err(error);
        }
        trained => trained?,
    };

    output.line("5. After training")?;
    let after = measure(&trained, &tokenizer, &files, output)?;
    show(&files, &before, &after, output)?;
    write_answers(&files, &before, &after, place.directory())?;
    let left = format!(
        "\nIn {}: recipe.toml, train.jsonl, test.jsonl, {ANSWERS}, and run/ with the adapter and report.html. Next:",
        place.directory().display()
    );
    output.line(filled(&left, output.columns()))?;
    let question = format!(
        "{} On 3 May 2024 Ana Silva paid 42.50 EUR to Brill Ltd.",
        synthetic::INSTRUCTION
    );
    let generate = CommandLine::new("generate")
        .flag("--model", &model)
        .flag("--adapter", &summary.adapter)
        .text(&question);
    let train = CommandLine::new("train")
        .path(&files.recipe)
        .switch("--force");
    output.line(format!("  {generate}\n  {train}"))?;
    output.record(
        "quickstart",
        &serde_json::json!({
            "output_dir": place.directory(),
            "before": before.to_json(),
            "after": after.to_json(),
            "tokens_per_second": summary.tokens_per_second,
            "seconds": began.elapsed().as_secs_f64(),
        }),
    )
}

/// The command that continues this quickstart.
fn command_again(args: &QuickstartArgs) -> String {
    let seed = (args.seed != 42).then(|| args.seed.to_string());
    let steps = args.max_steps.map(|steps| steps.to_string());
    CommandLine::new("quickstart")
        .optional("--output-dir", args.output_dir.as_deref())
        .optional("--model", args.model.as_deref())
        .optional("--max-steps", steps)
        .optional("--seed", seed)
        .to_string()
}

/// What is trained, and from where.
fn start(files: &Files, place: &Place, context: Context) -> Result<(Recipe, Start), CliError> {
    let device = context
        .global
        .device
        .map(|device| format!("device={device}"));
    let run = place.directory().join(RUN);
    if matches!(place, Place::Unfinished(_)) && run.is_dir() {
        let resume = Resume::find(&run, &[])?;
        let recipe = resume.recipe(Some(&files.recipe), device.as_slice())?;
        return Ok((recipe, Start::Resume(Box::new(resume))));
    }
    let force = matches!(place, Place::Replaced(_));
    Ok((
        Recipe::load(&files.recipe, device.as_slice())?,
        Start::New { force },
    ))
}

/// The run's directory within the quickstart's.
const RUN: &str = "run";
const TRAIN_ROWS: usize = 400;
/// As many as are answered at a time.
const TEST_ROWS: usize = 40;
/// Rows of a step.
const BATCH: usize = 8;
const MAX_NEW_TOKENS: usize = 64;

struct Files {
    recipe: PathBuf,
    test: PathBuf,
    rows: Vec<synthetic::Row>,
}

/// Data and recipe in the output directory, where nothing else is replaced.
fn write_files(args: &QuickstartArgs, model: &Path, place: &Place) -> Result<Files, CliError> {
    let directory = place.directory();
    std::fs::create_dir_all(directory).map_err(|error| {
        CliError::user(format!("cannot make {}", directory.display())).because(error)
    })?;
    let existing = match place {
        Place::New(_) => Existing::Refuse,
        Place::Unfinished(_) | Place::Replaced(_) => Existing::Replace,
    };
    let write = |name: &str, text: &str| -> Result<PathBuf, CliError> {
        let path = directory.join(name);
        write_file(&path, text.as_bytes(), existing)?;
        Ok(path)
    };
    let train = synthetic::rows(Split::Train, TRAIN_ROWS, args.seed);
    let rows = synthetic::rows(Split::Test, TEST_ROWS, args.seed);
    write(TRAIN, &synthetic::to_jsonl(&train))?;
    let test = write(TEST, &synthetic::to_jsonl(&rows))?;
    let recipe = write(place::RECIPE, &recipe_text(args, model, directory))?;
    Ok(Files { recipe, test, rows })
}

const TRAIN: &str = "train.jsonl";
const TEST: &str = "test.jsonl";

fn recipe_text(args: &QuickstartArgs, model: &Path, directory: &Path) -> String {
    let quote = |path: &Path| toml::Value::from(path.display().to_string()).to_string();
    let steps = args.max_steps.unwrap_or((TRAIN_ROWS / BATCH) as u64);
    let length = match args.max_steps {
        Some(steps) => format!("max_steps = {steps}"),
        None => "epochs = 1".to_owned(),
    };
    let half = steps.div_ceil(2);
    format!(
        "# {}\n\
         model = {}\noutput_dir = {}\nseed = {}\nmax_seq_length = 256\n\n\
         [lora]\nrank = 16\nalpha = 32\n\n\
         [data]\ntrain = {}\neval = {}\nformat = \"messages\"\n\n\
         [train]\nmicro_batch_size = {BATCH}\ngrad_accumulation_steps = 1\n{length}\n\
         learning_rate = 1e-3\nlr_scheduler = \"cosine\"\nwarmup_steps = {}\n\
         logging_steps = 10\neval_steps = {half}\nsave_steps = {half}\n",
        CommandLine::new("train").path(&directory.join(place::RECIPE)),
        quote(model),
        quote(&directory.join(RUN)),
        args.seed,
        quote(&directory.join(TRAIN)),
        quote(&directory.join(TEST)),
        (steps / 2).min(5),
    )
}

/// What a model makes of the held-out rows.
struct Held {
    nll: f64,
    exact_match: f64,
    valid_json: f64,
    fields: f64,
    answers: Vec<String>,
}

impl Held {
    fn line(&self) -> String {
        format!(
            "exact match {:>5.1} %, fields right {:>5.1} %, valid JSON {:>5.1} %, nll {:.3}",
            100.0 * self.exact_match,
            100.0 * self.fields,
            100.0 * self.valid_json,
            self.nll
        )
    }

    fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "exact_match": self.exact_match,
            "nll": self.nll,
            "valid_json": self.valid_json,
            "fields": self.fields,
        })
    }
}

fn measure(
    model: &CausalLm,
    tokenizer: &ChatTokenizer,
    files: &Files,
    output: Output,
) -> Result<Held, CliError> {
    let options = TokenizeOptions::from(DataOptions {
        format: Format::Messages,
        template: None,
        supervision: Supervision::Responses,
        max_seq_length: 256,
    });
    let source = Source::from_file(&files.test);
    let (rows, _) = RowSet::load(
        std::slice::from_ref(&source),
        &options,
        tokenizer,
        &mut |_| (),
    )?;
    let mut counter = Counter::new(output);
    let evaluation = evaluate(model, &rows, BATCH, |done, all| {
        counter.show(|| format!("   loss of held-out rows: {done}/{all} batches"));
    })?;
    let prompts = load_prompts(&source, &options, tokenizer, usize::MAX)?;
    let answers = answer(model, tokenizer, &prompts, MAX_NEW_TOKENS, |so_far| {
        let (done, all, tokens) = (so_far.answers, so_far.of, so_far.tokens);
        counter.show(|| {
            let tokens = count(tokens as u64, "token");
            format!("   answering held-out rows: {done}/{all} answers, {tokens}")
        });
    })?;
    let scores: Vec<_> = answers
        .iter()
        .zip(&files.rows)
        .map(|(answer, row)| synthetic::score(answer, &row.answer))
        .collect();
    let share = |count: usize, of: usize| count as f64 / of.max(1) as f64;
    Ok(Held {
        nll: evaluation.nll,
        exact_match: share(scores.iter().filter(|s| s.exact).count(), scores.len()),
        valid_json: share(scores.iter().filter(|s| s.valid_json).count(), scores.len()),
        fields: share(
            scores.iter().map(|s| s.fields_right).sum(),
            scores.iter().map(|s| s.fields).sum(),
        ),
        answers,
    })
}

/// Every held-out row with both answers, to look at.
fn write_answers(
    files: &Files,
    before: &Held,
    after: &Held,
    directory: &Path,
) -> Result<(), CliError> {
    let rows = files
        .rows
        .iter()
        .zip(before.answers.iter().zip(&after.answers));
    let lines: String = rows
        .map(|(row, (before, after))| {
            let line = serde_json::json!({
                "sentence": row.sentence, "expected": row.answer, "before": before, "after": after,
            });
            format!("{line}\n")
        })
        .collect();
    let path = directory.join(ANSWERS);
    Ok(write_file(&path, lines.as_bytes(), Existing::Replace)?)
}

fn show(files: &Files, before: &Held, after: &Held, output: Output) -> Result<(), CliError> {
    for (i, row) in files.rows.iter().enumerate().take(3) {
        let room = output
            .columns()
            .map_or(100, |columns| columns.saturating_sub(16).max(20));
        let short = |text: &str| {
            let text = text.replace('\n', " ");
            let mut short: String = text.chars().take(room).collect();
            if short.len() < text.len() {
                short.push('…');
            }
            short
        };
        output.line(format!("   {}", row.sentence))?;
        output.line(format!("     before   {}", short(&before.answers[i])))?;
        output.line(format!("     after    {}", short(&after.answers[i])))?;
        output.line(format!("     expected {}", row.answer))?;
    }
    output.line(format!("   before  {}", before.line()))?;
    output.line(format!("   after   {}", after.line()))
}
