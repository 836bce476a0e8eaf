//! A model in a GGUF file, in Hugging Face's terms.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use backdraft_arch::GgufBlock;
use serde_json::{Value, json};

use super::architectures::{Architecture, LayerKind};
use super::config;
use super::error::GgufError;
use super::file::{GgufFile, GgufTensor};
use super::ggml_type::GgmlType;
use super::keys::Sizes;
use super::names::{LONG_FACTORS, ROPE_FREQS, Rows, SHORT_FACTORS, hugging_face_name, required};
use super::order::{Arrangement, Change, columns_from_file};
use super::rope_freqs::Llama3Scaling;
use super::tokenizer;
use crate::dtype::{Dtype, f32_bytes};
use crate::error::{FormatError, Result};
use crate::tensor::{RawTensor, TensorInfo};
use crate::tokenizer_files::TokenizerFiles;

/// An open GGUF file that holds a decoder of a supported architecture: `llama` (Mistral's files too), `qwen2`,
/// `qwen3`, `qwen35`, `granite`, `smollm3`, `olmo2` (OLMo 3's files too), `gemma2`, `gemma3`, `gemma4`, `phi3` or `glm4`.
///
/// Names, shapes and orders are Hugging Face's; quantised tensors are read as `f32`. Norms that multiply by 1 + w, Gemma 2's,
/// Gemma 3's and Qwen 3.5's, lie in a file as 1 + w, and are read as w. A Qwen 3.5's layers that predict further tokens are left
/// alone.
///
/// The factors of Llama 3.1's rotary scaling lie in a tensor `rope_freqs.weight`. Where the usual
/// parameters reproduce them they appear as `rope_scaling` of type `llama3` in the config, and the
/// tensor is left out; otherwise `rope_scaling` is left as it is and the tensor is listed.
#[derive(Debug)]
pub struct GgufModel {
    file: GgufFile,
    config: Value,
    tensors: Vec<Entry>,
    index: HashMap<String, usize>,
}

/// The taps of a convolution, `[features, 1, taps]`, which a file has without the 1.
pub(super) const CONV: &str = "linear_attn.conv1d.weight";

#[derive(Debug)]
struct Entry {
    info: TensorInfo,
    /// The place in the file's list of tensors.
    source: usize,
    /// Its rows or columns in the file, where they are in another order.
    arrangement: Option<Arrangement>,
    /// What became of its values in the file.
    change: Change,
}

impl Entry {
    /// Whether its rows are in the file as they are, wherever they lie.
    fn has_stored_rows(&self) -> bool {
        self.change == Change::None && !matches!(self.arrangement, Some(Arrangement::Columns(_)))
    }
}

impl GgufModel {
    /// Opens a file, and checks that every feature of the model in it is supported and that no tensor is missing.
    ///
    /// # Errors
    /// [`FormatError::Gguf`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let file = GgufFile::open(path)?;
        match Self::from_file(&file) {
            Ok((config, tensors)) => {
                let index = (tensors.iter().enumerate())
                    .map(|(index, entry)| (entry.info.name.clone(), index))
                    .collect();
                Ok(Self {
                    file,
                    config,
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

    fn from_file(file: &GgufFile) -> Result<(Value, Vec<Entry>), GgufError> {
        let architecture = config::architecture(file.metadata())?;
        let sizes = config::sizes(file.metadata(), architecture)?;
        let mut tensors = Vec::new();
        for (source, tensor) in file.tensors().iter().enumerate() {
            if !predicts_further(&tensor.name, sizes, architecture) {
                tensors.push(entry(source, tensor, sizes, architecture)?);
            }
        }
        // Lists of layers are made next.
        if sizes.layers > file.tensors().len() as u64 {
            return Err(GgufError::KeyValue {
                key: format!("{}.block_count", architecture.name()),
                expected: "no more layers than tensors",
                actual: sizes.layers.to_string(),
            });
        }
        let mut config = config::config(file, sizes, architecture)?;
        let kinds: Vec<_> = (0..sizes.layers as usize)
            .map(|layer| kind(&config, layer))
            .collect();
        if let Some(tensor) =
            required(&kinds, architecture).find(|name| file.tensor(name).is_none())
        {
            return Err(GgufError::TensorMissing { tensor });
        }
        // Those are in the config.
        tensors.retain(|entry| ![LONG_FACTORS, SHORT_FACTORS].contains(&&*entry.info.name));
        if architecture == Architecture::Gemma4
            || recover_rope_scaling(file, architecture, &mut config)?
        {
            tensors.retain(|entry| entry.info.name != ROPE_FREQS);
        }
        Ok((config, tensors))
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
        let mut values = match entry.arrangement {
            Some(Arrangement::Rows(order)) => {
                (self.file).read_f32_rows(tensor, move |row| order.place(row))
            }
            Some(Arrangement::Columns(order)) => {
                let width = tensor.shape.last().copied().unwrap_or_default();
                columns_from_file(&self.file.read_f32(tensor), width, order)
            }
            None => self.file.read_f32(tensor),
        };
        entry.change.undo(&mut values);
        Ok(values)
    }

    /// A tensor's bytes: as stored for F32, F16 and BF16, otherwise dequantised to `F32`.
    ///
    /// # Errors
    /// [`FormatError::TensorMissing`].
    pub fn raw(&self, name: &str) -> Result<RawTensor<'_>> {
        let (entry, tensor) = self.find(name)?;
        let bytes = match entry.arrangement {
            _ if plain_dtype(tensor.kind).is_none() || !entry.has_stored_rows() => {
                Cow::Owned(f32_bytes(&self.read_f32(name)?))
            }
            Some(Arrangement::Rows(order)) => {
                let rows = (self.file).byte_rows(tensor, move |row| order.place(row));
                Cow::Owned(rows)
            }
            _ => Cow::Borrowed(self.file.bytes(tensor)),
        };
        Ok(RawTensor {
            info: Cow::Borrowed(&entry.info),
            bytes,
        })
    }

    /// The type of a tensor's blocks; `None` for one that has none, or whose columns are in another order, which blocks lie
    /// across.
    #[must_use]
    pub fn block_kind(&self, name: &str) -> Option<GgufBlock> {
        let stored = self.entry(name)?.has_stored_rows();
        self.stored_type(name)?.block().filter(|_| stored)
    }

    /// A tensor's blocks as the file has them, whole rows drawn into Hugging Face's order; `None` where
    /// [`block_kind`](Self::block_kind) has none.
    ///
    /// # Errors
    /// [`FormatError::TensorMissing`].
    pub fn blocks(&self, name: &str) -> Result<Option<(GgufBlock, Cow<'_, [u8]>)>> {
        let (entry, tensor) = self.find(name)?;
        let Some(kind) = self.block_kind(name) else {
            return Ok(None);
        };
        let bytes = match entry.arrangement {
            Some(Arrangement::Rows(order)) => {
                let rows = (self.file).byte_rows(tensor, move |row| order.place(row));
                Cow::Owned(rows)
            }
            _ => Cow::Borrowed(self.file.bytes(tensor)),
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

/// Whether a tensor is of a layer behind the last, which predicts further tokens.
fn predicts_further(tensor: &str, sizes: Sizes, architecture: Architecture) -> bool {
    let layer = || -> Option<u64> { tensor.strip_prefix("blk.")?.split('.').next()?.parse().ok() };
    architecture == Architecture::Qwen35 && layer().is_some_and(|layer| layer >= sizes.layers)
}

/// What a layer is, by the config.
fn kind(config: &Value, layer: usize) -> LayerKind {
    match config["layer_types"][layer].as_str() {
        Some("linear_attention") => LayerKind::DeltaNet,
        Some("full_attention") if config["attention_k_eq_v"] == true => LayerKind::ValuesAreKeys,
        _ => LayerKind::Usual,
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
    check_rows(tensor, rows, sizes, architecture)?;
    let arrangement = rows.arrangement(architecture, sizes.head_dim, sizes.delta);
    let change = architecture.change(&name);
    let mut shape = tensor.shape.clone();
    if name.ends_with(CONV) && shape.len() == 2 {
        shape.insert(1, 1);
    }
    let mut entry = Entry {
        info: TensorInfo::new(name, Dtype::F32, shape),
        source,
        arrangement,
        change,
    };
    if let Some(dtype) = plain_dtype(tensor.kind).filter(|_| entry.has_stored_rows()) {
        entry.info.dtype = dtype;
    }
    Ok(entry)
}

/// Refuses a tensor with other rows than the heads that it is of.
fn check_rows(
    tensor: &GgufTensor,
    rows: Rows,
    sizes: Sizes,
    architecture: Architecture,
) -> Result<(), GgufError> {
    // Layers have heads of two sizes there, and rows in Hugging Face's order.
    if sizes.full.is_some() {
        return Ok(());
    }
    let features = sizes.head_dim as u64;
    let (key_value, delta) = (sizes.key_value_heads, sizes.delta);
    let value_features = delta.map_or(0, |delta| delta.value_head_dim as u64);
    let of_queries = match architecture.gates_queries() {
        true => 2 * features,
        false => features,
    };
    let heads = match rows {
        Rows::Features | Rows::DeltaColumns => None,
        Rows::QueryHeads => Some((sizes.heads, of_queries)),
        Rows::KeyHeads | Rows::ValueHeads => Some((key_value, features)),
        Rows::AllHeads => Some((sizes.heads.saturating_add(2 * key_value), features)),
        Rows::QueryNorm | Rows::KeyNorm if !architecture.norms_heads_together() => {
            Some((1, features))
        }
        Rows::QueryNorm => Some((sizes.heads, features)),
        Rows::KeyNorm => Some((key_value, features)),
        Rows::DeltaInputs => delta.map(|delta| {
            let heads = delta
                .num_value_heads
                .saturating_add(2 * delta.num_key_heads);
            (heads, value_features)
        }),
        Rows::DeltaValues => delta.map(|delta| (delta.num_value_heads, value_features)),
        Rows::DeltaHeads => delta.map(|delta| (delta.num_value_heads, 1)),
        Rows::DeltaNorm => Some((1, value_features)),
    };
    // Both factors are below 2^33.
    let needed = heads.map(|(heads, features)| (heads as u64 * features, heads, features));
    // Columns that are drawn apart must be those of the heads.
    let columns = (rows == Rows::DeltaColumns).then_some(delta).flatten();
    let columns = columns.map(|delta| delta.value_width());
    let fits_columns = columns.is_none_or(|width| tensor.shape.last() == Some(&width));
    let first = tensor.shape.first().map(|&rows| rows as u64);
    match needed {
        Some((expected, heads, features)) if first != Some(expected) => {
            Err(GgufError::TensorShape {
                tensor: tensor.name.clone(),
                expected: format!(
                    "{expected} rows ({heads} head{} of {features})",
                    if heads == 1 { "" } else { "s" },
                ),
                actual: tensor.shape.clone(),
            })
        }
        _ if !fits_columns => Err(GgufError::TensorShape {
            tensor: tensor.name.clone(),
            expected: format!("{} columns", columns.unwrap_or_default()),
            actual: tensor.shape.clone(),
        }),
        _ => Ok(()),
    }
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
