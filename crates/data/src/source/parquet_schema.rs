//! What a Parquet file says of itself: checked, and cut down to the columns that can be read.

use std::ops::Range;
use std::sync::Arc;

use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::schema::types::{Type, TypePtr};

use super::parquet_rows::Fault;
use crate::error::Source;

/// The bytes that a row group may take in memory.
const MAX_ROW_GROUP: i64 = 4 << 30;
/// Digits of a decimal number after its point.
const MAX_SCALE: i32 = 76;

/// The part of a schema that can be read.
pub(crate) struct Readable {
    /// Rows of the file.
    pub(crate) rows: u64,
    /// Its columns, without what is left out.
    pub(crate) columns: Type,
    /// Leaves that are left out, such as `images[].raw (FIXED_LEN_BYTE_ARRAY)`.
    pub(crate) left_out: Vec<String>,
}

/// Refuses metadata that cannot be true.
pub(crate) fn examine(metadata: &ParquetMetaData, bytes: u64) -> Result<Readable, Source> {
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
    let mut left_out = Vec::new();
    let columns: Vec<TypePtr> = schema
        .get_fields()
        .iter()
        .filter_map(|field| readable(field, field.name(), false, &mut left_out).transpose())
        .collect::<Result<_, _>>()?;
    if columns.is_empty() {
        let found = match left_out.as_slice() {
            [] => "none".to_owned(),
            left_out => left_out.join(", "),
        };
        return Err(fault("a column that can be read", found));
    }
    Ok(Readable {
        rows,
        columns: Type::group_type_builder(schema.name())
            .with_fields(columns)
            .build()?,
        left_out,
    })
}

/// The bytes of each column of each row group, after [`examine`].
pub(super) fn columns_of(metadata: &ParquetMetaData) -> impl Iterator<Item = Range<u64>> {
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

/// A column without the leaves that cannot be read; `None` if no leaf is left.
fn readable(
    field: &TypePtr,
    path: &str,
    beside_path: bool,
    left_out: &mut Vec<String>,
) -> Result<Option<TypePtr>, Source> {
    if field.is_primitive() {
        if is_readable(field) && !(beside_path && field.name() == "bytes") {
            return Ok(Some(Arc::clone(field)));
        }
        left_out.push(format!("{path} ({})", kind(field)));
        return Ok(None);
    }
    let of = Nesting::of(field);
    let fields = field.get_fields();
    // How `datasets` keeps images and sounds: a file's bytes beside its name.
    let has_path = fields.iter().any(|field| field.name() == "path");
    let mut kept = Vec::with_capacity(fields.len());
    for child in fields {
        let path = of.path_of(path, child);
        kept.extend(readable(child, &path, has_path, left_out)?);
    }
    // The reader tells lists and maps by how many fields they have.
    let changes = kept.len() < fields.len() && matches!(of, Nesting::Repeated | Nesting::Entries);
    if kept.is_empty() || changes && kept.len() == 1 {
        return Ok(None);
    }
    let info = field.get_basic_info();
    let mut built = Type::group_type_builder(field.name())
        .with_converted_type(of.converted_type(info.converted_type()))
        .with_logical_type(info.logical_type_ref().cloned())
        .with_fields(kept);
    if info.has_repetition() {
        built = built.with_repetition(info.repetition());
    }
    Ok(Some(Arc::new(built.build()?)))
}

/// What a group stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nesting {
    /// A struct.
    Struct,
    /// A list, whose only field is repeated.
    List,
    /// A map, whose only field is its entries.
    Map,
    /// The repeated field of a list.
    Repeated,
    /// The entries of a map.
    Entries,
}

impl Nesting {
    fn of(field: &Type) -> Self {
        let info = field.get_basic_info();
        match (info.converted_type(), info.logical_type_ref()) {
            (ConvertedType::LIST, _) | (_, Some(LogicalType::List)) => Self::List,
            (ConvertedType::MAP, _) | (_, Some(LogicalType::Map)) => Self::Map,
            // Old writers say it of the entries, and of the map.
            (ConvertedType::MAP_KEY_VALUE, _) if field.get_fields().len() == 1 => Self::Map,
            (ConvertedType::MAP_KEY_VALUE, _) => Self::Entries,
            _ if !info.has_repetition() || info.repetition() != Repetition::REPEATED => {
                Self::Struct
            }
            _ if field.get_fields().len() == 2 && field.name() == "key_value" => Self::Entries,
            _ => Self::Repeated,
        }
    }

    /// The name that people know a leaf by: without the fields that only make a list.
    fn path_of(self, path: &str, child: &Type) -> String {
        match self {
            Self::List => format!("{path}[]"),
            Self::Map => path.to_owned(),
            Self::Repeated if ["element", "item", "array"].contains(&child.name()) => {
                path.to_owned()
            }
            Self::Struct | Self::Repeated | Self::Entries => format!("{path}.{}", child.name()),
        }
    }

    /// The older annotation, which is the one that the reader knows.
    fn converted_type(self, given: ConvertedType) -> ConvertedType {
        match (self, given) {
            (Self::List, ConvertedType::NONE) => ConvertedType::LIST,
            (Self::Map, ConvertedType::NONE) => ConvertedType::MAP,
            _ => given,
        }
    }
}

/// Whether the reader gives the values of a leaf, and JSON can hold them.
fn is_readable(leaf: &Type) -> bool {
    let converted = leaf.get_basic_info().converted_type();
    let is_decimal = converted == ConvertedType::DECIMAL;
    if is_decimal && !(0..=MAX_SCALE).contains(&leaf.get_scale()) {
        return false;
    }
    match leaf.get_physical_type() {
        Physical::BOOLEAN | Physical::FLOAT | Physical::DOUBLE => converted == ConvertedType::NONE,
        Physical::INT32 => {
            is_integer(converted)
                || is_decimal
                || matches!(converted, ConvertedType::DATE | ConvertedType::TIME_MILLIS)
        }
        Physical::INT64 => {
            is_integer(converted)
                || is_decimal
                || matches!(
                    converted,
                    ConvertedType::TIME_MICROS
                        | ConvertedType::TIMESTAMP_MILLIS
                        | ConvertedType::TIMESTAMP_MICROS
                )
        }
        Physical::INT96 => converted == ConvertedType::NONE,
        Physical::BYTE_ARRAY => {
            is_decimal
                || matches!(
                    converted,
                    ConvertedType::NONE
                        | ConvertedType::UTF8
                        | ConvertedType::ENUM
                        | ConvertedType::JSON
                )
        }
        Physical::FIXED_LEN_BYTE_ARRAY => {
            let logical = leaf.get_basic_info().logical_type_ref();
            is_decimal || matches!(logical, Some(LogicalType::Uuid | LogicalType::Float16))
        }
    }
}

fn is_integer(converted: ConvertedType) -> bool {
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
    )
}

/// A leaf's type, as Parquet's tools print it.
fn kind(leaf: &Type) -> String {
    let physical = leaf.get_physical_type();
    match leaf.get_basic_info().converted_type() {
        ConvertedType::NONE => physical.to_string(),
        converted => format!("{physical}, {converted}"),
    }
}
