//! What a run left in its output directory, to be shown again.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use backdraft_data::DataReport;
use backdraft_formats::{Existing, FormatError, write_file};
use backdraft_plan::memory::Memory;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::adaptation::AdaptationReport;
use crate::diagnosis::{Diagnosis, Monitor};
use crate::records::{self, Record, Report};
use crate::report::{RunInfo, RunSummary};

/// What was known before the first step.
pub const NOTE: &str = "run.json";
/// What was known after the last one.
pub const SUMMARY: &str = "summary.json";
/// Answers before and after.
pub const SAMPLES: &str = "samples.json";

/// Lists the rows that were passed over, in the output directory.
pub const SKIPPED: &str = "skipped_rows.jsonl";

/// Which run of a tracker's server it is, without what lets one in.
pub const TRACKER: &str = "tracker.json";

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

/// `run.json`: what is known before the first step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunNote {
    /// Layout of this file.
    pub version: u32,
    /// The run.
    pub info: NotedInfo,
    /// Steps over which the learning rate rises.
    pub warmup_steps: usize,
    /// What became of the training rows.
    pub train_data: DataReport,
    /// What became of the evaluation rows.
    pub eval_data: Option<DataReport>,
    /// Which process wrote it; none by earlier versions.
    #[serde(default)]
    pub process: Option<Process>,
}

/// What a report needs of [`RunInfo`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotedInfo {
    /// The model as the recipe names it.
    pub model: String,
    /// The device that computes.
    #[serde(deserialize_with = "device")]
    pub device: String,
    /// Values in the adapters, trained.
    pub trained_params: usize,
    /// Memory that the run will need.
    pub memory: Memory,
    /// Optimiser steps.
    pub total_steps: usize,
    /// Optimiser steps in an epoch.
    pub steps_per_epoch: usize,
}

/// A process that trained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// When it began the run or resumed it.
    ///
    /// # Units
    /// Seconds since 1970.
    pub began: u64,
    /// Version of the program.
    pub program: String,
    /// The command line, word by word.
    pub command: Vec<String>,
}

impl Process {
    /// This one, now.
    #[must_use]
    pub fn this() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            began: now.map_or(0, |time| time.as_secs()),
            program: format!("backdraft {}", env!("CARGO_PKG_VERSION")),
            command: std::env::args_os()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
        }
    }
}

/// Earlier versions wrote the name that the device has in Rust.
fn device<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    Ok(crate::text::shown_device(&name).to_owned())
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
    /// As [`RunNote`], with everything that is known.
    #[derive(Serialize)]
    struct Whole<'a> {
        version: u32,
        info: &'a RunInfo,
        warmup_steps: usize,
        train_data: &'a DataReport,
        eval_data: Option<&'a DataReport>,
        process: Process,
    }
    let note = Whole {
        version: 1,
        info,
        warmup_steps,
        train_data: &info.train_data,
        eval_data: info.eval_data.as_ref(),
        process: Process::this(),
    };
    write_json(&output_dir.join(NOTE), &note)
}

/// Notes what came out.
///
/// # Errors
/// The system refuses.
pub fn write_summary(output_dir: &Path, summary: &RunSummary) -> Result<(), FormatError> {
    write_json(&output_dir.join(SUMMARY), summary)
}

/// What came out of a run, as noted; none while it goes on, or if it was killed.
///
/// # Errors
/// A file that is none of this program's.
pub fn read_summary(output_dir: &Path) -> Result<Option<RunSummary>, FormatError> {
    read_json(&output_dir.join(SUMMARY))
}

/// Writes `value` as JSON.
///
/// # Errors
/// The system refuses; a value that has no form in JSON.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), FormatError> {
    let text = serde_json::to_vec_pretty(value).map_err(FormatError::encode(path))?;
    write_file(path, &text, Existing::Replace)
}

/// The files of a run that goes on, or is over.
#[derive(Clone, Debug)]
pub struct RunFiles {
    /// The output directory.
    pub directory: PathBuf,
    /// `run.json`; none of a run that earlier versions began.
    pub note: Option<RunNote>,
    /// `summary.json`; none while the run goes on, or if it was killed.
    pub summary: Option<RunSummary>,
    /// `recipe.toml`.
    pub recipe: String,
    /// Steps and evaluations.
    pub reports: Vec<Report>,
    /// Points of adaptive precision.
    pub adaptations: Vec<AdaptationReport>,
    /// What the curve means: as the run concluded, else as it stands.
    pub diagnosis: Diagnosis,
    /// Answers before and after.
    pub samples: Vec<Sample>,
}

impl RunFiles {
    /// Reads an output directory. What a run has not written yet is empty.
    ///
    /// # Errors
    /// A directory without `metrics.jsonl`, and files that are none of this program's.
    pub fn read(directory: &Path) -> Result<Self, FormatError> {
        let path = directory.join(records::FILE);
        let bytes = fs::read(&path).map_err(FormatError::io(&path, "read"))?;
        // The last line may be half written.
        let text = String::from_utf8_lossy(&bytes);
        let note: Option<RunNote> = read_json(&directory.join(NOTE))?;
        let summary = read_summary(directory)?;
        let diagnosis = match summary
            .as_ref()
            .and_then(|summary| summary.diagnosis.clone())
        {
            Some(concluded) => concluded,
            None => diagnosis(&text, note.as_ref(), summary.as_ref()),
        };
        let recipe_path = directory.join("recipe.toml");
        let recipe = match fs::read_to_string(&recipe_path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(FormatError::io(&recipe_path, "read")(error)),
        };
        Ok(Self {
            directory: directory.to_owned(),
            recipe,
            reports: records::reports(&text).collect(),
            adaptations: records::adaptations(&text).collect(),
            samples: read_json(&directory.join(SAMPLES))?.unwrap_or_default(),
            note,
            summary,
            diagnosis,
        })
    }

    /// Steps that the run is planned to have; 0 where nobody knows.
    #[must_use]
    pub fn total_steps(&self) -> usize {
        self.note.as_ref().map_or(0, |note| note.info.total_steps)
    }

    /// The name of the directory, which is what sets runs apart.
    #[must_use]
    pub fn name(&self) -> String {
        self.directory.display().to_string()
    }
}

/// What the records of a run mean, by the rule by which the run itself concludes.
fn diagnosis(text: &str, note: Option<&RunNote>, summary: Option<&RunSummary>) -> Diagnosis {
    let (total_steps, warmup_steps) =
        note.map_or((0, 0), |note| (note.info.total_steps, note.warmup_steps));
    let mut monitor = Monitor::new(total_steps, warmup_steps);
    for record in records::points(text) {
        match record {
            Record::Train(point) => monitor.train(point),
            Record::Eval(point) => monitor.eval(point),
        };
    }
    if summary.is_some_and(|summary| summary.stopped_early) {
        monitor.stop_early();
    }
    monitor.conclude().clone()
}

/// Reads what [`write_json`] wrote; none where there is no file.
///
/// # Errors
/// A file that cannot be read, or that holds something else.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FormatError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FormatError::io(path, "read")(error)),
    };
    let read = serde_json::from_slice(&text);
    read.map(Some).map_err(|source| FormatError::Json {
        path: path.to_owned(),
        source,
    })
}
