//! A JSON list read element by element.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use super::stream::read_error;
use crate::error::DataError;
use crate::jsonl::MAX_LINE_BYTES;

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Cuts a list into the texts of its elements; what is inside them is checked by whoever parses
/// them.
pub(super) struct JsonList<R> {
    path: PathBuf,
    reader: R,
    line: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    AfterElement,
    Done,
}

impl<R: BufRead> JsonList<R> {
    /// Whether the text at hand begins with `[`; nothing but white space is consumed.
    pub(super) fn begins_here(path: &Path, reader: &mut R) -> Result<bool, DataError> {
        let error = |source| read_error(path, source);
        if reader.fill_buf().map_err(error)?.starts_with(BOM) {
            reader.consume(BOM.len());
        }
        // Line numbers of a list count from its bracket, so nothing may be consumed but a mark;
        // white space before a bracket within the first buffer is looked past.
        let buffer = reader.fill_buf().map_err(error)?;
        Ok(buffer.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'['))
    }

    pub(super) fn new(path: &Path, reader: R) -> Self {
        Self {
            path: path.to_owned(),
            reader,
            line: 1,
            state: State::Start,
        }
    }

    /// The next element with the line on which it begins.
    pub(super) fn next_row(&mut self) -> Result<Option<(usize, String)>, DataError> {
        match self.state {
            State::Done => return Ok(None),
            State::Start => {
                self.expect(b"[", "`[`")?;
                if self.peek()? == Some(b']') {
                    return self.finish();
                }
            }
            State::AfterElement => {
                if self.expect(b",]", "`,` or `]` after an element")? == b']' {
                    return self.end();
                }
            }
        }
        self.peek()?;
        let line = self.line;
        let bytes = self.element()?;
        self.state = State::AfterElement;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Some((line, text))),
            Err(error) => Err(DataError::NotUtf8 {
                path: self.path.clone(),
                line,
                byte: error.utf8_error().valid_up_to() + 1,
            }),
        }
    }

    fn finish(&mut self) -> Result<Option<(usize, String)>, DataError> {
        self.expect(b"]", "`]`")?;
        self.end()
    }

    fn end(&mut self) -> Result<Option<(usize, String)>, DataError> {
        self.state = State::Done;
        match self.peek()? {
            None => Ok(None),
            Some(byte) => Err(self.error("the end of the file after the list", Some(byte))),
        }
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
        let mut scan = Scan::default();
        loop {
            let buffer = self
                .reader
                .fill_buf()
                .map_err(|error| read_error(&self.path, error))?;
            if buffer.is_empty() {
                return Err(self.error("the rest of an element", None));
            }
            let (length, ended) = scan.advance(buffer);
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
        DataError::Layout {
            path: self.path.clone(),
            line: self.line,
            expected: expected.to_owned(),
            found,
            recoverable: false,
        }
    }
}

fn count_lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

/// Where in an element a scan stands.
#[derive(Default)]
struct Scan {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scan {
    /// How many bytes belong to the element, and whether it ends there.
    fn advance(&mut self, bytes: &[u8]) -> (usize, bool) {
        for (at, &byte) in bytes.iter().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => {
                        self.in_string = false;
                        if self.depth == 0 {
                            return (at + 1, true);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth > 0 => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return (at + 1, true);
                    }
                }
                b',' | b']' | b'}' if self.depth == 0 => return (at, true),
                _ if self.depth == 0 && byte.is_ascii_whitespace() => return (at, true),
                _ => {}
            }
        }
        (bytes.len(), false)
    }
}
