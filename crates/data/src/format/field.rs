//! Typed access to the fields of a row.

use serde_json::{Map, Value};

/// A field that is missing or of the wrong type; the caller adds file and line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("field `{field}`: expected {expected}, found {found}")]
pub struct FieldError {
    /// Path of the field inside the row (empty: the row itself).
    pub field: String,
    /// What the format asks for.
    pub expected: String,
    /// What the row holds.
    pub found: String,
}

impl FieldError {
    pub(super) fn new(
        field: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            expected: expected.into(),
            found: found.into(),
        }
    }
}

/// The string under `key`, which must be there.
pub(super) fn string(
    row: &Map<String, Value>,
    key: &str,
    path: &str,
) -> Result<String, FieldError> {
    match row.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(FieldError::new(path, "a string", describe(other))),
        None => Err(FieldError::new(path, "a string", missing(row))),
    }
}

/// The string under `key`; nothing where it is null or not there.
pub(super) fn optional_string(
    row: &Map<String, Value>,
    key: &'static str,
) -> Result<String, FieldError> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => {
            let expected = "a string, null or nothing";
            Err(FieldError::new(key, expected, describe(other)))
        }
    }
}

/// Takes the list under `key`, which must not be empty; tables hold it as JSON in a string.
pub(super) fn list(
    row: &mut Map<String, Value>,
    key: &str,
    expected: &str,
) -> Result<Vec<Value>, FieldError> {
    let value = match row.remove(key) {
        None => return Err(FieldError::new(key, expected, missing(row))),
        Some(Value::String(text)) => match serde_json::from_str(&text) {
            Ok(list @ Value::Array(_)) => list,
            _ => Value::String(text),
        },
        Some(value) => value,
    };
    match value {
        Value::Array(list) if !list.is_empty() => Ok(list),
        other => Err(FieldError::new(key, expected, describe(&other))),
    }
}

/// "nothing", with the keys that are there instead.
pub(super) fn missing(row: &Map<String, Value>) -> String {
    const SHOWN: usize = 8;
    if row.is_empty() {
        return "an empty object".to_owned();
    }
    let mut keys: Vec<String> = row
        .keys()
        .take(SHOWN)
        .map(|key| format!("`{}`", shorten(key)))
        .collect();
    if row.len() > SHOWN {
        keys.push("…".to_owned());
    }
    format!("no such key (the keys are {})", keys.join(", "))
}

/// A value's type, and its beginning where that helps.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the string \"{}\"", shorten(text)),
        Value::Array(list) if list.is_empty() => "an empty list".to_owned(),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".to_owned(),
    }
}

pub(super) fn shorten(text: &str) -> String {
    const SHOWN: usize = 40;
    let mut short: String = text
        .chars()
        .take(SHOWN)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if text.chars().nth(SHOWN).is_some() {
        short.push('…');
    }
    short
}
