//! What a run left in its output directory, to be shown again.

use std::fs;
use std::path::{Path, PathBuf};

use backdraft_formats::{Existing, FormatError, write_file};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::diagnosis::{Diagnosis, Monitor};
use crate::memory::Memory;
use crate::records::{self, Record, Report};
use crate::report::{RunInfo, RunSummary};

/// What was known before the first step.
pub(crate) const NOTE: &str = "run.json";
/// What was known after the last one.
pub(crate) const SUMMARY: &str = "summary.json";
/// Answers before and after.
pub(crate) const SAMPLES: &str = "samples.json";

/// A held-out row as the model answers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// What the model is given.
    pub prompt: String,
    /// What the row answers.
    pub expected: String,
    /// What the base answers.
    pub before: String,
    /// What the trained model answers.
    #[serde(default)]
    pub after: String,
}

/// Notes what is known before the first step.
///
/// # Errors
/// The system refuses.
pub fn write_note(
    output_dir: &Path,
    info: &RunInfo,
    warmup_steps: usize,
) -> Result<(), FormatError> {
    let note = json!({
        "version": 1,
        "info": info,
        "warmup_steps": warmup_steps,
        "train_data": info.train_data,
        "eval_data": info.eval_data,
    });
    write_json(&output_dir.join(NOTE), &note)
}

/// Notes what came out.
///
/// # Errors
/// The system refuses.
pub fn write_summary(output_dir: &Path, summary: &RunSummary) -> Result<(), FormatError> {
    write_json(&output_dir.join(SUMMARY), summary)
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), FormatError> {
    let text = serde_json::to_vec_pretty(value).unwrap_or_default();
    write_file(path, &text, Existing::Replace)
}

/// The files of a run that goes on, or is over.
#[derive(Clone, Debug)]
pub struct RunFiles {
    /// The output directory.
    pub directory: PathBuf,
    /// `run.json`; null where it is missing.
    note: Value,
    /// `summary.json`; null where it is missing.
    summary: Value,
    /// `recipe.toml`.
    pub recipe: String,
    /// Steps and evaluations.
    pub reports: Vec<Report>,
    /// What the curve means.
    pub diagnosis: Diagnosis,
    /// Answers before and after.
    pub samples: Vec<Sample>,
}

impl RunFiles {
    /// Reads an output directory. What a run has not written yet, or an older version did not write, is
    /// empty.
    ///
    /// # Errors
    /// A directory without `metrics.jsonl`.
    pub fn read(directory: &Path) -> Result<Self, FormatError> {
        let path = directory.join(records::FILE);
        let bytes = fs::read(&path).map_err(FormatError::io(&path, "read"))?;
        // The last line may be half written.
        let text = String::from_utf8_lossy(&bytes);
        let note = read_json(&directory.join(NOTE));
        let number = |value: &Value| value.as_u64().unwrap_or_default() as usize;
        let total_steps = number(&note["info"]["total_steps"]);
        let mut monitor = Monitor::new(total_steps, number(&note["warmup_steps"]));
        for record in records::points(&text) {
            match record {
                Record::Train(point) => monitor.train(point),
                Record::Eval(point) => monitor.eval(point),
            };
        }
        let samples = serde_json::from_value(read_json(&directory.join(SAMPLES)));
        Ok(Self {
            directory: directory.to_owned(),
            summary: read_json(&directory.join(SUMMARY)),
            recipe: fs::read_to_string(directory.join("recipe.toml")).unwrap_or_default(),
            reports: records::reports(&text).collect(),
            diagnosis: monitor.conclude().clone(),
            samples: samples.unwrap_or_default(),
            note,
        })
    }

    /// A value of `run.json` by its JSON pointer, such as `/info/model`.
    #[must_use]
    pub fn noted(&self, pointer: &str) -> Option<&Value> {
        self.note.pointer(pointer).filter(|value| !value.is_null())
    }

    /// A whole number of `run.json`, 0 where it is missing.
    #[must_use]
    pub fn count(&self, pointer: &str) -> usize {
        let value = self.noted(pointer).and_then(Value::as_u64);
        value.unwrap_or_default() as usize
    }

    /// A text of `run.json`, empty where it is missing.
    #[must_use]
    pub fn text(&self, pointer: &str) -> &str {
        let value = self.noted(pointer).and_then(Value::as_str);
        value.unwrap_or_default()
    }

    /// A value of `summary.json`; none while the run goes on, or if it was killed.
    #[must_use]
    pub fn summed_up(&self, key: &str) -> Option<&Value> {
        self.summary.get(key).filter(|value| !value.is_null())
    }

    /// Memory that the run was to need.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let memory = self.noted("/info/memory").cloned();
        memory
            .and_then(|memory| serde_json::from_value(memory).ok())
            .unwrap_or_default()
    }

    /// The name of the directory, which is what sets runs apart.
    #[must_use]
    pub fn name(&self) -> String {
        self.directory.display().to_string()
    }
}

fn read_json(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}
