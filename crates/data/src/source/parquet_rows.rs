//! The rows of a Parquet file as maps.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::schema::types::Type;

use super::parquet_schema::{Readable, columns_of, examine};
use super::parquet_values::object;
use super::rows::TableRow;
use super::thrift;
use crate::error::{DataError, Source};

/// The metadata of a file with thousands of columns and row groups takes some dozens of megabytes.
const MAX_METADATA: u64 = 256 << 20;

pub(super) struct ParquetRows {
    path: PathBuf,
    rows: RowIter<'static>,
    columns: Type,
    left_out: Vec<String>,
    row: usize,
    total_rows: u64,
    bytes: u64,
    read: Arc<AtomicU64>,
    before: u64,
    failed: bool,
}

/// A fault of a file, where the reader has no words of its own.
#[derive(Debug, thiserror::Error)]
#[error("expected {expected}, found {found}")]
pub(super) struct Fault {
    pub(super) expected: &'static str,
    pub(super) found: String,
}

impl ParquetRows {
    /// Opens `content`, which errors call `path`.
    pub(super) fn open(
        path: &Path,
        content: &Path,
        read: &Arc<AtomicU64>,
    ) -> Result<Self, DataError> {
        let io = |source| DataError::Io {
            path: path.to_owned(),
            source,
        };
        let fail = |source| DataError::Parquet {
            path: path.to_owned(),
            row: 1,
            source,
        };
        let file = File::open(content).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let mut check = File::open(content).map_err(io)?;
        let metadata = thrift::metadata(&mut check, bytes).map_err(io)?;
        let length = metadata.map_or(0, |place| place.end - place.start);
        if length > MAX_METADATA {
            return Err(fail(Box::new(Fault {
                expected: "metadata of at most 256 MiB",
                found: format!("{length} bytes"),
            })));
        }
        if let Some(elements) = thrift::false_claim(&mut check, bytes).map_err(io)? {
            return Err(fail(too_many("metadata", elements)));
        }
        let reader =
            guarded(|| SerializedFileReader::new(file).map_err(Into::into)).map_err(fail)?;
        let readable = guarded(|| examine(reader.metadata(), bytes)).map_err(fail)?;
        let Readable {
            rows: total_rows,
            columns,
            left_out,
        } = readable;
        for column in columns_of(reader.metadata()) {
            let claim = thrift::false_claim_of_pages(&mut check, column).map_err(io)?;
            if let Some(elements) = claim {
                return Err(fail(too_many("a page header", elements)));
            }
        }
        let rows = guarded(|| {
            let rows = RowIter::from_file_into(Box::new(reader));
            rows.project(Some(columns.clone())).map_err(Into::into)
        })
        .map_err(fail)?;
        Ok(Self {
            path: path.to_owned(),
            rows,
            columns,
            left_out,
            row: 0,
            total_rows,
            bytes,
            read: Arc::clone(read),
            before: read.load(Ordering::Relaxed),
            failed: false,
        })
    }

    /// Leaves of its schema that are not read, such as `images[].raw (FIXED_LEN_BYTE_ARRAY)`.
    pub(super) fn left_out(&self) -> &[String] {
        &self.left_out
    }

    pub(super) fn next_row(&mut self) -> Result<Option<TableRow>, DataError> {
        if self.failed {
            return Ok(None);
        }
        let rows = &mut self.rows;
        let next = guarded(|| Ok(rows.next().transpose()?));
        match next {
            Ok(None) => {
                self.read.store(self.before + self.bytes, Ordering::Relaxed);
                Ok(None)
            }
            Ok(Some(row)) => {
                self.row += 1;
                self.show_progress();
                Ok(Some((self.row, object(&row, &self.columns))))
            }
            Err(source) => {
                self.failed = true;
                Err(DataError::Parquet {
                    path: self.path.clone(),
                    row: self.row + 1,
                    source,
                })
            }
        }
    }

    /// The reader does not say what it has read: rows stand for it.
    fn show_progress(&self) {
        let share = self.row as f64 / self.total_rows.max(1) as f64;
        let bytes = (self.bytes as f64 * share.min(1.0)) as u64;
        self.read.store(self.before + bytes, Ordering::Relaxed);
    }
}

/// The parquet crate panics on some damaged files and on types that its records lack.
fn guarded<T>(read: impl FnOnce() -> Result<T, Source>) -> Result<T, Source> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(Box::new(Fault {
            expected: "a sound file",
            found: "pages that contradict its schema".to_owned(),
        }))
    })
}

fn too_many(of: &str, elements: u64) -> Source {
    Box::new(Fault {
        expected: "lists no longer than the bytes they stand in",
        found: format!("one of {elements} elements in {of}"),
    })
}
