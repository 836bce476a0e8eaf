//! The fields of a request, read one by one, so that none is left unread.

use serde_json::{Map, Value};

use crate::api_error::ApiError;

/// A JSON object whose fields are taken out; what is left at the end is refused.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// # Errors
    /// The body is no JSON object.
    pub(crate) fn read(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(other) => Err(ApiError::invalid(format!(
                "the body must be a JSON object, found {}",
                kind(&other)
            ))),
            Err(error) => {
                Err(ApiError::invalid(format!("the body is not JSON: {error}"))
                    .coded("invalid_json"))
            }
        }
    }

    /// A field that is there and not null.
    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.0.shift_remove(key).filter(|value| !value.is_null())
    }

    pub(crate) fn boolean(&mut self, key: &str) -> Result<Option<bool>, ApiError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(expected(key, "true or false", &other)),
        }
    }

    pub(crate) fn string(&mut self, key: &str) -> Result<Option<String>, ApiError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(other) => Err(expected(key, "a string", &other)),
        }
    }

    /// A whole number from `least` to `most`.
    pub(crate) fn integer(
        &mut self,
        key: &str,
        least: i64,
        most: i64,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match value
            .as_i64()
            .filter(|value| (least..=most).contains(value))
        {
            Some(value) => Ok(Some(value)),
            None => {
                let range = format!("a whole number from {least} to {most}");
                Err(expected(key, &range, &value))
            }
        }
    }

    /// A number from `least` to `most`.
    pub(crate) fn number(
        &mut self,
        key: &str,
        least: f64,
        most: f64,
    ) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match value
            .as_f64()
            .filter(|value| (least..=most).contains(value))
        {
            Some(value) => Ok(Some(value)),
            None => {
                let range = format!("a number from {least} to {most}");
                Err(expected(key, &range, &value))
            }
        }
    }

    /// Fields that change no answer here.
    pub(crate) fn ignore(&mut self, keys: &[&str]) {
        for key in keys {
            self.0.shift_remove(*key);
        }
    }

    /// A field that is understood only where it asks for nothing.
    pub(crate) fn neutral(&mut self, key: &str, neutral: &[Value]) -> Result<(), ApiError> {
        let Some(value) = self.take(key) else {
            return Ok(());
        };
        let same = |neutral: &Value| match (neutral.as_f64(), value.as_f64()) {
            (Some(a), Some(b)) => a == b,
            _ => *neutral == value,
        };
        if neutral.iter().any(same) {
            return Ok(());
        }
        let known: Vec<String> = neutral.iter().map(Value::to_string).collect();
        let message = format!(
            "`{key}` is not supported: leave it out or send {}",
            known.join(" or ")
        );
        Err(ApiError::field(key, message).coded("unsupported_parameter"))
    }

    /// # Errors
    /// A field is left.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        let Some((key, _)) = self.0.iter().find(|(_, value)| !value.is_null()) else {
            return Ok(());
        };
        let shown: String = key.chars().take(64).collect();
        let message = format!("`{shown}` is no parameter that this server knows");
        Err(ApiError::field(shown, message).coded("unknown_parameter"))
    }
}

/// A field of another kind than it should be.
pub(crate) fn expected(key: &str, expected: &str, found: &Value) -> ApiError {
    let shown = match found {
        Value::Number(number) => number.to_string(),
        other => kind(other).to_owned(),
    };
    ApiError::field(key, format!("`{key}` must be {expected}, found {shown}"))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
