//! Row formats: JSON object → [`Record`].

mod alpaca;
mod field;
mod messages;
mod text;

use serde_json::{Map, Value};

use crate::conversation::Record;
pub use field::FieldError;

/// How the rows of a JSONL file are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `instruction`, optional `input`, `output`.
    Alpaca,
    /// OpenAI's `messages`: a list of `{"role": …, "content": …}`.
    Messages,
    /// `text`: trained as it stands.
    Text,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 3] = [Format::Alpaca, Format::Messages, Format::Text];

    /// The name used in recipes.
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Alpaca => "alpaca",
            Format::Messages => "messages",
            Format::Text => "text",
        }
    }

    /// The format that a row looks like, judged by its keys.
    pub fn detect(row: &Map<String, Value>) -> Option<Self> {
        if row.contains_key("messages") {
            Some(Format::Messages)
        } else if row.contains_key("instruction") && row.contains_key("output") {
            Some(Format::Alpaca)
        } else if row.contains_key("text") {
            Some(Format::Text)
        } else {
            None
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
            Format::Text => text::read(row),
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
