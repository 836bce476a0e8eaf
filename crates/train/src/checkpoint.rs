//! A run's state on disk.
//!
//! ```text
//! output_dir/
//!   recipe.toml              every value resolved
//!   metrics.jsonl            one object for each step and each evaluation
//!   checkpoints/step-000050/
//!     adapter/               as PEFT reads it; model/, a Hugging Face directory, where no adapter is made
//!     optimizer.safetensors  moments under the factors' names
//!     state.json             step, data order, best so far, fingerprints
//!     recipe.toml
//!     manifest.json          size and SHA-256 of every file above
//!   adapter/                 the result; model/ likewise
//! ```
//!
//! A checkpoint is a directory that appears whole or not at all: it is written under another name,
//! flushed with everything in it, and renamed. Whoever reads it holds it against its manifest first, since
//! disks and copies can still damage it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use backdraft_data::LoaderState;
use backdraft_formats::{
    AtomicDir, Existing, FormatError, HfDirWriter, ModelSource, PeftDir, PeftWriteOptions,
    SafetensorsFile, SafetensorsWriter, fault, sync_directory, write_file,
};
use backdraft_journal::exact;
use backdraft_journal::records::RecordsState;
use backdraft_journal::text::hex;
use backdraft_lora::{AdapterWeights, LoraConfig, MergeError};
use backdraft_model::ModelSpec;
use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::early_stopping::EarlyStopping;
use crate::loss_scale::LossScale;
use crate::optimizer::StateTensor;
use crate::remove;
use crate::trained_with::Companions;

/// Layout of `state.json`.
const VERSION: u32 = 2;
const MANIFEST: &str = "manifest.json";
const STATE: &str = "state.json";
const RECIPE: &str = "recipe.toml";
const MOMENTS: &str = "optimizer.safetensors";
const ADAPTER: &str = "adapter";
const MODEL: &str = "model";
/// What a manifest has to list at least.
const REQUIRED: [&str; 3] = [STATE, RECIPE, MOMENTS];
/// And where it has an adapter.
const OF_ADAPTER: [&str; 2] = [
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
];
/// And where it has a model.
const OF_MODEL: &str = "model/config.json";

/// Everything besides tensors that the rest of a run depends on.
///
/// There is no state of random generators in it: the order of the rows follows from seed, epoch and
/// cursor, and masks of dropout from seed, step and micro-batch. There are no summed gradients either:
/// a checkpoint stands between two optimiser steps.
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
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// How long evaluation has not improved.
    pub early_stopping: Option<EarlyStopping>,
    /// Loss of the last step, nats.
    #[serde(with = "exact::option")]
    pub final_loss: Option<f64>,
    /// What the steps so far took.
    pub effort: Effort,
    /// `metrics.jsonl` so far.
    pub records: RecordsState,
    /// What the loss is multiplied by, where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
    /// Fingerprint of the base model.
    pub model_fingerprint: String,
    /// Fingerprint of the tokenised training rows.
    pub data_fingerprint: String,
    /// Fingerprint of the tokenised evaluation rows.
    pub eval_fingerprint: Option<String>,
    /// Fingerprints of the further rows held out, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub set_fingerprints: BTreeMap<String, String>,
    /// Their losses before the first step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set_starts: Vec<SetStart>,
    /// SHA-256 over the factors that the run went on from, where its answers are compared with those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_fingerprint: Option<String>,
    /// What computed, and with how many threads: another may round otherwise.
    pub computed_by: String,
}

impl RunState {
    /// The layout that this program writes.
    pub const VERSION: u32 = VERSION;
}

/// What a further set of rows held out came to before the first step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetStart {
    /// The set.
    pub name: String,
    /// Its loss.
    #[serde(with = "exact")]
    pub eval_loss: f64,
}

/// The best evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Its loss.
    #[serde(with = "exact")]
    pub eval_loss: f64,
    /// What it costs by `train.early_stopping_metric` and `train.early_stopping_eval`, where that is not the loss of
    /// `data.eval`.
    #[serde(
        default,
        with = "exact::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub cost: Option<f64>,
    /// The step after which it was measured.
    pub step: usize,
}

impl Best {
    /// What it was chosen by; the less, the better.
    #[must_use]
    pub fn cost(&self) -> f64 {
        self.cost.unwrap_or(self.eval_loss)
    }
}

/// What the steps of a run took, over all its resumptions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Effort {
    /// Tokens computed while training.
    pub tokens: usize,
    /// Supervised tokens among them.
    pub supervised_tokens: usize,
    /// Seconds of training, without evaluation and saving.
    #[serde(with = "exact")]
    pub seconds: f64,
    /// Seconds of everything.
    #[serde(with = "exact")]
    pub elapsed: f64,
}

/// The parts of a checkpoint.
pub struct Checkpoint<'a> {
    /// The adapter, or what is trained in place of the base's tensors.
    pub adapter: &'a AdapterWeights,
    /// The base.
    pub base: &'a ModelSource,
    /// The optimiser's moments by name.
    pub optimizer: Vec<StateTensor>,
    /// The rest.
    pub state: &'a RunState,
    /// The resolved recipe.
    pub recipe: &'a str,
    /// The base model's name or path.
    pub model: &'a str,
    /// What lies beside the adapter's factors, or the model's weights.
    pub companions: &'a Companions,
}

/// Why a directory is no checkpoint to go on from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file is missing, or cannot be read.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A JSON file is not what this program writes.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The manifest lacks a file that every checkpoint has, or names one outside of the checkpoint.
    #[error("{}: {problem} `{file}`", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// `does not list` or `names`.
        problem: &'static str,
        /// The file.
        file: String,
    },
    /// A file was cut off or has grown.
    #[error("{}: has {actual} bytes, {expected} were written", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Bytes that the manifest names.
        expected: u64,
        /// Bytes that are there.
        actual: u64,
    },
    /// A file has other bytes than were written.
    #[error("{}: the SHA-256 is {actual}, that of what was written is {expected}", path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// What the manifest names.
        expected: String,
        /// What is there.
        actual: String,
    },
    /// Another version of the program wrote it.
    #[error(
        "{}: is of layout {actual}, this program reads layout {VERSION}; go on with the program that wrote it",
        path.display()
    )]
    Version {
        /// `state.json`.
        path: PathBuf,
        /// The layout it has.
        actual: u64,
    },
}

impl CheckpointError {
    fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Json { path, source }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    files: Vec<Listed>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    path: String,
    bytes: u64,
    sha256: String,
}

/// Where the checkpoints of a run lie.
pub fn directory(output_dir: &Path) -> PathBuf {
    output_dir.join("checkpoints")
}

/// `checkpoints/step-000050` under `output_dir`.
pub fn path(output_dir: &Path, step: usize) -> PathBuf {
    directory(output_dir).join(format!("step-{step:06}"))
}

/// Writes a checkpoint.
///
/// # Errors
/// The system refuses, or a trained tensor is no number; then nothing new is there, and earlier checkpoints are as they were.
pub fn write(target: &Path, checkpoint: &Checkpoint<'_>) -> Result<(), MergeError> {
    let directory = AtomicDir::create(target, Existing::Replace, is_ours)?;
    let root = directory.path();
    let Checkpoint {
        adapter,
        companions,
        ..
    } = checkpoint;
    if adapter.config.trainable.is_full() {
        let options = companions.model(true, Existing::Refuse);
        adapter.write_model(checkpoint.base, &root.join(MODEL), &options)?;
    } else {
        let options = PeftWriteOptions {
            companions: companions.files()?,
            prefix: companions.prefix,
            ..PeftWriteOptions::default()
        };
        adapter.write(root.join(ADAPTER), checkpoint.model, &options)?;
    }
    write_moments(&root.join(MOMENTS), &checkpoint.optimizer)?;
    let state = serde_json::to_vec_pretty(checkpoint.state)
        .map_err(FormatError::encode(target.join(STATE)))?;
    write_file(root.join(STATE), &state, Existing::Refuse)?;
    let recipe = checkpoint.recipe.as_bytes();
    write_file(root.join(RECIPE), recipe, Existing::Refuse)?;
    let mut files = Vec::new();
    list_files(root, root, &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let manifest = serde_json::to_vec_pretty(&Manifest { files })
        .map_err(FormatError::encode(target.join(MANIFEST)))?;
    write_file(root.join(MANIFEST), &manifest, Existing::Refuse)?;
    Ok(directory.commit()?)
}

fn write_moments(path: &Path, moments: &[StateTensor]) -> Result<(), FormatError> {
    let infos = moments.iter().map(|tensor| tensor.info.clone());
    let mut writer = SafetensorsWriter::create(path, infos, Existing::Refuse)?;
    for StateTensor { info, bytes } in moments {
        writer.write(&info.name, bytes)?;
    }
    writer.finish()
}

/// Size and hash of every file under `directory`, by its path from `root`.
fn list_files(root: &Path, directory: &Path, files: &mut Vec<Listed>) -> Result<(), FormatError> {
    let entries = fs::read_dir(directory).map_err(FormatError::io(directory, "list"))?;
    for entry in entries {
        let path = entry.map_err(FormatError::io(directory, "list"))?.path();
        if path.is_dir() {
            list_files(root, &path, files)?;
            continue;
        }
        let (bytes, sha256) = size_and_hash(&path)?;
        let parts = path.strip_prefix(root).unwrap_or(&path).components();
        let parts: Vec<_> = parts
            .map(|part| part.as_os_str().to_string_lossy())
            .collect();
        let path = parts.join("/");
        files.push(Listed {
            path,
            bytes,
            sha256,
        });
    }
    Ok(())
}

fn size_and_hash(path: &Path) -> Result<(u64, String), FormatError> {
    let mut file = File::open(path).map_err(FormatError::io(path, "open"))?;
    let mut hash = Sha256::new();
    let mut block = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let count = file
            .read(&mut block)
            .map_err(FormatError::io(path, "read"))?;
        if count == 0 {
            return Ok((bytes, hex(&hash.finalize())));
        }
        hash.update(&block[..count]);
        bytes += count as u64;
    }
}

/// A checkpoint that is as it was written.
#[derive(Debug)]
pub struct Saved {
    /// Its directory.
    pub path: PathBuf,
    /// Its `state.json`.
    pub state: RunState,
    /// Its `recipe.toml`.
    pub recipe: String,
}

impl Saved {
    /// Reads a checkpoint and holds every file against the manifest.
    ///
    /// # Errors
    /// See [`CheckpointError`].
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let manifest = manifest(path)?;
        check_sizes(path, &manifest)?;
        for listed in &manifest.files {
            let path = path.join(&listed.path);
            let (_, actual) = size_and_hash(&path)?;
            if actual != listed.sha256 {
                return Err(CheckpointError::Hash {
                    path,
                    expected: listed.sha256.clone(),
                    actual,
                });
            }
        }
        let state_path = path.join(STATE);
        let text = read(&state_path)?;
        let json = || CheckpointError::json(&state_path);
        let any: serde_json::Value = serde_json::from_str(&text).map_err(json())?;
        let actual = any["version"].as_u64().unwrap_or_default();
        if actual != u64::from(VERSION) {
            return Err(CheckpointError::Version {
                path: state_path,
                actual,
            });
        }
        Ok(Self {
            path: path.to_owned(),
            state: serde_json::from_str(&text).map_err(json())?,
            recipe: read(&path.join(RECIPE))?,
        })
    }

    /// The adapter.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn adapter(&self, device: &Device) -> Result<AdapterWeights, FormatError> {
        AdapterWeights::read(self.path.join(ADAPTER), device)
    }

    /// What was trained in place of the base's tensors, of which `config` tells, in a model of that shape.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn model(
        &self,
        config: &LoraConfig,
        (spec, device): (&ModelSpec, &Device),
    ) -> Result<AdapterWeights, MergeError> {
        let source = ModelSource::open(self.path.join(MODEL))?;
        Ok(AdapterWeights::read_model(&source, config, (spec, device))?)
    }

    /// The optimiser's moments.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn optimizer(&self) -> Result<SafetensorsFile, FormatError> {
        SafetensorsFile::open(self.path.join(MOMENTS))
    }
}

fn read(path: &Path) -> Result<String, FormatError> {
    fs::read_to_string(path).map_err(FormatError::io(path, "read"))
}

fn manifest(path: &Path) -> Result<Manifest, CheckpointError> {
    /// More than any checkpoint's manifest has.
    const LARGEST: u64 = 1 << 20;
    let path = path.join(MANIFEST);
    let file = File::open(&path).map_err(FormatError::io(&path, "open"))?;
    let mut text = Vec::new();
    file.take(LARGEST)
        .read_to_end(&mut text)
        .map_err(FormatError::io(&path, "read"))?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(CheckpointError::json(&path))?;
    let outside = |listed: &&Listed| {
        let mut parts = Path::new(&listed.path).components();
        !parts.all(|part| matches!(part, Component::Normal(_)))
    };
    let lists = |required: &&str| {
        manifest
            .files
            .iter()
            .any(|listed| listed.path == **required)
    };
    let problem = match manifest.files.iter().find(outside) {
        Some(listed) => Some(("names", listed.path.clone())),
        None => {
            let of_adapter = OF_ADAPTER.iter().filter(|_| !lists(&OF_MODEL));
            let mut required = REQUIRED.iter().chain(of_adapter);
            let missing = required.find(|required| !lists(required));
            missing.map(|required| ("does not list", (*required).to_owned()))
        }
    };
    match problem {
        Some((problem, file)) => Err(CheckpointError::Manifest {
            path,
            problem,
            file,
        }),
        None => Ok(manifest),
    }
}

fn check_sizes(path: &Path, manifest: &Manifest) -> Result<(), CheckpointError> {
    for listed in &manifest.files {
        let path = path.join(&listed.path);
        let actual = fs::metadata(&path)
            .map_err(FormatError::io(&path, "open"))?
            .len();
        if actual != listed.bytes {
            return Err(CheckpointError::Size {
                path,
                expected: listed.bytes,
                actual,
            });
        }
    }
    Ok(())
}

/// The checkpoints of a run by step, the newest last; whether they are good is not known yet.
///
/// # Errors
/// The system refuses; a run without checkpoints has none.
pub fn list(output_dir: &Path) -> Result<Vec<usize>, FormatError> {
    let directory = directory(output_dir);
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(FormatError::io(&directory, "list"))?,
    };
    let mut steps: Vec<usize> = entries
        .filter_map(|entry| step_of(&entry.ok()?.path()))
        .collect();
    steps.sort_unstable();
    Ok(steps)
}

/// The step of a checkpoint by its directory's name.
pub fn step_of(path: &Path) -> Option<usize> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix("step-")?.parse().ok()
}

/// Removes the oldest checkpoints until `limit` are left. The newest good one stays, and that of step
/// `best`; what is newer than the newest good one is not touched.
///
/// Good means here that every file is there in its size: reading everything again after each checkpoint
/// would take longer than writing it.
///
/// # Errors
/// The system refuses.
pub fn prune(output_dir: &Path, limit: usize, best: Option<usize>) -> Result<(), FormatError> {
    let steps = list(output_dir)?;
    let good = |step: usize| {
        let path = path(output_dir, step);
        manifest(&path).is_ok_and(|manifest| check_sizes(&path, &manifest).is_ok())
    };
    let Some(newest_good) = steps.iter().copied().rev().find(|&step| good(step)) else {
        return Ok(());
    };
    let excess = steps.len().saturating_sub(limit.max(1));
    let removable = steps
        .into_iter()
        .filter(|&step| step < newest_good && Some(step) != best);
    for step in removable.take(excess) {
        remove(&path(output_dir, step))?;
    }
    Ok(())
}

/// Whether a file inside a checkpoint is one that [`write`] writes.
fn is_ours(file: &Path) -> bool {
    let parts = PARTS.into_iter();
    let mut parts =
        parts.filter_map(|(part, is_ours)| Some((file.strip_prefix(part).ok()?, is_ours)));
    match parts.next() {
        Some((inside, is_ours)) => is_ours(inside),
        None => [STATE, RECIPE, MOMENTS, MANIFEST]
            .iter()
            .any(|name| file == Path::new(name)),
    }
}

/// Whether a file of a folder is one that this program writes.
type IsOurs = fn(&Path) -> bool;

/// The folders of a checkpoint, and which files in them are of this program's.
const PARTS: [(&str, IsOurs); 2] = [(ADAPTER, PeftDir::is_ours), (MODEL, HfDirWriter::is_ours)];

/// Whether a path has the name of a checkpoint, or of one that was set aside.
pub(crate) fn is_one(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name
        .split_once(".set-aside")
        .map_or(&*name, |(name, _)| name);
    step_of(Path::new(name)).is_some() && path.is_dir() && !path.is_symlink()
}

/// Removes a checkpoint so that a kill on the way leaves nothing that looks like one. One that holds
/// anything else loses what is ours, and is set aside.
///
/// # Errors
/// The system refuses.
pub fn remove(path: &Path) -> Result<(), FormatError> {
    if holds_others(path)? {
        return remove_ours(path);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let doomed = path.with_file_name(format!(".{name}.partial-removed"));
    fault::point("move aside", path)?;
    fs::rename(path, &doomed).map_err(FormatError::io(path, "move aside"))?;
    fault::point("remove", path)?;
    fs::remove_dir_all(&doomed).map_err(FormatError::io(doomed, "remove"))
}

fn holds_others(path: &Path) -> Result<bool, FormatError> {
    for (entry, name) in remove::entries(path)? {
        let mut parts = PARTS.into_iter().filter(|_| entry.is_dir());
        if let Some((_, is_ours)) = parts.find(|(part, _)| name == Path::new(part)) {
            for (entry, name) in remove::entries(&entry)? {
                if entry.is_dir() || !is_ours(&name) {
                    return Ok(true);
                }
            }
        } else if entry.is_dir() || !is_ours(&name) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn remove_ours(path: &Path) -> Result<(), FormatError> {
    // The manifest first: without it nothing is a checkpoint.
    let names = [MANIFEST, STATE, RECIPE, MOMENTS].map(|name| path.join(name));
    for file in names.iter().filter(|file| file.is_file()) {
        remove::remove_file(file)?;
    }
    for (part, is_ours) in PARTS {
        let part = path.join(part);
        if part.is_dir() {
            remove::clear_folder(&part, is_ours)?;
        }
    }
    let is_aside = path.to_string_lossy().contains(".set-aside");
    if !is_aside {
        set_aside(path)?;
    }
    Ok(())
}

/// Gives a checkpoint a name that nobody takes for one, and says which.
///
/// # Errors
/// The system refuses.
pub fn set_aside(path: &Path) -> Result<PathBuf, FormatError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut target = path.with_file_name(format!("{name}.set-aside"));
    let mut count = 1;
    while fs::symlink_metadata(&target).is_ok() {
        count += 1;
        target = path.with_file_name(format!("{name}.set-aside-{count}"));
    }
    fault::point("move aside", path)?;
    fs::rename(path, &target).map_err(FormatError::io(path, "move aside"))?;
    sync_directory(path.parent().unwrap_or(path))?;
    Ok(target)
}
