//! What sets two recipes apart.

use std::collections::BTreeMap;
use std::fmt;

use crate::{KEYS, Recipe, RecipeError, SECTIONS};

/// A key that two recipes do not agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Section and name, as `--set` takes it.
    pub key: String,
    /// What the first one says, as TOML; `None` where it says nothing.
    pub was: Option<String>,
    /// What the second one says.
    pub now: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
        let (was, now) = (value(&self.was), value(&self.now));
        write!(f, "{}: {was} → {now}", self.key)
    }
}

impl Recipe {
    /// The keys in which `now` is another recipe than this one, in the order of their names.
    ///
    /// # Errors
    /// A recipe that cannot be written down.
    pub fn differences(&self, now: &Self) -> Result<Vec<Difference>, RecipeError> {
        let (was, now) = (flat(self)?, flat(now)?);
        let keys: std::collections::BTreeSet<&String> = was.keys().chain(now.keys()).collect();
        Ok(keys
            .into_iter()
            .filter(|key| was.get(*key) != now.get(*key))
            .map(|key| Difference {
                key: key.clone(),
                was: was.get(key).cloned(),
                now: now.get(key).cloned(),
            })
            .collect())
    }
}

fn flat(recipe: &Recipe) -> Result<BTreeMap<String, String>, RecipeError> {
    let encode = |source| RecipeError::Encode { source };
    let table = toml::Table::try_from(recipe).map_err(encode)?;
    let mut flat = BTreeMap::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(section) if SECTIONS.contains(&key.as_str()) => {
                for (name, value) in section {
                    flat.insert(format!("{key}.{name}"), value.to_string());
                }
            }
            value => {
                flat.insert(key, value.to_string());
            }
        }
    }
    Ok(flat)
}

/// Whether `asked`, a key or a section, is one that a recipe can have.
#[must_use]
pub fn is_key_or_section(asked: &str) -> bool {
    SECTIONS.contains(&asked) || KEYS.iter().any(|key| key.path == asked)
}

/// Whether `asked`, a key or a section, covers `key`.
#[must_use]
pub fn covers(asked: &str, key: &str) -> bool {
    key == asked
        || key
            .strip_prefix(asked)
            .is_some_and(|rest| rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn names_what_changed_and_nothing_else() {
        let text = "model = \"a/b\"\n[data]\ntrain = \"t.jsonl\"\n[train]\nepochs = 2\n";
        let recipe = |overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
            Recipe::from_toml(text, Path::new("/r"), &overrides).unwrap()
        };
        let was = recipe(&[]);
        assert_eq!(was.differences(&recipe(&[])).unwrap(), []);
        let now = recipe(&["train.max_steps=7", "lora.rank=8", "seed=1"]);
        let said: Vec<String> = was
            .differences(&now)
            .unwrap()
            .iter()
            .map(Difference::to_string)
            .collect();
        assert_eq!(
            said,
            [
                "lora.rank: 16 → 8",
                "seed: 42 → 1",
                "train.epochs: 2.0 → nothing",
                "train.max_steps: nothing → 7",
            ]
        );
        assert!(covers("train", "train.epochs") && covers("seed", "seed"));
        assert!(!covers("train.epoch", "train.epochs"));
        assert!(is_key_or_section("lora") && is_key_or_section("lora.rank"));
        assert!(!is_key_or_section("lora.r"));
    }
}
