//! One face for every kind of model on disk.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use backdraft_arch::GgufBlock;
use backdraft_arch::spec::{EMBEDDING, HEAD};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::bnb::{BnbConfig, BnbKind, BnbMaps, BnbTensor};
use crate::error::{FormatError, Result};
use crate::gguf::GgufModel;
use crate::hf_dir::{HfDir, TIE};
use crate::json;
use crate::tensor::{RawTensor, TensorInfo};
use crate::tokenizer_files::TokenizerFiles;
use crate::wrapped::AdapterPrefix;

/// An open model: names, shapes and config are Hugging Face's, whatever the file.
///
/// Headers are checked when it is opened; tensors are read one at a time. The files must not be
/// written to while it is open.
#[derive(Debug)]
#[non_exhaustive]
pub enum ModelSource {
    /// A directory with `config.json` and safetensors.
    Hf(Box<HfDir>),
    /// A GGUF file with a decoder of a supported architecture in it.
    Gguf(Box<GgufModel>),
}

/// Keys of a config that say nothing about the weights.
const VOLATILE: [&str; 5] = [
    "_name_or_path",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

impl ModelSource {
    /// Opens a directory, or a file whose name ends in `.gguf`.
    ///
    /// # Errors
    /// If there is no model, or it is malformed or not supported.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        if !path.exists() {
            return Err(FormatError::NotFound { path });
        }
        let is_gguf = path
            .extension()
            .is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
        if is_gguf && !path.is_dir() {
            GgufModel::open(path).map(|gguf| Self::Gguf(Box::new(gguf)))
        } else {
            let directory = HfDir::open(path)?;
            let directory = match head_contradicts_config(&directory)? {
                true => directory.with_config(TIE, Value::Bool(false)),
                false => directory,
            };
            Ok(Self::Hf(Box::new(directory)))
        }
    }

    /// Whether `config.json` ties the head to the embedding, and the files hold another head: that one
    /// counts, as in transformers, and [`config`](Self::config) says so.
    #[must_use]
    pub fn has_untied_head(&self) -> bool {
        match self {
            Self::Hf(directory) => directory.is_corrected(),
            Self::Gguf(_) => false,
        }
    }

    /// The directory or file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Hf(directory) => directory.path(),
            Self::Gguf(gguf) => gguf.path(),
        }
    }

    /// `config.json`, or its equivalent; always an object; of a model with more parts, that of its decoder.
    /// `tie_word_embeddings` is that of the tensors.
    #[must_use]
    pub fn config(&self) -> &Value {
        match self {
            Self::Hf(directory) => directory.config(),
            Self::Gguf(gguf) => gguf.config(),
        }
    }

    /// The whole `config.json`, be it of a model with more parts than its decoder.
    #[must_use]
    pub fn whole_config(&self) -> &Value {
        match self {
            Self::Hf(directory) => directory.whole_config(),
            Self::Gguf(gguf) => gguf.config(),
        }
    }

    /// Whether the model has more parts than its decoder.
    #[must_use]
    pub fn is_wrapped(&self) -> bool {
        matches!(self, Self::Hf(directory) if directory.is_wrapped())
    }

    /// The names of an adapter's modules by the class that serves this model.
    #[must_use]
    pub fn adapter_prefix(&self) -> AdapterPrefix {
        match self.is_wrapped() {
            true => AdapterPrefix::Wrapped,
            false => AdapterPrefix::Text,
        }
    }

    /// The parts that [`other_names`](Self::other_names) belong to, such as `vision_tower`.
    #[must_use]
    pub fn other_parts(&self) -> BTreeSet<&str> {
        let parts = self.other_names().filter_map(|name| {
            let inner = name.strip_prefix("model.").unwrap_or(name);
            inner.split('.').next()
        });
        parts.collect()
    }

    /// The tensors of the model's other parts, by the names that they have in the files: towers for images or sound, which
    /// are not loaded and not among [`tensor_names`](Self::tensor_names).
    pub fn other_names(&self) -> impl Iterator<Item = &str> {
        let directory = match self {
            Self::Hf(directory) => Some(directory.other_names()),
            Self::Gguf(_) => None,
        };
        directory.into_iter().flatten()
    }

    /// The name that a tensor has in the files of a Hugging Face directory: another one than its own in a model with more
    /// parts.
    #[must_use]
    pub fn stored_name<'a>(&'a self, name: &'a str) -> &'a str {
        match self {
            Self::Hf(directory) => directory.stored_name(name),
            Self::Gguf(_) => name,
        }
    }

    /// The file that the config comes from.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        match self {
            Self::Hf(directory) => directory.config_path(),
            Self::Gguf(gguf) => gguf.path().into(),
        }
    }

    /// Every tensor's name, as Hugging Face spells it, in the order of the files.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        let (directory, gguf) = match self {
            Self::Hf(directory) => (Some(directory.tensor_names()), None),
            Self::Gguf(gguf) => (None, Some(gguf.tensor_names())),
        };
        directory
            .into_iter()
            .flatten()
            .chain(gguf.into_iter().flatten())
    }

    /// A tensor's type and shape; a weight is `[out, in]`.
    ///
    /// The type is that of [`raw`](Self::raw).
    #[must_use]
    pub fn tensor_info(&self, name: &str) -> Option<&TensorInfo> {
        match self {
            Self::Hf(directory) => directory.info(name),
            Self::Gguf(gguf) => gguf.info(name),
        }
    }

    /// A floating-point tensor's elements, row-major.
    ///
    /// # Errors
    /// [`FormatError::TensorMissing`], or [`FormatError::TensorDtype`] for a type that is not
    /// floating-point.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        match self {
            Self::Hf(directory) => directory.read_f32(name),
            Self::Gguf(gguf) => gguf.read_f32(name),
        }
    }

    /// A tensor in the type that it is stored in; quantised GGUF types come as `F32`.
    ///
    /// # Errors
    /// [`FormatError::TensorMissing`].
    pub fn raw(&self, name: &str) -> Result<RawTensor<'_>> {
        match self {
            Self::Hf(directory) => directory.raw(name),
            Self::Gguf(gguf) => gguf.raw(name),
        }
    }

    /// A weight in codes of bitsandbytes; `None` where it is stored otherwise. `maps` are the values that
    /// codes stand for.
    ///
    /// # Errors
    /// Parts that do not fit.
    pub fn quantized(&self, name: &str, maps: BnbMaps<'_>) -> Result<Option<BnbTensor<'_>>> {
        match self {
            Self::Hf(directory) => directory.quantized(name, maps),
            Self::Gguf(_) => Ok(None),
        }
    }

    /// How a weight in codes of bitsandbytes is stored; `None` for any other tensor.
    #[must_use]
    pub fn bnb_kind(&self, name: &str) -> Option<BnbKind> {
        match self {
            Self::Hf(directory) => directory.bnb_kind(name),
            Self::Gguf(_) => None,
        }
    }

    /// The type of a tensor's blocks in a GGUF file; `None` for one that is not in blocks, and in any other model.
    #[must_use]
    pub fn block_kind(&self, name: &str) -> Option<GgufBlock> {
        match self {
            Self::Hf(_) => None,
            Self::Gguf(gguf) => gguf.block_kind(name),
        }
    }

    /// A tensor's blocks in a GGUF file, byte for byte, row by row; `None` as for [`block_kind`](Self::block_kind).
    ///
    /// # Errors
    /// [`FormatError::TensorMissing`].
    pub fn blocks(&self, name: &str) -> Result<Option<(GgufBlock, Cow<'_, [u8]>)>> {
        match self {
            Self::Hf(_) => Ok(None),
            Self::Gguf(gguf) => gguf.blocks(name),
        }
    }

    /// The `quantization_config` of a checkpoint of bitsandbytes'.
    #[must_use]
    pub fn quantization(&self) -> Option<&BnbConfig> {
        match self {
            Self::Hf(directory) => directory.quantization(),
            Self::Gguf(_) => None,
        }
    }

    /// How a tensor is stored, as a word: `BF16`, `Q4_1`, `nf4`.
    #[must_use]
    pub fn stored_type(&self, name: &str) -> Option<String> {
        let quantized = match self {
            Self::Hf(directory) => directory.quantized_as(name),
            Self::Gguf(gguf) => gguf.stored_type(name).map(|t| t.to_string()),
        };
        quantized.or_else(|| Some(self.tensor_info(name)?.dtype.to_string()))
    }

    /// Lets the system take back the memory through which a tensor was read: a loader that is done with
    /// it needs no second copy.
    pub fn release(&self, name: &str) {
        match self {
            Self::Hf(directory) => directory.release(name),
            Self::Gguf(gguf) => gguf.release(name),
        }
    }

    /// The tokenizer, the chat template and the special tokens.
    ///
    /// # Errors
    /// If there is no tokenizer, or it is malformed or not supported.
    pub fn tokenizer(&self) -> Result<TokenizerFiles> {
        match self {
            Self::Hf(directory) => {
                let files = TokenizerFiles::read(directory.path())?;
                Ok(match directory.own_tokenizer() {
                    Some(own) => TokenizerFiles {
                        tokenizer_json: own.to_vec(),
                        ..files
                    },
                    None => files,
                })
            }
            Self::Gguf(gguf) => gguf.tokenizer(),
        }
    }

    /// The ids that end generation: those of `generation_config.json`, else of the config.
    ///
    /// # Errors
    /// [`FormatError::JsonField`] if they are neither an id nor a list of ids.
    pub fn eos_token_ids(&self) -> Result<Vec<u32>> {
        if let Self::Hf(directory) = self
            && let Some(generation) = directory.generation_config()
        {
            let ids = token_ids(&directory.generation_config_path(), generation)?;
            if !ids.is_empty() {
                return Ok(ids);
            }
        }
        token_ids(&self.config_path(), self.config())
    }

    /// A hash that tells base models apart, as 64 hexadecimal digits.
    ///
    /// It covers the config, every tensor's name, type and shape, and the bytes of the one-dimensional
    /// tensors (norms and biases), which are small and differ between models of one shape. The same
    /// model in another type or format has another fingerprint.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = Sha256::new();
        if let Value::Object(config) = self.config() {
            let mut keys: Vec<_> = config.iter().collect();
            keys.retain(|(key, _)| !VOLATILE.contains(&key.as_str()));
            keys.sort_by_key(|(key, _)| *key);
            for (key, value) in keys {
                hash.update(format!("{key}={value}\n"));
            }
        }
        let mut names: Vec<_> = self.tensor_names().collect();
        names.sort_unstable();
        for name in names {
            let tensor = self.tensor_info(name);
            let Some(TensorInfo { dtype, shape, .. }) = tensor else {
                continue;
            };
            hash.update(format!("{name} {dtype} {shape:?}\n"));
            if shape.len() == 1 {
                hash.update(&self.raw(name)?.bytes);
            }
        }
        Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
    }

    /// Every file that a Hugging Face directory of this model has beside its weights: config,
    /// generation config, tokenizer, chat template; by name.
    ///
    /// # Errors
    /// If a file cannot be read. A model without a tokenizer has none among its files.
    pub fn companion_files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        match self {
            Self::Hf(directory) => {
                let mut files = copied_companions(directory.path())?;
                if let Some(own) = directory.own_tokenizer() {
                    for (name, bytes) in &mut files {
                        match name.as_str() {
                            TOKENIZER => *bytes = own.to_vec(),
                            "config.json" => *bytes = json::pretty(directory.config()),
                            _ => {}
                        }
                    }
                }
                Ok(files)
            }
            Self::Gguf(gguf) => {
                let mut files = vec![("config.json".to_owned(), json::pretty(gguf.config()))];
                let tokenizer = gguf.tokenizer()?.to_files();
                files.extend(tokenizer.into_iter().map(|(name, b)| (name.into(), b)));
                Ok(files)
            }
        }
    }
}

/// Whether a directory has a head that is not the embedding, although its config ties the two.
fn head_contradicts_config(directory: &HfDir) -> Result<bool> {
    let tied = directory.config().get(TIE) == Some(&Value::Bool(true));
    let (Some(head), Some(embedding)) = (directory.info(HEAD), directory.info(EMBEDDING)) else {
        return Ok(false);
    };
    if !tied {
        return Ok(false);
    }
    let in_codes = |name| directory.bnb_kind(name).is_some();
    if head.shape != embedding.shape || in_codes(HEAD) || in_codes(EMBEDDING) {
        return Ok(true);
    }
    let same = if head.dtype == embedding.dtype {
        directory.raw(HEAD)?.bytes == directory.raw(EMBEDDING)?.bytes
    } else {
        directory.read_f32(HEAD)? == directory.read_f32(EMBEDDING)?
    };
    directory.release(HEAD);
    directory.release(EMBEDDING);
    Ok(!same)
}

/// The file of a tokenizer.
const TOKENIZER: &str = "tokenizer.json";

/// Files beside the weights that belong to a model.
pub(crate) const COMPANIONS: [&str; 14] = [
    "config.json",
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
];

fn copied_companions(directory: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for name in COMPANIONS {
        let path = directory.join(name);
        if path.is_file() {
            files.push((name.to_owned(), json::read_bytes(&path)?));
        }
    }
    Ok(files)
}

fn token_ids(path: &Path, config: &Value) -> Result<Vec<u32>> {
    let value = match config.get("eos_token_id") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(value) => value,
    };
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = match value {
        Value::Array(ids) => ids.iter().map(id).collect(),
        one => id(one).map(|id| vec![id]),
    };
    ids.ok_or_else(|| json::field_error(path, "eos_token_id", "an id, or a list of ids", value))
}

mod more_tokens;
#[cfg(test)]
mod tests;
