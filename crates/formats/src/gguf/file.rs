//! The container: header, metadata, tensor directory, data.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::dequantize::{dequantize, dequantize_serial};
use super::error::GgufError;
use super::ggml_type::{GgmlType, unsupported_name};
use super::reader::Reader;
use super::split::other_parts;
use super::value::{Entries, GgufMetadata};
use crate::error::{FormatError, Result};
use crate::mapped::Mapped;
use crate::tensor::checked_product;

use rayon::prelude::*;

const MAGIC: [u8; 4] = *b"GGUF";
const DEFAULT_ALIGNMENT: u32 = 32;
const MAX_ALIGNMENT: u32 = 1 << 20;
const MAX_DIMENSIONS: u32 = 4;
/// The fewest bytes of a metadata entry: key length, type, one byte of value.
const MIN_ENTRY: u64 = 13;
/// The fewest bytes of a tensor's entry: name length, dimension count, type, offset.
const MIN_TENSOR: u64 = 24;

/// What a GGUF file says about a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// The name in the file.
    pub name: String,
    /// How its elements are stored.
    pub kind: GgmlType,
    /// The shape, outermost first (the file has it reversed).
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub range: Range<usize>,
    /// Which file of a model in several, counted from 0.
    pub part: usize,
}

impl GgufTensor {
    /// The number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        // Cannot overflow: the size was checked against the file.
        self.shape.iter().product()
    }
}

/// An open GGUF file: every length, offset and name in it is checked.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    /// One for each part of a split model.
    maps: Vec<Mapped>,
    directory: Directory,
}

#[derive(Debug)]
struct Directory {
    version: u32,
    metadata: Entries,
    tensors: Vec<GgufTensor>,
    index: HashMap<String, usize>,
}

impl GgufFile {
    /// Maps a file and checks its header; no tensor is read yet.
    ///
    /// The file must not be written to while it is open.
    ///
    /// # Errors
    /// [`FormatError::Gguf`] with what is wrong, or the system's refusal.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let mut maps = vec![Mapped::open(&path)?];
        let wrong = |path: &Path| {
            let path = path.to_owned();
            |source| FormatError::Gguf { path, source }
        };
        let mut directory = Directory::read(&maps[0]).map_err(wrong(&path))?;
        let others = other_parts(&path, directory.metadata.view(&maps[0]));
        let others = others.map_err(wrong(&path))?;
        for (index, part) in others.iter().enumerate() {
            let map = Mapped::open(part)?;
            let added = Directory::read(&map)
                .and_then(|added| directory.add(added, &map, index + 1, others.len() + 1, part));
            added.map_err(wrong(part))?;
            maps.push(map);
        }
        let counted = directory.check_count(&maps[0], &path);
        counted.map_err(wrong(&path))?;
        Ok(Self {
            path,
            maps,
            directory,
        })
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version of the format: 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.directory.version
    }

    /// The metadata.
    #[must_use]
    pub fn metadata(&self) -> GgufMetadata<'_> {
        self.directory.metadata.view(&self.maps[0])
    }

    /// Every tensor, in the order of the file's directory.
    #[must_use]
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.directory.tensors
    }

    /// What the file says about a tensor.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors().get(*self.directory.index.get(name)?)
    }

    /// A tensor's bytes as they are stored.
    #[must_use]
    pub fn bytes(&self, tensor: &GgufTensor) -> &[u8] {
        let map = self.maps.get(tensor.part);
        map.and_then(|map| map.get(tensor.range.clone()))
            .unwrap_or_default()
    }

    /// Lets the system take back the memory through which a tensor was read.
    pub(super) fn release(&self, tensor: &GgufTensor) {
        if let Some(map) = self.maps.get(tensor.part) {
            map.release(tensor.range.clone());
        }
    }

    /// A tensor's elements, dequantised, in the file's own row order.
    #[must_use]
    pub fn read_f32(&self, tensor: &GgufTensor) -> Vec<f32> {
        let mut out = vec![0.0; tensor.elements()];
        dequantize(tensor.kind, self.bytes(tensor), &mut out);
        out
    }

    /// A tensor's elements, dequantised, with row `i` taken from row `source(i)` of the file.
    pub(super) fn read_f32_rows(
        &self,
        tensor: &GgufTensor,
        source: impl Fn(usize) -> usize + Sync,
    ) -> Vec<f32> {
        let mut out = vec![0.0; tensor.elements()];
        let (row, row_bytes) = row_size(tensor);
        let bytes = self.bytes(tensor);
        if row > 0 {
            out.par_chunks_mut(row).enumerate().for_each(|(i, out)| {
                let from = source(i) * row_bytes;
                let bytes = bytes.get(from..from + row_bytes).unwrap_or_default();
                dequantize_serial(tensor.kind, bytes, out);
            });
        }
        out
    }

    /// A tensor's stored bytes, with row `i` taken from row `source(i)` of the file.
    pub(super) fn byte_rows(
        &self,
        tensor: &GgufTensor,
        source: impl Fn(usize) -> usize,
    ) -> Vec<u8> {
        let (_, row_bytes) = row_size(tensor);
        let bytes = self.bytes(tensor);
        let mut out = Vec::with_capacity(bytes.len());
        for i in 0..tensor.shape.first().copied().unwrap_or(1) {
            let from = source(i) * row_bytes;
            out.extend_from_slice(bytes.get(from..from + row_bytes).unwrap_or_default());
        }
        out
    }
}

/// Elements and bytes of one row, that is of one entry of the first dimension.
fn row_size(tensor: &GgufTensor) -> (usize, usize) {
    let row: usize = tensor.shape.iter().skip(1).product();
    let blocks = row / tensor.kind.block_elements();
    (row, blocks * tensor.kind.block_bytes())
}

impl Directory {
    fn read(file: &[u8]) -> Result<Self, GgufError> {
        let mut reader = Reader::new(file);
        let version = read_version(&mut reader, file)?;
        let tensor_count = reader.count(MIN_TENSOR, "tensors")?;
        let entry_count = reader.count(MIN_ENTRY, "metadata entries")?;
        let metadata = Entries::read(&mut reader, entry_count)?;
        let alignment = alignment(&metadata.view(file))?;
        let mut entries = Vec::new();
        let mut index = HashMap::new();
        for _ in 0..tensor_count {
            let entry = TensorEntry::read(&mut reader)?;
            if index.insert(entry.name.clone(), entries.len()).is_some() {
                return Err(GgufError::DuplicateTensor { tensor: entry.name });
            }
            entries.push(entry);
        }
        let data = (reader.offset() as u64).next_multiple_of(u64::from(alignment));
        let tensors = entries
            .into_iter()
            .map(|entry| entry.place(data, alignment, file.len() as u64))
            .collect::<Result<Vec<_>, _>>()?;
        refuse_overlaps(&tensors)?;
        Ok(Self {
            version,
            metadata,
            tensors,
            index,
        })
    }
}

impl Directory {
    /// Takes over the tensors of part `number`, of `parts`.
    fn add(
        &mut self,
        part: Self,
        file: &[u8],
        number: usize,
        parts: usize,
        path: &Path,
    ) -> Result<(), GgufError> {
        let metadata = part.metadata.view(file);
        for (key, expected) in [("split.no", number), ("split.count", parts)] {
            check_part(key, path, expected, metadata.unsigned(key)?.unwrap_or(0))?;
        }
        for mut tensor in part.tensors {
            tensor.part = number;
            let name = tensor.name.clone();
            if self.index.insert(name, self.tensors.len()).is_some() {
                return Err(GgufError::DuplicateTensor {
                    tensor: tensor.name,
                });
            }
            self.tensors.push(tensor);
        }
        Ok(())
    }

    /// Whether all parts together have as many tensors as the first promises.
    fn check_count(&self, file: &[u8], path: &Path) -> Result<(), GgufError> {
        let key = "split.tensors.count";
        match self.metadata.view(file).unsigned(key)? {
            None => Ok(()),
            Some(promised) => check_part(key, path, self.tensors.len(), promised),
        }
    }
}

fn check_part(
    key: &'static str,
    part: &Path,
    expected: usize,
    actual: u64,
) -> Result<(), GgufError> {
    if actual == expected as u64 {
        return Ok(());
    }
    let part = part.file_name().unwrap_or_default();
    Err(GgufError::SplitPart {
        key,
        part: part.to_string_lossy().into_owned(),
        expected: expected as u64,
        actual,
    })
}

fn read_version(reader: &mut Reader<'_>, file: &[u8]) -> Result<u32, GgufError> {
    let magic = file.get(..4).unwrap_or(file);
    if magic != MAGIC {
        return Err(GgufError::Magic {
            actual: magic.into(),
        });
    }
    reader.take(4, "the magic number")?;
    match reader.u32("the version")? {
        version @ (2 | 3) => Ok(version),
        // A small number with its bytes reversed.
        version if version != 0 && version.trailing_zeros() >= 16 => Err(GgufError::BigEndian),
        actual => Err(GgufError::Version { actual }),
    }
}

fn alignment(metadata: &GgufMetadata<'_>) -> Result<u32, GgufError> {
    let Some(value) = metadata.unsigned("general.alignment")? else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    let value = u32::try_from(value).unwrap_or(u32::MAX);
    if value.is_power_of_two() && value <= MAX_ALIGNMENT {
        Ok(value)
    } else {
        Err(GgufError::Alignment { actual: value })
    }
}

/// A tensor's entry in the directory, before its offset is known to be sound.
struct TensorEntry {
    name: String,
    kind: GgmlType,
    shape: Vec<u64>,
    offset: u64,
}

impl TensorEntry {
    fn read(reader: &mut Reader<'_>) -> Result<Self, GgufError> {
        let name = reader.string("a tensor's name")?.to_owned();
        let dimensions = reader.u32("a tensor's number of dimensions")?;
        if dimensions > MAX_DIMENSIONS {
            return Err(GgufError::Dimensions {
                tensor: name,
                actual: dimensions,
            });
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(reader.u64("a tensor's shape")?);
        }
        shape.reverse();
        let id = reader.u32("a tensor's type")?;
        let Some(kind) = GgmlType::from_id(id) else {
            return Err(GgufError::TensorType {
                tensor: name,
                actual: unsupported_name(id),
            });
        };
        let offset = reader.u64("a tensor's offset")?;
        Ok(Self {
            name,
            kind,
            shape,
            offset,
        })
    }

    fn place(self, data: u64, alignment: u32, file: u64) -> Result<GgufTensor, GgufError> {
        let bytes = self.size()?;
        let Self {
            name: tensor,
            kind,
            shape,
            offset,
        } = self;
        if !offset.is_multiple_of(u64::from(alignment)) {
            return Err(GgufError::Misaligned {
                tensor,
                offset,
                alignment,
            });
        }
        let start = data.saturating_add(offset);
        let end = start.saturating_add(bytes);
        if end > file {
            return Err(GgufError::OutOfBounds {
                tensor,
                start,
                end,
                actual: file,
            });
        }
        // Inside the map, and each dimension at most eight times as many: all fit a usize.
        Ok(GgufTensor {
            name: tensor,
            kind,
            shape: shape.into_iter().map(|dim| dim as usize).collect(),
            range: start as usize..end as usize,
            part: 0,
        })
    }

    /// The bytes that shape and type need.
    fn size(&self) -> Result<u64, GgufError> {
        let overflow = || GgufError::ShapeOverflow {
            tensor: self.name.clone(),
            shape: self.shape.clone(),
        };
        let shape: Option<Vec<usize>> = (self.shape.iter())
            .map(|&dim| usize::try_from(dim).ok())
            .collect();
        let shape = shape.ok_or_else(overflow)?;
        let elements = checked_product(&shape).ok_or_else(overflow)?;
        let row = shape.last().copied().unwrap_or(1);
        let block = self.kind.block_elements();
        if !row.is_multiple_of(block) {
            return Err(GgufError::RowLength {
                tensor: self.name.clone(),
                expected: block,
                actual: row,
            });
        }
        // A dimension of zero hides the others from the product; none may be absurd.
        if elements == 0 && shape.iter().any(|&dim| dim > u32::MAX as usize) {
            return Err(overflow());
        }
        (elements / block)
            .checked_mul(self.kind.block_bytes())
            .map(|bytes| bytes as u64)
            .ok_or_else(overflow)
    }
}

fn refuse_overlaps(tensors: &[GgufTensor]) -> Result<(), GgufError> {
    let mut order: Vec<_> = tensors.iter().filter(|t| !t.range.is_empty()).collect();
    order.sort_by_key(|tensor| tensor.range.start);
    for (first, second) in order.iter().zip(order.iter().skip(1)) {
        if first.range.end > second.range.start {
            return Err(GgufError::Overlap {
                first: first.name.clone(),
                second: second.name.clone(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
