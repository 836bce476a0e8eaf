//! One trial of a sweep.

use std::fmt;
use std::path::PathBuf;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Values of keys as `--set` takes them, in the order of the sweep, which does not tell them apart; an object in JSON.
#[derive(Clone, Debug, Default)]
pub struct Settings(pub Vec<(String, String)>);

impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        let sorted = |settings: &Self| {
            let mut pairs = settings.0.clone();
            pairs.sort();
            pairs
        };
        sorted(self) == sorted(other)
    }
}

impl Eq for Settings {}

impl Settings {
    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let mut pairs = self.0.iter();
        pairs
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// The same without a key.
    #[must_use]
    pub fn without(&self, key: &str) -> Self {
        let others = self.0.iter().filter(|(name, _)| name != key);
        Self(others.cloned().collect())
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = self.0.iter();
        let pairs: Vec<String> = pairs
            .map(|(key, value)| format!("{key} = {value}"))
            .collect();
        f.write_str(&pairs.join(", "))
    }
}

impl Serialize for Settings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

impl<'de> Deserialize<'de> for Settings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Settings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Settings, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Settings(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// How far a trial has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Not begun.
    #[default]
    Waiting,
    /// Begun, and neither at its end nor given up.
    Begun,
    /// Given up by halving: others were better after as many steps.
    Dropped,
    /// At its end.
    Finished,
    /// Ended by an error.
    Failed,
}

impl Standing {
    /// Whether nothing more is done for it.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Dropped | Self::Finished | Self::Failed)
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Begun => "begun",
            Self::Dropped => "dropped",
            Self::Finished => "finished",
            Self::Failed => "failed",
        })
    }
}

/// What trials are compared by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measure {
    /// `eval loss`, another number of evaluations, or `train loss`.
    pub name: String,
    /// Whether more of it is better.
    pub higher_is_better: bool,
    /// Whether it is of rows held out: then a trial counts by its best evaluation, whose adapter it keeps. Else by the last
    /// tenth of its steps.
    pub held_out: bool,
}

impl Measure {
    /// What a value costs: the less, the better.
    #[must_use]
    pub fn cost(&self, value: f64) -> f64 {
        match self.higher_is_better {
            true => -value,
            false => value,
        }
    }

    /// The one of `scores` that counts, of those up to a step.
    #[must_use]
    pub fn best(&self, scores: &[Score], until: usize) -> Option<Score> {
        let up_to = scores.iter().filter(|score| score.step <= until).copied();
        match self.held_out {
            // The first of equals, as a run keeps it.
            true => up_to.min_by(|a, b| self.cost(a.value).total_cmp(&self.cost(b.value))),
            false => up_to.max_by_key(|score| score.step),
        }
    }
}

/// What a trial had come to after a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The step.
    pub step: usize,
    /// By the sweep's measure, finite.
    pub value: f64,
}

/// A trial as it stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrialReport {
    /// Counted from 1, in the order of the sweep.
    pub trial: usize,
    /// What it tries.
    pub settings: Settings,
    /// How far it is.
    pub standing: Standing,
    /// Steps done.
    pub steps: usize,
    /// Steps of the whole run; 0 where nobody knows yet.
    pub total_steps: usize,
    /// The score that counts.
    pub score: Option<Score>,
    /// All of them, in the order of the steps.
    pub scores: Vec<Score>,
    /// Seconds of its steps, without evaluation and saving.
    pub step_seconds: f64,
    /// Why it failed.
    pub reason: Option<String>,
    /// Its output directory.
    pub output_dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_keep_their_order_in_json() {
        let settings = Settings(vec![
            ("train.z_loss".to_owned(), "1e-4".to_owned()),
            ("lora.rank".to_owned(), "8".to_owned()),
        ]);
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(text, r#"{"train.z_loss":"1e-4","lora.rank":"8"}"#);
        let read: Settings = serde_json::from_str(&text).unwrap();
        assert_eq!(read, settings);
        assert_eq!(settings.to_string(), "train.z_loss = 1e-4, lora.rank = 8");
        assert_eq!(settings.without("lora.rank").0.len(), 1);
        assert_eq!(settings.get("lora.rank"), Some("8"));
    }

    #[test]
    fn a_trial_counts_by_its_best_evaluation_or_its_last_losses() {
        let score = |step, value| Score { step, value };
        let scores = [
            score(5, 2.0),
            score(10, 1.0),
            score(15, 1.0),
            score(20, 3.0),
        ];
        let measure = |higher_is_better, held_out| Measure {
            name: String::new(),
            higher_is_better,
            held_out,
        };
        assert_eq!(measure(false, true).best(&scores, 20), Some(scores[1]));
        assert_eq!(measure(true, true).best(&scores, 20), Some(scores[3]));
        assert_eq!(measure(true, true).best(&scores, 19), Some(scores[0]));
        assert_eq!(measure(false, false).best(&scores, 19), Some(scores[2]));
        assert_eq!(measure(false, true).best(&scores, 4), None);
    }
}
