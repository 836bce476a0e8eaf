//! What is said of exported files.

use std::path::Path;

use backdraft_formats::PeftDir;
use backdraft_formats::gguf::{GgufFileType, WrittenFile};
use backdraft_lora::ExportReport;
use serde_json::json;

use super::check::{Check, Trained};
use super::usual::usual_kl;
use crate::commands::Context;
use crate::error::CliError;
use crate::plain::{count, scientific};

/// Says what was written of an adapter alone.
pub(super) fn adapter(
    factors: &PeftDir,
    files: &[WrittenFile],
    modelfile: &Path,
    context: Context,
) -> Result<(), CliError> {
    let output = context.output;
    output.record(
        "exported",
        &json!({
            "type": "lora", "files": listed(files), "bytes": bytes(files),
            "merged": factors.tensors.len(), "unchanged": 0, "modelfile": modelfile,
            "texts": null, "mean_kl": null, "same_best_token": null, "tokens": null, "usual_kl": null,
        }),
    )?;
    output.line(format!(
        "Wrote {}: the adapter of {}, {}",
        files[0].path.display(),
        count(factors.tensors.len() as u64, "module"),
        megabytes(bytes(files))
    ))
}

/// Compares the files with the trained model and says what was written.
pub(super) fn whole(
    report: &ExportReport,
    trained: Option<&Trained>,
    modelfile: &Path,
    context: Context,
) -> Result<(), CliError> {
    let output = context.output;
    if report.unchanged > 0 {
        output.warn(format!(
            "{} of the {} merged weights are as in the base: the adapter is zero there",
            report.unchanged, report.merged
        ));
    }
    for (kind, files) in &report.files {
        let check = match (trained, files.first()) {
            (Some(trained), Some(first)) => Some(trained.compare(&first.path, context)?),
            _ => None,
        };
        one(*kind, files, (report, check.as_ref()), modelfile, context)?;
    }
    Ok(())
}

fn one(
    kind: GgufFileType,
    files: &[WrittenFile],
    (report, check): (&ExportReport, Option<&Check>),
    modelfile: &Path,
    context: Context,
) -> Result<(), CliError> {
    let output = context.output;
    let like = check.map(|check| check.likeness);
    output.record(
        "exported",
        &json!({
            "type": kind.name(), "files": listed(files), "bytes": bytes(files),
            "merged": report.merged, "unchanged": report.unchanged, "modelfile": modelfile,
            "texts": check.map(|check| check.texts),
            "mean_kl": like.map(|like| like.mean_kl),
            "same_best_token": like.map(|like| like.same_best),
            "tokens": like.map(|like| like.tokens),
            "usual_kl": usual_kl(kind),
        }),
    )?;
    let first = files.first().map(|file| file.path.display().to_string());
    let more = match files.len() {
        0 | 1 => String::new(),
        parts => format!(" and {}", count(parts as u64 - 1, "more part")),
    };
    output.line(format!(
        "Wrote {}{more}: {}",
        first.unwrap_or_default(),
        megabytes(bytes(files))
    ))?;
    match check {
        None => output.line("  not compared with the trained model"),
        Some(check) => output.line(format!(
            "  as the trained model: ids of {} equal, the same best token after {:.1} % of {}, mean KL {} nats{}",
            count(check.texts as u64, "text"),
            100.0 * check.likeness.same_best,
            count(check.likeness.tokens as u64, "token"),
            scientific(check.likeness.mean_kl),
            usual(kind)
        )),
    }
}

/// What the type costs elsewhere, to judge the figure by.
fn usual(kind: GgufFileType) -> String {
    usual_kl(kind).map_or_else(String::new, |kl| {
        format!(
            " ({} is usual for {} in an 8B model; small ones lose more)",
            scientific(kl),
            kind.name()
        )
    })
}

fn listed(files: &[WrittenFile]) -> Vec<&Path> {
    files.iter().map(|file| file.path.as_path()).collect()
}

fn bytes(files: &[WrittenFile]) -> u64 {
    files.iter().map(|file| file.bytes).sum()
}

pub(super) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
