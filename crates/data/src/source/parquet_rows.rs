//! The rows of a Parquet file as maps.

use std::fs::File;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Number, Value};

use super::rows::TableRow;
use super::thrift;
use crate::error::{DataError, Source};

/// The bytes that a row group may take in memory.
const MAX_ROW_GROUP: i64 = 4 << 30;

pub(super) struct ParquetRows {
    path: PathBuf,
    rows: RowIter<'static>,
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
struct Fault {
    expected: &'static str,
    found: String,
}

impl ParquetRows {
    pub(super) fn open(path: &Path, read: &Arc<AtomicU64>) -> Result<Self, DataError> {
        let io = |source| DataError::Io {
            path: path.to_owned(),
            source,
        };
        let fail = |source| DataError::Parquet {
            path: path.to_owned(),
            row: 1,
            source,
        };
        let file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let mut check = File::open(path).map_err(io)?;
        if let Some(elements) = thrift::false_claim(&mut check, bytes).map_err(io)? {
            return Err(fail(too_many("metadata", elements)));
        }
        let reader =
            guarded(|| SerializedFileReader::new(file).map_err(Into::into)).map_err(fail)?;
        let (total_rows, columns) = examine(reader.metadata(), bytes).map_err(fail)?;
        for column in columns_of(reader.metadata()) {
            let claim = thrift::false_claim_of_pages(&mut check, column).map_err(io)?;
            if let Some(elements) = claim {
                return Err(fail(too_many("a page header", elements)));
            }
        }
        let rows = guarded(|| {
            let rows = RowIter::from_file_into(Box::new(reader));
            rows.project(Some(columns)).map_err(Into::into)
        })
        .map_err(fail)?;
        Ok(Self {
            path: path.to_owned(),
            rows,
            row: 0,
            total_rows,
            bytes,
            read: Arc::clone(read),
            before: read.load(Ordering::Relaxed),
            failed: false,
        })
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
                Ok(Some((self.row, object(&row))))
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

/// The bytes of each column of each row group, after [`examine`].
fn columns_of(metadata: &ParquetMetaData) -> impl Iterator<Item = Range<u64>> {
    let groups = metadata.row_groups().iter();
    groups.flat_map(|group| group.columns()).map(|column| {
        let start = first_page(column).max(0) as u64;
        start..start.saturating_add(column.compressed_size().max(0) as u64)
    })
}

/// Where a column begins; the crate's own accessor asserts what a damaged file need not hold.
fn first_page(column: &ColumnChunkMetaData) -> i64 {
    let dictionary = column.dictionary_page_offset();
    dictionary.unwrap_or_else(|| column.data_page_offset())
}

/// Refuses metadata that cannot be true; gives the rows and the columns that can be shown.
pub(crate) fn examine(metadata: &ParquetMetaData, bytes: u64) -> Result<(u64, Type), Source> {
    let fault = |expected, found: String| -> Source { Box::new(Fault { expected, found }) };
    let mut rows = 0u64;
    for group in metadata.row_groups() {
        if group.total_byte_size() > MAX_ROW_GROUP {
            let found = format!("one of {} bytes", group.total_byte_size());
            return Err(fault("row groups of at most 4 GiB", found));
        }
        let count = u64::try_from(group.num_rows())
            .map_err(|_| fault("a number of rows", group.num_rows().to_string()))?;
        rows = rows.saturating_add(count);
        for column in group.columns() {
            let start = first_page(column);
            let inside = u64::try_from(start)
                .ok()
                .zip(u64::try_from(column.compressed_size()).ok())
                .and_then(|(start, length)| start.checked_add(length))
                .is_some_and(|end| end <= bytes);
            if !inside {
                let found = format!("one at byte {start} of {} bytes", column.compressed_size());
                return Err(fault("columns inside the file", found));
            }
        }
    }
    let schema = metadata.file_metadata().schema();
    let shown: Vec<_> = schema
        .get_fields()
        .iter()
        .filter(|field| can_show(field))
        .cloned()
        .collect();
    if shown.is_empty() {
        return Err(fault(
            "a column of text, numbers, or lists and structs of them",
            "none".to_owned(),
        ));
    }
    let columns = Type::group_type_builder(schema.name())
        .with_fields(shown)
        .build()?;
    Ok((rows, columns))
}

/// Whether the records can hold a column: dates, decimals and raw bytes are left out.
fn can_show(field: &Type) -> bool {
    if !field.is_primitive() {
        return field.get_fields().iter().all(|field| can_show(field));
    }
    let converted = field.get_basic_info().converted_type();
    match field.get_physical_type() {
        Physical::BOOLEAN | Physical::FLOAT | Physical::DOUBLE => converted == ConvertedType::NONE,
        Physical::INT32 | Physical::INT64 => {
            matches!(
                converted,
                ConvertedType::NONE
                    | ConvertedType::INT_8
                    | ConvertedType::INT_16
                    | ConvertedType::INT_32
                    | ConvertedType::INT_64
                    | ConvertedType::UINT_8
                    | ConvertedType::UINT_16
                    | ConvertedType::UINT_32
                    | ConvertedType::UINT_64
            ) && !matches!(
                field.get_basic_info().logical_type_ref(),
                Some(
                    LogicalType::Timestamp { .. }
                        | LogicalType::Time { .. }
                        | LogicalType::Decimal { .. }
                )
            )
        }
        Physical::BYTE_ARRAY => matches!(
            converted,
            ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON
        ),
        Physical::INT96 | Physical::FIXED_LEN_BYTE_ARRAY => false,
    }
}

fn object(row: &Row) -> Map<String, Value> {
    row.get_column_iter()
        // A struct has every key that any row has: null is how the others lack it.
        .filter(|(_, field)| !matches!(field, Field::Null))
        .map(|(key, field)| (key.clone(), value(field)))
        .collect()
}

fn value(field: &Field) -> Value {
    let float = |number: f64| Number::from_f64(number).map_or(Value::Null, Value::Number);
    match field {
        Field::Bool(value) => (*value).into(),
        Field::Byte(value) => (*value).into(),
        Field::Short(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::Long(value) => (*value).into(),
        Field::UByte(value) => (*value).into(),
        Field::UShort(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        Field::Float(value) => float(f64::from(*value)),
        Field::Double(value) => float(*value),
        Field::Str(text) => text.as_str().into(),
        Field::Group(row) => Value::Object(object(row)),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            let pairs = map.entries().iter().map(|(key, item)| {
                let key = match value(key) {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                (key, value(item))
            });
            Value::Object(pairs.collect())
        }
        // `can_show` lets no other column through.
        _ => Value::Null,
    }
}
