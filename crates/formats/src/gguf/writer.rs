//! Writing GGUF files one tensor at a time.

use std::path::PathBuf;

use super::entry::{Entry, EntryValue, put_text};
use super::ggml_type::GgmlType;
use super::quantize::quantized_bytes;
use super::split::part_path;
use crate::atomic::{AtomicFile, Existing};
use crate::error::{FormatError, Result};

/// Where tensors begin: at multiples of this, the format's default.
const ALIGNMENT: usize = 32;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlan {
    /// Its name.
    pub name: String,
    /// How it is stored.
    pub kind: GgmlType,
    /// Its shape, outermost first.
    pub shape: Vec<usize>,
}

impl TensorPlan {
    /// Its bytes, without what fills up to the next tensor.
    #[must_use]
    pub fn bytes(&self) -> usize {
        quantized_bytes(self.kind, self.shape.iter().product())
    }

    fn padded(&self) -> usize {
        self.bytes().next_multiple_of(ALIGNMENT)
    }
}

/// A GGUF file being written, or the parts of a split one.
///
/// Sizes follow from the announced tensors, whose bytes then come in the same order; no more than one need be in
/// memory. Nothing appears under its name before [`finish`](Self::finish).
#[derive(Debug)]
pub struct GgufWriter {
    path: PathBuf,
    tensors: Vec<TensorPlan>,
    parts: Vec<Part>,
    next: usize,
}

#[derive(Debug)]
struct Part {
    file: AtomicFile,
    path: PathBuf,
    /// One past its last tensor.
    end: usize,
    bytes: u64,
}

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenFile {
    /// Its path.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

impl GgufWriter {
    /// Starts a file with these metadata and tensors. One whose tensors take more than `part_bytes` is split, as
    /// llama.cpp splits it: into `NAME-00001-of-00003.gguf` and so on, all metadata in the first.
    ///
    /// # Errors
    /// If a file cannot be made, or must not be replaced.
    pub fn create(
        path: impl Into<PathBuf>,
        metadata: &[Entry],
        tensors: Vec<TensorPlan>,
        part_bytes: Option<u64>,
        existing: Existing,
    ) -> Result<Self> {
        let path = path.into();
        let ends = part_ends(&tensors, part_bytes.unwrap_or(u64::MAX));
        let mut parts = Vec::new();
        let mut start = 0;
        for (index, &end) in ends.iter().enumerate() {
            let mut entries = if index == 0 {
                metadata.to_vec()
            } else {
                Vec::new()
            };
            if ends.len() > 1 {
                entries.extend(split_entries(index, ends.len(), tensors.len()));
            }
            let path = part_path(&path, index, ends.len());
            let mut file = AtomicFile::create(&path, existing)?;
            let header = header(&entries, &tensors[start..end]);
            file.write_all(&header)?;
            let bytes = header.len() as u64;
            parts.push(Part {
                file,
                path,
                end,
                bytes,
            });
            start = end;
        }
        Ok(Self {
            path,
            tensors,
            parts,
            next: 0,
        })
    }

    /// The tensors that were announced.
    #[must_use]
    pub fn tensors(&self) -> &[TensorPlan] {
        &self.tensors
    }

    /// Writes the bytes of the next tensor.
    ///
    /// # Errors
    /// If all were written or the size is another, or the system refuses.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(tensor) = self.tensors.get(self.next) else {
            return Err(self.order_error("", "more tensors than announced:"));
        };
        if bytes.len() != tensor.bytes() {
            return Err(self.order_error(&tensor.name, "not the announced size:"));
        }
        let padding = [0; ALIGNMENT];
        let padding = &padding[..tensor.padded() - bytes.len()];
        let next = self.next;
        if let Some(part) = self.parts.iter_mut().find(|part| next < part.end) {
            part.file.write_all(bytes)?;
            part.file.write_all(padding)?;
            part.bytes += (bytes.len() + padding.len()) as u64;
        }
        self.next += 1;
        Ok(())
    }

    /// Flushes everything to the disk and gives the files their names.
    ///
    /// # Errors
    /// If a tensor was never written, or the system refuses.
    pub fn finish(self) -> Result<Vec<WrittenFile>> {
        if let Some(missing) = self.tensors.get(self.next) {
            return Err(self.order_error(&missing.name, "never written:"));
        }
        let mut written = Vec::new();
        for part in self.parts {
            part.file.commit()?;
            written.push(WrittenFile {
                path: part.path,
                bytes: part.bytes,
            });
        }
        Ok(written)
    }

    fn order_error(&self, tensor: &str, problem: &'static str) -> FormatError {
        FormatError::WriteOrder {
            path: self.path.clone(),
            tensor: tensor.to_owned(),
            problem,
        }
    }
}

/// The bytes of a file or of all parts together, nearly: parts after the first have small headers of their own.
pub(super) fn file_bytes(metadata: &[Entry], tensors: &[TensorPlan]) -> u64 {
    let data: usize = tensors.iter().map(TensorPlan::padded).sum();
    (header(metadata, tensors).len() + data) as u64
}

/// Where runs of tensors of at most `limit` bytes end, or of one that is larger.
fn part_ends(tensors: &[TensorPlan], limit: u64) -> Vec<usize> {
    let (mut ends, mut bytes) = (Vec::new(), 0u64);
    for (i, tensor) in tensors.iter().enumerate() {
        let size = tensor.padded() as u64;
        if bytes > 0 && bytes.saturating_add(size) > limit {
            ends.push(i);
            bytes = 0;
        }
        bytes += size;
    }
    ends.push(tensors.len());
    ends
}

fn split_entries(index: usize, count: usize, tensors: usize) -> [Entry; 3] {
    [
        Entry::new("split.no", EntryValue::U16(index as u16)),
        Entry::new("split.count", EntryValue::U16(count as u16)),
        Entry::new("split.tensors.count", EntryValue::I32(tensors as i32)),
    ]
}

/// Everything before the data, filled up to where they begin.
fn header(metadata: &[Entry], tensors: &[TensorPlan]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for entry in metadata {
        entry.write(&mut out);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        put_text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for dim in tensor.shape.iter().rev() {
            out.extend((*dim as u64).to_le_bytes());
        }
        out.extend(tensor.kind.id().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += tensor.padded() as u64;
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}
