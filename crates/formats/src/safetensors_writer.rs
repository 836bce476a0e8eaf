//! Writing safetensors files one tensor at a time.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::atomic::{AtomicFile, Existing};
use crate::dtype::from_f32;
use crate::error::{FormatError, Result};
use crate::safetensors_file::{LENGTH_FIELD, MAX_HEADER, SafetensorsError};
use crate::tensor::TensorInfo;

/// A safetensors file being written.
///
/// The header is computed from the announced tensors, whose bytes then come in any order, so no
/// more than one tensor need be in memory. The file appears under its name only when
/// [`finish`](Self::finish) has flushed it to the disk.
#[derive(Debug)]
pub struct SafetensorsWriter {
    file: AtomicFile,
    pending: HashMap<String, Slot>,
}

#[derive(Debug)]
struct Slot {
    info: TensorInfo,
    offset: u64,
    bytes: usize,
}

impl SafetensorsWriter {
    /// Starts a file with metadata `{"format": "pt"}`, as transformers and PEFT expect it.
    ///
    /// # Errors
    /// If two tensors have one name, a size overflows, or the file cannot be made.
    pub fn create(
        path: impl Into<PathBuf>,
        tensors: impl IntoIterator<Item = TensorInfo>,
        existing: Existing,
    ) -> Result<Self> {
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        Self::with_metadata(path, tensors, &metadata, existing)
    }

    /// Starts a file with metadata of the caller's choice.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn with_metadata(
        path: impl Into<PathBuf>,
        tensors: impl IntoIterator<Item = TensorInfo>,
        metadata: &BTreeMap<String, String>,
        existing: Existing,
    ) -> Result<Self> {
        let path = path.into();
        let mut tensors: Vec<_> = tensors.into_iter().collect();
        // Widest first, as the reference writer does: every tensor is aligned to its type.
        tensors.sort_by(|a, b| {
            (b.dtype.size().cmp(&a.dtype.size())).then_with(|| a.name.cmp(&b.name))
        });
        let (header, pending) = match layout(tensors, metadata) {
            Ok(layout) => layout,
            Err(source) => return Err(FormatError::Safetensors { path, source }),
        };
        let mut file = AtomicFile::create(path, existing)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        Ok(Self { file, pending })
    }

    /// Writes a tensor's bytes: little-endian, row-major, of the announced type and shape.
    ///
    /// # Errors
    /// If the tensor was not announced, was written before or has another size, or the system
    /// refuses.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let Some(slot) = self.pending.get(name) else {
            return Err(self.order_error(name, "not announced, or written before:"));
        };
        if slot.bytes != bytes.len() {
            return Err(FormatError::TensorShape {
                path: self.file.target().into(),
                tensor: name.into(),
                expected: format!("{} bytes, given {}", slot.bytes, bytes.len()),
                actual: slot.info.shape.clone(),
            });
        }
        self.file.seek(slot.offset)?;
        self.file.write_all(bytes)?;
        self.pending.remove(name);
        Ok(())
    }

    /// Flushes the file to the disk and gives it its name.
    ///
    /// # Errors
    /// If a tensor was never written, or the system refuses.
    pub fn finish(self) -> Result<()> {
        match self.pending.keys().min() {
            Some(name) => Err(self.order_error(name, "never written:")),
            None => self.file.commit(),
        }
    }

    fn order_error(&self, tensor: &str, problem: &'static str) -> FormatError {
        FormatError::WriteOrder {
            path: self.file.target().into(),
            tensor: tensor.into(),
            problem,
        }
    }
}

/// The padded header, and where each tensor goes in the file.
fn layout(
    tensors: Vec<TensorInfo>,
    metadata: &BTreeMap<String, String>,
) -> Result<(Vec<u8>, HashMap<String, Slot>), SafetensorsError> {
    let mut entries = serde_json::Map::new();
    if !metadata.is_empty() {
        entries.insert("__metadata__".into(), json!(metadata));
    }
    let mut slots = Vec::with_capacity(tensors.len());
    let mut end = 0_u64;
    for info in tensors {
        let overflow = || SafetensorsError::ShapeOverflow {
            tensor: info.name.clone(),
            shape: info.shape.iter().map(|&dim| dim as u64).collect(),
        };
        let bytes = info.checked_bytes().ok_or_else(overflow)?;
        let offset = end;
        end = end.checked_add(bytes as u64).ok_or_else(overflow)?;
        let entry = json!({
            "dtype": info.dtype.name(),
            "shape": info.shape,
            "data_offsets": [offset, end],
        });
        if entries.insert(info.name.clone(), entry).is_some() {
            return Err(SafetensorsError::Duplicate { tensor: info.name });
        }
        slots.push(Slot {
            info,
            offset,
            bytes,
        });
    }
    let mut header = serde_json::Value::Object(entries).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(LENGTH_FIELD), b' ');
    if header.len() as u64 > MAX_HEADER {
        return Err(SafetensorsError::HeaderTooLong {
            actual: header.len() as u64,
        });
    }
    let start = (LENGTH_FIELD + header.len()) as u64;
    let pending = slots
        .into_iter()
        .map(|mut slot| {
            slot.offset += start;
            (slot.info.name.clone(), slot)
        })
        .collect();
    Ok((header, pending))
}

impl TensorInfo {
    /// `values` as bytes of its type, for the file at `path`.
    ///
    /// # Errors
    /// [`FormatError::TensorDtype`] where the type is not a floating-point one.
    pub fn encode(&self, path: &Path, values: &[f32]) -> Result<Vec<u8>> {
        from_f32(self.dtype, values).ok_or_else(|| FormatError::TensorDtype {
            path: path.into(),
            tensor: self.name.clone(),
            expected: "F32, F16, BF16 or F64",
            actual: self.dtype,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;

    #[test]
    fn values_have_no_bytes_of_a_type_without_fractions() {
        let encode =
            |dtype| TensorInfo::new("a", dtype, [2]).encode(Path::new("file"), &[1.0, -2.0]);
        assert_eq!(encode(Dtype::BF16).unwrap(), [0x80, 0x3f, 0, 0xc0]);
        let error = encode(Dtype::I8).unwrap_err().to_string();
        assert_eq!(
            error,
            "file: tensor a is I8, expected F32, F16, BF16 or F64"
        );
    }
}
