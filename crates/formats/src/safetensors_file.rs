//! Safetensors files: a strict, memory-mapped reader.
//!
//! A file is accepted only if its header (at most 100 MB of JSON) names every byte that follows
//! exactly once: tensors without holes, overlaps, duplicates or trailing bytes, each as long as
//! its type and shape say.
//!
//! # Source
//! <https://github.com/huggingface/safetensors#format>

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::dtype::Dtype;
use crate::error::{FormatError, Result};
use crate::mapped::Mapped;
use crate::tensor::{RawTensor, TensorInfo};

/// The longest header that a reader accepts, in bytes.
pub(crate) const MAX_HEADER: u64 = 100_000_000;
/// The header's length field, in bytes.
pub(crate) const LENGTH_FIELD: usize = 8;

/// The rule that a safetensors file breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SafetensorsError {
    /// The file ends inside its header.
    #[error(
        "the file ends inside its header: {expected} bytes needed, {actual} there; it is truncated, or not safetensors"
    )]
    Truncated {
        /// Bytes needed.
        expected: u64,
        /// Bytes in the file.
        actual: u64,
    },
    /// The header is longer than any reader accepts.
    #[error(
        "the header claims {actual} bytes, at most {MAX_HEADER} are allowed; the file is probably not safetensors"
    )]
    HeaderTooLong {
        /// The length claimed.
        actual: u64,
    },
    /// The header is not JSON of the right form.
    #[error("the header is not valid")]
    Header(
        /// Where, and what is wrong.
        #[source]
        serde_json::Error,
    ),
    /// Two tensors of one name.
    #[error("tensor {tensor} appears twice")]
    Duplicate {
        /// The tensor.
        tensor: String,
    },
    /// An element type that this program does not know.
    #[error("tensor {tensor} has the unknown type {actual:?}")]
    UnknownDtype {
        /// The tensor.
        tensor: String,
        /// The type's name.
        actual: String,
    },
    /// A shape whose size does not fit a machine word.
    #[error("tensor {tensor} has the impossible shape {shape:?}")]
    ShapeOverflow {
        /// The tensor.
        tensor: String,
        /// The shape.
        shape: Vec<u64>,
    },
    /// A tensor that does not begin where the one before it ends.
    #[error(
        "tensor {tensor} should start at byte {expected} of the data, but its offsets are {start}..{end}: there is a hole or an overlap"
    )]
    Offsets {
        /// The tensor.
        tensor: String,
        /// Where the tensor before it ends.
        expected: u64,
        /// The start claimed.
        start: u64,
        /// The end claimed.
        end: u64,
    },
    /// A tensor whose byte range is not as long as its type and shape say.
    #[error("tensor {tensor} has {actual} bytes, its type and shape need {expected}")]
    Size {
        /// The tensor.
        tensor: String,
        /// Bytes needed by type and shape.
        expected: u64,
        /// Bytes claimed by the offsets.
        actual: u64,
    },
    /// A file that is shorter or longer than its header says.
    #[error("the header describes a file of {expected} bytes, but it has {actual}{}", if actual < expected { "; it is truncated: fetch or copy it again" } else { "; there are trailing bytes" })]
    FileLength {
        /// Bytes described.
        expected: u64,
        /// Bytes there.
        actual: u64,
    },
}

/// An open safetensors file.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    map: Mapped,
    header: Header,
}

/// The checked contents of a header.
#[derive(Debug)]
struct Header {
    metadata: BTreeMap<String, String>,
    infos: Vec<TensorInfo>,
    /// Byte ranges from the start of the file.
    ranges: Vec<Range<usize>>,
    index: HashMap<String, usize>,
}

impl SafetensorsFile {
    /// Maps a file and checks its header; no tensor is read yet.
    ///
    /// The file must not be written to while it is open.
    ///
    /// # Errors
    /// [`FormatError::Safetensors`] with the rule broken, or the system's refusal.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let map = Mapped::open(&path)?;
        match Header::parse(&map) {
            Ok(header) => Ok(Self { path, map, header }),
            Err(source) => Err(FormatError::Safetensors { path, source }),
        }
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives tensors other names, each to be unlike all others; `None` keeps a name.
    pub(crate) fn rename(&mut self, new_name: impl Fn(&str) -> Option<String>) {
        let header = &mut self.header;
        for (index, info) in header.infos.iter_mut().enumerate() {
            if let Some(name) = new_name(&info.name) {
                header.index.remove(&info.name);
                header.index.insert(name.clone(), index);
                info.name = name;
            }
        }
    }

    /// The header's `__metadata__`.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// Every tensor, in the order of the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.header.infos.iter()
    }

    /// What the file says about a tensor.
    #[must_use]
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        let index = *self.header.index.get(name)?;
        self.header.infos.get(index)
    }

    /// A tensor's bytes, borrowed from the map.
    ///
    /// # Errors
    /// [`FormatError::TensorMissing`].
    pub fn raw(&self, name: &str) -> Result<RawTensor<'_>> {
        let found = self.header.index.get(name).and_then(|&index| {
            let bytes = self.map.get(self.header.ranges.get(index)?.clone())?;
            Some(RawTensor::borrowed(self.header.infos.get(index)?, bytes))
        });
        found.ok_or_else(|| FormatError::TensorMissing {
            path: self.path.clone(),
            tensor: name.into(),
        })
    }

    /// Lets the system take back the memory through which a tensor was read.
    pub fn release(&self, name: &str) {
        let range = self.header.index.get(name);
        if let Some(range) = range.and_then(|&index| self.header.ranges.get(index)) {
            self.map.release(range.clone());
        }
    }

    /// A floating-point tensor's elements.
    ///
    /// # Errors
    /// [`FormatError::TensorMissing`], or [`FormatError::TensorDtype`] for integers and 8-bit
    /// floats.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.raw(name)?;
        tensor.to_f32().ok_or_else(|| FormatError::TensorDtype {
            path: self.path.clone(),
            tensor: name.into(),
            expected: "F32, F16, BF16 or F64",
            actual: tensor.info.dtype,
        })
    }
}

impl Header {
    fn parse(file: &[u8]) -> Result<Self, SafetensorsError> {
        let (start, json) = header_bytes(file)?;
        let raw: RawHeader = serde_json::from_slice(json).map_err(SafetensorsError::Header)?;
        let mut header = Self {
            metadata: raw.metadata,
            infos: Vec::new(),
            ranges: Vec::new(),
            index: HashMap::new(),
        };
        let mut tensors = raw.tensors;
        tensors.sort_by_key(|(_, tensor)| tensor.data_offsets);
        let mut end = 0_u64;
        for (name, tensor) in tensors {
            let info = tensor.check(&name, end)?;
            let range = tensor.data_offsets;
            end = range.1;
            if header
                .index
                .insert(name.clone(), header.infos.len())
                .is_some()
            {
                return Err(SafetensorsError::Duplicate { tensor: name });
            }
            header.infos.push(info);
            header.ranges.push(file_range(start, range, file.len())?);
        }
        let expected = end.saturating_add(start as u64);
        if expected != file.len() as u64 {
            return Err(SafetensorsError::FileLength {
                expected,
                actual: file.len() as u64,
            });
        }
        Ok(header)
    }
}

/// Where the data begins, and the header before it.
fn header_bytes(file: &[u8]) -> Result<(usize, &[u8]), SafetensorsError> {
    let actual = file.len() as u64;
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_FIELD>() else {
        return Err(SafetensorsError::Truncated {
            expected: LENGTH_FIELD as u64,
            actual,
        });
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(SafetensorsError::HeaderTooLong { actual: length });
    }
    // At most 100 MB: fits a usize everywhere.
    let length = length as usize;
    match rest.get(..length) {
        Some(json) => Ok((LENGTH_FIELD + length, json)),
        None => Err(SafetensorsError::Truncated {
            expected: (LENGTH_FIELD + length) as u64,
            actual,
        }),
    }
}

/// A tensor's range in the file, which must lie inside it.
fn file_range(
    start: usize,
    range: (u64, u64),
    length: usize,
) -> Result<Range<usize>, SafetensorsError> {
    let place = |offset: u64| {
        usize::try_from(offset)
            .ok()
            .and_then(|offset| offset.checked_add(start))
            .filter(|&offset| offset <= length)
    };
    match (place(range.0), place(range.1)) {
        (Some(from), Some(to)) => Ok(from..to),
        _ => Err(SafetensorsError::FileLength {
            expected: range.1.saturating_add(start as u64),
            actual: length as u64,
        }),
    }
}

/// One entry of the header, as written.
#[derive(Deserialize)]
struct RawTensorInfo<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl RawTensorInfo<'_> {
    /// Checks an entry against the end of the one before it.
    fn check(&self, name: &str, expected: u64) -> Result<TensorInfo, SafetensorsError> {
        let tensor = || name.to_owned();
        let dtype =
            Dtype::from_name(&self.dtype).ok_or_else(|| SafetensorsError::UnknownDtype {
                tensor: tensor(),
                actual: self.dtype.to_string(),
            })?;
        let (start, end) = self.data_offsets;
        if start != expected || end < start {
            return Err(SafetensorsError::Offsets {
                tensor: tensor(),
                expected,
                start,
                end,
            });
        }
        let overflow = || SafetensorsError::ShapeOverflow {
            tensor: tensor(),
            shape: self.shape.clone(),
        };
        let shape: Option<Vec<usize>> = self
            .shape
            .iter()
            .map(|&dim| usize::try_from(dim).ok())
            .collect();
        let info = TensorInfo::new(name, dtype, shape.ok_or_else(overflow)?);
        let bytes = info.checked_bytes().ok_or_else(overflow)? as u64;
        if bytes != end - start {
            return Err(SafetensorsError::Size {
                tensor: tensor(),
                expected: bytes,
                actual: end - start,
            });
        }
        Ok(info)
    }
}

/// The header as written: entries in order, so that duplicates are seen.
struct RawHeader<'a> {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawTensorInfo<'a>)>,
}

impl<'de: 'a, 'a> Deserialize<'de> for RawHeader<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object from tensor names to {dtype, shape, data_offsets}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut metadata = None;
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                let value = map.next_value::<Option<BTreeMap<String, String>>>()?;
                if metadata.replace(value).is_some() {
                    return Err(A::Error::duplicate_field("__metadata__"));
                }
            } else {
                tensors.push((name, map.next_value()?));
            }
        }
        Ok(RawHeader {
            metadata: metadata.flatten().unwrap_or_default(),
            tensors,
        })
    }
}

#[cfg(test)]
mod tests;
