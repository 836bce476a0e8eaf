//! `quickstart`: a whole fine-tune with nothing prepared.

mod smollm2;

use std::path::{Path, PathBuf};
use std::time::Instant;

use backdraft_data::synthetic::{self, Split};
use backdraft_data::{
    ChatTokenizer, DataOptions, Format, RowSet, Source, Supervision, TokenizeOptions, load_prompts,
};
use backdraft_formats::{Existing, write_file};
use backdraft_model::Llama;
use backdraft_train::evaluate::evaluate;
use backdraft_train::recipe::Recipe;
use backdraft_train::run::Start;
use clap::Args;

use crate::args::ModelArgs;
use crate::commands::eval::answer;
use crate::commands::{Context, train};
use crate::error::CliError;
use crate::output::Output;
use crate::session::{self, Session};

/// Fine-tune a small model in a few minutes, with nothing prepared
///
/// Finds or fetches SmolLM2-135M-Instruct, makes a small data set (text to JSON), trains on it, scores
/// held-out rows before and after, and leaves the adapter, the recipe and the logs behind.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  backdraft quickstart")]
pub(crate) struct QuickstartArgs {
    /// Where the data, the recipe and the adapter go
    #[arg(long, value_name = "DIR", default_value = "backdraft-quickstart")]
    pub(crate) output_dir: PathBuf,

    /// Another model than SmolLM2-135M-Instruct: directory, .gguf file, or hub id
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,

    /// Optimiser steps [default: enough for a clear result in a few minutes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_steps: Option<u64>,

    /// Seed of the data set and the training
    #[arg(long, value_name = "SEED", default_value_t = 42, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    pub(crate) seed: u64,

    /// Replace an earlier quickstart in the same directory
    #[arg(long)]
    pub(crate) force: bool,
}

pub(crate) fn run(args: &QuickstartArgs, context: Context) -> Result<(), CliError> {
    let output = context.output;
    let began = Instant::now();
    output.line("1. The model")?;
    let model = match &args.model {
        Some(name) => session::find_model(name, output)?,
        None => smollm2::find(output)?,
    };
    output.line(format!("   {}", model.display()))?;

    output.line("2. The data: sentences to JSON, made from a seed")?;
    let files = write_files(args, &model)?;
    output.line(format!(
        "   {TRAIN_ROWS} rows to learn from, {TEST_ROWS} held out with other names and other sentences"
    ))?;

    output.line("3. Before")?;
    let model_args = ModelArgs {
        model: model.display().to_string(),
        adapter: None,
        quantization: None,
        dtype: None,
    };
    let session = Session::open(&model_args, context)?;
    let before = measure(&session.model, &session.tokenizer, &files)?;
    output.line(format!("   {}", before.line()))?;

    output.line("4. Training")?;
    let device = context
        .global
        .device
        .map(|device| format!("device={device}"));
    let recipe = Recipe::load(&files.recipe, device.as_slice())?;
    let (summary, trained) =
        train::train(recipe, context, false, Start::New { force: args.force })?;

    output.line("5. After")?;
    let after = measure(&trained, &session.tokenizer, &files)?;
    show(&files, &before, &after, output)?;
    write_answers(&files, &before, &after, args)?;
    let adapter = summary.adapter.display();
    let model = model.display();
    output.line(format!(
        "\nLeft in {}: recipe.toml, train.jsonl, test.jsonl, answers.jsonl, run/ with the adapter and metrics.jsonl. Try\n  \
         backdraft generate --model {model} --adapter {adapter} \"{} {}\"\n  \
         backdraft train {} --force",
        args.output_dir.display(),
        synthetic::INSTRUCTION,
        "On 3 May 2024 Ana Silva paid 42.50 EUR to Brill Ltd.",
        files.recipe.display(),
    ))?;
    output.record(&serde_json::json!({
        "before": before.to_json(),
        "after": after.to_json(),
        "tokens_per_second": summary.tokens_per_second,
        "seconds": began.elapsed().as_secs_f64(),
    }))
}

const TRAIN_ROWS: usize = 880;
const TEST_ROWS: usize = 50;
const MAX_NEW_TOKENS: usize = 64;

struct Files {
    recipe: PathBuf,
    test: PathBuf,
    rows: Vec<synthetic::Row>,
}

/// Data and recipe in the output directory, which must not hold others.
fn write_files(args: &QuickstartArgs, model: &Path) -> Result<Files, CliError> {
    let directory = std::path::absolute(&args.output_dir)
        .map_err(|error| CliError::user("cannot find the working directory").because(error))?;
    std::fs::create_dir_all(&directory).map_err(|error| {
        CliError::user(format!("cannot make {}", directory.display())).because(error)
    })?;
    let existing = if args.force {
        Existing::Replace
    } else {
        Existing::Refuse
    };
    let write = |name: &str, text: &str| -> Result<PathBuf, CliError> {
        let path = directory.join(name);
        write_file(&path, text.as_bytes(), existing)?;
        Ok(path)
    };
    let train = synthetic::rows(Split::Train, TRAIN_ROWS, args.seed);
    let rows = synthetic::rows(Split::Test, TEST_ROWS, args.seed);
    let train = write("train.jsonl", &synthetic::to_jsonl(&train))?;
    let test = write("test.jsonl", &synthetic::to_jsonl(&rows))?;
    let recipe = write(
        "recipe.toml",
        &recipe_text(args, model, &train, &test, &directory),
    )?;
    Ok(Files { recipe, test, rows })
}

fn recipe_text(
    args: &QuickstartArgs,
    model: &Path,
    train: &Path,
    test: &Path,
    directory: &Path,
) -> String {
    let quote = |path: &Path| toml::Value::from(path.display().to_string()).to_string();
    let length = match args.max_steps {
        Some(steps) => format!("max_steps = {steps}"),
        None => "epochs = 1".to_owned(),
    };
    format!(
        "# backdraft train {}\n\
         model = {}\noutput_dir = {}\nseed = {}\nmax_seq_length = 256\n\n\
         [lora]\nrank = 16\nalpha = 32\n\n\
         [data]\ntrain = {}\neval = {}\nformat = \"messages\"\n\n\
         [train]\nmicro_batch_size = 8\ngrad_accumulation_steps = 1\n{length}\n\
         learning_rate = 1e-3\nlr_scheduler = \"cosine\"\nwarmup_steps = 5\n\
         logging_steps = 10\neval_steps = 55\nsave_steps = 55\n",
        directory.join("recipe.toml").display(),
        quote(model),
        quote(&directory.join("run")),
        args.seed,
        quote(train),
        quote(test),
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

fn measure(model: &Llama, tokenizer: &ChatTokenizer, files: &Files) -> Result<Held, CliError> {
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
    let evaluation = evaluate(model, &rows, 8, |_, _| ())?;
    let prompts = load_prompts(&source, &options, tokenizer, usize::MAX)?;
    let answers = answer(model, tokenizer, &prompts, MAX_NEW_TOKENS)?;
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
    args: &QuickstartArgs,
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
    let path = args.output_dir.join("answers.jsonl");
    Ok(write_file(&path, lines.as_bytes(), Existing::Replace)?)
}

fn show(files: &Files, before: &Held, after: &Held, output: Output) -> Result<(), CliError> {
    for (i, row) in files.rows.iter().enumerate().take(3) {
        let short = |text: &str| {
            let text = text.replace('\n', " ");
            let mut short: String = text.chars().take(100).collect();
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
