//! What each family has of its own. A family is a file here and a line in [`Family`].

mod llama;

use crate::config::{ConfigError, Keys};
use crate::spec::ModelSpec;

/// A family of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama 1 to 3.3, SmolLM 2, TinyLlama and whatever else calls itself `llama`.
    Llama,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::Llama];

    /// `model_type` in `config.json`.
    #[must_use]
    pub const fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
        }
    }

    /// The family of a `model_type`.
    #[must_use]
    pub fn of_model_type(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.model_type() == name)
    }

    /// Every `model_type`, for an error.
    pub(crate) const fn supported() -> &'static str {
        "\"llama\""
    }

    /// Adds to what all decoders have what this family has of its own.
    pub(crate) fn describe(self, keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
        match self {
            Self::Llama => llama::describe(keys, spec),
        }
    }
}
