//! `merge`: an adapter and its base as one checkpoint.

use std::path::PathBuf;

use backdraft_data::RowSet;
use backdraft_formats::{Existing, ModelSource, PeftDir};
use backdraft_lora::{AdapterWeights, MergeBase, TrainedOver};
use backdraft_model::Llama;
use backdraft_quant::QuantizationPlan;
use backdraft_train::evaluate::{self, Divergence};
use clap::{Args, ValueEnum};

use crate::args::QuantizationArg;
use crate::commands::Context;
use crate::error::CliError;
use crate::plain::count;
use crate::session;

/// Merge an adapter into its base and save a Hugging Face checkpoint in the base's dtype
///
/// An adapter trained over a quantized base has learned to compensate for its quantization errors, which the original
/// weights do not have. --kl-data measures how far the merged model is from the trained one: the mean
/// Kullback–Leibler divergence of the next token, on answers and on all tokens.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft merge --model HuggingFaceTB/SmolLM2-135M-Instruct --adapter outputs/adapter --out merged
  backdraft merge --model model.gguf --adapter outputs/adapter --out merged --base dequantized --kl-data test.jsonl")]
pub(crate) struct MergeArgs {
    /// Base model: directory, .gguf file, or hub id (org/name)
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: String,

    /// PEFT adapter directory
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: PathBuf,

    /// Directory to write
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Weights to merge the adapter into
    #[arg(long, value_enum, default_value = "original")]
    pub(crate) base: Base,

    /// How the base was quantized in training [default: as trained_over.json of the adapter says]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) quantization: Option<QuantizationArg>,

    /// Rows to compare the merged model with the trained one on: file, folder, glob, or hub data set
    #[arg(long, value_name = "ROWS")]
    pub(crate) kl_data: Option<String>,

    /// Only the first N of those rows
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) kl_limit: u64,

    /// Replace the output directory if it exists
    #[arg(long)]
    pub(crate) force: bool,
}

/// Weights to add an adapter to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Base {
    /// The weights in the model's files
    Original,
    /// The weights that the adapter was trained over: quantized and dequantized
    Dequantized,
}

pub(crate) fn run(args: &MergeArgs, context: Context) -> Result<(), CliError> {
    let output = context.output;
    let source = ModelSource::open(session::find_model(&args.model, output)?)?;
    let adapter = session::read_adapter(&args.adapter)?;
    let note = session::trained_over(Some(&args.adapter), &source, output)?;
    let plan = session::plan(args.quantization, note.as_ref());
    let base = base(args.base, &source, plan.as_ref(), note.as_ref())?;
    let rows = rows(args, &source, context)?;
    let existing = if args.force {
        Existing::Replace
    } else {
        Existing::Refuse
    };
    let report =
        backdraft_lora::merge(&source, base, &adapter, &args.out, existing, |done, all| {
            if done % 100 == 0 {
                output.progress(format!("{done} of {all} tensors"));
            }
        })?;
    let kl = match &rows {
        None => None,
        Some(rows) => {
            output.progress("comparing the merged model with the trained one");
            Some(divergence(args, &source, plan.as_ref(), &adapter, rows)?)
        }
    };
    output.record("merged", &serde_json::json!({
        "out": args.out, "tensors": report.tensors, "merged": report.merged, "bytes": report.bytes,
        "mean_kl": kl.map(|kl| kl.all), "kl_tokens": kl.map(|kl| kl.tokens),
        "mean_kl_supervised": kl.map(|kl| kl.supervised),
        "kl_supervised_tokens": kl.map(|kl| kl.supervised_tokens),
    }))?;
    output.line(format!(
        "Wrote {}: {}, {} of them merged, {:.1} MB",
        args.out.display(),
        count(report.tensors as u64, "tensor"),
        report.merged,
        report.bytes as f64 / 1e6
    ))?;
    match (kl, &plan) {
        (Some(kl), _) => output.line(format!(
            "Mean KL divergence from the trained model: {:.2e} nats over {} supervised tokens, {:.2e} over all {}",
            kl.supervised, kl.supervised_tokens, kl.all, kl.tokens
        )),
        (None, Some(plan)) if args.base == Base::Original => output.line(format!(
            "The adapter was trained over {}; --kl-data FILE measures what the change of base costs",
            plan.scheme
        )),
        _ => Ok(()),
    }
}

fn base<'a>(
    base: Base,
    source: &ModelSource,
    plan: Option<&'a QuantizationPlan>,
    note: Option<&TrainedOver>,
) -> Result<MergeBase<'a>, CliError> {
    match (base, plan) {
        (Base::Original, _) => Ok(MergeBase::Original),
        // The files hold the very codes that the adapter was trained over.
        (Base::Dequantized, _) if source.quantization().is_some() => Ok(MergeBase::Original),
        (Base::Dequantized, Some(plan)) => Ok(MergeBase::Dequantized(plan)),
        (Base::Dequantized, None) => {
            let known = match note {
                Some(_) => "the adapter was trained over an unquantised base",
                None => "nothing beside the adapter says how its base was quantised",
            };
            Err(CliError::user(known)
                .hint("name the format with --quantization, or use --base original"))
        }
    }
}

fn rows(
    args: &MergeArgs,
    source: &ModelSource,
    context: Context,
) -> Result<Option<RowSet>, CliError> {
    let Some(path) = &args.kl_data else {
        return Ok(None);
    };
    let tokenizer = session::tokenizer(source, Some(&args.adapter))?;
    let recipe = session::recipe_for(path, &args.model, [("max_seq_length", "2048".to_owned())])?;
    let (rows, _) = session::load_rows(&recipe, &tokenizer, context.output)?;
    let count = rows.len().min(args.kl_limit as usize);
    Ok(Some(rows.choose(0..count)))
}

/// KL divergence of the merged model from the trained one.
fn divergence(
    args: &MergeArgs,
    source: &ModelSource,
    plan: Option<&QuantizationPlan>,
    adapter: &PeftDir,
    rows: &RowSet,
) -> Result<Divergence, CliError> {
    let device = burn::tensor::Device::flex();
    let trained = Llama::load_quantized(source, plan, &device)?
        .with_adapter(&AdapterWeights::from_peft(adapter, &device))?;
    let merged = Llama::load(&ModelSource::open(&args.out)?, &device)?;
    Ok(evaluate::divergence(&trained, &merged, rows)?)
}
