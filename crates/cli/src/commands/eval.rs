//! `eval`: how well a model predicts, or answers, a file.

use std::path::Path;

use backdraft_data::pipeline::TokenizedRow;
use backdraft_data::{ChatTokenizer, GenerationScores, Prompt, RowSet, TokenRows, load_prompts};
use backdraft_model::Llama;
use backdraft_model::generate::GenerateConfig;
use backdraft_train::data;
use backdraft_train::evaluate::{Evaluation, evaluate};
use backdraft_train::recipe::{DataFormat, Recipe};
use clap::Args;

use crate::args::{FormatArg, ModelArgs};
use crate::commands::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::session::{self, Session, quote};

/// Evaluate a model on a file, with and without an adapter
///
/// Prints the mean negative log-likelihood per supervised token and the perplexity: of the base, and with the adapter.
/// With --generate also how many generated answers match exactly, and how many start with the right word.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft eval --model model.gguf --adapter outputs/adapter --data test.jsonl
  backdraft eval --model model.gguf --adapter outputs/adapter --data test.jsonl --generate
  backdraft eval --model model.gguf --data book.txt")]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Rows: file, folder, glob, or hub data set (org/name:split); a .txt file is cut into chunks
    #[arg(long, value_name = "ROWS")]
    pub(crate) data: String,

    /// Format of the rows
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) format: FormatArg,

    /// Template that turns alpaca rows into text, as in a recipe
    #[arg(long, value_name = "TEMPLATE")]
    pub(crate) prompt_template: Option<String>,

    /// Only the first N rows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,

    /// Maximum tokens per row; longer rows are truncated
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u64).range(2..))]
    pub(crate) max_seq_length: u64,

    /// Also generate an answer for every row and compare it with the expected one
    #[arg(long)]
    pub(crate) generate: bool,

    /// Maximum new tokens per answer
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_new_tokens: u64,
}

pub(crate) fn run(args: &EvalArgs, context: Context) -> Result<(), CliError> {
    let output = context.output;
    if args.generate && is_text(args) {
        return Err(
            CliError::usage("--generate needs rows with answers, not a text file")
                .hint("give a JSONL file, or leave --generate out"),
        );
    }
    let session = Session::open(&args.model, context)?;
    let rows = rows(args, &session, output)?;
    let answers = if args.generate {
        Some(prompts(args, &session, output)?)
    } else {
        None
    };
    let mut results = Vec::new();
    let adapted = args.model.adapter.is_some();
    let base = session.model.clone().without_adapter();
    let with = adapted.then(|| ("with adapter", session.model.clone()));
    for (name, model) in std::iter::once(("base", base)).chain(with) {
        output.progress(format!("{name}: {} rows", rows.len()));
        let measured = measure(&model, &session.tokenizer, &rows, answers.as_deref(), args)?;
        output.line(measured.line(name))?;
        results.push((if name == "base" { "base" } else { "adapter" }, measured));
    }
    let results: serde_json::Map<String, serde_json::Value> = results
        .into_iter()
        .map(|(name, measured)| (name.to_owned(), measured.to_json()))
        .collect();
    output.record("evaluation", &results)
}

/// What one model achieves on a file.
#[derive(Debug)]
struct Measured {
    evaluation: Evaluation,
    scores: Option<GenerationScores>,
}

impl Measured {
    fn line(&self, name: &str) -> String {
        let Evaluation { nll, tokens } = self.evaluation;
        let perplexity = self.evaluation.perplexity();
        let mut line =
            format!("{name:<14} nll {nll:.4}  perplexity {perplexity:.2}  tokens {tokens}");
        if let Some(scores) = &self.scores {
            line += &format!(
                "  exact {:.1} %  first word {:.1} %  rows {}",
                100.0 * scores.exact_match,
                100.0 * scores.first_word,
                scores.rows
            );
        }
        line
    }

    fn to_json(&self) -> serde_json::Value {
        let mut json = serde_json::json!({
            "nll": self.evaluation.nll,
            "perplexity": self.evaluation.perplexity(),
            "tokens": self.evaluation.tokens,
        });
        if let Some(scores) = &self.scores {
            json["exact_match"] = scores.exact_match.into();
            json["first_word"] = scores.first_word.into();
            json["rows"] = scores.rows.into();
        }
        json
    }
}

fn measure(
    model: &Llama,
    tokenizer: &ChatTokenizer,
    rows: &RowSet,
    prompts: Option<&[Prompt]>,
    args: &EvalArgs,
) -> Result<Measured, CliError> {
    let evaluation = evaluate(model, rows, ROWS_AT_A_TIME, |_, _| ())?;
    let answers = match prompts {
        Some(prompts) => answer(
            model,
            tokenizer,
            prompts,
            args.max_new_tokens as usize,
            |_| (),
        )?,
        None => Vec::new(),
    };
    let scores = prompts.map(|prompts| {
        let expected = prompts.iter().map(|prompt| prompt.answer.as_str());
        GenerationScores::new(answers.iter().map(String::as_str).zip(expected))
    });
    Ok(Measured { evaluation, scores })
}

/// How far answers have come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answered {
    pub(crate) answers: usize,
    pub(crate) of: usize,
    pub(crate) tokens: usize,
}

/// Greedy answers to all prompts; `told` hears of each token.
pub(crate) fn answer(
    model: &Llama,
    tokenizer: &ChatTokenizer,
    prompts: &[Prompt],
    max_new_tokens: usize,
    mut told: impl FnMut(Answered),
) -> Result<Vec<String>, CliError> {
    let mut so_far = Answered {
        answers: 0,
        of: prompts.len(),
        tokens: 0,
    };
    let config = GenerateConfig {
        max_new_tokens,
        stop_ids: tokenizer.eos_token_ids().to_vec(),
        ..GenerateConfig::default()
    };
    let mut answers = Vec::with_capacity(prompts.len());
    for prompts in prompts.chunks(ANSWERS_AT_A_TIME) {
        let ids: Vec<&[u32]> = prompts
            .iter()
            .map(|prompt| prompt.input_ids.as_slice())
            .collect();
        let mut lengths = vec![0; ids.len()];
        let count = |sequence: usize, id: u32| {
            lengths[sequence] += 1;
            so_far.tokens += 1;
            let ended = config.stop_ids.contains(&id) || lengths[sequence] == max_new_tokens;
            so_far.answers += usize::from(ended);
            told(so_far);
            true
        };
        for ids in model.generate(&ids, &config, count) {
            answers.push(tokenizer.decode(&ids, true).map_err(CliError::boxed)?);
        }
    }
    Ok(answers)
}

const ROWS_AT_A_TIME: usize = 8;
const ANSWERS_AT_A_TIME: usize = 40;

fn rows(args: &EvalArgs, session: &Session, output: Output) -> Result<RowSet, CliError> {
    let limit = args.limit.map_or(usize::MAX, |limit| limit as usize);
    if is_text(args) {
        return text(args, session, limit);
    }
    let (rows, _) = session::load_rows(&recipe(args)?, &session.tokenizer, output)?;
    let count = rows.len().min(limit);
    Ok(rows.choose(0..count))
}

fn is_text(args: &EvalArgs) -> bool {
    let extension = Path::new(&args.data).extension();
    extension.is_some_and(|extension| extension == "txt")
}

fn prompts(args: &EvalArgs, session: &Session, output: Output) -> Result<Vec<Prompt>, CliError> {
    let limit = args.limit.map_or(usize::MAX, |limit| limit as usize);
    let recipe = recipe(args)?;
    let options = data::tokenize_options(&recipe)?;
    let mut prompts = Vec::new();
    for source in data::plain(&session::find_data(&recipe.data, output)?.train) {
        let left = limit - prompts.len();
        prompts.extend(load_prompts(&source, &options, &session.tokenizer, left)?);
    }
    Ok(prompts)
}

/// What the flags say, as a recipe says it.
fn recipe(args: &EvalArgs) -> Result<Recipe, CliError> {
    let format = DataFormat::from(args.format).name();
    let template = args.prompt_template.as_deref();
    let template = template.map(|template| ("data.prompt_template", quote(template)));
    let others = [
        ("data.format", quote(format)),
        ("max_seq_length", args.max_seq_length.to_string()),
    ];
    let others = others.into_iter().chain(template);
    session::recipe_for(&args.data, &args.model.model, others)
}

/// A text file in pieces of the longest length.
fn text(args: &EvalArgs, session: &Session, limit: usize) -> Result<RowSet, CliError> {
    let path = &args.data;
    let text = std::fs::read_to_string(&args.data)
        .map_err(|error| CliError::user(format!("cannot read {path}")).because(error))?;
    let ids = session
        .tokenizer
        .encode_text(&text)
        .map_err(CliError::boxed)?
        .ids;
    session.tokenizer.check_ids(&ids)?;
    let pieces = ids
        .chunks(args.max_seq_length as usize)
        .filter(|piece| piece.len() > 1);
    let rows: Vec<TokenizedRow> = pieces
        .take(limit)
        .map(|piece| TokenizedRow {
            input_ids: piece.to_vec(),
            labels: piece.iter().map(|&id| i64::from(id)).collect(),
            file: 0,
            line: 1,
            key: 0,
        })
        .collect();
    if rows.is_empty() {
        return Err(CliError::user(format!(
            "{path} has fewer than two tokens: nothing to predict"
        )));
    }
    Ok(RowSet::new(TokenRows::Memory(rows), &[]))
}
