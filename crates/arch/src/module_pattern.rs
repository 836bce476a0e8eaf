//! `rank_pattern` and `alpha_pattern`: values for the modules whose names a regular expression ends.

use std::fmt;

use regex::Regex;
use serde::{Serialize, Serializer};

/// A dictionary of PEFT's from patterns to values, in the order of the file.
///
/// A pattern matches a module whose name it is, or whose name ends in a dot and it: `q_proj`,
/// `layers.0.self_attn.q_proj`, `layers\.[0-3]\..*`. The first one that matches counts.
#[derive(Debug, Clone)]
pub struct ModulePattern<T> {
    entries: Vec<(String, Regex, T)>,
}

impl<T: Copy> ModulePattern<T> {
    /// Compiles patterns.
    ///
    /// # Errors
    /// The first that is no regular expression without look-around and back-references.
    pub fn new(entries: impl IntoIterator<Item = (String, T)>) -> Result<Self, String> {
        let compile = |(key, value): (String, T)| {
            // Python matches at the start and lets the dot match all but line ends.
            match Regex::new(&format!(r"^(?:.*\.)?(?:{key})$")) {
                Ok(regex) => Ok((key, regex, value)),
                Err(_) => Err(key),
            }
        };
        let entries = entries.into_iter().map(compile).collect::<Result<_, _>>()?;
        Ok(Self { entries })
    }

    /// The value of a module; `None` where no pattern matches.
    #[must_use]
    pub fn get(&self, module: &str) -> Option<T> {
        let matches = |(_, regex, _): &&(String, Regex, T)| regex.is_match(module);
        self.entries
            .iter()
            .find(matches)
            .map(|(_, _, value)| *value)
    }

    /// Those of the patterns that match one of `modules`.
    #[must_use]
    pub fn that_match(mut self, modules: &[String]) -> Self {
        let matches = |regex: &Regex| modules.iter().any(|module| regex.is_match(module));
        self.entries.retain(|(_, regex, _)| matches(regex));
        self
    }

    /// The patterns that match no module of `modules`, in their order.
    pub fn unmatched<'a>(&'a self, modules: &'a [String]) -> impl Iterator<Item = &'a str> {
        let matches = |regex: &Regex| modules.iter().any(|module| regex.is_match(module));
        let unmatched = self
            .entries
            .iter()
            .filter(move |(_, regex, _)| !matches(regex));
        unmatched.map(|(key, ..)| key.as_str())
    }

    /// Patterns and values, in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, T)> {
        self.entries
            .iter()
            .map(|(key, _, value)| (key.as_str(), *value))
    }

    /// Whether there is no pattern.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl<T: Copy> ModulePattern<T> {
    /// A value for each module, by its whole name.
    pub fn of_modules(modules: impl IntoIterator<Item = (String, T)>) -> Self {
        let exact = |(module, value): (String, T)| {
            let regex = Regex::new(&format!("^{}$", regex::escape(&module))).ok()?;
            Some((module, regex, value))
        };
        Self {
            entries: modules.into_iter().filter_map(exact).collect(),
        }
    }
}

impl<T> Default for ModulePattern<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
        }
    }
}

impl<T: PartialEq> PartialEq for ModulePattern<T> {
    fn eq(&self, other: &Self) -> bool {
        let same = |(a, b): (&(String, Regex, T), &(String, Regex, T))| a.0 == b.0 && a.2 == b.2;
        self.entries.len() == other.entries.len()
            && self.entries.iter().zip(&other.entries).all(same)
    }
}

/// A table in the order of the patterns, which counts.
impl<T: Serialize + Copy> Serialize for ModulePattern<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// `{ q_proj = 8, v_proj = 4 }`, as a recipe has it.
impl<T: Copy + fmt::Display> fmt::Display for ModulePattern<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.iter().map(|(key, value)| format!("{key:?} = {value}"));
        match entries.collect::<Vec<_>>().join(", ") {
            none if none.is_empty() => f.write_str("{}"),
            some => write!(f, "{{ {some} }}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values are those of `peft.utils.get_pattern_key`, 0.21.
    #[test]
    fn the_first_pattern_that_ends_a_name_counts() {
        let keys = [
            "model.layers.0.self_attn.q_proj",
            r"layers\.[12]\..*_proj",
            "^model.layers.3.mlp.up_proj",
            "(k|v)_proj",
            "q_proj",
        ];
        let pattern = ModulePattern::new(keys.map(str::to_owned).into_iter().zip(0..)).unwrap();
        for (module, expected) in [
            ("model.layers.0.self_attn.q_proj", Some(0)),
            ("model.layers.1.self_attn.q_proj", Some(1)),
            ("model.layers.3.mlp.up_proj", Some(2)),
            ("x.model.layers.3.mlp.up_proj", None),
            ("model.layers.5.self_attn.v_proj", Some(3)),
            ("model.layers.5.self_attn.q_proj", Some(4)),
            ("q_proj", Some(4)),
            ("model.layers.5.self_attn.aq_proj", None),
            ("model.layers.5.self_attn.q_proj.x", None),
        ] {
            assert_eq!(pattern.get(module), expected, "{module}");
        }
        let broken = ["q_proj", "(?<=a)b"].map(|key| (key.to_owned(), 1));
        assert_eq!(ModulePattern::new(broken).unwrap_err(), "(?<=a)b");
    }
}
