//! `merge`: an adapter and its base as one checkpoint.

use std::path::PathBuf;

use backdraft_data::{ChatTokenizer, RowSet};
use backdraft_formats::{Existing, ModelSource, PeftDir};
use backdraft_lora::{AdapterWeights, MergeBase};
use backdraft_model::CausalLm;
use backdraft_quant::QuantizationPlan;
use backdraft_train::data;
use backdraft_train::evaluate::{self, Divergence};
use clap::{Args, ValueEnum};

use crate::args::choice::{self, QuantizationArg};
use crate::commands::{self, Context};
use crate::error::CliError;
use crate::noted::{self, NotedAdapter};
use crate::plain::count;
use crate::rows::{RowFlags, Rows};
use crate::session::Chosen;

/// Merge an adapter into its base and save a Hugging Face checkpoint in the base's dtype
///
/// An adapter trained over a quantized base has learned to compensate for its quantization errors, which the original
/// weights do not have. --kl-data measures how far the merged model is from the trained one: the mean
/// Kullback–Leibler divergence of the next token, on answers and on all tokens. `combine` makes one adapter of several.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft merge --adapter outputs --out merged
  backdraft merge --adapter outputs --out merged --base dequantized --kl-data test.jsonl
  backdraft merge --model model.gguf --adapter outputs/adapter --out merged")]
pub(crate) struct MergeArgs {
    /// Base model: directory, .gguf file, or hub id (org/name) [default: the model that the adapter was trained over]
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,

    /// PEFT adapter directory, or the output directory of a run
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: PathBuf,

    /// Directory to write
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Weights to merge the adapter into
    #[arg(long, value_enum, default_value = "original")]
    pub(crate) base: Base,

    /// How the base was quantized in training [default: as noted beside the adapter]
    #[arg(long, value_parser = choice::quantization(), value_name = "FORMAT")]
    pub(crate) quantization: Option<QuantizationArg>,

    /// Rows to compare the merged model with the trained one on: file, folder, glob, or hub data set
    #[arg(long, value_name = "ROWS")]
    pub(crate) kl_data: Option<String>,

    #[command(flatten)]
    pub(crate) rows: RowFlags,

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
    let chosen = Chosen::of(args.model.as_deref(), Some(&args.adapter), output)?;
    // A model that cannot be loaded should not be written either.
    backdraft_model::check(&chosen.source)?;
    let (Some(noted), Some(adapter)) = (&chosen.adapter, &chosen.factors) else {
        return Err(CliError::usage("there is no adapter"));
    };
    let source = &chosen.source;
    commands::keep_inputs(&args.out, &[source.path(), &adapter.path])?;
    let plan = noted::plan(args.quantization, Some(noted), source)?;
    let base = base(args.base, source, plan.as_ref(), noted)?;
    // A model without a tokenizer has no ends of answers either.
    let tokenizer = chosen.tokenizer().ok();
    let stop_token_ids = tokenizer
        .as_ref()
        .map_or(&[][..], ChatTokenizer::eos_token_ids);
    let rows = rows(args, &chosen, context)?;
    let existing = if args.force {
        Existing::Replace
    } else {
        Existing::Refuse
    };
    let progress = |done, all| {
        if done % 100 == 0 {
            output.progress(format!("{done} of {all} tensors"));
        }
    };
    let report = backdraft_lora::merge(
        source,
        base,
        adapter,
        stop_token_ids,
        &args.out,
        existing,
        progress,
    )?;
    let kl = match &rows {
        None => None,
        Some(rows) => {
            output.progress("comparing the merged model with the trained one");
            Some(divergence(args, source, plan.as_ref(), adapter, rows)?)
        }
    };
    if report.unchanged > 0 {
        output.warn(format!(
            "{} of the {} merged weights are as in the base: the adapter is zero there, or too small for their dtype",
            report.unchanged, report.merged
        ));
    }
    output.record(
        "merged",
        &serde_json::json!({
            "out": args.out, "tensors": report.tensors, "merged": report.merged,
            "unchanged": report.unchanged, "bytes": report.bytes,
            "mean_kl": kl.map(|kl| kl.all), "kl_tokens": kl.map(|kl| kl.tokens),
            "mean_kl_supervised": kl.map(|kl| kl.supervised),
            "kl_supervised_tokens": kl.map(|kl| kl.supervised_tokens),
        }),
    )?;
    output.line(format!(
        "Wrote {}: {}, {} of them merged, {:.1} MB",
        args.out.display(),
        count(report.tensors as u64, "tensor"),
        report.merged,
        report.bytes as f64 / 1e6
    ))?;
    let weight = source
        .tensor_names()
        .find(|name| name.ends_with("_proj.weight"));
    if let Some(info) = (weight.filter(|_| source.quantization().is_some()))
        .and_then(|name| source.tensor_info(name))
    {
        output.line(format!(
            "The base is stored in codes; its merged weights are written as {} numbers",
            info.dtype
        ))?;
    }
    match (kl, &plan) {
        (Some(kl), _) => output.line(format!(
            "Mean KL divergence from the trained model: {:.2e} nats over {} supervised tokens, {:.2e} over all {}",
            kl.supervised, kl.supervised_tokens, kl.all, kl.tokens
        )),
        (None, Some(plan)) if args.base == Base::Original && !plan.keeps_blocks() => output.line(format!(
            "The adapter was trained over {plan}; --kl-data FILE measures what the change of base costs"
        )),
        _ => Ok(()),
    }
}

pub(crate) fn base<'a>(
    base: Base,
    source: &ModelSource,
    plan: Option<&'a QuantizationPlan>,
    noted: &NotedAdapter,
) -> Result<MergeBase<'a>, CliError> {
    match (base, plan) {
        (Base::Original, _) => Ok(MergeBase::Original),
        // The files hold the very codes that the adapter was trained over.
        (Base::Dequantized, _) if source.quantization().is_some() => Ok(MergeBase::Original),
        (Base::Dequantized, Some(plan)) => Ok(MergeBase::Dequantized(plan)),
        (Base::Dequantized, None) => {
            let known = match noted.knows_base() {
                true => "the adapter was trained over an unquantised base",
                false => "nothing beside the adapter says how its base was quantised",
            };
            Err(CliError::user(known)
                .hint("name the format with --quantization, or use --base original"))
        }
    }
}

fn rows(args: &MergeArgs, chosen: &Chosen, context: Context) -> Result<Option<RowSet>, CliError> {
    let Some(path) = &args.kl_data else {
        return Ok(None);
    };
    let noted = chosen
        .adapter
        .as_ref()
        .and_then(|adapter| adapter.with.as_ref());
    let model = chosen.source.path().display().to_string();
    let length = noted.is_none().then(|| "max_seq_length=2048".to_owned());
    let others = length.into_iter().collect();
    let rows = Rows::named(path, &model, &args.rows, noted, others, context.output)?;
    let tokenizer = match rows.recipe.data.chat_template {
        Some(_) => data::tokenizer_of(&rows.recipe.data, &chosen.source)?,
        None => chosen.tokenizer()?,
    };
    context
        .output
        .progress(format!("rows: {}", rows.in_words()));
    let (rows, _) = rows.load(&tokenizer, context.output)?;
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
    let trained = CausalLm::load_quantized(source, plan, &device)?
        .with_adapter(&AdapterWeights::from_peft(adapter, &device))?;
    let merged = CausalLm::load(&ModelSource::open(&args.out)?, &device)?;
    Ok(evaluate::divergence(&trained, &merged, rows)?)
}
