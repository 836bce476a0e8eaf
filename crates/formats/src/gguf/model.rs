//! A model in a GGUF file, in Hugging Face's terms.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use backdraft_arch::GgufBlock;
use serde_json::{Value, json};

use super::architectures::Architecture;
use super::config::{self, Sizes};
use super::error::GgufError;
use super::file::{GgufFile, GgufTensor};
use super::ggml_type::GgmlType;
use super::names::{
    LONG_FACTORS, ROPE_FREQS, Rows, SHORT_FACTORS, hugging_face_name, interleaved_row, required,
};
use super::rope_freqs::Llama3Scaling;
use super::tokenizer;
use crate::dtype::{Dtype, f32_bytes};
use crate::error::{FormatError, Result};
use crate::tensor::{RawTensor, TensorInfo};
use crate::tokenizer_files::TokenizerFiles;

/// An open GGUF file that holds a decoder of a supported architecture: `llama` (Mistral's files too), `qwen2`,
/// `qwen3`, `granite`, `smollm3`, `olmo2` (OLMo 3's files too), `gemma2`, `gemma3`, `phi3` or `glm4`.
///
/// Names, shapes and row orders are Hugging Face's; quantised tensors are read as `f32`. The norms of a Gemma, which
/// multiplies by 1 + w, lie in a file as 1 + w, and are read as w.
///
/// The factors of Llama 3.1's rotary scaling lie in a tensor `rope_freqs.weight`. Where the usual
/// parameters reproduce them they appear as `rope_scaling` of type `llama3` in the config, and the
/// tensor is left out; otherwise `rope_scaling` is left as it is and the tensor is listed.
#[derive(Debug)]
pub struct GgufModel {
    file: GgufFile,
    config: Value,
    architecture: Architecture,
    sizes: Sizes,
    tensors: Vec<Entry>,
    index: HashMap<String, usize>,
}

#[derive(Debug)]
struct Entry {
    info: TensorInfo,
    /// The place in the file's list of tensors.
    source: usize,
    rows: Rows,
    /// What its values are more in the file.
    shift: f32,
}

impl GgufModel {
    /// Opens a file, and checks that every feature of the model in it is supported and that no tensor is missing.
    ///
    /// # Errors
    /// [`FormatError::Gguf`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let file = GgufFile::open(path)?;
        match Self::from_file(&file) {
            Ok((config, architecture, sizes, tensors)) => {
                let index = (tensors.iter().enumerate())
                    .map(|(index, entry)| (entry.info.name.clone(), index))
                    .collect();
                Ok(Self {
                    file,
                    config,
                    architecture,
                    sizes,
                    tensors,
                    index,
                })
            }
            Err(source) => Err(FormatError::Gguf {
                path: file.path().into(),
                source,
            }),
        }
    }

    fn from_file(file: &GgufFile) -> Result<(Value, Architecture, Sizes, Vec<Entry>), GgufError> {
        let architecture = config::architecture(file.metadata())?;
        let sizes = config::sizes(file.metadata(), architecture)?;
        let mut tensors = Vec::new();
        for (source, tensor) in file.tensors().iter().enumerate() {
            tensors.push(entry(source, tensor, sizes, architecture)?);
        }
        let mut config = config::config(file, sizes, architecture)?;
        if let Some(tensor) =
            required(sizes.layers, architecture).find(|name| file.tensor(name).is_none())
        {
            return Err(GgufError::TensorMissing { tensor });
        }
        // Those are in the config.
        tensors.retain(|entry| ![LONG_FACTORS, SHORT_FACTORS].contains(&&*entry.info.name));
        if recover_rope_scaling(file, architecture, &mut config)? {
            tensors.retain(|entry| entry.info.name != ROPE_FREQS);
        }
        Ok((config, architecture, sizes, tensors))
    }

    /// The file itself, in its own terms.
    #[must_use]
    pub fn file(&self) -> &GgufFile {
        &self.file
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// What transformers would have written into `config.json`.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Every tensor's Hugging Face name, in the order of the file.
    pub fn tensor_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.iter().map(|entry| entry.info.name.as_str())
    }

    /// A tensor's shape, and the type that [`raw`](Self::raw) gives: `F32` for quantised ones.
    #[must_use]
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.entry(name).map(|entry| &entry.info)
    }

    /// How the file stores a tensor.
    #[must_use]
    pub fn stored_type(&self, name: &str) -> Option<GgmlType> {
        let source = self.entry(name)?.source;
        self.file.tensors().get(source).map(|tensor| tensor.kind)
    }

    /// A tensor's elements.
    ///
    /// # Errors
    /// [`FormatError::TensorMissing`].
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let (entry, tensor) = self.find(name)?;
        let mut values = match self.row_source(entry.rows) {
            Some(source) => self.file.read_f32_rows(tensor, source),
            None => self.file.read_f32(tensor),
        };
        if entry.shift != 0.0 {
            values.iter_mut().for_each(|value| *value -= entry.shift);
        }
        Ok(values)
    }

    /// A tensor's bytes: as stored for F32, F16 and BF16, otherwise dequantised to `F32`.
    ///
    /// # Errors
    /// [`FormatError::TensorMissing`].
    pub fn raw(&self, name: &str) -> Result<RawTensor<'_>> {
        let (entry, tensor) = self.find(name)?;
        let bytes = if plain_dtype(tensor.kind).is_none() || entry.shift != 0.0 {
            Cow::Owned(f32_bytes(&self.read_f32(name)?))
        } else if let Some(source) = self.row_source(entry.rows) {
            Cow::Owned(self.file.byte_rows(tensor, source))
        } else {
            Cow::Borrowed(self.file.bytes(tensor))
        };
        Ok(RawTensor {
            info: Cow::Borrowed(&entry.info),
            bytes,
        })
    }

    /// A tensor's blocks as the file has them, whole rows drawn into Hugging Face's order; `None` for one that is not in
    /// blocks.
    ///
    /// # Errors
    /// [`FormatError::TensorMissing`].
    pub fn blocks(&self, name: &str) -> Result<Option<(GgufBlock, Cow<'_, [u8]>)>> {
        let (entry, tensor) = self.find(name)?;
        let Some(kind) = tensor.kind.block() else {
            return Ok(None);
        };
        let bytes = match self.row_source(entry.rows) {
            Some(source) => Cow::Owned(self.file.byte_rows(tensor, source)),
            None => Cow::Borrowed(self.file.bytes(tensor)),
        };
        Ok(Some((kind, bytes)))
    }

    /// Lets the system take back the memory through which a tensor was read.
    pub fn release(&self, name: &str) {
        if let Ok((_, tensor)) = self.find(name) {
            self.file.release(tensor);
        }
    }

    /// The tokenizer as Hugging Face's `tokenizer.json`, the chat template and the special tokens.
    ///
    /// # Errors
    /// [`FormatError::GgufTokenizer`].
    pub fn tokenizer(&self) -> Result<TokenizerFiles> {
        tokenizer::tokenizer_files(self.file.metadata()).map_err(|source| {
            FormatError::GgufTokenizer {
                path: self.path().into(),
                source,
            }
        })
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.tensors.get(*self.index.get(name)?)
    }

    fn find(&self, name: &str) -> Result<(&Entry, &GgufTensor)> {
        self.entry(name)
            .and_then(|entry| Some((entry, self.file.tensors().get(entry.source)?)))
            .ok_or_else(|| FormatError::TensorMissing {
                path: self.path().into(),
                tensor: name.into(),
            })
    }

    fn row_source(&self, rows: Rows) -> Option<impl Fn(usize) -> usize + Sync + use<>> {
        let head_dim = self.sizes.head_dim;
        let rotary = matches!(rows, Rows::QueryHeads | Rows::KeyHeads);
        (rotary && self.architecture.interleaved())
            .then_some(move |row| interleaved_row(row, head_dim))
    }
}

/// The safetensors type of the same bytes, for types that are not quantised.
fn plain_dtype(kind: GgmlType) -> Option<Dtype> {
    match kind {
        GgmlType::F32 => Some(Dtype::F32),
        GgmlType::F16 => Some(Dtype::F16),
        GgmlType::BF16 => Some(Dtype::BF16),
        _ => None,
    }
}

fn entry(
    source: usize,
    tensor: &GgufTensor,
    sizes: Sizes,
    architecture: Architecture,
) -> Result<Entry, GgufError> {
    let named = hugging_face_name(&tensor.name, sizes.layers, architecture);
    let Some((name, rows)) = named else {
        return Err(GgufError::UnknownTensor {
            tensor: tensor.name.clone(),
            architecture: architecture.name(),
            layers: sizes.layers,
        });
    };
    let heads = match rows {
        Rows::Features => None,
        Rows::QueryHeads => Some(sizes.heads),
        Rows::KeyHeads | Rows::ValueHeads => Some(sizes.key_value_heads),
        Rows::AllHeads => Some(sizes.heads.saturating_add(2 * sizes.key_value_heads)),
        Rows::QueryNorm | Rows::KeyNorm if !architecture.norms_heads_together() => Some(1),
        Rows::QueryNorm => Some(sizes.heads),
        Rows::KeyNorm => Some(sizes.key_value_heads),
    };
    if let Some(heads) = heads {
        // Both factors are below 2^32.
        let expected = heads as u64 * sizes.head_dim as u64;
        if tensor.shape.first().is_none_or(|&n| n as u64 != expected) {
            return Err(GgufError::TensorShape {
                tensor: tensor.name.clone(),
                expected: format!(
                    "{expected} rows ({heads} head{} of {})",
                    if heads == 1 { "" } else { "s" },
                    sizes.head_dim
                ),
                actual: tensor.shape.clone(),
            });
        }
    }
    let shift = architecture.shift(&name);
    let dtype = match plain_dtype(tensor.kind) {
        Some(dtype) if shift == 0.0 => dtype,
        _ => Dtype::F32,
    };
    Ok(Entry {
        info: TensorInfo::new(name, dtype, tensor.shape.clone()),
        source,
        rows,
        shift,
    })
}

/// Puts the factors of `rope_freqs.weight` into the config; `false` where that is not possible.
fn recover_rope_scaling(
    file: &GgufFile,
    architecture: Architecture,
    config: &mut Value,
) -> Result<bool, GgufError> {
    let Some(tensor) = file.tensor(ROPE_FREQS) else {
        return Ok(false);
    };
    let head_dim = config["head_dim"].as_u64().unwrap_or_default();
    if tensor.elements() as u64 != head_dim / 2 {
        return Err(GgufError::TensorShape {
            tensor: ROPE_FREQS.into(),
            expected: format!("[{}]", head_dim / 2),
            actual: tensor.shape.clone(),
        });
    }
    if !config["rope_scaling"].is_null() {
        return Err(GgufError::Feature {
            key: ROPE_FREQS.into(),
            actual: format!("together with {}.rope.scaling", architecture.name()),
        });
    }
    let factors = file.read_f32(tensor);
    if factors.iter().all(|factor| *factor == 1.0) {
        return Ok(true);
    }
    let theta = config["rope_theta"].as_f64().unwrap_or_default();
    let Some(scaling) = Llama3Scaling::recover(&factors, theta) else {
        return Ok(false);
    };
    config["rope_scaling"] = json!({
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position_embeddings,
    });
    Ok(true)
}

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod tests;
