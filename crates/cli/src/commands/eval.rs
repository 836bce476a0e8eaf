//! `eval`: how well a model predicts, or answers, a file.

use std::path::{Path, PathBuf};

use backdraft_data::jsonl::JsonlReader;
use backdraft_data::{
    ChatTokenizer, DataOptions, Example, Format, GenerationScores, Prompt, load_prompts,
};
use backdraft_model::Llama;
use backdraft_model::generate::GenerateConfig;
use backdraft_train::evaluate::{Evaluation, evaluate};
use clap::Args;

use crate::args::{FormatArg, ModelArgs};
use crate::commands::Context;
use crate::error::CliError;
use crate::session::{self, Session};

/// Measure a model on a file, with and without an adapter
///
/// Reports the mean negative log-likelihood per supervised token and the perplexity; with an adapter,
/// both without and with it. With --generate also the share of answers that match exactly, and that
/// start with the same word.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft eval --model model.gguf --adapter outputs/adapter --data test.jsonl
  backdraft eval --model model.gguf --adapter outputs/adapter --data test.jsonl --generate
  backdraft eval --model model.gguf --data book.txt")]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// JSONL file, or a text file (.txt)
    #[arg(long, value_name = "FILE")]
    pub(crate) data: PathBuf,

    /// Shape of the rows [default: seen from the first row]
    #[arg(long, value_enum)]
    pub(crate) format: Option<FormatArg>,

    /// Turns alpaca rows into text, as in a recipe
    #[arg(long, value_name = "TEMPLATE")]
    pub(crate) prompt_template: Option<String>,

    /// Only the first N rows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,

    /// Tokens per row; longer rows are cut and counted
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u64).range(2..))]
    pub(crate) max_seq_length: u64,

    /// Also answer every row and compare with the expected answer
    #[arg(long)]
    pub(crate) generate: bool,

    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_new_tokens: u64,
}

pub(crate) fn run(args: &EvalArgs, context: Context) -> Result<(), CliError> {
    let output = context.output;
    if args.generate && is_text(args) {
        return Err(
            CliError::usage("--generate needs rows with answers, not a text file")
                .hint("give a JSONL file, or leave --generate away"),
        );
    }
    let session = Session::open(&args.model, context)?;
    let examples = examples(args, &session)?;
    let answers = if args.generate {
        Some(prompts(args, &session)?)
    } else {
        None
    };
    let mut results = Vec::new();
    let adapted = args.model.adapter.is_some();
    let base = session.model.clone().without_adapter();
    let with = adapted.then(|| ("with adapter", session.model.clone()));
    for (name, model) in std::iter::once(("base", base)).chain(with) {
        output.progress(format!("{name}: {} rows", examples.len()));
        let measured = measure(
            &model,
            &session.tokenizer,
            &examples,
            answers.as_deref(),
            args,
        )?;
        output.line(measured.line(name))?;
        results.push((if name == "base" { "base" } else { "adapter" }, measured));
    }
    let results: serde_json::Map<String, serde_json::Value> = results
        .into_iter()
        .map(|(name, measured)| (name.to_owned(), measured.to_json()))
        .collect();
    output.record(&results)
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
    examples: &[Example],
    prompts: Option<&[Prompt]>,
    args: &EvalArgs,
) -> Result<Measured, CliError> {
    let evaluation = evaluate(model, examples, ROWS_AT_A_TIME, |_, _| ())?;
    let answers = match prompts {
        Some(prompts) => answer(model, tokenizer, prompts, args.max_new_tokens as usize)?,
        None => Vec::new(),
    };
    let scores = prompts.map(|prompts| {
        let expected = prompts.iter().map(|prompt| prompt.answer.as_str());
        GenerationScores::new(answers.iter().map(String::as_str).zip(expected))
    });
    Ok(Measured { evaluation, scores })
}

/// Greedy answers to all prompts.
pub(crate) fn answer(
    model: &Llama,
    tokenizer: &ChatTokenizer,
    prompts: &[Prompt],
    max_new_tokens: usize,
) -> Result<Vec<String>, CliError> {
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
        for ids in model.generate(&ids, &config, |_, _| true) {
            answers.push(tokenizer.decode(&ids, true).map_err(CliError::boxed)?);
        }
    }
    Ok(answers)
}

const ROWS_AT_A_TIME: usize = 8;
const ANSWERS_AT_A_TIME: usize = 40;

fn examples(args: &EvalArgs, session: &Session) -> Result<Vec<Example>, CliError> {
    let limit = args.limit.map_or(usize::MAX, |limit| limit as usize);
    if is_text(args) {
        return text(args, session, limit);
    }
    let options = options(args)?;
    let mut data = backdraft_data::load(&args.data, &options, &session.tokenizer, &mut |_| ())?;
    data.examples.truncate(limit);
    Ok(data.examples)
}

fn is_text(args: &EvalArgs) -> bool {
    args.data
        .extension()
        .is_some_and(|extension| extension == "txt")
}

fn prompts(args: &EvalArgs, session: &Session) -> Result<Vec<Prompt>, CliError> {
    let limit = args.limit.map_or(usize::MAX, |limit| limit as usize);
    Ok(load_prompts(
        &args.data,
        &options(args)?,
        &session.tokenizer,
        limit,
    )?)
}

fn options(args: &EvalArgs) -> Result<DataOptions, CliError> {
    let format = match args.format {
        Some(format) => format.into(),
        None => detect(&args.data)?,
    };
    let template = args.prompt_template.as_deref();
    session::data_options(format, template, args.max_seq_length as usize)
}

/// The format of the first row.
pub(crate) fn detect(path: &Path) -> Result<Format, CliError> {
    let unknown = || {
        CliError::user(format!(
            "{}: the first row has no format that is known",
            path.display()
        ))
        .hint("name it with --format messages, alpaca or text")
    };
    let line = JsonlReader::open(path)?.next().ok_or_else(unknown)??;
    let row: serde_json::Value = serde_json::from_str(&line.text).map_err(|error| {
        CliError::user(format!(
            "{}:{}: not a JSON object",
            path.display(),
            line.number
        ))
        .because(error)
    })?;
    row.as_object().and_then(Format::detect).ok_or_else(unknown)
}

/// A text file in pieces of the longest length.
fn text(args: &EvalArgs, session: &Session, limit: usize) -> Result<Vec<Example>, CliError> {
    let path = args.data.display();
    let text = std::fs::read_to_string(&args.data)
        .map_err(|error| CliError::user(format!("cannot read {path}")).because(error))?;
    let ids = session
        .tokenizer
        .encode_text(&text)
        .map_err(CliError::boxed)?
        .ids;
    let pieces = ids
        .chunks(args.max_seq_length as usize)
        .filter(|piece| piece.len() > 1);
    let examples: Vec<Example> = pieces
        .take(limit)
        .map(|piece| Example {
            input_ids: piece.to_vec(),
            labels: piece.iter().map(|&id| i64::from(id)).collect(),
            line: 1,
        })
        .collect();
    if examples.is_empty() {
        return Err(CliError::user(format!(
            "{path} has fewer than two tokens: nothing to predict"
        )));
    }
    Ok(examples)
}
