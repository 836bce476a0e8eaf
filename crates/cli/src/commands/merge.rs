//! `merge`: fold an adapter into its model.

use std::path::PathBuf;

use backdraft_formats::{Existing, ModelSource};
use clap::Args;

use crate::commands::Context;
use crate::error::CliError;
use crate::session;

/// Fold an adapter into a new Hugging Face directory, in the base model's number format
#[derive(Debug, Args)]
#[command(after_help = "Example:
  backdraft merge --model HuggingFaceTB/SmolLM2-135M-Instruct --adapter outputs/adapter --out merged")]
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

    /// Replace the output directory if it exists
    #[arg(long)]
    pub(crate) force: bool,
}

pub(crate) fn run(args: &MergeArgs, context: Context) -> Result<(), CliError> {
    let output = context.output;
    let source = ModelSource::open(session::find_model(&args.model, output)?)?;
    let adapter = session::read_adapter(&args.adapter)?;
    let existing = if args.force {
        Existing::Replace
    } else {
        Existing::Refuse
    };
    let report = backdraft_lora::merge(&source, &adapter, &args.out, existing, |done, all| {
        if done % 100 == 0 {
            output.progress(format!("{done} of {all} tensors"));
        }
    })?;
    output.record(&serde_json::json!({
        "out": args.out, "tensors": report.tensors, "merged": report.merged, "bytes": report.bytes,
    }))?;
    output.line(format!(
        "Wrote {}: {} tensors, {} of them merged, {:.1} MB",
        args.out.display(),
        report.tensors,
        report.merged,
        report.bytes as f64 / 1e6
    ))
}
