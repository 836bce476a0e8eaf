//! `quantize`: write a model in 4 or 8 bits.

use std::path::PathBuf;
use std::time::Instant;

use backdraft_formats::Existing;
use backdraft_quant::{QuantizationPlan, Scheme};
use clap::Args;

use crate::args::choice;
use crate::commands::{self, Context};
use crate::error::CliError;
use crate::plain::count;
use crate::session;

/// Quantize a model to 4 or 8 bits, in the format of bitsandbytes, which transformers loads
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft quantize --model HuggingFaceTB/SmolLM2-135M-Instruct --out smollm2-nf4 --double-quant
  backdraft quantize --model model.gguf --out model-int8 --format int8")]
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

    /// Replace the output directory if it exists
    #[arg(long)]
    pub(crate) force: bool,
}

pub(crate) fn run(args: &QuantizeArgs, context: Context) -> Result<(), CliError> {
    let output = context.output;
    let plan = plan(args)?;
    let source = session::open_model(&args.model, output)?;
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
