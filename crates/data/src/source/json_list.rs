//! A JSON list read element by element.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use super::nest::Nest;
use super::stream::read_error;
use crate::error::DataError;
use crate::jsonl::MAX_LINE_BYTES;

/// Cuts a list into the texts of its elements; what is inside them is checked by whoever parses
/// them. The list may be a value of an object, and another list may follow.
pub(super) struct JsonList<R> {
    path: PathBuf,
    reader: R,
    line: usize,
    state: State,
    wrapper: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before an object that holds the list.
    Wrapper,
    Start,
    AfterElement,
    Done,
}

impl<R: BufRead> JsonList<R> {
    pub(super) fn new(path: &Path, reader: R) -> Self {
        Self {
            path: path.to_owned(),
            reader,
            line: 1,
            state: State::Start,
            wrapper: None,
        }
    }

    /// The list under a key of an object.
    pub(super) fn wrapped(path: &Path, reader: R, key: String) -> Self {
        Self {
            state: State::Wrapper,
            wrapper: Some(key),
            ..Self::new(path, reader)
        }
    }

    /// The next element with the line on which it begins.
    pub(super) fn next_row(&mut self) -> Result<Option<(usize, String)>, DataError> {
        loop {
            match self.state {
                State::Done => return Ok(None),
                State::Wrapper => {
                    self.expect(b"{", "`{`")?;
                    self.skip_to_list()?;
                    self.state = State::Start;
                    continue;
                }
                State::Start => {
                    self.expect(b"[", "`[`")?;
                    if self.peek()? == Some(b']') {
                        self.expect(b"]", "`]`")?;
                        self.end()?;
                        continue;
                    }
                }
                State::AfterElement => {
                    if self.expect(b",]", "`,` or `]` after an element")? == b']' {
                        self.end()?;
                        continue;
                    }
                    if self.peek()? == Some(b']') {
                        return Err(self.fault("a value", "a comma before `]`; remove it"));
                    }
                }
            }
            self.peek()?;
            let line = self.line;
            let bytes = self.element()?;
            self.state = State::AfterElement;
            return match String::from_utf8(bytes) {
                Ok(text) => Ok(Some((line, text))),
                Err(error) => Err(DataError::NotUtf8 {
                    path: self.path.clone(),
                    line,
                    byte: error.utf8_error().valid_up_to() + 1,
                }),
            };
        }
    }

    /// Passes over the keys before that of the list.
    fn skip_to_list(&mut self) -> Result<(), DataError> {
        while Some(self.key()?) != self.wrapper {
            self.peek()?;
            self.element()?;
            self.expect(b",", "`,` and a list of rows")?;
        }
        Ok(())
    }

    /// A key and its colon.
    fn key(&mut self) -> Result<String, DataError> {
        self.peek()?;
        let bytes = self.element()?;
        let key: Option<String> = serde_json::from_slice(&bytes).ok();
        self.expect(b":", "`:` after a key")?;
        match key {
            Some(key) => Ok(key),
            None => Err(self.fault("a key in quotes", "something else")),
        }
    }

    /// After a list: the rest of the object around it, another list, or the end of the file.
    fn end(&mut self) -> Result<(), DataError> {
        if self.wrapper.is_some() {
            self.end_of_wrapper()?;
        }
        self.state = State::Done;
        match self.peek()? {
            None => Ok(()),
            Some(b'[') if self.wrapper.is_none() => {
                self.state = State::Start;
                Ok(())
            }
            Some(byte) => Err(self.error("the end of the file after the list", Some(byte))),
        }
    }

    fn end_of_wrapper(&mut self) -> Result<(), DataError> {
        while self.expect(b",}", "`,` or `}` after the list")? == b',' {
            let key = self.key()?;
            self.peek()?;
            let value = self.element()?;
            let is_list = value
                .strip_prefix(b"[")
                .is_some_and(|list| list.trim_ascii_start().starts_with(b"{"));
            if is_list {
                let first = self.wrapper.clone().unwrap_or_default();
                let found = format!("`{first}` and `{key}`; write each to a file of its own");
                return Err(self.fault("one list of rows", &found));
            }
        }
        Ok(())
    }

    /// The next byte that is no white space, which stays where it is.
    fn peek(&mut self) -> Result<Option<u8>, DataError> {
        loop {
            let buffer = self
                .reader
                .fill_buf()
                .map_err(|error| read_error(&self.path, error))?;
            if buffer.is_empty() {
                return Ok(None);
            }
            let skipped = buffer
                .iter()
                .position(|byte| !byte.is_ascii_whitespace())
                .unwrap_or(buffer.len());
            let found = buffer.get(skipped).copied();
            self.line += count_lines(&buffer[..skipped]);
            self.reader.consume(skipped);
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    fn expect(&mut self, allowed: &[u8], expected: &'static str) -> Result<u8, DataError> {
        match self.peek()? {
            Some(byte) if allowed.contains(&byte) => {
                self.reader.consume(1);
                Ok(byte)
            }
            found => Err(self.error(expected, found)),
        }
    }

    fn element(&mut self) -> Result<Vec<u8>, DataError> {
        let mut bytes = Vec::new();
        let mut nest = Nest::default();
        loop {
            let buffer = self
                .reader
                .fill_buf()
                .map_err(|error| read_error(&self.path, error))?;
            if buffer.is_empty() {
                return Err(self.error("the rest of an element", None));
            }
            let (length, ended) = nest.advance(buffer);
            bytes.extend_from_slice(&buffer[..length]);
            self.line += count_lines(&buffer[..length]);
            self.reader.consume(length);
            if bytes.len() > MAX_LINE_BYTES {
                // Without its end nothing after it can be read either.
                return Err(self.error("an element of at most 32 MiB", None));
            }
            if ended {
                if bytes.is_empty() {
                    let found = self.peek()?;
                    return Err(self.error("a value", found));
                }
                return Ok(bytes);
            }
        }
    }

    fn error(&mut self, expected: &'static str, found: Option<u8>) -> DataError {
        self.state = State::Done;
        let found = match found {
            Some(byte) if byte.is_ascii_graphic() => format!("`{}`", char::from(byte)),
            Some(byte) => format!("the byte 0x{byte:02x}"),
            None if expected.contains("32 MiB") => "a longer one".to_owned(),
            None => "the end of the file".to_owned(),
        };
        self.fault(expected, &found)
    }

    fn fault(&mut self, expected: &str, found: &str) -> DataError {
        self.state = State::Done;
        DataError::Layout {
            path: self.path.clone(),
            line: self.line,
            expected: expected.to_owned(),
            found: found.to_owned(),
            recoverable: false,
        }
    }
}

fn count_lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}
