//! A run's output directory, or one of its checkpoints.

use std::path::{Path, PathBuf};

use backdraft_formats::trained_model_in;
use backdraft_journal::records::Report;
use backdraft_journal::run_files::RunFiles;
use backdraft_train::checkpoint;
use backdraft_train::trained_with::adapter_in;

use super::adapter;
use super::shown::Shown;
use crate::error::CliError;
use crate::reporter::explained;
use crate::shell::CommandLine;

/// What a run left in `path`; `None` where that is no run's directory.
pub(super) fn run(path: &Path) -> Result<Option<Shown>, CliError> {
    if let Some(step) = checkpoint::step_of(path).filter(|_| path.join("state.json").is_file()) {
        return checkpoint_of(path, step).map(Some);
    }
    if !path.join("recipe.toml").is_file() || !path.join("metrics.jsonl").is_file() {
        return Ok(None);
    }
    let files = RunFiles::read(path)?;
    let summary = files.summary.as_ref();
    let final_loss = summary.and_then(|summary| summary.final_loss);
    let best_loss = summary.and_then(|summary| summary.best_eval_loss);
    let step = |report: &Report| match report {
        Report::Step(report) => report.step,
        Report::Eval(report) => report.step,
    };
    let steps = files.reports.iter().map(step).max().unwrap_or_default();
    let total = files.total_steps();
    let adapter = Some(adapter_in(path)).filter(|adapter| adapter != path);
    let checkpoints = checkpoint::list(path)?;
    let model = files.note.as_ref().map(|note| note.info.model.clone());
    let shown = Shown::default()
        .fact("kind", "run")
        .fact("path", path.display().to_string())
        .fact("model", model)
        .told("steps", steps, format!("{steps} of {total}"))
        .quiet("total_steps", total)
        .fact(
            "finished",
            summary.is_some_and(|summary| summary.steps == total),
        )
        .told("final_loss", final_loss, loss(final_loss))
        .told("best_eval_loss", best_loss, loss(best_loss))
        .fact("best_step", summary.and_then(|summary| summary.best_step))
        .fact("diagnosis", explained(&files.diagnosis))
        .fact("checkpoints", checkpoints)
        .fact("adapter", adapter.as_deref().map(shown_path))
        .fact(
            "trained_model",
            trained_model_in(path).as_deref().map(shown_path),
        );
    let watch = CommandLine::new("watch").path(path).to_string();
    Ok(Some(with_adapter(shown, adapter)?.fact("watch", watch)))
}

fn checkpoint_of(path: &Path, step: usize) -> Result<Shown, CliError> {
    let adapter = Some(adapter_in(path)).filter(|adapter| adapter != path);
    let shown = Shown::default()
        .fact("kind", "checkpoint of a run")
        .fact("path", path.display().to_string())
        .fact("step", step)
        .fact("adapter", adapter.as_deref().map(shown_path))
        .fact(
            "trained_model",
            trained_model_in(path).as_deref().map(shown_path),
        );
    let resume = CommandLine::new("train").flag("--resume", path).to_string();
    Ok(with_adapter(shown, adapter)?.fact("resume", resume))
}

/// What the adapter is, beside the run that made it.
fn with_adapter(shown: Shown, path: Option<PathBuf>) -> Result<Shown, CliError> {
    match path {
        Some(path) => adapter::facts(shown, &path),
        None => Ok(shown),
    }
}

/// Four decimals, as everywhere; nothing where there is none.
fn loss(loss: Option<f64>) -> String {
    loss.map_or_else(String::new, |loss| format!("{loss:.4}"))
}

fn shown_path(path: &Path) -> String {
    path.display().to_string()
}
