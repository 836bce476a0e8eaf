//! `quantize`: write a model in 4 or 8 bits.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use backdraft_arch::Precision;
use backdraft_formats::{Existing, ModelSource};
use backdraft_quant::{QuantizationPlan, Scheme};
use backdraft_recipe::Recipe;
use clap::Args;

use crate::args::choice;
use crate::commands::plan::measure::survey;
use crate::commands::{self, Context};
use crate::error::CliError;
use crate::plain::count;
use crate::session;

/// Quantize a model to 4 or 8 bits, in the format of bitsandbytes, which transformers loads
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft quantize --model HuggingFaceTB/SmolLM2-135M-Instruct --out smollm2-nf4 --double-quant
  backdraft quantize --model model.gguf --out model-int8 --format int8
  backdraft quantize --model DIR --out DIR-4.8 --double-quant --bits 4.8 --data rows.jsonl")]
pub(crate) struct QuantizeArgs {
    /// Model: directory, .gguf file, or hub id (org/name)
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: String,

    /// Directory to write
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// Data type of the quantized weights
    #[arg(long, value_parser = choice::scheme(), default_value = "nf4")]
    pub(crate) format: Scheme,

    /// Quantization block size, for 4 bits
    #[arg(long, value_name = "N", default_value = "64", value_parser = ["64", "128"])]
    pub(crate) block_size: String,

    /// Double quantization: quantize the scales too, for 4 bits
    #[arg(long)]
    pub(crate) double_quant: bool,

    /// Module to leave unquantized: a path, or components of one; repeatable
    #[arg(long, value_name = "MODULE")]
    pub(crate) skip: Vec<String>,

    /// Leave unquantized what is worth most, up to so many bits a weight in the mean: measured on the rows of --data
    #[arg(long, value_name = "BITS", requires = "data")]
    pub(crate) bits: Option<f64>,

    /// Rows to measure on, as data.train takes them
    #[arg(long, value_name = "FILE", requires = "bits")]
    pub(crate) data: Option<String>,

    /// Replace the output directory if it exists
    #[arg(long)]
    pub(crate) force: bool,
}

pub(crate) fn run(args: &QuantizeArgs, context: Context) -> Result<(), CliError> {
    let output = context.output;
    let mut plan = plan(args)?;
    let source = Arc::new(session::open_model(&args.model, output)?);
    if let (Some(bits), Some(rows)) = (args.bits, &args.data) {
        plan = measured(&source, args, (plan, bits, rows), context)?;
    }
    commands::keep_inputs(&args.out, &[source.path()])?;
    let existing = if args.force {
        Existing::Replace
    } else {
        Existing::Refuse
    };
    let modules: Vec<String> = source.tensor_names().map(str::to_owned).collect();
    commands::warn_unmatched(&plan, &modules, output);
    let began = Instant::now();
    let report = backdraft_model::quantize(&source, &plan, &args.out, existing, |done, all| {
        if done % 100 == 0 {
            output.progress(format!("{done} of {all} tensors"));
        }
    })?;
    let bits = 8.0 * report.quantized_bytes as f64 / report.quantized_params.max(1) as f64;
    output.record("quantized", &serde_json::json!({
        "out": args.out, "format": plan.scheme.to_string(), "quantized": report.quantized,
        "quantized_params": report.quantized_params, "bits_per_weight": bits, "kept": report.kept,
        "bytes": report.bytes, "seconds": began.elapsed().as_secs_f64(),
    }))?;
    output.line(format!(
        "Wrote {}: {} in {} at {bits:.2} bits per weight, {} unchanged, {:.1} MB",
        args.out.display(),
        count(report.quantized as u64, "tensor"),
        plan.scheme,
        count(report.kept as u64, "tensor"),
        report.bytes as f64 / 1e6
    ))
}

/// The plan that skips what is worth most, up to `bits` a weight.
fn measured(
    source: &Arc<ModelSource>,
    args: &QuantizeArgs,
    (plan, bits, rows): (QuantizationPlan, f64, &str),
    context: Context,
) -> Result<QuantizationPlan, CliError> {
    let output = context.output;
    let format = match plan.scheme.name().parse::<Precision>() {
        Ok(format @ (Precision::Nf4 | Precision::Int8)) => format,
        _ => {
            return Err(CliError::usage(
                "--bits measures around --format nf4 or int8",
            ));
        }
    };
    let rows = if Path::new(rows).exists() {
        let absolute = std::path::absolute(rows);
        absolute.map_or(rows.to_owned(), |path| path.to_string_lossy().into_owned())
    } else {
        rows.to_owned()
    };
    let [model, rows] = [args.model.as_str(), rows.as_str()].map(toml::Value::from);
    let text = format!("model = {model}\n[data]\ntrain = {rows}\n");
    let here = std::env::current_dir().unwrap_or_default();
    let recipe = Recipe::from_toml(&text, &here, &[])?;
    let (surveyed, mut model) = survey(source, &recipe, (&plan, &[format]), context)?;
    let element = match model.spec().projections().next() {
        Some((layer, target)) => source
            .tensor_info(&format!("{}.weight", target.path(layer)))
            .map_or(2, |info| info.dtype.size()),
        None => 2,
    };
    let offer = surveyed.skip(bits, element as u64).ok_or_else(|| {
        let least = surveyed.uniform().report.bits;
        CliError::user(format!(
            "--bits {bits}: {} alone takes {least:.2} bits a weight",
            plan.scheme
        ))
    })?;
    let uniform = surveyed.uniform().plan;
    let kl = surveyed.check(&mut model, &[&uniform, &offer.plan])?;
    let skipped: Vec<&str> = (offer.report.moves.iter())
        .map(|one| one.module.as_str())
        .collect();
    output.record(
        "measured",
        &serde_json::json!({ "bits": offer.report.bits, "kl": kl, "unquantized": skipped }),
    )?;
    let [before, after] = [0, 1].map(|at| kl.get(at).copied().unwrap_or(f64::NAN));
    output.progress(format!(
        "{} unquantized at {:.2} bits a weight: KL {before:.4} -> {after:.4}",
        count(skipped.len() as u64, "projection"),
        offer.report.bits
    ));
    Ok(offer.plan)
}

fn plan(args: &QuantizeArgs) -> Result<QuantizationPlan, CliError> {
    if args.double_quant && args.format.blocks().is_none() {
        return Err(CliError::usage(format!(
            "--double-quant is for 4 bits: --format {} has one scale per row",
            args.format.name()
        )));
    }
    let block_size = if args.block_size == "128" { 128 } else { 64 };
    let scheme = args.format.with_scales(block_size, args.double_quant);
    let mut plan = QuantizationPlan::new(scheme);
    plan.skip_modules.extend(args.skip.iter().cloned());
    Ok(plan)
}
