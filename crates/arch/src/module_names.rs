//! Modules by name, as PEFT's `target_modules` and `exclude_modules` have them.

use std::fmt;

use regex::Regex;
use serde::{Serialize, Serializer};

/// Which modules are meant.
///
/// # Source
/// `check_target_module_exists` of PEFT 0.21.
#[derive(Clone, Debug)]
pub enum ModuleNames {
    /// Paths, or ends of paths behind a dot: `q_proj`, `self_attn.q_proj`, `model.layers.0.mlp.up_proj`.
    List(Vec<String>),
    /// A regular expression for whole paths.
    Pattern(PathPattern),
    /// `all-linear`: every linear layer but the head.
    AllLinear,
}

/// A regular expression that a whole path has to match.
#[derive(Clone, Debug)]
pub struct PathPattern {
    text: String,
    regex: Regex,
}

/// How PEFT spells every linear layer but the head; letters of any case.
const ALL_LINEAR: &str = "all-linear";

impl ModuleNames {
    /// What a text means in the place of a list; `None` where it is no regular expression without look-around and
    /// back-references.
    #[must_use]
    pub fn of_text(text: &str) -> Option<Self> {
        if text.eq_ignore_ascii_case(ALL_LINEAR) {
            return Some(Self::AllLinear);
        }
        let regex = Regex::new(&format!("^(?:{text})$")).ok()?;
        let text = text.to_owned();
        Some(Self::Pattern(PathPattern { text, regex }))
    }

    /// Whether a module is meant. `AllLinear` is every one that it is asked for.
    #[must_use]
    pub fn matches(&self, module: &str) -> bool {
        match self {
            Self::List(names) => names.iter().any(|name| ends_in(module, name)),
            Self::Pattern(pattern) => pattern.regex.is_match(module),
            Self::AllLinear => true,
        }
    }

    /// Whether a list has the whole path of a module, which PEFT then adapts in whatever layer it is.
    #[must_use]
    pub fn names_whole(&self, module: &str) -> bool {
        matches!(self, Self::List(names) if names.iter().any(|name| name == module))
    }

    /// The names and patterns that mean none of `modules`.
    pub(crate) fn unmatched(&self, modules: &[String]) -> Vec<&str> {
        match self {
            Self::List(names) => {
                let is_used = |name: &&String| !modules.iter().any(|module| ends_in(module, name));
                names.iter().filter(is_used).map(String::as_str).collect()
            }
            Self::Pattern(pattern) if !modules.iter().any(|module| self.matches(module)) => {
                vec![&pattern.text]
            }
            Self::Pattern(_) | Self::AllLinear => Vec::new(),
        }
    }
}

/// Whether `module` is `name`, or ends in a dot and it.
fn ends_in(module: &str, name: &str) -> bool {
    let before = module.strip_suffix(name);
    before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// Lists by their names in any order, patterns by their text.
impl PartialEq for ModuleNames {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::List(a), Self::List(b)) => {
                a.len() == b.len() && a.iter().all(|name| b.contains(name))
            }
            (Self::Pattern(a), Self::Pattern(b)) => a.text == b.text,
            (Self::AllLinear, Self::AllLinear) => true,
            _ => false,
        }
    }
}

impl Serialize for ModuleNames {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::List(names) => names.serialize(serializer),
            Self::Pattern(pattern) => pattern.text.serialize(serializer),
            Self::AllLinear => ALL_LINEAR.serialize(serializer),
        }
    }
}

/// As a recipe has it.
impl fmt::Display for ModuleNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(names) => write!(f, "{names:?}"),
            Self::Pattern(pattern) => write!(f, "{:?}", pattern.text),
            Self::AllLinear => write!(f, "{ALL_LINEAR:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_match_ends_and_patterns_whole_paths() {
        let list = ModuleNames::List(["q_proj", "layers.1.mlp.up_proj"].map(str::to_owned).into());
        let pattern = ModuleNames::of_text(r".*layers\.0\..*(k_proj|gate_proj)").unwrap();
        for (module, in_list, in_pattern) in [
            ("model.layers.0.self_attn.q_proj", true, false),
            ("q_proj", true, false),
            ("model.layers.0.self_attn.aq_proj", false, false),
            ("model.layers.1.mlp.up_proj", true, false),
            ("model.layers.11.mlp.up_proj", false, false),
            ("model.layers.0.self_attn.k_proj", false, true),
            ("model.layers.0.self_attn.k_proj.x", false, false),
            ("model.layers.1.self_attn.k_proj", false, false),
        ] {
            assert_eq!(list.matches(module), in_list, "{module}");
            assert_eq!(pattern.matches(module), in_pattern, "{module}");
        }
        assert_eq!(
            ModuleNames::of_text("All-Linear"),
            Some(ModuleNames::AllLinear)
        );
        assert_eq!(ModuleNames::of_text("(?<=a)b"), None);
        assert_eq!(ModuleNames::of_text("("), None);
    }
}
