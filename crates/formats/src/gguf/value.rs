//! Metadata of a GGUF file: values, and getters that check their types.

use std::collections::HashMap;
use std::fmt;

use super::error::GgufError;
use super::reader::Reader;

/// The type of a metadata value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the definition")]
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// The fewest bytes that one value takes in the file.
    fn min_size(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => "an unsigned integer",
            Self::I8 | Self::I16 | Self::I32 | Self::I64 => "an integer",
            Self::F32 | Self::F64 => "a floating-point number",
            Self::Bool => "a boolean",
            Self::String => "a string",
            Self::Array => "an array",
        })
    }
}

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum GgufValue {
    /// An unsigned integer of any width.
    Unsigned(u64),
    /// A signed integer of any width.
    Signed(i64),
    /// A number of single precision.
    F32(f32),
    /// A number of double precision.
    F64(f64),
    /// A boolean.
    Bool(bool),
    /// A text.
    String(String),
    /// A list, left in the file.
    Array(GgufArray),
}

impl GgufValue {
    fn value_type(&self) -> ValueType {
        match self {
            Self::Unsigned(_) => ValueType::U64,
            Self::Signed(_) => ValueType::I64,
            Self::F32(_) => ValueType::F32,
            Self::F64(_) => ValueType::F64,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) => ValueType::String,
            Self::Array(_) => ValueType::Array,
        }
    }

    /// Whether the value says "not used": zero, false, the empty text, the empty list.
    pub(super) fn is_inactive(&self) -> bool {
        match self {
            Self::Unsigned(value) => *value == 0,
            Self::Signed(value) => *value == 0,
            Self::F32(value) => *value == 0.0,
            Self::F64(value) => *value == 0.0,
            Self::Bool(value) => !value,
            Self::String(value) => value.is_empty(),
            Self::Array(array) => array.is_empty(),
        }
    }
}

impl fmt::Display for GgufValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(value) => value.fmt(f),
            Self::Signed(value) => value.fmt(f),
            Self::F32(value) => value.fmt(f),
            Self::F64(value) => value.fmt(f),
            Self::Bool(value) => value.fmt(f),
            Self::String(value) => write!(f, "{value:?}"),
            Self::Array(array) => write!(f, "a list of {}", array.len()),
        }
    }
}

/// Where a list lies in the file; its bounds are checked, its elements are read when asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufArray {
    element: ValueType,
    len: usize,
    offset: usize,
    bytes: usize,
}

impl GgufArray {
    /// The type of its elements.
    #[must_use]
    pub fn element_type(&self) -> ValueType {
        self.element
    }

    /// How many elements it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn read(reader: &mut Reader<'_>, key: &str) -> Result<Self, GgufError> {
        let element = value_type(reader, key)?;
        if element == ValueType::Array {
            return Err(GgufError::NestedArray { key: key.into() });
        }
        let count = reader.count(element.min_size(), "elements of a metadata list")?;
        let offset = reader.offset();
        if element == ValueType::String {
            for _ in 0..count {
                reader.string_bytes("a metadata list")?;
            }
        } else {
            // No overflow: the product was checked against the bytes that are left.
            reader.take(count * element.min_size(), "a metadata list")?;
        }
        Ok(Self {
            element,
            len: count as usize,
            offset,
            bytes: reader.offset() - offset,
        })
    }

    fn reader<'a>(&self, file: &'a [u8]) -> Reader<'a> {
        let end = self.offset.saturating_add(self.bytes);
        Reader::new(file.get(self.offset..end).unwrap_or_default())
    }
}

fn value_type(reader: &mut Reader<'_>, key: &str) -> Result<ValueType, GgufError> {
    let id = reader.u32("the type of a metadata value")?;
    ValueType::from_id(id).ok_or_else(|| GgufError::ValueType {
        key: key.into(),
        actual: id,
    })
}

fn read_value(reader: &mut Reader<'_>, key: &str) -> Result<GgufValue, GgufError> {
    const WHAT: &str = "a metadata value";
    let kind = value_type(reader, key)?;
    match kind {
        ValueType::Array => GgufArray::read(reader, key).map(GgufValue::Array),
        ValueType::String => {
            let bytes = reader.string_bytes(WHAT)?;
            match std::str::from_utf8(bytes) {
                Ok(text) => Ok(GgufValue::String(text.into())),
                Err(source) => Err(GgufError::Utf8 {
                    what: format!("the metadata key {key}"),
                    source,
                }),
            }
        }
        ValueType::Bool => match reader.array::<1>(WHAT)? {
            [0] => Ok(GgufValue::Bool(false)),
            [1] => Ok(GgufValue::Bool(true)),
            [actual] => Err(GgufError::Bool {
                key: key.into(),
                actual,
            }),
        },
        _ => read_number(reader, kind),
    }
}

fn read_number(reader: &mut Reader<'_>, kind: ValueType) -> Result<GgufValue, GgufError> {
    const WHAT: &str = "a metadata number";
    Ok(match kind {
        ValueType::U8 => GgufValue::Unsigned(u8::from_le_bytes(reader.array(WHAT)?).into()),
        ValueType::U16 => GgufValue::Unsigned(u16::from_le_bytes(reader.array(WHAT)?).into()),
        ValueType::U32 => GgufValue::Unsigned(reader.u32(WHAT)?.into()),
        ValueType::U64 => GgufValue::Unsigned(reader.u64(WHAT)?),
        ValueType::I8 => GgufValue::Signed(i8::from_le_bytes(reader.array(WHAT)?).into()),
        ValueType::I16 => GgufValue::Signed(i16::from_le_bytes(reader.array(WHAT)?).into()),
        ValueType::I32 => GgufValue::Signed(i32::from_le_bytes(reader.array(WHAT)?).into()),
        ValueType::I64 => GgufValue::Signed(i64::from_le_bytes(reader.array(WHAT)?)),
        ValueType::F32 => GgufValue::F32(f32::from_le_bytes(reader.array(WHAT)?)),
        ValueType::F64 => GgufValue::F64(f64::from_le_bytes(reader.array(WHAT)?)),
        ValueType::Bool => GgufValue::Bool(reader.array::<1>(WHAT)? != [0]),
        // Read by the caller, who knows the key.
        ValueType::String | ValueType::Array => GgufValue::Unsigned(0),
    })
}

/// The metadata of a file, in its order.
#[derive(Debug, Default)]
pub(super) struct Entries {
    entries: Vec<(String, GgufValue)>,
    index: HashMap<String, usize>,
}

impl Entries {
    pub(super) fn read(reader: &mut Reader<'_>, count: u64) -> Result<Self, GgufError> {
        let mut out = Self::default();
        for _ in 0..count {
            let key = reader.string("a metadata key")?;
            let value = read_value(reader, key)?;
            if out.index.insert(key.into(), out.entries.len()).is_some() {
                return Err(GgufError::DuplicateKey { key: key.into() });
            }
            out.entries.push((key.into(), value));
        }
        Ok(out)
    }

    pub(super) fn view<'a>(&'a self, file: &'a [u8]) -> GgufMetadata<'a> {
        GgufMetadata {
            entries: self,
            file,
        }
    }
}

/// The metadata of a GGUF file, with getters that check types.
///
/// A getter returns `None` for a missing key, and an error for one of another type.
#[derive(Debug, Clone, Copy)]
pub struct GgufMetadata<'a> {
    entries: &'a Entries,
    file: &'a [u8],
}

impl<'a> GgufMetadata<'a> {
    /// Every key and value, in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&'a str, &'a GgufValue)> + use<'a> {
        let entries = &self.entries.entries;
        entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of a key, of whatever type.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&'a GgufValue> {
        let index = *self.entries.index.get(key)?;
        self.entries.entries.get(index).map(|(_, value)| value)
    }

    /// An integer of any width that is not negative.
    ///
    /// # Errors
    /// [`GgufError::KeyType`], or [`GgufError::KeyValue`] if it is negative.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Unsigned(value)) => Ok(Some(*value)),
            Some(GgufValue::Signed(value)) => match u64::try_from(*value) {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(GgufError::KeyValue {
                    key: key.into(),
                    expected: "a number that is not negative",
                    actual: value.to_string(),
                }),
            },
            Some(other) => Err(wrong_type(key, "an integer", other)),
        }
    }

    /// A floating-point number of any width.
    ///
    /// # Errors
    /// [`GgufError::KeyType`].
    pub fn f64(&self, key: &str) -> Result<Option<f64>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::F32(value)) => Ok(Some(f64::from(*value))),
            Some(GgufValue::F64(value)) => Ok(Some(*value)),
            Some(other) => Err(wrong_type(key, "a floating-point number", other)),
        }
    }

    /// A boolean.
    ///
    /// # Errors
    /// [`GgufError::KeyType`].
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(wrong_type(key, "a boolean", other)),
        }
    }

    /// A text.
    ///
    /// # Errors
    /// [`GgufError::KeyType`].
    pub fn str(&self, key: &str) -> Result<Option<&'a str>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::String(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(key, "a string", other)),
        }
    }

    /// A list of texts, borrowed from the file.
    ///
    /// # Errors
    /// [`GgufError::KeyType`], or [`GgufError::Utf8`].
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&'a str>>, GgufError> {
        let Some(array) = self.array(key, "a list of strings", |t| t == ValueType::String)? else {
            return Ok(None);
        };
        let mut reader = array.reader(self.file);
        let mut out = Vec::new();
        for index in 0..array.len {
            let bytes = reader.string_bytes("a metadata list")?;
            out.push(
                std::str::from_utf8(bytes).map_err(|source| GgufError::Utf8 {
                    what: format!("entry {index} of {key}"),
                    source,
                })?,
            );
        }
        Ok(Some(out))
    }

    /// A list of integers of any width.
    ///
    /// # Errors
    /// [`GgufError::KeyType`], or [`GgufError::KeyValue`] for one that does not fit.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, GgufError> {
        let is_integer = |kind| {
            !matches!(
                kind,
                ValueType::F32 | ValueType::F64 | ValueType::String | ValueType::Array
            )
        };
        let values = self.numbers(key, "a list of integers", is_integer)?;
        let Some(values) = values else {
            return Ok(None);
        };
        let mut out = Vec::with_capacity(values.len());
        for value in values {
            out.push(match value {
                GgufValue::Signed(value) => value,
                GgufValue::Bool(value) => value.into(),
                GgufValue::Unsigned(value) if i64::try_from(value).is_ok() => value as i64,
                other => {
                    return Err(GgufError::KeyValue {
                        key: key.into(),
                        expected: "a list of integers below 2^63",
                        actual: other.to_string(),
                    });
                }
            });
        }
        Ok(Some(out))
    }

    /// A list of floating-point numbers.
    ///
    /// # Errors
    /// [`GgufError::KeyType`].
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f64>>, GgufError> {
        let is_float = |kind| matches!(kind, ValueType::F32 | ValueType::F64);
        let values = self.numbers(key, "a list of floating-point numbers", is_float)?;
        Ok(values.map(|values| {
            values
                .into_iter()
                .map(|value| match value {
                    GgufValue::F32(value) => f64::from(value),
                    GgufValue::F64(value) => value,
                    _ => f64::NAN,
                })
                .collect()
        }))
    }

    fn numbers(
        &self,
        key: &str,
        expected: &'static str,
        accept: impl Fn(ValueType) -> bool,
    ) -> Result<Option<Vec<GgufValue>>, GgufError> {
        let Some(array) = self.array(key, expected, accept)? else {
            return Ok(None);
        };
        let mut reader = array.reader(self.file);
        (0..array.len)
            .map(|_| read_number(&mut reader, array.element))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    fn array(
        &self,
        key: &str,
        expected: &'static str,
        accept: impl Fn(ValueType) -> bool,
    ) -> Result<Option<&'a GgufArray>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(GgufValue::Array(array)) if accept(array.element) => Ok(Some(array)),
            Some(other) => Err(wrong_type(key, expected, other)),
        }
    }
}

fn wrong_type(key: &str, expected: &'static str, actual: &GgufValue) -> GgufError {
    GgufError::KeyType {
        key: key.into(),
        expected,
        actual: actual.value_type(),
    }
}
