//! A document as rows: one, or pieces of a long one.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use super::stream::read_error;
use crate::error::DataError;
use crate::jsonl::MAX_LINE_BYTES;

/// A piece ends at the first empty line after this many bytes, and at any line after twice as many.
const PIECE: usize = 1 << 20;

pub(super) struct TextRows<R> {
    path: PathBuf,
    reader: R,
    line: usize,
    buffer: Vec<u8>,
}

impl<R: BufRead> TextRows<R> {
    pub(super) fn new(path: &Path, reader: R) -> Self {
        Self {
            path: path.to_owned(),
            reader,
            line: 0,
            buffer: Vec::new(),
        }
    }

    /// The next piece that is not blank, with the line on which it begins.
    pub(super) fn next_row(&mut self) -> Result<Option<(usize, String)>, DataError> {
        loop {
            let first = self.line + 1;
            if !self.read_piece()? {
                return Ok(None);
            }
            let bytes = std::mem::take(&mut self.buffer);
            let bytes = match first {
                1 => bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes),
                _ => &bytes,
            };
            let text = std::str::from_utf8(bytes).map_err(|error| {
                let valid = &bytes[..error.valid_up_to()];
                let line_start = valid
                    .iter()
                    .rposition(|byte| *byte == b'\n')
                    .map_or(0, |at| at + 1);
                DataError::NotUtf8 {
                    path: self.path.clone(),
                    line: first + valid.iter().filter(|byte| **byte == b'\n').count(),
                    byte: valid.len() - line_start + 1,
                }
            })?;
            if !text.trim().is_empty() {
                return Ok(Some((first, text.to_owned())));
            }
        }
    }

    /// Fills the buffer; false at the end of the file.
    fn read_piece(&mut self) -> Result<bool, DataError> {
        self.buffer.clear();
        loop {
            let before = self.buffer.len();
            let limit = (MAX_LINE_BYTES + 1) as u64;
            let read = std::io::Read::take(&mut self.reader, limit)
                .read_until(b'\n', &mut self.buffer)
                .map_err(|error| read_error(&self.path, error))?;
            if read == 0 {
                return Ok(before > 0);
            }
            self.line += 1;
            if read > MAX_LINE_BYTES {
                return Err(DataError::Layout {
                    path: self.path.clone(),
                    line: self.line,
                    expected: format!("a line of at most {MAX_LINE_BYTES} bytes"),
                    found: "a longer one".to_owned(),
                    recoverable: false,
                });
            }
            let length = self.buffer.len();
            let blank = self.buffer[before..].iter().all(u8::is_ascii_whitespace);
            if length >= 2 * PIECE || length >= PIECE && blank {
                return Ok(true);
            }
        }
    }
}
