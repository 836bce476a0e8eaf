//! The rows of a source, one after another.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value};

use super::csv_rows::CsvRows;
use super::file::{DataFile, FileKind};
use super::head::{self, Layout};
use super::json::{self, Parsed};
use super::json_list::JsonList;
use super::json_rows::JsonRows;
use super::parquet_rows::ParquetRows;
use super::stream::{self, Bytes, DecompressLimits, Opened, Stamp};
use super::text_rows::TextRows;
use crate::error::DataError;
use crate::jsonl::field_error;

/// A row that is not yet parsed: that is left to many threads.
#[derive(Clone, Debug, PartialEq)]
pub struct RawRow {
    /// Index of its file in the source.
    pub file: usize,
    /// Line of the file, from 1; the row's number in a Parquet file.
    pub line: usize,
    /// What it holds.
    pub body: RawBody,
}

/// The fields of a table's row with its line.
pub(super) type TableRow = (usize, Map<String, Value>);

/// What a row holds, by the kind of its file.
#[derive(Clone, Debug, PartialEq)]
pub enum RawBody {
    /// A JSON text.
    Json(String),
    /// The fields of a table's row.
    Fields(Map<String, Value>),
    /// A document, or a piece of a long one.
    Text(String),
}

impl RawBody {
    /// Roughly the bytes it takes.
    pub fn size(&self) -> usize {
        match self {
            Self::Json(text) | Self::Text(text) => text.len(),
            Self::Fields(fields) => fields
                .iter()
                .map(|(key, value)| key.len() + value.as_str().map_or(64, str::len))
                .sum(),
        }
    }

    /// The row as JSON; a document is `{"text": …}`.
    ///
    /// # Errors
    /// [`DataError::Json`] with `path` and `line`.
    pub fn into_value(self, path: &Path, line: usize) -> Result<Value, DataError> {
        match self {
            Self::Json(text) => Ok(parse(path, line, &text)?.value),
            Self::Fields(fields) => Ok(Value::Object(fields)),
            Self::Text(text) => {
                let mut row = Map::new();
                row.insert("text".to_owned(), Value::String(text));
                Ok(Value::Object(row))
            }
        }
    }

    /// The row as JSON, without numbers that JSON does not have: where `reads` says that a field is
    /// read, they are errors.
    ///
    /// # Errors
    /// [`DataError::Json`] and [`DataError::Field`].
    pub(crate) fn read_by(
        self,
        path: &Path,
        line: usize,
        reads: &dyn Fn(&str) -> bool,
    ) -> Result<Value, DataError> {
        let Self::Json(text) = self else {
            return self.into_value(path, line);
        };
        let mut parsed = parse(path, line, &text)?;
        if parsed.marked {
            json::settle(&mut parsed.value, reads)
                .map_err(|error| field_error(path, line, error))?;
        }
        Ok(parsed.value)
    }
}

fn parse(path: &Path, line: usize, text: &str) -> Result<Parsed, DataError> {
    json::parse(text).map_err(|source| DataError::Json {
        path: path.to_owned(),
        line: line + source.lines_before,
        source,
    })
}

/// Reads the files of a source one after another, never holding more than a row and some buffers.
///
/// An item that is an error [about a row](DataError::is_about_a_row) may be followed by more rows;
/// any other error is the last item.
pub struct RowReader {
    files: Vec<DataFile>,
    next: usize,
    open: Option<Open>,
    limits: DecompressLimits,
    read: Arc<AtomicU64>,
    failed: bool,
    notes: Vec<String>,
}

struct Open {
    rows: Rows,
    stamp: Stamp,
}

enum Rows {
    JsonRows(JsonRows<Bytes>),
    JsonList(JsonList<Bytes>),
    Csv(CsvRows),
    Parquet(ParquetRows),
    Text(TextRows<Bytes>),
}

impl RowReader {
    /// A reader at the beginning of the first file.
    pub fn new(files: &[DataFile], limits: DecompressLimits) -> Self {
        Self {
            files: files.to_vec(),
            next: 0,
            open: None,
            limits,
            read: Arc::default(),
            failed: false,
            notes: Vec::new(),
        }
    }

    /// The files, as [`RawRow::file`] counts them.
    pub fn files(&self) -> &[DataFile] {
        &self.files
    }

    /// Bytes read from the disk so far.
    pub fn bytes(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// What is not read of the files opened so far, in words.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// After an error that ends a file: goes on with the next one.
    pub(crate) fn pass_over_file(&mut self) {
        self.open = None;
        self.failed = false;
    }

    fn note_left_out(&mut self, path: &Path, leaves: &[String]) {
        const SHOWN: usize = 8;
        if leaves.is_empty() {
            return;
        }
        let mut text = leaves[..leaves.len().min(SHOWN)].join(", ");
        if leaves.len() > SHOWN {
            text.push_str(&format!(" and {} more", leaves.len() - SHOWN));
        }
        // The shards of a data set have one schema: it is said once.
        let said = |note: &String| note.ends_with(&format!(": {text}"));
        if !self.notes.iter().any(said) {
            let path = path.display();
            self.notes.push(format!("not read of {path}: {text}"));
        }
    }

    fn open_next(&mut self) -> Result<bool, DataError> {
        let Some(file) = self.files.get(self.next).cloned() else {
            return Ok(false);
        };
        self.next += 1;
        let stamp = Stamp::of(file.content())?;
        let path = file.path.as_path();
        let rows = if file.kind == FileKind::Parquet {
            let rows = ParquetRows::open(path, file.content(), &self.read)?;
            self.note_left_out(path, rows.left_out());
            Rows::Parquet(rows)
        } else {
            let Opened { head, bytes } = stream::open(&file, self.limits, &self.read)?;
            head::check_text(path, file.kind, &head)?;
            match file.kind {
                FileKind::Csv { delimiter } => {
                    let delimiter = head::delimiter(delimiter, &head);
                    Rows::Csv(CsvRows::new(path, bytes, delimiter)?)
                }
                FileKind::Text => Rows::Text(TextRows::new(path, bytes)),
                FileKind::Jsonl | FileKind::Json | FileKind::Parquet => match Layout::of(&head) {
                    Layout::List => Rows::JsonList(JsonList::new(path, bytes)),
                    Layout::Wrapped(key) => Rows::JsonList(JsonList::wrapped(path, bytes, key)),
                    Layout::Rows => Rows::JsonRows(JsonRows::new(path, bytes)),
                },
            }
        };
        self.open = Some(Open { rows, stamp });
        Ok(true)
    }

    fn read_row(&mut self) -> Result<Option<RawRow>, DataError> {
        loop {
            if self.open.is_none() && !self.open_next()? {
                return Ok(None);
            }
            let Some(open) = &mut self.open else {
                return Ok(None);
            };
            let file = self.next - 1;
            let row = match &mut open.rows {
                Rows::JsonRows(rows) => rows
                    .next_row()?
                    .map(|(line, text)| (line, RawBody::Json(text))),
                Rows::JsonList(list) => list
                    .next_row()?
                    .map(|(line, text)| (line, RawBody::Json(text))),
                Rows::Csv(records) => records
                    .next_row()?
                    .map(|(line, fields)| (line, RawBody::Fields(fields))),
                Rows::Parquet(rows) => rows
                    .next_row()?
                    .map(|(line, fields)| (line, RawBody::Fields(fields))),
                Rows::Text(pieces) => pieces
                    .next_row()?
                    .map(|(line, text)| (line, RawBody::Text(text))),
            };
            if let Some((line, body)) = row {
                return Ok(Some(RawRow { file, line, body }));
            }
            open.stamp.check(self.files[file].content())?;
            self.open = None;
        }
    }
}

impl Iterator for RowReader {
    type Item = Result<RawRow, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let row = self.read_row().transpose();
        self.failed = matches!(&row, Some(Err(error)) if !error.is_about_a_row());
        row
    }
}
