//! Resuming a run that was stopped: which checkpoint, and whether it is still the same run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use backdraft_arch::QuantizationPlan;
use backdraft_formats::remove_partials;
use backdraft_journal::report::RunSummary;
use backdraft_journal::run_files;
use backdraft_recipe::{Difference, Length, Recipe, covers, is_key_or_section, nearest_key};

use crate::checkpoint::{self, CheckpointError, RunState, Saved};
use crate::early_stopping::EarlyStopping;
use crate::error::TrainError;
use crate::lock::RunLock;
use crate::trained_with::TrainedWith;

/// Keys whose values are compared by what they lead to, not by name: a directory may move.
const BY_CONTENT: [&str; 6] = [
    "output_dir",
    "model",
    "data.train",
    "data.eval",
    "data.eval_sets",
    "data.cache",
];

/// Keys that alter no number of a run: how it is shown and kept, and how its memory is used, under which gradients are
/// the same bit for bit.
const HARMLESS: [&str; 14] = [
    "activation_offloading",
    "activation_policy",
    "base",
    "data.skip_bad_rows",
    "lora.key_prefix",
    "memory_budget",
    "tracker.experiment",
    "tracker.kind",
    "tracker.run_name",
    "tracker.url",
    "train.logging_steps",
    "train.sample_rows",
    "train.save_steps",
    "train.save_total_limit",
];

/// Covers `base_memory` too: both end as a number of bits.
const BITS: &str = "quantization.bits";

/// Keys that give the adapter or its optimiser another shape, that are obeyed before the first step alone, or by which
/// evaluations were compared.
const FIXED: [&str; 16] = [
    "lora.adapter",
    "lora.bias",
    "lora.exclude_modules",
    "lora.init",
    "quantization.plan",
    "lora.rank",
    "lora.rank_pattern",
    "lora.target_modules",
    "lora.layers_to_transform",
    "lora.modules_to_save",
    "objective.reference",
    "train.early_stopping_eval",
    "train.early_stopping_metric",
    "train.ema_decay",
    "train.optimizer",
    "trainable",
];

/// A run to go on with; nobody else can while this is there.
#[derive(Debug)]
pub struct Resume {
    lock: RunLock,
    from: Option<Saved>,
    skipped: Vec<CheckpointError>,
    allow: Vec<String>,
}

impl Resume {
    /// Finds the newest good checkpoint of the run in `at`, which is its output directory or one of its
    /// checkpoints. `allow` names keys or sections of the recipe that may have changed.
    ///
    /// A directory without any checkpoint is a run that has not come that far; it will begin at the
    /// beginning.
    ///
    /// # Errors
    /// [`TrainError::Locked`] while the run still goes on, [`TrainError::NoGoodCheckpoint`] if none is as
    /// it was written, [`TrainError::UnknownKey`] for something in `allow` that no recipe has.
    pub fn find(at: &Path, allow: &[String]) -> Result<Self, TrainError> {
        if let Some(key) = allow.iter().find(|key| !is_key_or_section(key)) {
            return Err(TrainError::UnknownKey {
                key: key.clone(),
                nearest: nearest_key(key),
            });
        }
        let at = std::path::absolute(at).unwrap_or_else(|_| at.to_owned());
        let one = one_checkpoint(&at);
        let output_dir = match one {
            Some((output_dir, _)) => output_dir.to_owned(),
            None => at.clone(),
        };
        let lock = RunLock::acquire(&output_dir)?;
        remove_partials(&output_dir)?;
        remove_partials(&checkpoint::directory(&output_dir))?;
        let candidates = match one {
            Some((_, step)) => vec![step],
            None => checkpoint::list(&output_dir)?,
        };
        let mut skipped = Vec::new();
        let mut from = None;
        for step in candidates.into_iter().rev() {
            match Saved::open(&checkpoint::path(&output_dir, step)) {
                Ok(saved) => {
                    from = Some(saved);
                    break;
                }
                Err(error) => skipped.push(error),
            }
        }
        if from.is_none() && !skipped.is_empty() {
            return Err(TrainError::NoGoodCheckpoint {
                path: output_dir,
                problems: skipped,
            });
        }
        Ok(Self {
            lock,
            from,
            skipped,
            allow: allow.to_vec(),
        })
    }

    /// The output directory.
    #[must_use]
    pub fn output_dir(&self) -> &Path {
        self.lock.output_dir()
    }

    /// The checkpoint; `None` if the run begins at the beginning.
    #[must_use]
    pub const fn from(&self) -> Option<&Saved> {
        self.from.as_ref()
    }

    /// Newer checkpoints that are not as they were written.
    #[must_use]
    pub fn skipped(&self) -> &[CheckpointError] {
        &self.skipped
    }

    /// The recipe to go on with: the file `given`, else the one of the run, in both cases with
    /// `overrides` and this output directory; refused where it is another recipe than the run's.
    ///
    /// # Errors
    /// A recipe with problems; [`TrainError::NothingToResume`] if there is none;
    /// [`TrainError::Changed`] and [`TrainError::CannotChange`].
    pub fn recipe(&self, given: Option<&Path>, overrides: &[String]) -> Result<Recipe, TrainError> {
        let own = match &self.from {
            Some(saved) => saved.path.join("recipe.toml"),
            None => self.output_dir().join("recipe.toml"),
        };
        let Some(path) = given.or_else(|| own.is_file().then_some(own.as_path())) else {
            self.lock.forget();
            return Err(TrainError::NothingToResume {
                path: self.output_dir().to_owned(),
            });
        };
        let output_dir = self.output_dir().to_string_lossy();
        let output_dir = toml::Value::from(output_dir.as_ref());
        let mut overrides = overrides.to_vec();
        overrides.push(format!("output_dir={output_dir}"));
        let mut recipe = match given {
            Some(path) => Recipe::load(path, &overrides)?,
            None => Recipe::load_stored(path, &overrides)?,
        };
        if let Some(saved) = &self.from {
            let base = saved.path.as_path();
            let was = Recipe::from_stored(&saved.recipe, base)?;
            // The run's recipe has the number that was found.
            let may_move = self.allow.iter().any(|asked| covers(asked, BITS));
            if recipe.has_open_bits() && !may_move {
                recipe.quantization.bits = was.quantization.bits;
                recipe.quantization.base_memory = was.quantization.base_memory;
            }
            let mut differences = was.differences(&recipe)?;
            let harmless = |key: &str| BY_CONTENT.contains(&key) || HARMLESS.contains(&key);
            differences.retain(|d| !harmless(d.key.as_str()));
            differences.retain(|d| !(may_move && d.key == "quantization.base_memory"));
            differences.extend(mixing_difference(&was, &recipe));
            self.judge(differences)?;
        }
        Ok(recipe)
    }

    /// Refuses a model or rows that are not those of the run.
    ///
    /// # Errors
    /// [`TrainError::Changed`].
    pub fn check_content(
        &self,
        model: &str,
        train: &str,
        eval: Option<&str>,
    ) -> Result<(), TrainError> {
        let Some(state) = self.state() else {
            return Ok(());
        };
        let model = content("model", Some(&state.model_fingerprint), Some(model));
        self.judge(model.into_iter().chain(rows(state, train, eval)).collect())
    }

    /// Refuses a file whose blocks are of other types than those that the run keeps: the model's fingerprint does not tell
    /// them apart.
    ///
    /// # Errors
    /// [`TrainError::Changed`], or notes that cannot be read.
    pub fn check_blocks(&self, now: Option<&QuantizationPlan>) -> Result<(), TrainError> {
        let now = now.filter(|plan| plan.keeps_blocks());
        let (Some(saved), Some(now)) = (&self.from, now) else {
            return Ok(());
        };
        let noted = TrainedWith::read(&saved.path.join("adapter"))?;
        let was = noted.and_then(|noted| noted.over.quantization);
        let changed = was.filter(|was| was.keeps_blocks() && was != now);
        let changed = changed.map(|was| Difference {
            key: "model".to_owned(),
            was: Some(was.to_string()),
            now: Some(now.to_string()),
        });
        self.judge(changed.into_iter().collect())
    }

    /// Refuses a model that is not that of the run, before its rows are read.
    ///
    /// # Errors
    /// [`TrainError::Changed`].
    pub fn check_model(&self, fingerprint: &str) -> Result<(), TrainError> {
        let was = self.state().map(|state| state.model_fingerprint.as_str());
        let changed = was.and_then(|was| content("model", Some(was), Some(fingerprint)));
        self.judge(changed.into_iter().collect())
    }

    /// Refuses rows that are not those of the run, before its model is read.
    ///
    /// # Errors
    /// [`TrainError::Changed`].
    pub fn check_rows(&self, train: &str, eval: Option<&str>) -> Result<(), TrainError> {
        let changed = self.state().map(|state| rows(state, train, eval).collect());
        self.judge(changed.unwrap_or_default())
    }

    /// Refuses further rows held out that are not those of the run, or that it did not have.
    ///
    /// # Errors
    /// [`TrainError::Changed`].
    pub fn check_sets(&self, now: &BTreeMap<String, String>) -> Result<(), TrainError> {
        let Some(state) = self.state() else {
            return Ok(());
        };
        let was = &state.set_fingerprints;
        let names: BTreeSet<&String> = was.keys().chain(now.keys()).collect();
        let of = |prints: &'_ BTreeMap<String, String>, name| prints.get(name).cloned();
        let changed = names.into_iter().filter_map(|name| {
            let key = format!("data.eval_sets.{name}");
            content(&key, of(was, name).as_deref(), of(now, name).as_deref())
        });
        self.judge(changed.collect())
    }

    fn judge(&self, differences: Vec<Difference>) -> Result<(), TrainError> {
        let allowed = |d: &Difference| self.allow.iter().any(|asked| covers(asked, &d.key));
        if let Some(difference) = differences
            .iter()
            .find(|d| allowed(d) && FIXED.contains(&d.key.as_str()))
        {
            return Err(TrainError::CannotChange {
                difference: difference.clone(),
            });
        }
        let differences: Vec<_> = differences.into_iter().filter(|d| !allowed(d)).collect();
        match &self.from {
            Some(saved) if !differences.is_empty() => Err(TrainError::Changed {
                path: saved.path.clone(),
                differences,
            }),
            _ => Ok(()),
        }
    }

    /// The state to go on from.
    #[must_use]
    pub fn state(&self) -> Option<&RunState> {
        self.from.as_ref().map(|saved| &saved.state)
    }

    /// What the run's end left behind, where nothing is left to do for `recipe`; none where that shows only once its
    /// rows are read.
    ///
    /// # Errors
    /// A summary that is none of this program's.
    pub fn finished(&self, recipe: &Recipe) -> Result<Option<RunSummary>, TrainError> {
        let Some(saved) = &self.from else {
            return Ok(None);
        };
        let was = Recipe::from_stored(&saved.recipe, saved.path.as_path())?;
        let total_steps = match recipe.train.length {
            length if length == was.train.length => saved.state.total_steps,
            Length::MaxSteps(steps) => steps,
            Length::Epochs(_) => return Ok(None),
        };
        if !is_over(&saved.state, recipe, total_steps) {
            return Ok(None);
        }
        let summary = run_files::read_summary(self.output_dir())?;
        Ok(summary.filter(|summary| summary.steps == saved.state.step && summary.adapter.exists()))
    }

    /// Whether the user accepted any change.
    #[must_use]
    pub fn allows_changes(&self) -> bool {
        !self.allow.is_empty()
    }

    /// Gives checkpoints that are newer than the one to go on from other names, since the run will write
    /// its own, and says which.
    ///
    /// # Errors
    /// The system refuses.
    pub fn set_newer_aside(&self) -> Result<Vec<PathBuf>, TrainError> {
        let Some(state) = self.state() else {
            return Ok(Vec::new());
        };
        let newer = checkpoint::list(self.output_dir())?;
        let newer = newer.into_iter().filter(|step| *step > state.step);
        let moved = newer.map(|step| {
            let path = checkpoint::path(self.output_dir(), step);
            Ok(checkpoint::set_aside(&path)?)
        });
        moved.collect()
    }

    /// The lock and the checkpoint.
    pub(crate) fn into_parts(self) -> (RunLock, Option<Saved>) {
        (self.lock, self.from)
    }
}

/// Rows are compared by what they say, and how often they are visited by the recipe.
fn mixing_difference(was: &Recipe, now: &Recipe) -> Option<Difference> {
    let told = |recipe: &Recipe| {
        let sources = recipe.data.train.0.iter();
        let sources = sources.map(|source| match (source.epochs, source.share) {
            (Some(epochs), _) => format!("epochs {epochs}"),
            (_, Some(share)) => format!("share {share}"),
            _ => format!("weight {}", source.weight),
        });
        sources.collect::<Vec<_>>().join(", ")
    };
    let (was, now) = (told(was), told(now));
    (was != now).then(|| Difference {
        key: "data.train".to_owned(),
        was: Some(was),
        now: Some(now),
    })
}

/// Differences between the rows of a checkpoint and those of now.
fn rows(state: &RunState, train: &str, eval: Option<&str>) -> impl Iterator<Item = Difference> {
    let train = content("data.train", Some(&state.data_fingerprint), Some(train));
    let eval = content("data.eval", state.eval_fingerprint.as_deref(), eval);
    train.into_iter().chain(eval)
}

/// A key whose files are others, by the beginnings of their fingerprints.
fn content(key: &str, was: Option<&str>, now: Option<&str>) -> Option<Difference> {
    let short = |fingerprint: &str| {
        let start: String = fingerprint.chars().take(12).collect();
        format!("content {start}…")
    };
    (was != now).then(|| Difference {
        key: key.to_owned(),
        was: was.map(short),
        now: now.map(short),
    })
}

/// Output directory and step, if `path` is one checkpoint.
fn one_checkpoint(path: &Path) -> Option<(&Path, usize)> {
    let parent = path
        .parent()
        .filter(|parent| parent.ends_with("checkpoints"))?;
    Some((parent.parent()?, checkpoint::step_of(path)?))
}

/// Whether a run of `total_steps` has nothing left to do.
pub(crate) fn is_over(state: &RunState, recipe: &Recipe, total_steps: usize) -> bool {
    let patience = recipe.train.early_stopping_patience;
    let rule = patience.map(|patience| {
        let least = recipe.train.early_stopping_min_improvement;
        EarlyStopping::new(patience, least.unwrap_or_default())
    });
    let spent = match (rule, &state.early_stopping) {
        (Some(rule), Some(seen)) => rule.having_seen(seen).is_spent(),
        _ => false,
    };
    state.step >= total_steps || spent
}
