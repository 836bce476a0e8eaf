//! The records of a CSV or TSV file as maps of strings.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use csv::{ByteRecord, ErrorKind, Reader, ReaderBuilder};
use serde_json::{Map, Value};

use super::rows::TableRow;
use super::stream::{Bytes, read_error};
use crate::error::DataError;
use crate::jsonl::MAX_LINE_BYTES;

pub(super) struct CsvRows {
    path: PathBuf,
    reader: Reader<Metered>,
    passed: Arc<Mutex<Passed>>,
    columns: Vec<String>,
    record: ByteRecord,
}

impl CsvRows {
    /// Reads the header.
    pub(super) fn new(path: &Path, bytes: Bytes, delimiter: u8) -> Result<Self, DataError> {
        let passed = Arc::new(Mutex::new(Passed::default()));
        let metered = Metered {
            inner: bytes,
            passed: Arc::clone(&passed),
        };
        let mut reader = ReaderBuilder::new()
            .delimiter(delimiter)
            .from_reader(metered);
        let header = match reader.byte_headers() {
            Ok(header) => header.clone(),
            Err(error) => return Err(csv_error(path, 1, error)),
        };
        let columns = columns(path, &header)?;
        Ok(Self {
            path: path.to_owned(),
            reader,
            passed,
            columns,
            record: ByteRecord::new(),
        })
    }

    pub(super) fn next_row(&mut self) -> Result<Option<TableRow>, DataError> {
        let start = self.reader.position().byte();
        self.passed().since_record = 0;
        let read = self.reader.read_byte_record(&mut self.record);
        // The crate counts a line break that ends a record with the next one.
        let line = self.passed().line_of_record(start);
        match read {
            Ok(false) => return Ok(None),
            Ok(true) => {}
            Err(error) => return Err(csv_error(&self.path, line, error)),
        }
        let mut row = Map::new();
        for (column, field) in self.columns.iter().zip(&self.record) {
            let text = std::str::from_utf8(field).map_err(|error| DataError::NotUtf8 {
                path: self.path.clone(),
                line,
                byte: error.valid_up_to() + 1,
            })?;
            row.insert(column.clone(), Value::String(text.to_owned()));
        }
        Ok(Some((line, row)))
    }

    fn passed(&self) -> MutexGuard<'_, Passed> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn columns(path: &Path, header: &ByteRecord) -> Result<Vec<String>, DataError> {
    let error = |found: String| DataError::Layout {
        path: path.to_owned(),
        line: 1,
        expected: "a header with a different name for each column".to_owned(),
        found,
        recoverable: false,
    };
    let mut columns: Vec<String> = Vec::new();
    for (index, name) in header.iter().enumerate() {
        let name = std::str::from_utf8(name).map_err(|problem| DataError::NotUtf8 {
            path: path.to_owned(),
            line: 1,
            byte: problem.valid_up_to() + 1,
        })?;
        let name = name.trim();
        if columns.iter().any(|other| other == name) {
            return Err(error(format!("the name {name:?} twice")));
        }
        if name.is_empty() && header.len() > 1 && index > 0 {
            return Err(error(format!("no name for column {}", index + 1)));
        }
        columns.push(name.to_owned());
    }
    if columns.iter().all(String::is_empty) {
        return Err(error("nothing".to_owned()));
    }
    Ok(columns)
}

fn csv_error(path: &Path, line: usize, error: csv::Error) -> DataError {
    let text = error.to_string();
    match error.into_kind() {
        ErrorKind::Io(source) if source.get_ref().is_some_and(|inner| inner.is::<TooLong>()) => {
            DataError::Layout {
                path: path.to_owned(),
                line,
                expected: format!("a record of at most {MAX_LINE_BYTES} bytes"),
                found: "a longer one; look for a quote that is never closed".to_owned(),
                recoverable: false,
            }
        }
        ErrorKind::Io(source) => read_error(path, source),
        ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => DataError::Layout {
            path: path.to_owned(),
            line,
            expected: format!("{expected_len} fields, as in the header"),
            found: format!("{len}; put fields with a separator or a line break into quotes"),
            recoverable: true,
        },
        _ => DataError::Layout {
            path: path.to_owned(),
            line,
            expected: "a record".to_owned(),
            found: text,
            recoverable: false,
        },
    }
}

/// A record that never ends.
#[derive(Debug, thiserror::Error)]
#[error("the record is too long")]
struct TooLong;

/// Bytes that the csv crate was given, from the record at hand on.
#[derive(Default)]
struct Passed {
    bytes: VecDeque<u8>,
    /// Where they begin in the file.
    start: u64,
    /// Lines that end before them.
    lines: usize,
    after_return: bool,
    since_record: u64,
}

impl Passed {
    /// The line of the first record at or behind byte `start`.
    fn line_of_record(&mut self, start: u64) -> usize {
        while self.start < start && self.pop() {}
        while matches!(self.bytes.front(), Some(b'\r' | b'\n')) {
            self.pop();
        }
        self.lines + 1
    }

    fn pop(&mut self) -> bool {
        let Some(byte) = self.bytes.pop_front() else {
            return false;
        };
        self.start += 1;
        // `\r\n` is one line break.
        self.lines += usize::from(byte == b'\r' || byte == b'\n' && !self.after_return);
        self.after_return = byte == b'\r';
        true
    }
}

/// The csv crate holds a whole record: a limit keeps an open quote from taking all memory.
struct Metered {
    inner: Bytes,
    passed: Arc<Mutex<Passed>>,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        if passed.since_record > MAX_LINE_BYTES as u64 {
            return Err(io::Error::other(TooLong));
        }
        passed.since_record += count as u64;
        passed.bytes.extend(&buffer[..count]);
        Ok(count)
    }
}
