//! `eval`: how well a model predicts, or answers, a file.

use std::path::{Path, PathBuf};

use backdraft_data::pipeline::TokenizedRow;
use backdraft_data::{
    ChatTokenizer, GenerationScores, Prompt, RowSet, Source, TokenRows, load_prompts,
};
use backdraft_formats::{Existing, trained_model_in, write_file};
use backdraft_model::CausalLm;
use backdraft_model::generate::GenerateConfig;
use backdraft_recipe::{EvalRecipe, ObjectiveRecipe, Recipe};
use backdraft_train::data;
use backdraft_train::evaluate::{Comparison, Evaluation, evaluate};
use backdraft_train::trained_with::{TrainedWith, adapter_in};
use clap::Args;

use crate::args::ModelArgs;
use crate::commands::{Context, new_file};
use crate::error::CliError;
use crate::plain::count;
use crate::rows::{RowFlags, Rows};
use crate::session::{self, Loading, Session};

mod compared;
mod rewards;

use compared::Judge;

/// Evaluate a model on a file, with and without an adapter
///
/// Prints the mean negative log-likelihood per supervised token and the perplexity: of the base, and with the adapter.
/// Of rows with answers to compare (preference, unpaired) instead: loss, accuracy, margin, rewards, log-likelihoods and entropy
/// with standard errors, judged as the recipe's objective does (or as --set objective.kind says, else dpo or kto).
/// A reward model scores the answers of rows: accuracy, margin and rewards, and with --answers each answer's reward.
/// With --generate also how many generated answers match exactly, and how many start with the right word.
///
/// Rows are read as the adapter's run read its own (format, fields, templates, what is trained, length),
/// unless flags say otherwise. A recipe names the model, the adapter of its run and the held-out rows: those of data.eval, and
/// after them each set of data.eval_sets by its name.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft eval recipe.toml
  backdraft eval --adapter outputs --data test.jsonl --generate
  backdraft eval --adapter outputs --data test.jsonl --generate --answers answers.jsonl
  backdraft eval --adapter outputs --data test.csv --fields instruction=question,output=answer
  backdraft eval --model model.gguf --data book.txt")]
pub(crate) struct EvalArgs {
    /// A recipe (.toml): its model, the adapter in its output_dir, its held-out rows
    #[arg(value_name = "RECIPE")]
    pub(crate) recipe: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Rows: file, folder, glob, or hub data set (org/name:split); a .txt file is cut into chunks [default: the rows that
    /// the recipe holds out]
    #[arg(long, value_name = "ROWS", required_unless_present = "recipe")]
    pub(crate) data: Option<String>,

    #[command(flatten)]
    pub(crate) rows: RowFlags,

    /// Only the first N rows of each set
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,

    /// Maximum tokens per row; longer rows are truncated [default: as in training, else 2048]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..))]
    pub(crate) max_seq_length: Option<u64>,

    /// Also generate an answer for every row and compare it with the expected one
    #[arg(long)]
    pub(crate) generate: bool,

    /// Write each question with the expected and the generated answers, or each row's rewards by a reward model, as JSON lines
    #[arg(long, value_name = "FILE")]
    pub(crate) answers: Option<PathBuf>,

    /// Replace the file of answers if it exists
    #[arg(long, requires = "answers")]
    pub(crate) force: bool,

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
    let to = match &args.answers {
        Some(path) => {
            let data = args.data.as_ref().map(PathBuf::from);
            let inputs: Vec<PathBuf> = data.into_iter().chain(args.recipe.clone()).collect();
            Some((path, new_file(path, args.force, &inputs)?))
        }
        None => None,
    };
    let plan = Plan::of(args, context)?;
    let mut session = Session::open_to_judge(&plan.model, plan.recipe.as_ref(), plan.context)?;
    let scores = session.model.spec().scores;
    match (scores, args.generate, &args.answers) {
        (true, true, _) => {
            return Err(CliError::usage(
                "--generate needs a model that generates, and this one scores answers",
            )
            .hint("leave --generate out: --answers FILE writes the reward of each answer"));
        }
        (false, false, Some(_)) => {
            return Err(CliError::usage(
                "--answers writes what is generated, and --generate is not given",
            )
            .hint("add --generate"));
        }
        _ => {}
    }
    // A pipe can be read once: its rows are kept for the answers too.
    let _pipe = args.data.as_deref().and_then(Source::hold_pipe);
    let read = plan.read(args, &mut session)?;
    let sets = plan.read_sets(args, &mut session)?;
    let to = to.map(|(path, existing)| (path.as_path(), existing));
    let measure = |read: &Read, to| match scores {
        true => rewards::run(&session, read, to, output),
        false => plan.measure(args, &session, read, to),
    };
    let mut results = measure(&read, to)?;
    let mut of_sets = Vec::new();
    for (name, read) in &sets {
        output.line(format!("{name}:"))?;
        let mut found = measure(read, None)?;
        found.insert("name".to_owned(), name.as_str().into());
        of_sets.push(found);
    }
    if !of_sets.is_empty() {
        results.insert("sets".to_owned(), serde_json::json!(of_sets));
    }
    output.record("evaluation", &results)
}

/// Results by key, as they are told with `--json`.
type Results = serde_json::Map<String, serde_json::Value>;

impl Plan {
    /// What the base and the adapted model come to over some rows; `to` gets the answers that they generate.
    fn measure(
        &self,
        args: &EvalArgs,
        session: &Session,
        read: &Read,
        to: Option<(&Path, Existing)>,
    ) -> Result<Results, CliError> {
        let output = self.context.output;
        let Read {
            rows,
            prompts: answers,
            objective,
            max_seq_length,
        } = read;
        let mut results = Vec::new();
        let adapted = session.adapter.is_some();
        let base = session.model.clone().without_adapter();
        let judge = match compared::compares(rows) {
            false => None,
            true if args.generate => {
                return Err(CliError::usage(
                "--generate compares an answer with the expected one, and these rows have answers to compare with each other",
            )
            .hint("leave --generate out"));
            }
            true => {
                let reference = compared::reference(&base, self.recipe.as_ref())?;
                Some(Judge::new(rows, *objective, *max_seq_length, reference)?)
            }
        };
        if let Some(judge) = &judge {
            output.progress(judge.in_words());
        }
        let with = adapted.then(|| ("with adapter", session.model.clone()));
        for (name, model) in std::iter::once(("base", base)).chain(with) {
            output.progress(format!("{name}: {}", count(rows.len() as u64, "row")));
            let measured = match &judge {
                Some(judge) => {
                    let found = judge.measure(&model, rows)?;
                    Measured {
                        evaluation: found.good,
                        compared: Some(found),
                        answers: None,
                    }
                }
                None => measure(&model, &session.tokenizer, rows, answers.as_deref(), args)?,
            };
            let has_reference = judge
                .as_ref()
                .is_some_and(|judge| judge.recipe.reference().is_some());
            output.line(measured.line(name, has_reference))?;
            results.push((if name == "base" { "base" } else { "adapter" }, measured));
        }
        if let (Some((path, existing)), Some(prompts)) = (to, answers) {
            write_file(
                path,
                answers_as_lines(prompts, &results).as_bytes(),
                existing,
            )?;
            output.line(format!("Wrote {}", path.display()))?;
        }
        let results = results.into_iter();
        Ok(results
            .map(|(name, measured)| (name.to_owned(), measured.to_json()))
            .collect())
    }
}

/// What is evaluated.
struct Read {
    rows: RowSet,
    /// The rows as questions, where they are to be answered.
    prompts: Option<Vec<Prompt>>,
    /// How answers are judged, where that was said.
    objective: ObjectiveRecipe,
    max_seq_length: usize,
}

/// What one model achieves on a file.
#[derive(Debug)]
struct Measured {
    /// Of supervised tokens, or of those of chosen answers.
    evaluation: Evaluation,
    compared: Option<Comparison>,
    /// What it answers, and what that is worth.
    answers: Option<(Vec<String>, GenerationScores)>,
}

impl Measured {
    /// One line; answers of the base are not judged where it is what they are compared with.
    fn line(&self, name: &str, has_reference: bool) -> String {
        if let Some(found) = &self.compared {
            return compared::line(found, name, has_reference && name == "base");
        }
        let Evaluation { nll, tokens } = self.evaluation;
        let perplexity = self.evaluation.perplexity();
        let mut line =
            format!("{name:<14} nll {nll:.4}  perplexity {perplexity:.2}  tokens {tokens}");
        if let Some((_, scores)) = &self.answers {
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
        if let Some(found) = &self.compared {
            json["loss"] = found.loss.into();
            json["answers"] = serde_json::json!(found.answers);
        }
        if let Some((_, scores)) = &self.answers {
            json["exact_match"] = scores.exact_match.into();
            json["first_word"] = scores.first_word.into();
            json["rows"] = scores.rows.into();
        }
        json
    }
}

fn measure(
    model: &CausalLm,
    tokenizer: &ChatTokenizer,
    rows: &RowSet,
    prompts: Option<&[Prompt]>,
    args: &EvalArgs,
) -> Result<Measured, CliError> {
    let evaluation = evaluate(model, rows, ROWS_AT_A_TIME, |_, _| ())?;
    let answers = match prompts {
        Some(prompts) => {
            let length = args.max_new_tokens as usize;
            let given = answer(model, tokenizer, prompts, length, |_| ())?;
            let expected = prompts.iter().map(|prompt| prompt.answer.as_str());
            let scores = GenerationScores::new(given.iter().map(String::as_str).zip(expected));
            Some((given, scores))
        }
        None => None,
    };
    Ok(Measured {
        evaluation,
        compared: None,
        answers,
    })
}

/// A line for each question, with what each model of `results` answers under its name.
fn answers_as_lines(prompts: &[Prompt], results: &[(&str, Measured)]) -> String {
    let mut lines = String::new();
    for (at, prompt) in prompts.iter().enumerate() {
        let mut line = serde_json::json!({
            "line": prompt.line,
            "prompt": prompt.text,
            "expected": prompt.answer,
        });
        for (name, measured) in results {
            if let Some((given, _)) = &measured.answers {
                line[*name] = given[at].as_str().into();
            }
        }
        lines += &format!("{line}\n");
    }
    lines
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
    model: &CausalLm,
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

/// The model and adapter to measure, and on what.
struct Plan {
    model: ModelArgs,
    recipe: Option<Recipe>,
    context: Context,
}

impl Plan {
    fn of(args: &EvalArgs, context: Context) -> Result<Self, CliError> {
        let mut model = args.model.clone();
        let Some(path) = &args.recipe else {
            return Ok(Self {
                model,
                recipe: None,
                context,
            });
        };
        let mut overrides = args.rows.overrides();
        overrides.extend(args.max_seq_length.map(|n| format!("max_seq_length={n}")));
        let recipe = Recipe::load(path, &overrides)?;
        let mut global = context.global;
        global.device = global.device.or(Some(recipe.device));
        let output_dir = &recipe.output_dir;
        let trained = adapter_in(output_dir);
        match &model.adapter {
            None if trained.join("adapter_config.json").is_file() => model.adapter = Some(trained),
            None => match trained_model_in(output_dir) {
                Some(trained) => {
                    let found = trained.to_string_lossy().into_owned();
                    model.model = model.model.or(Some(found));
                }
                None => context.output.progress(format!(
                    "there is no adapter in {} yet: the base alone is measured",
                    output_dir.display()
                )),
            },
            Some(_) => {}
        }
        model.model = model.model.or_else(|| Some(recipe.model.clone()));
        model.dtype = model.dtype.or(Some(recipe.dtype));
        Ok(Self {
            model,
            recipe: Some(recipe),
            context: Context { global, ..context },
        })
    }

    /// The rows as tokens, and as questions where they are to be answered.
    fn read(&self, args: &EvalArgs, session: &mut Session) -> Result<Read, CliError> {
        let output = self.context.output;
        let limit = args.limit();
        let rows = match (&args.data, &self.recipe) {
            (Some(path), _) if is_text(args) => {
                return Ok(self.alone(text(path, args, session, limit)?));
            }
            (Some(path), recipe) => self.named(path, recipe.as_ref(), args, session)?,
            (None, Some(recipe)) => match &recipe.data.eval {
                Some(EvalRecipe::Sources(_)) => Rows::held_out(recipe, output)?,
                Some(EvalRecipe::Fraction(_)) => {
                    let share = self.share(recipe, args, session)?;
                    return Ok(self.alone(first(share, limit)));
                }
                None => None,
            },
            (None, None) => None,
        };
        let Some(rows) = rows else {
            return Err(CliError::usage("the recipe holds out no rows (data.eval)")
                .hint("name rows with --data"));
        };
        self.read_rows(&rows, args, session)
    }

    /// The further sets that the recipe holds out, by name; none where other rows are named.
    fn read_sets(
        &self,
        args: &EvalArgs,
        session: &mut Session,
    ) -> Result<Vec<(String, Read)>, CliError> {
        let recipe = self.recipe.as_ref().filter(|_| args.data.is_none());
        let Some(recipe) = recipe.filter(|recipe| !recipe.data.eval_sets.is_empty()) else {
            return Ok(Vec::new());
        };
        let sets = Rows::sets(recipe, self.context.output)?.into_iter();
        sets.map(|(name, rows)| Ok((name, self.read_rows(&rows, args, session)?)))
            .collect()
    }

    /// Rows as tokens, and as questions where they are to be answered.
    fn read_rows(
        &self,
        rows: &Rows,
        args: &EvalArgs,
        session: &mut Session,
    ) -> Result<Read, CliError> {
        let output = self.context.output;
        let limit = args.limit();
        let named = [Some(&rows.recipe), self.recipe.as_ref()]
            .into_iter()
            .flatten();
        if let Some(recipe) = named
            .into_iter()
            .find(|recipe| recipe.data.chat_template.is_some())
        {
            session.tokenizer = data::tokenizer_of(&recipe.data, &session.source)?;
        }
        output.progress(format!("rows: {}", rows.in_words()));
        let (set, _) = rows.load(&session.tokenizer, output)?;
        let answers = match args.generate {
            true => Some(prompts(rows, &session.tokenizer, limit)?),
            false => None,
        };
        let said = rows.recipe.objective;
        let of_run = self.recipe.as_ref().map(|recipe| recipe.objective);
        Ok(Read {
            prompts: answers,
            objective: match said {
                ObjectiveRecipe::Sft => of_run.unwrap_or_default(),
                said => said,
            },
            max_seq_length: rows.recipe.max_seq_length,
            rows: first(set, limit),
        })
    }

    /// Rows that are not asked as questions, judged as the recipe says.
    fn alone(&self, rows: RowSet) -> Read {
        let recipe = self.recipe.as_ref();
        Read {
            max_seq_length: recipe.map_or_else(|| rows.longest_text(), |it| it.max_seq_length),
            objective: recipe.map(|recipe| recipe.objective).unwrap_or_default(),
            prompts: None,
            rows,
        }
    }

    /// Rows of `--data`, read as the recipe or the adapter's run says.
    fn named(
        &self,
        path: &str,
        recipe: Option<&Recipe>,
        args: &EvalArgs,
        session: &Session,
    ) -> Result<Option<Rows>, CliError> {
        let model = session.source.path().display().to_string();
        let noted = match recipe {
            Some(recipe) => Some(TrainedWith::of_recipe(recipe)),
            None => session
                .adapter
                .as_ref()
                .and_then(|adapter| adapter.with.clone()),
        };
        let length = args.max_seq_length.map(|n| format!("max_seq_length={n}"));
        let length = length.or_else(|| noted.is_none().then(|| "max_seq_length=2048".to_owned()));
        let (flags, noted) = (&args.rows, noted.as_ref());
        let others = length.into_iter().collect();
        Rows::named(path, &model, flags, noted, others, self.context.output).map(Some)
    }

    /// The share of its training rows that a recipe holds out: the very rows that its run does.
    fn share(
        &self,
        recipe: &Recipe,
        args: &EvalArgs,
        session: &mut Session,
    ) -> Result<RowSet, CliError> {
        if args.generate {
            return Err(CliError::usage(
                "--generate needs rows of their own, and the recipe holds out a share of its training rows",
            )
            .hint("name a file of questions and answers with --data"));
        }
        let output = self.context.output;
        let sources = session::find_data(&recipe.data, output)?;
        let tokenizer = data::tokenizer_of(&recipe.data, &session.source)?;
        let mut shown = Loading::new(output);
        let mut progress = |progress| shown.show(progress);
        let read = data::load(recipe, &sources, tokenizer, &mut progress)?;
        output.progress("rows: the share of its rows that the recipe holds out");
        session.tokenizer = data::tokenizer_of(&recipe.data, &session.source)?;
        Ok(read.eval.unwrap_or_default())
    }
}

impl EvalArgs {
    /// The most rows of a set.
    fn limit(&self) -> usize {
        self.limit.map_or(usize::MAX, |limit| limit as usize)
    }
}

fn first(rows: RowSet, limit: usize) -> RowSet {
    let count = rows.len().min(limit);
    rows.choose(0..count)
}

fn is_text(args: &EvalArgs) -> bool {
    let extension = args
        .data
        .as_deref()
        .and_then(|data| Path::new(data).extension());
    extension.is_some_and(|extension| extension == "txt")
}

fn prompts(rows: &Rows, tokenizer: &ChatTokenizer, limit: usize) -> Result<Vec<Prompt>, CliError> {
    let options = rows.options()?;
    let mut prompts = Vec::new();
    for source in rows.sources() {
        let left = limit - prompts.len();
        prompts.extend(load_prompts(&source, &options, tokenizer, left)?);
    }
    Ok(prompts)
}

/// A text file in pieces of the longest length.
fn text(path: &str, args: &EvalArgs, session: &Session, limit: usize) -> Result<RowSet, CliError> {
    let noted = session
        .adapter
        .as_ref()
        .and_then(|adapter| adapter.with.as_ref());
    let noted = noted.map_or(2048, |noted| noted.rows.max_seq_length);
    let length = args.max_seq_length.map_or(noted, |n| n as usize);
    let text = std::fs::read_to_string(path)
        .map_err(|error| CliError::user(format!("cannot read {path}")).because(error))?;
    let ids = session
        .tokenizer
        .encode_text(&text)
        .map_err(CliError::boxed)?
        .ids;
    session.tokenizer.check_ids(&ids)?;
    let pieces = ids.chunks(length).filter(|piece| piece.len() > 1);
    let rows: Vec<TokenizedRow> = pieces
        .take(limit)
        .map(|piece| TokenizedRow {
            input_ids: piece.to_vec(),
            labels: piece.iter().map(|&id| i64::from(id)).collect(),
            answers: backdraft_data::Answers::One,
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
