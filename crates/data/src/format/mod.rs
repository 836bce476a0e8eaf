//! Row formats: JSON object → [`Record`].

mod alpaca;
pub mod detect;
mod field;
mod field_map;
mod messages;
mod preference;
mod prompt_completion;
mod sharegpt;
mod suggest;
mod system;
mod text;
mod tools;
mod unpaired;

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
    /// `prompt`, `chosen` and `rejected`: texts, or lists of messages; optional `margin`.
    Preference,
    /// `prompt`, `completion` and `label`: texts, or lists of messages, and whether the answer is a good one.
    Unpaired,
}

impl Format {
    /// Every format.
    pub const ALL: [Format; 7] = [
        Format::Alpaca,
        Format::Messages,
        Format::Sharegpt,
        Format::PromptCompletion,
        Format::Text,
        Format::Preference,
        Format::Unpaired,
    ];

    /// The name used in recipes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Format::Alpaca => "alpaca",
            Format::Messages => "messages",
            Format::Sharegpt => "sharegpt",
            Format::PromptCompletion => "prompt_completion",
            Format::Text => "text",
            Format::Preference => "preference",
            Format::Unpaired => "unpaired",
        }
    }

    /// The names of a row's fields, those that every row must have first.
    pub fn fields(self) -> &'static [&'static str] {
        match self {
            Format::Alpaca => &["instruction", "output", "input", "system", "history"],
            Format::Messages => &["messages", "system", "tools"],
            Format::Sharegpt => &["conversations", "system", "tools"],
            Format::PromptCompletion => &["prompt", "completion", "system", "tools"],
            Format::Text => &["text"],
            Format::Preference => &["prompt", "chosen", "rejected", "margin", "system", "tools"],
            Format::Unpaired => &["prompt", "completion", "label", "system", "tools"],
        }
    }

    /// Keys of a row that hold something and that the format does not read.
    pub fn unread(self, row: &Map<String, Value>) -> Vec<String> {
        let older: &[&str] = match self {
            Format::Messages => &["functions"],
            Format::Sharegpt => &["conversation", "functions"],
            // Only messages have a system prompt and tools beside them.
            Format::PromptCompletion if !row.get("prompt").is_some_and(Value::is_array) => {
                return unread(row, &["prompt", "completion"]);
            }
            Format::Preference if !preference::has_messages(row) => {
                return unread(row, &["prompt", "chosen", "rejected", "margin"]);
            }
            Format::Unpaired if !row.get("prompt").is_some_and(Value::is_array) => {
                return unread(row, &["prompt", "completion", "label"]);
            }
            Format::PromptCompletion | Format::Preference | Format::Unpaired => &["functions"],
            Format::Alpaca | Format::Text => &[],
        };
        unread(row, &[self.fields(), older].concat())
    }

    /// Whether a row's keys fit the format.
    pub fn fits(self, row: &Map<String, Value>) -> bool {
        let has = |key: &str| row.contains_key(key);
        match self {
            Format::Alpaca => has("instruction") && has("output"),
            Format::Messages => has("messages"),
            Format::Sharegpt => has("conversations") || has("conversation"),
            Format::PromptCompletion => has("prompt") && has("completion") && !is_judged(row),
            Format::Text => has("text"),
            Format::Preference => has("chosen") && has("rejected"),
            Format::Unpaired => has("prompt") && has("completion") && is_judged(row),
        }
    }

    /// Whether its rows have answers that are better or worse than others.
    #[must_use]
    pub const fn compares(self) -> bool {
        matches!(self, Format::Preference | Format::Unpaired)
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
            Format::Preference => preference::read(row),
            Format::Unpaired => unpaired::read(row),
        }
    }
}

/// Whether a row says of its answer that it is good or not; other labels are somebody's own.
fn is_judged(row: &Map<String, Value>) -> bool {
    row.get("label").is_some_and(Value::is_boolean)
}

fn unread(row: &Map<String, Value>, read: &[&str]) -> Vec<String> {
    row.iter()
        .filter(|(key, value)| !read.contains(&key.as_str()) && !is_nothing(value))
        .map(|(key, _)| key.clone())
        .collect()
}

/// Whether a value says nothing.
pub(crate) fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
