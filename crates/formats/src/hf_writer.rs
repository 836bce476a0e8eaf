//! Writing model directories, tensor by tensor.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::atomic::{Existing, write_file};
use crate::atomic_dir::{AtomicDir, IsOurs};
use crate::checkpoint::COMPANIONS;
use crate::error::{FormatError, Result};
use crate::hf_dir::{INDEX, WEIGHTS};
use crate::safetensors_writer::SafetensorsWriter;
use crate::tensor::TensorInfo;

/// Bytes of tensors in one file of a sharded model.
const SHARD_BYTES: usize = 5_000_000_000;

/// A model directory in the making: safetensors in one file or in shards with an index, and the files
/// beside them. It appears whole, or not at all.
#[derive(Debug)]
pub struct HfDirWriter {
    directory: AtomicDir,
    files: Vec<ShardFile>,
    owners: HashMap<String, usize>,
    bytes: usize,
}

#[derive(Debug)]
struct ShardFile {
    name: String,
    tensors: Vec<TensorInfo>,
    pending: usize,
    writer: Option<SafetensorsWriter>,
}

impl HfDirWriter {
    /// Starts a directory that will hold `tensors`, cut into files in this order.
    ///
    /// # Errors
    /// A target that exists and must not be replaced, or a system that refuses.
    pub fn create(
        out: impl Into<PathBuf>,
        tensors: Vec<TensorInfo>,
        existing: Existing,
    ) -> Result<Self> {
        let out = out.into();
        // Beside other weights a tokenizer or a template would be another model's.
        let holds_model = [WEIGHTS, INDEX].iter().any(|name| out.join(name).is_file());
        let is_ours: IsOurs = match holds_model {
            true => Self::is_ours,
            false => is_weights,
        };
        let directory = AtomicDir::create(out, existing, is_ours)?;
        let groups = shards(tensors);
        let count = groups.len();
        let files: Vec<ShardFile> = groups
            .into_iter()
            .enumerate()
            .map(|(i, tensors)| ShardFile {
                name: shard_name(i, count),
                pending: tensors.len(),
                tensors,
                writer: None,
            })
            .collect();
        let mut owners = HashMap::new();
        for (i, file) in files.iter().enumerate() {
            owners.extend(file.tensors.iter().map(|info| (info.name.clone(), i)));
        }
        Ok(Self {
            directory,
            files,
            owners,
            bytes: 0,
        })
    }

    /// Whether a file inside a model's directory is one that a writer may have left.
    #[must_use]
    pub fn is_ours(file: &Path) -> bool {
        is_weights(file) || is_companion(file)
    }

    /// Writes a file beside the weights.
    ///
    /// # Errors
    /// The system refuses.
    pub fn companion(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_file(self.directory.path().join(name), bytes, Existing::Refuse)
    }

    /// Writes a tensor's bytes: little-endian, row-major, of the announced type and shape.
    ///
    /// # Errors
    /// A tensor that was not announced or has another size, or a system that refuses.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let Some(file) = self.owners.get(name).and_then(|&i| self.files.get_mut(i)) else {
            return Err(FormatError::WriteOrder {
                path: self.directory.target().to_owned(),
                tensor: name.to_owned(),
                problem: "not announced:",
            });
        };
        let mut writer = match file.writer.take() {
            Some(writer) => writer,
            None => SafetensorsWriter::create(
                self.directory.path().join(&file.name),
                std::mem::take(&mut file.tensors),
                Existing::Refuse,
            )?,
        };
        writer.write(name, bytes)?;
        self.bytes += bytes.len();
        file.pending -= 1;
        if file.pending == 0 {
            return writer.finish();
        }
        file.writer = Some(writer);
        Ok(())
    }

    /// Gives the directory its name; returns the bytes of all tensors.
    ///
    /// # Errors
    /// A tensor that was never written, or a system that refuses.
    pub fn finish(mut self) -> Result<usize> {
        for file in &mut self.files {
            if let Some(writer) = file.writer.take() {
                // Names the tensor that is missing.
                writer.finish()?;
            }
            if let (true, Some(tensor)) = (file.pending > 0, file.tensors.first()) {
                return Err(FormatError::WriteOrder {
                    path: self.directory.target().to_owned(),
                    tensor: tensor.name.clone(),
                    problem: "never written:",
                });
            }
        }
        if self.files.len() > 1 {
            let map: serde_json::Map<_, _> = self
                .owners
                .iter()
                .map(|(tensor, &i)| (tensor.clone(), self.files[i].name.clone().into()))
                .collect();
            let index = serde_json::json!({
                "metadata": {"total_size": self.bytes}, "weight_map": map,
            });
            self.companion(INDEX, index.to_string().as_bytes())?;
        }
        self.directory.commit()?;
        Ok(self.bytes)
    }
}

/// Runs of tensors of at most [`SHARD_BYTES`], or of one larger tensor.
fn shards(tensors: Vec<TensorInfo>) -> Vec<Vec<TensorInfo>> {
    let (mut shards, mut shard, mut bytes) = (Vec::new(), Vec::new(), 0usize);
    for info in tensors {
        let size = info.checked_bytes().unwrap_or(usize::MAX);
        if !shard.is_empty() && bytes.saturating_add(size) > SHARD_BYTES {
            shards.push(std::mem::take(&mut shard));
            bytes = 0;
        }
        bytes = bytes.saturating_add(size);
        shard.push(info);
    }
    shards.push(shard);
    shards
}

/// Whether a file holds weights, or says which files do.
fn is_weights(file: &Path) -> bool {
    file.to_str()
        .is_some_and(|name| name == WEIGHTS || name == INDEX || is_shard(name))
}

fn is_companion(file: &Path) -> bool {
    file.to_str().is_some_and(|name| COMPANIONS.contains(&name))
}

/// `model-00001-of-00002.safetensors`
fn is_shard(name: &str) -> bool {
    let numbers = name
        .strip_prefix("model-")
        .and_then(|name| name.strip_suffix(".safetensors"))
        .and_then(|numbers| numbers.split_once("-of-"));
    let is_number = |text: &str| text.len() >= 5 && text.bytes().all(|b| b.is_ascii_digit());
    numbers.is_some_and(|(index, count)| is_number(index) && is_number(count))
}

fn shard_name(index: usize, count: usize) -> String {
    if count == 1 {
        WEIGHTS.to_owned()
    } else {
        format!("model-{:05}-of-{count:05}.safetensors", index + 1)
    }
}
