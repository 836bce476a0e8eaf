//! A run's state on disk.
//!
//! ```text
//! output_dir/
//!   recipe.toml              every value resolved
//!   metrics.jsonl            one object for each step and each evaluation
//!   checkpoints/step-000050/
//!     adapter/               as PEFT reads it
//!     optimizer.safetensors  moments under the factors' names
//!     state.json             step, data order, best so far, fingerprints
//!     recipe.toml
//!   adapter/                 the result
//! ```
//!
//! A checkpoint is a directory that appears whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use backdraft_data::LoaderState;
use backdraft_formats::{
    AtomicDir, Existing, FormatError, PeftWriteOptions, SafetensorsWriter, write_file,
};
use backdraft_lora::{AdapterWeights, TrainedOver};
use serde::{Deserialize, Serialize};

use crate::optimizer::StateTensor;

/// Everything besides tensors that the rest of a run depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    /// Layout of this file.
    pub version: u32,
    /// Optimiser steps done.
    pub step: usize,
    /// Optimiser steps planned.
    pub total_steps: usize,
    /// Where the data order stands.
    pub loader: LoaderState,
    /// Lowest evaluation loss so far, and the step it was measured after.
    pub best: Option<(f64, usize)>,
    /// Fingerprint of the base model.
    pub model_fingerprint: String,
    /// Fingerprint of the tokenised training rows.
    pub data_fingerprint: String,
}

/// The parts of a checkpoint.
pub struct Checkpoint<'a> {
    /// The adapter.
    pub adapter: &'a AdapterWeights,
    /// The optimiser's moments by name.
    pub optimizer: Vec<StateTensor>,
    /// The rest.
    pub state: &'a RunState,
    /// The resolved recipe.
    pub recipe: &'a str,
    /// The base model.
    pub base: &'a TrainedOver,
}

/// `checkpoints/step-000050` under `output_dir`.
pub fn path(output_dir: &Path, step: usize) -> PathBuf {
    output_dir
        .join("checkpoints")
        .join(format!("step-{step:06}"))
}

/// Writes a checkpoint.
///
/// # Errors
/// The system refuses; then nothing new is there, and earlier checkpoints are as they were.
pub fn write(target: &Path, checkpoint: &Checkpoint<'_>) -> Result<(), FormatError> {
    let directory = AtomicDir::create(target, Existing::Replace)?;
    let adapter = directory.path().join("adapter");
    let options = PeftWriteOptions {
        companions: vec![(TrainedOver::FILE.to_owned(), checkpoint.base.to_json())],
        ..PeftWriteOptions::default()
    };
    checkpoint
        .adapter
        .write(adapter, &checkpoint.base.model, &options)?;
    write_moments(
        &directory.path().join("optimizer.safetensors"),
        &checkpoint.optimizer,
    )?;
    let state = serde_json::to_vec_pretty(checkpoint.state).unwrap_or_default();
    write_file(
        directory.path().join("state.json"),
        &state,
        Existing::Refuse,
    )?;
    let recipe = checkpoint.recipe.as_bytes();
    write_file(
        directory.path().join("recipe.toml"),
        recipe,
        Existing::Refuse,
    )?;
    directory.commit()
}

fn write_moments(path: &Path, moments: &[StateTensor]) -> Result<(), FormatError> {
    let infos = moments.iter().map(|tensor| tensor.info.clone());
    let mut writer = SafetensorsWriter::create(path, infos, Existing::Refuse)?;
    for StateTensor { info, bytes } in moments {
        writer.write(&info.name, bytes)?;
    }
    writer.finish()
}

/// Removes the oldest checkpoints until `limit` are left; the one of step `keep` stays.
///
/// # Errors
/// The system refuses.
pub fn prune(output_dir: &Path, limit: usize, keep: Option<usize>) -> Result<(), FormatError> {
    let directory = output_dir.join("checkpoints");
    let entries = fs::read_dir(&directory).map_err(FormatError::io(&directory, "list"))?;
    let mut steps: Vec<usize> = entries
        .filter_map(|entry| {
            entry
                .ok()?
                .file_name()
                .to_str()?
                .strip_prefix("step-")?
                .parse()
                .ok()
        })
        .collect();
    steps.sort_unstable();
    let excess = steps.len().saturating_sub(limit.max(1));
    let newest = steps.last().copied();
    let removable = steps
        .into_iter()
        .filter(|&step| Some(step) != keep && Some(step) != newest);
    for step in removable.take(excess) {
        let path = path(output_dir, step);
        fs::remove_dir_all(&path).map_err(FormatError::io(&path, "remove"))?;
    }
    Ok(())
}
