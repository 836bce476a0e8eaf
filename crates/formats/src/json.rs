//! JSON files, with the path in every error.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{FormatError, Result};

/// The longest file that is parsed into values, which take many times its length: 32 MiB. The indices of the
/// largest models have a third of that.
const MAX_LENGTH: u64 = 1 << 25;

/// Parses a whole file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let length = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    if length > MAX_LENGTH {
        return Err(FormatError::JsonTooLong {
            path: path.into(),
            expected: MAX_LENGTH,
            actual: length,
        });
    }
    let bytes = read_bytes(path)?;
    parse(path, &bytes)
}

/// Parses the bytes of `path`.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    // Some Windows editors put a byte order mark in front.
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    serde_json::from_slice(bytes).map_err(|source| FormatError::Json {
        path: path.into(),
        source,
    })
}

/// Parses a file that may be absent.
pub(crate) fn read_optional<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if path.is_file() {
        read(path).map(Some)
    } else {
        Ok(None)
    }
}

/// Reads a whole file.
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => FormatError::NotFound { path: path.into() },
        _ => FormatError::io(path, "read")(source),
    })
}

/// The error for a field of the wrong kind.
pub(crate) fn field_error(
    path: &Path,
    field: &str,
    expected: &'static str,
    actual: &Value,
) -> FormatError {
    FormatError::JsonField {
        path: path.into(),
        field: field.into(),
        expected,
        actual: shorten(actual),
    }
}

/// A value on one line, cut after 60 characters.
pub(crate) fn shorten(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A value as it is written to a file: indented, with a newline at the end.
pub(crate) fn pretty(value: &Value) -> Vec<u8> {
    let mut text = format!("{value:#}");
    text.push('\n');
    text.into_bytes()
}
