//! What a run trains: adapters, or tensors of the base themselves.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::module_pattern::ModulePattern;

/// The key of a recipe.
pub const KEY: &str = "trainable";

/// What a run trains.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Trainable {
    /// Adapters, and what stands beside them.
    #[default]
    Adapter,
    /// Every tensor of the base.
    All,
    /// The tensors of the base in modules that a pattern matches, and in modules inside those.
    Modules(ModulePattern<()>),
}

impl Trainable {
    /// Patterns of modules.
    ///
    /// # Errors
    /// The first that is no regular expression.
    pub fn modules(patterns: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let patterns = patterns.into_iter().map(|pattern| (pattern, ()));
        Ok(Self::Modules(ModulePattern::new(patterns)?))
    }

    /// Whether tensors of the base are trained in place of adapters.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        !matches!(self, Self::Adapter)
    }

    /// Whether a module, or one that it is in, is meant.
    pub(crate) fn means(&self, module: &str) -> bool {
        match self {
            Self::Adapter => false,
            Self::All => true,
            Self::Modules(patterns) => {
                let ends = module.match_indices('.').map(|(at, _)| at);
                let mut outer = ends.chain([module.len()]);
                outer.any(|end| patterns.get(&module[..end]).is_some())
            }
        }
    }
}

/// As a recipe has it: a word, or a list of patterns.
impl Serialize for Trainable {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Adapter => "adapter".serialize(serializer),
            Self::All => "all".serialize(serializer),
            Self::Modules(patterns) => serializer.collect_seq(patterns.iter().map(|(key, ())| key)),
        }
    }
}

impl fmt::Display for Trainable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adapter => f.write_str("\"adapter\""),
            Self::All => f.write_str("\"all\""),
            Self::Modules(patterns) => f
                .debug_list()
                .entries(patterns.iter().map(|(key, ())| key))
                .finish(),
        }
    }
}
