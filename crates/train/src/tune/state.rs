//! What is known of a sweep, in one file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use backdraft_formats::FormatError;
use backdraft_journal::run_files;
use backdraft_journal::tuning::{Measure, Settings, Standing, TrialReport, TuneReport, rank};
use backdraft_recipe::{Difference, Recipe, Sweep, SweepMethod};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::halving::Halving;
use super::trial::measure;
use crate::error::TrainError;

/// Layout of the file.
const VERSION: u32 = 1;

/// A sweep as it stands. Written after everything that changes it, whole or not at all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuneState {
    #[serde(deserialize_with = "of_this_version")]
    version: u32,
    /// The recipe without the sweep, every value resolved.
    recipe: String,
    /// `grid`, `random` or `halving`.
    pub method: String,
    reduction_factor: usize,
    /// The keys that are swept.
    pub keys: Vec<String>,
    /// What trials are compared by.
    pub measure: Measure,
    /// Model and rows; none before they were first read.
    pub content: Option<Content>,
    /// The trials, in the order in which they are begun.
    pub trials: Vec<TrialReport>,
    /// Seconds of all processes so far.
    pub seconds: f64,
    /// How often a base was read.
    pub base_loads: usize,
}

fn of_this_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        VERSION => Ok(VERSION),
        other => Err(D::Error::custom(format!(
            "expected version {VERSION} of a sweep's state, found {other}; use the version of Backdraft that began it, or --force"
        ))),
    }
}

/// Fingerprints of the recipe's model and rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// Of the model's files.
    pub model: String,
    /// Of the training rows.
    pub train: String,
    /// Of the rows held out.
    pub eval: Option<String>,
    /// Of further rows held out, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sets: BTreeMap<String, String>,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// The trial, by its place in the list.
    pub index: usize,
    /// The step to train it to; its end where it has fewer.
    pub until: usize,
}

impl TuneState {
    /// Name of the file.
    pub const FILE: &'static str = "tune.json";

    /// A sweep of `recipe` that has not begun, whose trials write below `directory`.
    ///
    /// # Errors
    /// A recipe that cannot be written down.
    pub fn new(recipe: &Recipe, sweep: &Sweep, directory: &Path) -> Result<Self, TrainError> {
        let mut state = Self {
            version: VERSION,
            recipe: recipe.to_toml()?,
            method: sweep.method.to_string(),
            reduction_factor: sweep.reduction_factor,
            keys: sweep.keys.clone(),
            measure: measure(recipe),
            content: None,
            trials: Vec::new(),
            seconds: 0.0,
            base_loads: 0,
        };
        for trial in &sweep.trials {
            state.add(Settings(trial.settings.clone()), directory);
        }
        Ok(state)
    }

    fn add(&mut self, settings: Settings, directory: &Path) {
        let last = self.trials.iter().map(|trial| trial.trial).max();
        let trial = last.unwrap_or(0) + 1;
        self.trials.push(TrialReport {
            trial,
            settings,
            output_dir: directory.join("trials").join(format!("{trial:03}")),
            ..TrialReport::default()
        });
    }

    /// Reads the sweep of a directory; none where there is none.
    ///
    /// # Errors
    /// A file that cannot be read, or that is none of this version's.
    pub fn read(directory: &Path) -> Result<Option<Self>, FormatError> {
        run_files::read_json(&Self::path(directory))
    }

    fn path(directory: &Path) -> PathBuf {
        directory.join(Self::FILE)
    }

    /// Writes it.
    ///
    /// # Errors
    /// The system refuses.
    pub fn write(&self, directory: &Path) -> Result<(), FormatError> {
        run_files::write_json(&Self::path(directory), self)
    }

    /// Goes on with this sweep as `now` has it, which has not begun: its trials that were begun are as they were, others are
    /// added. What is no longer asked for stays where it came to its end, and is left out where it did not.
    ///
    /// # Errors
    /// [`TrainError::SweepChanged`] where results of the two would not compare, or where halving, whose trials hang on one
    /// another, has others.
    pub fn going_on_as(mut self, now: Self, directory: &Path) -> Result<Self, TrainError> {
        let base = directory;
        let was = Recipe::from_stored(&self.recipe, base)?;
        let mut differences = was.differences(&Recipe::from_stored(&now.recipe, base)?)?;
        let swept = |key: &str| now.keys.iter().chain(&self.keys).any(|swept| swept == key);
        differences.retain(|it| it.key != "output_dir" && !swept(&it.key));
        let own = [
            ("sweep.method", &self.method, &now.method),
            (
                "sweep.reduction_factor",
                &self.reduction_factor.to_string(),
                &now.reduction_factor.to_string(),
            ),
        ];
        let halves = SweepMethod::Halving.to_string();
        let halves = [&self.method, &now.method].contains(&&halves);
        let settings = |state: &Self| -> Vec<Settings> {
            state
                .trials
                .iter()
                .map(|trial| trial.settings.clone())
                .collect()
        };
        if halves {
            differences.extend(own.into_iter().filter(|(_, was, now)| was != now).map(
                |(key, was, now)| Difference {
                    key: key.to_owned(),
                    was: Some(was.clone()),
                    now: Some(now.clone()),
                },
            ));
            if settings(&self) != settings(&now) {
                let count = |state: &Self| Some(format!("{} trials", state.trials.len()));
                differences.push(Difference {
                    key: "sweep".to_owned(),
                    was: count(&self),
                    now: count(&now),
                });
            }
        }
        if !differences.is_empty() {
            return Err(TrainError::SweepChanged {
                path: Self::path(directory),
                differences,
            });
        }
        let wanted = settings(&now);
        self.trials
            .retain(|trial| trial.standing.is_over() || wanted.contains(&trial.settings));
        for settings in wanted {
            if !self.trials.iter().any(|trial| trial.settings == settings) {
                self.add(settings, directory);
            }
        }
        for trial in &mut self.trials {
            // A directory may have moved.
            let name = trial.output_dir.file_name().unwrap_or_default().to_owned();
            trial.output_dir = directory.join("trials").join(name);
        }
        Ok(Self {
            recipe: now.recipe,
            method: now.method,
            reduction_factor: now.reduction_factor,
            keys: now.keys,
            ..self
        })
    }

    /// Takes note of model and rows.
    ///
    /// # Errors
    /// [`TrainError::SweepChanged`] where the trials so far had others.
    pub fn check_content(&mut self, now: Content, directory: &Path) -> Result<(), TrainError> {
        let Some(was) = &self.content else {
            self.content = Some(now);
            return Ok(());
        };
        let sets = |content: &Content| {
            let prints: Vec<&str> = content.sets.values().map(String::as_str).collect();
            (!prints.is_empty()).then(|| prints.join(" "))
        };
        let (sets_were, sets) = (sets(was), sets(&now));
        let parts = [
            ("model", Some(&was.model), Some(&now.model)),
            ("data.train", Some(&was.train), Some(&now.train)),
            ("data.eval", was.eval.as_ref(), now.eval.as_ref()),
            ("data.eval_sets", sets_were.as_ref(), sets.as_ref()),
        ];
        let short = |print: Option<&String>| {
            print.map(|it| format!("content {}…", it.get(..12).unwrap_or(it)))
        };
        let differences: Vec<Difference> = (parts.into_iter())
            .filter(|(_, was, now)| was != now)
            .map(|(key, was, now)| Difference {
                key: key.to_owned(),
                was: short(was),
                now: short(now),
            })
            .collect();
        match differences.is_empty() {
            true => Ok(()),
            false => Err(TrainError::SweepChanged {
                path: Self::path(directory),
                differences,
            }),
        }
    }

    /// The trial to train next; none where all is done. `halving` is that of all its trials, where it halves; trials that are
    /// not among the best become [`Dropped`](Standing::Dropped).
    pub fn next(&mut self, halving: Option<&Halving>) -> Option<Next> {
        let Some(halving) = halving else {
            let index = self
                .trials
                .iter()
                .position(|trial| !trial.standing.is_over())?;
            let until = usize::MAX;
            return Some(Next { index, until });
        };
        let mut contestants: Vec<usize> = (0..self.trials.len()).collect();
        for rung in 0..=halving.reductions() {
            for &index in &contestants {
                let (trial, until) = (&self.trials[index], halving.step(index, rung));
                if !trial.standing.is_over() && trial.steps < until {
                    return Some(Next { index, until });
                }
            }
            contestants.retain(|&index| self.trials[index].standing != Standing::Failed);
            if rung == halving.reductions() {
                break;
            }
            let cost = |index: usize| {
                let scores = &self.trials[index].scores;
                let best = self.measure.best(scores, halving.step(index, rung));
                best.map_or(f64::INFINITY, |score| self.measure.cost(score.value))
            };
            contestants.sort_by(|&a, &b| cost(a).total_cmp(&cost(b)).then(a.cmp(&b)));
            let others = contestants.split_off(contestants.len().min(halving.keeps(rung)));
            for index in others {
                let trial = &mut self.trials[index];
                if !trial.standing.is_over() {
                    trial.standing = Standing::Dropped;
                }
            }
        }
        None
    }

    /// The sweep as it stands.
    #[must_use]
    pub fn report(&self, page: PathBuf, interrupted: bool) -> TuneReport {
        TuneReport {
            method: self.method.clone(),
            keys: self.keys.clone(),
            measure: self.measure.clone(),
            ranking: rank(self.trials.clone(), &self.measure),
            interrupted,
            seconds: self.seconds,
            step_seconds: self.trials.iter().map(|trial| trial.step_seconds).sum(),
            base_loads: self.base_loads,
            report: page,
        }
    }
}

#[cfg(test)]
mod tests;
