//! Row formats: JSON object → [`Record`].

mod alpaca;
pub mod detect;
mod field;
mod field_map;
mod messages;
mod prompt_completion;
mod sharegpt;
mod text;

use serde_json::{Map, Value};

use crate::conversation::Record;
pub use field::FieldError;
pub use field_map::FieldMap;

/// How the rows of a file are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `instruction`, optional `input`, `output`.
    Alpaca,
    /// OpenAI's `messages`: a list of `{"role": …, "content": …}`.
    Messages,
    /// ShareGPT's `conversations`: a list of `{"from": …, "value": …}`.
    Sharegpt,
    /// `prompt` and `completion`: two texts, or two lists of messages.
    #[serde(rename = "prompt_completion")]
    PromptCompletion,
    /// `text`: trained as it stands.
    Text,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 5] = [
        Format::Alpaca,
        Format::Messages,
        Format::Sharegpt,
        Format::PromptCompletion,
        Format::Text,
    ];

    /// The name used in recipes.
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Alpaca => "alpaca",
            Format::Messages => "messages",
            Format::Sharegpt => "sharegpt",
            Format::PromptCompletion => "prompt_completion",
            Format::Text => "text",
        }
    }

    /// The names of a row's fields, those that every row must have first.
    pub fn fields(self) -> &'static [&'static str] {
        match self {
            Format::Alpaca => &["instruction", "output", "input"],
            Format::Messages => &["messages", "tools"],
            Format::Sharegpt => &["conversations", "system", "tools"],
            Format::PromptCompletion => &["prompt", "completion", "tools"],
            Format::Text => &["text"],
        }
    }

    /// Whether a row's keys fit the format.
    pub fn fits(self, row: &Map<String, Value>) -> bool {
        let has = |key: &str| row.contains_key(key);
        match self {
            Format::Alpaca => has("instruction") && has("output"),
            Format::Messages => has("messages"),
            Format::Sharegpt => has("conversations") || has("conversation"),
            Format::PromptCompletion => has("prompt") && has("completion"),
            Format::Text => has("text"),
        }
    }

    /// Reads one row.
    ///
    /// # Errors
    /// The first field that is missing or of the wrong type.
    pub fn read(self, row: Value) -> Result<Record, FieldError> {
        let Value::Object(row) = row else {
            return Err(FieldError::new("", "a JSON object", field::describe(&row)));
        };
        match self {
            Format::Alpaca => alpaca::read(&row),
            Format::Messages => messages::read(row),
            Format::Sharegpt => sharegpt::read(row),
            Format::PromptCompletion => prompt_completion::read(row),
            Format::Text => text::read(row),
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
