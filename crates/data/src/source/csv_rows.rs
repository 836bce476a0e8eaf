//! The records of a CSV or TSV file as maps of strings.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use csv::{ByteRecord, ErrorKind, Reader, ReaderBuilder};
use serde_json::{Map, Value};

use super::rows::TableRow;
use super::stream::{Bytes, read_error};
use crate::error::DataError;
use crate::jsonl::MAX_LINE_BYTES;

pub(super) struct CsvRows {
    path: PathBuf,
    reader: Reader<Metered>,
    since_record: Arc<AtomicU64>,
    columns: Vec<String>,
    record: ByteRecord,
}

impl CsvRows {
    /// Reads the header.
    pub(super) fn new(path: &Path, bytes: Bytes, delimiter: u8) -> Result<Self, DataError> {
        let since_record = Arc::new(AtomicU64::new(0));
        let metered = Metered {
            inner: bytes,
            since_record: Arc::clone(&since_record),
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
            since_record,
            columns,
            record: ByteRecord::new(),
        })
    }

    pub(super) fn next_row(&mut self) -> Result<Option<TableRow>, DataError> {
        self.since_record.store(0, Ordering::Relaxed);
        let before = self.reader.position().line() as usize;
        let read = self.reader.read_byte_record(&mut self.record);
        match read {
            Ok(false) => return Ok(None),
            Ok(true) => {}
            Err(error) => return Err(csv_error(&self.path, before, error)),
        }
        let line = match self.record.position() {
            Some(position) => position.line() as usize,
            None => before,
        };
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
        // The mark stays in the first name where the csv crate sees a quote behind it.
        let name = name.trim_start_matches('\u{feff}').trim();
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
            pos,
            expected_len,
            len,
        } => DataError::Layout {
            path: path.to_owned(),
            line: pos.map_or(line, |pos| pos.line() as usize),
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

/// The csv crate holds a whole record: a limit keeps an open quote from taking all memory.
struct Metered {
    inner: Bytes,
    since_record: Arc<AtomicU64>,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let since = self.since_record.fetch_add(count as u64, Ordering::Relaxed);
        if since > MAX_LINE_BYTES as u64 {
            return Err(io::Error::other(TooLong));
        }
        Ok(count)
    }
}
