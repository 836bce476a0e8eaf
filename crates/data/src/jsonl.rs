//! A reader of JSON lines whose memory is bounded by the longest line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::conversation::Record;
use crate::error::{DataError, JsonFault};
use crate::format::{FieldError, Format};
use crate::source::read_error;

/// The longest line that is read, in bytes.
pub const MAX_LINE_BYTES: usize = 32 << 20;

const BOM: &[u8] = b"\xef\xbb\xbf";

/// A line that is not blank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Line number in the file, from 1 (blank lines count).
    pub number: usize,
    /// The line without its line break.
    pub text: String,
}

/// Iterates over the lines of a file that are not blank.
///
/// `\n` and `\r\n` end a line, a byte-order mark is skipped, and the last line needs no break.
/// After an error the iterator ends.
pub struct JsonlReader<R = BufReader<File>> {
    path: PathBuf,
    reader: R,
    number: usize,
    bytes: u64,
    failed: bool,
    inside_long_line: bool,
    buffer: Vec<u8>,
}

impl JsonlReader {
    /// Opens a file.
    ///
    /// # Errors
    /// [`DataError::Io`] when it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|source| DataError::Io {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self::new(path, BufReader::with_capacity(1 << 16, file)))
    }
}

impl<R: BufRead> JsonlReader<R> {
    /// Reads from `reader`; `path` is what errors name.
    pub fn new(path: &Path, reader: R) -> Self {
        Self {
            path: path.to_owned(),
            reader,
            number: 0,
            bytes: 0,
            failed: false,
            inside_long_line: false,
            buffer: Vec::new(),
        }
    }

    /// Bytes consumed so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next line that is not blank. After an error about a line the next ones can be read.
    ///
    /// # Errors
    /// [`DataError::Io`] and its kin, [`DataError::NotUtf8`] and [`DataError::LineTooLong`].
    pub fn next_line(&mut self) -> Result<Option<Line>, DataError> {
        self.skip_rest()?;
        loop {
            self.buffer.clear();
            let limit = MAX_LINE_BYTES as u64 + 2;
            let read = (&mut self.reader)
                .take(limit)
                .read_until(b'\n', &mut self.buffer)
                .map_err(|source| read_error(&self.path, source))?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            self.bytes += read as u64;
            self.inside_long_line = read as u64 == limit && !self.buffer.ends_with(b"\n");
            let text = self.check_line()?;
            if !text.trim().is_empty() {
                return Ok(Some(Line {
                    number: self.number,
                    text: text.to_owned(),
                }));
            }
        }
    }

    /// Passes over what is left of a line that was too long.
    fn skip_rest(&mut self) -> Result<(), DataError> {
        while self.inside_long_line {
            let buffer = self
                .reader
                .fill_buf()
                .map_err(|source| read_error(&self.path, source))?;
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let length = end.map_or(buffer.len(), |at| at + 1);
            self.inside_long_line = end.is_none() && length > 0;
            self.reader.consume(length);
            self.bytes += length as u64;
        }
        Ok(())
    }

    fn check_line(&self) -> Result<&str, DataError> {
        let mut line = self.buffer.as_slice();
        line = line.strip_suffix(b"\n").unwrap_or(line);
        line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > MAX_LINE_BYTES {
            return Err(DataError::LineTooLong {
                path: self.path.clone(),
                line: self.number,
                limit: MAX_LINE_BYTES,
            });
        }
        if self.number == 1 {
            line = line.strip_prefix(BOM).unwrap_or(line);
        }
        std::str::from_utf8(line).map_err(|error| DataError::NotUtf8 {
            path: self.path.clone(),
            line: self.number,
            byte: error.valid_up_to() + 1,
        })
    }
}

impl<R: BufRead> Iterator for JsonlReader<R> {
    type Item = Result<Line, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let line = self.next_line().transpose();
        self.failed = matches!(line, Some(Err(_)));
        line
    }
}

/// Parses one line as a row of `format`.
///
/// # Errors
/// [`DataError::Json`] or [`DataError::Field`], with `path` and the line's number.
pub fn parse_line(path: &Path, line: &Line, format: Format) -> Result<Record, DataError> {
    let value: Value = serde_json::from_str(&line.text).map_err(|source| DataError::Json {
        path: path.to_owned(),
        line: line.number,
        source: JsonFault::of(&source),
    })?;
    format
        .read(value)
        .map_err(|error| field_error(path, line.number, error))
}

/// Adds file and line.
pub(crate) fn field_error(path: &Path, line: usize, error: FieldError) -> DataError {
    let FieldError {
        field,
        expected,
        found,
    } = error;
    DataError::Field {
        path: path.to_owned(),
        line,
        field: if field.is_empty() {
            "(row)".to_owned()
        } else {
            field
        },
        expected,
        found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(bytes: &[u8]) -> Vec<Result<Line, String>> {
        JsonlReader::new(Path::new("x.jsonl"), bytes)
            .map(|line| line.map_err(|error| error.to_string()))
            .collect()
    }

    fn line(number: usize, text: &str) -> Result<Line, String> {
        Ok(Line {
            number,
            text: text.into(),
        })
    }

    #[test]
    fn numbers_lines_and_skips_blank_ones() {
        assert_eq!(
            lines(b"\xef\xbb\xbf{}\r\n\n  \n[1]\nlast"),
            [line(1, "{}"), line(4, "[1]"), line(5, "last")]
        );
        assert!(lines(b"").is_empty());
    }

    #[test]
    fn names_the_line_that_is_not_utf8_and_stops() {
        assert_eq!(
            lines(b"{}\nab\xffc\n{}\n"),
            [
                line(1, "{}"),
                Err("x.jsonl, line 2: expected UTF-8 text, found an invalid sequence at byte 3 of the line; \
                     convert the file to UTF-8"
                    .to_owned())
            ]
        );
    }

    #[test]
    fn refuses_an_endless_line_without_holding_it() {
        let endless = std::io::BufReader::new(std::io::repeat(b'x').take(1 << 40));
        let mut reader = JsonlReader::new(Path::new("x.jsonl"), endless);
        assert!(matches!(
            reader.next(),
            Some(Err(DataError::LineTooLong { line: 1, .. }))
        ));
        assert!(reader.next().is_none());
    }

    #[test]
    fn broken_json_keeps_the_column() {
        let line = Line {
            number: 7,
            text: "{\"text\": nope}".into(),
        };
        let error = parse_line(Path::new("a.jsonl"), &line, Format::Text).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a.jsonl, line 7: expected one JSON object, found broken JSON"
        );
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(source, "expected ident at column 11");
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_an_overflow() {
        let text = format!("{{\"text\": {}", "[".repeat(100_000));
        let error = parse_line(Path::new("a"), &Line { number: 1, text }, Format::Text);
        assert!(matches!(error, Err(DataError::Json { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_give_rows_or_one_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for line in JsonlReader::new(Path::new("x"), bytes.as_slice()).flatten() {
                for format in Format::ALL {
                    let _ = parse_line(Path::new("x"), &line, format);
                }
            }
        }
    }
}
