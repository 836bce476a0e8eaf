//! Shape of rows, as a recipe names it.

use std::fmt;
use std::str::FromStr;

use backdraft_arch::UnknownName;
use backdraft_data::Format;
use serde::{Deserialize, Serialize};

/// Shape of rows: one of [`Format`], or whichever they have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum DataFormat {
    /// Seen from the first rows.
    #[default]
    Auto,
    /// What somebody said.
    Named(Format),
}

impl DataFormat {
    /// All values, in the order of the documentation.
    pub const ALL: &'static [Self] = &[
        Self::Auto,
        Self::Named(Format::Messages),
        Self::Named(Format::Alpaca),
        Self::Named(Format::Sharegpt),
        Self::Named(Format::PromptCompletion),
        Self::Named(Format::Text),
        Self::Named(Format::Preference),
        Self::Named(Format::Unpaired),
    ];

    /// Their names, in the same order.
    pub const NAMES: &'static [&'static str] = &{
        let mut names = [""; Self::ALL.len()];
        let mut at = 0;
        while at < names.len() {
            names[at] = Self::ALL[at].name();
            at += 1;
        }
        names
    };

    /// The name as a recipe writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Named(format) => format.name(),
        }
    }

    /// The format, where somebody said which.
    #[must_use]
    pub const fn known(self) -> Option<Format> {
        match self {
            Self::Auto => None,
            Self::Named(format) => Some(format),
        }
    }
}

impl FromStr for DataFormat {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let mut all = Self::ALL.iter().copied();
        all.find(|one| one.name() == name)
            .ok_or_else(|| UnknownName {
                expected: Self::NAMES,
                actual: name.to_owned(),
            })
    }
}

impl TryFrom<String> for DataFormat {
    type Error = UnknownName;

    fn try_from(name: String) -> Result<Self, UnknownName> {
        name.parse()
    }
}

impl From<DataFormat> for &'static str {
    fn from(format: DataFormat) -> Self {
        format.name()
    }
}

impl fmt::Display for DataFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_and_auto_have_a_name() {
        for format in Format::ALL {
            assert!(DataFormat::ALL.contains(&DataFormat::Named(format)));
        }
        for (&format, &name) in DataFormat::ALL.iter().zip(DataFormat::NAMES) {
            let json = format!("\"{name}\"");
            assert_eq!(serde_json::to_string(&format).unwrap(), json);
            assert_eq!(serde_json::from_str::<DataFormat>(&json).unwrap(), format);
            let own = serde_json::from_str::<Format>(&json).ok();
            assert_eq!(own, format.known());
        }
        let error = "mesages".parse::<DataFormat>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "expected auto, messages, alpaca, sharegpt, prompt_completion, text, preference or unpaired, found \"mesages\""
        );
    }
}
