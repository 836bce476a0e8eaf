//! Model directories as Hugging Face lays them out.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use backdraft_arch::decoder_config;
use backdraft_arch::spec::HEAD;
use backdraft_arch::wrapped::TEXT_CONFIG;
use serde::Deserialize;
use serde_json::Value;

use crate::bnb::{self, BnbConfig, BnbKind, BnbMaps, BnbTensor, Entry, Lookup};
use crate::error::{FormatError, Result};
use crate::json;
use crate::safetensors_file::SafetensorsFile;
use crate::tensor::{RawTensor, TensorInfo};
use crate::wrapped::{Wrapped, decoder_name};

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
/// The weights, if they are in one file.
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// Which file has which tensor, if there are several.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Whether the head is the embedding.
pub(crate) const TIE: &str = "tie_word_embeddings";

/// File endings of formats that can run code when they are loaded.
const PICKLES: [&str; 5] = ["bin", "pt", "pth", "pkl", "ckpt"];

/// An open model directory: `config.json`, and one or several safetensors files.
#[derive(Debug)]
pub struct HfDir {
    path: PathBuf,
    config: Value,
    corrected: bool,
    generation_config: Option<Value>,
    /// Tensor names in the order of the files, without the parts of quantised weights.
    names: Vec<String>,
    files: Files,
    quantization: Option<BnbConfig>,
    quantized: HashMap<String, Entry>,
    wrapped: Option<Wrapped>,
    /// Tables of tokens that have more rows than in the files; those are zero.
    extended: HashMap<String, TensorInfo>,
    /// In place of the directory's `tokenizer.json`.
    tokenizer: Option<Vec<u8>>,
}

/// Every tensor of the files.
#[derive(Debug)]
struct Files {
    path: PathBuf,
    shards: Vec<SafetensorsFile>,
    index: HashMap<String, usize>,
}

impl Lookup for Files {
    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.shards.get(*self.index.get(name)?)?.info(name)
    }

    fn raw(&self, name: &str) -> Result<RawTensor<'_>> {
        let shard = self.index.get(name).and_then(|&i| self.shards.get(i));
        shard
            .ok_or_else(|| FormatError::TensorMissing {
                path: self.path.clone(),
                tensor: name.into(),
            })?
            .raw(name)
    }
}

impl HfDir {
    /// Opens a directory and checks every header; no tensor is read yet.
    ///
    /// # Errors
    /// If a file is missing or malformed, the index disagrees with its shards, or the weights are
    /// a pickle.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        if !path.exists() {
            return Err(FormatError::NotFound { path });
        }
        if !path.join(CONFIG).is_file() {
            return Err(not_a_model(path));
        }
        let mut config = json::read::<Value>(&path.join(CONFIG))?;
        if !config.is_object() {
            return Err(json::field_error(
                &path.join(CONFIG),
                "(the whole file)",
                "an object",
                &config,
            ));
        }
        let generation_config = json::read_optional(&path.join(GENERATION_CONFIG))?;
        let mut quantization = BnbConfig::read(&path.join(CONFIG), &config)?;
        let (mut shards, mut names) = open_weights(&path)?;
        with_base_prefix(&mut shards, &mut names);
        let mut wrapped = unwrap(&path, &mut config, &mut shards, &mut names)?;
        if let Some(quantization) = quantization.as_mut().filter(|_| wrapped.is_some()) {
            for module in &mut quantization.skip_modules {
                if let Some(own) = decoder_name(&format!("{module}.")) {
                    *module = own.trim_end_matches('.').to_owned();
                }
            }
        }
        let files = Files {
            path: path.clone(),
            shards,
            index: names.iter().cloned().collect(),
        };
        let names = names.into_iter().map(|(name, _)| name);
        let (mut names, quantized) = if quantization.is_some() {
            let names: Vec<String> = names.collect();
            let (quantized, parts) = bnb::find(&path, names.iter().map(String::as_str), &files)?;
            let parts: HashSet<String> = parts.into_iter().collect();
            let names = names.into_iter().filter(|name| !parts.contains(name));
            (names.collect(), quantized)
        } else {
            (names.collect(), HashMap::new())
        };
        if let Some(wrapped) = &mut wrapped {
            wrapped.keep_others(&mut names);
        }
        Ok(Self {
            path,
            config,
            corrected: false,
            generation_config,
            names,
            files,
            quantization,
            quantized,
            wrapped,
            extended: HashMap::new(),
            tokenizer: None,
        })
    }

    /// The same directory for a vocabulary of `rows` tokens: `tables` get rows of zeros after those of the files.
    ///
    /// # Errors
    /// [`FormatError::TensorQuantized`] for a table in codes.
    pub(crate) fn with_rows(mut self, tables: &[&str], rows: usize) -> Result<Self> {
        for table in tables {
            self.refuse_quantized(table)?;
            if let Some(info) = self.files.info(table)
                && info.shape.first().is_some_and(|&there| there < rows)
            {
                let mut info = info.clone();
                info.shape[0] = rows;
                self.extended.insert((*table).to_owned(), info);
            }
        }
        self.config["vocab_size"] = rows.into();
        Ok(self)
    }

    /// The same directory with another `tokenizer.json`.
    pub(crate) fn with_tokenizer(mut self, tokenizer_json: Vec<u8>) -> Self {
        self.tokenizer = Some(tokenizer_json);
        self
    }

    /// What stands in place of the directory's `tokenizer.json`.
    pub(crate) fn own_tokenizer(&self) -> Option<&[u8]> {
        self.tokenizer.as_deref()
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`, an object; of a model with more parts, that of its decoder.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The same directory with a value in its config that the tensors contradict put right.
    pub(crate) fn with_config(mut self, key: &str, value: Value) -> Self {
        if let Some(wrapped) = &mut self.wrapped {
            wrapped.config[TEXT_CONFIG][key] = value.clone();
            wrapped.config[key] = value.clone();
        }
        self.config[key] = value;
        self.corrected = true;
        self
    }

    /// The whole `config.json`.
    #[must_use]
    pub fn whole_config(&self) -> &Value {
        let whole = self.wrapped.as_ref().map(|wrapped| &wrapped.config);
        whole.unwrap_or(&self.config)
    }

    /// Whether the model has more parts than its decoder.
    #[must_use]
    pub const fn is_wrapped(&self) -> bool {
        self.wrapped.is_some()
    }

    /// The name that a tensor has in the files.
    #[must_use]
    pub fn stored_name<'a>(&'a self, name: &'a str) -> &'a str {
        let wrapped = self.wrapped.as_ref();
        wrapped.map_or(name, |wrapped| wrapped.stored(name))
    }

    /// The tensors of a model's other parts, which no decoder has: not among [`tensor_names`](Self::tensor_names), and
    /// read like those.
    pub fn other_names(&self) -> impl ExactSizeIterator<Item = &str> {
        let others = self
            .wrapped
            .as_ref()
            .map_or(&[][..], |wrapped| &wrapped.others);
        others.iter().map(String::as_str)
    }

    /// Whether the tensors contradicted the config.
    pub(crate) const fn is_corrected(&self) -> bool {
        self.corrected
    }

    /// Where `config.json` lies.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    /// `generation_config.json`, if there is one.
    #[must_use]
    pub fn generation_config(&self) -> Option<&Value> {
        self.generation_config.as_ref()
    }

    /// Where `generation_config.json` lies, or would.
    #[must_use]
    pub fn generation_config_path(&self) -> PathBuf {
        self.path.join(GENERATION_CONFIG)
    }

    /// The weight files, in order.
    pub fn shards(&self) -> impl ExactSizeIterator<Item = &SafetensorsFile> {
        self.files.shards.iter()
    }

    /// Every tensor's name, in the order of the files; the parts of a quantised weight are not tensors of
    /// their own.
    pub fn tensor_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// What the files say about a tensor; of a quantised weight, the type and shape that it had before.
    #[must_use]
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        if let Some(info) = self.extended.get(name) {
            return Some(info);
        }
        match self.quantized.get(name) {
            Some(entry) => Some(&entry.info),
            None => self.files.info(name),
        }
    }

    /// The config's `quantization_config`, where the checkpoint is quantised.
    #[must_use]
    pub fn quantization(&self) -> Option<&BnbConfig> {
        self.quantization.as_ref()
    }

    /// How a tensor is quantised, as a word; `None` where it is not.
    #[must_use]
    pub fn quantized_as(&self, name: &str) -> Option<String> {
        self.quantized.get(name).map(Entry::describe)
    }

    /// How a weight in codes is stored; `None` for any other tensor.
    #[must_use]
    pub fn bnb_kind(&self, name: &str) -> Option<BnbKind> {
        self.quantized.get(name).map(Entry::kind)
    }

    /// A weight in codes; `None` where it is stored as numbers. `maps` are the values that codes stand for.
    ///
    /// # Errors
    /// Parts that do not fit.
    pub fn quantized(&self, name: &str, maps: BnbMaps<'_>) -> Result<Option<BnbTensor<'_>>> {
        let entry = self.quantized.get(name);
        entry
            .map(|entry| entry.read(&self.path, &self.files, maps))
            .transpose()
    }

    /// A tensor's bytes, borrowed from the map.
    ///
    /// # Errors
    /// [`FormatError::TensorMissing`], [`FormatError::TensorQuantized`].
    pub fn raw(&self, name: &str) -> Result<RawTensor<'_>> {
        self.refuse_quantized(name)?;
        let raw = self.files.raw(name)?;
        let Some(info) = self.extended.get(name) else {
            return Ok(raw);
        };
        let mut bytes = raw.bytes.into_owned();
        bytes.resize(info.checked_bytes().unwrap_or(bytes.len()), 0);
        Ok(RawTensor {
            info: Cow::Borrowed(info),
            bytes: Cow::Owned(bytes),
        })
    }

    /// A floating-point tensor's elements.
    ///
    /// # Errors
    /// As [`SafetensorsFile::read_f32`], and [`FormatError::TensorQuantized`].
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.refuse_quantized(name)?;
        let shard = self
            .files
            .index
            .get(name)
            .and_then(|&i| self.files.shards.get(i));
        let mut values = match shard {
            Some(shard) => shard.read_f32(name),
            None => self.files.raw(name).map(|_| Vec::new()),
        }?;
        if let Some(info) = self.extended.get(name) {
            values.resize(info.checked_elements().unwrap_or(values.len()), 0.0);
        }
        Ok(values)
    }

    /// Lets the system take back the memory through which a tensor was read.
    pub fn release(&self, name: &str) {
        if let Some(shard) = self
            .files
            .index
            .get(name)
            .and_then(|&i| self.files.shards.get(i))
        {
            shard.release(name);
        }
    }

    fn refuse_quantized(&self, name: &str) -> Result<()> {
        match self.quantized.get(name) {
            None => Ok(()),
            Some(entry) => Err(FormatError::TensorQuantized {
                path: self.path.clone(),
                tensor: name.into(),
                actual: entry.describe(),
            }),
        }
    }
}

/// What a language model puts before the names of its decoder's tensors.
const BASE_PREFIX: &str = "model.";

/// A checkpoint of the decoder alone, as `AutoModel` saves it, under the names of the language model.
fn with_base_prefix(shards: &mut [SafetensorsFile], names: &mut [(String, usize)]) {
    let is_decoder = names.iter().any(|(name, _)| name == "embed_tokens.weight")
        && !names.iter().any(|(name, _)| name.starts_with(BASE_PREFIX));
    if !is_decoder {
        return;
    }
    let of_decoder = |name: &str| {
        let parts = ["embed_tokens.", "layers.", "norm.", "rotary_emb."];
        let inside = parts.iter().any(|part| name.starts_with(part));
        inside.then(|| format!("{BASE_PREFIX}{name}"))
    };
    for shard in shards {
        shard.rename(of_decoder);
    }
    for (name, _) in names {
        if let Some(renamed) = of_decoder(name) {
            *name = renamed;
        }
    }
}

/// Of a model with more parts: the decoder's config in place of the whole one, and its tensors under the names of a decoder
/// alone.
fn unwrap(
    path: &Path,
    config: &mut Value,
    shards: &mut [SafetensorsFile],
    names: &mut [(String, usize)],
) -> Result<Option<Wrapped>> {
    let Some(decoder) = decoder_config(config) else {
        return Ok(None);
    };
    let whole = std::mem::replace(config, decoder);
    let wrapped = Wrapped::new(path, whole, names.iter().map(|(name, _)| name.as_str()))?;
    if let (Some(tied), Some(Value::Bool(whole))) = (config.get(TIE), wrapped.config.get(TIE))
        && tied != whole
    {
        // Versions of transformers disagree about which of the two counts; the files do not.
        config[TIE] = Value::Bool(!wrapped.has(HEAD));
    }
    for shard in shards {
        shard.rename(decoder_name);
    }
    for (name, _) in names {
        if let Some(renamed) = decoder_name(name) {
            *name = renamed;
        }
    }
    Ok(Some(wrapped))
}

type Weights = (Vec<SafetensorsFile>, Vec<(String, usize)>);

fn open_weights(path: &Path) -> Result<Weights> {
    // The order of transformers: a single file wins over an index.
    if path.join(WEIGHTS).is_file() {
        let file = SafetensorsFile::open(path.join(WEIGHTS))?;
        let names = file.tensors().map(|info| (info.name.clone(), 0)).collect();
        return Ok((vec![file], names));
    }
    if path.join(INDEX).is_file() {
        return open_shards(path, &path.join(INDEX));
    }
    Err(match find_pickle(path) {
        Some(file) => FormatError::Pickle {
            path: path.into(),
            file,
        },
        None => FormatError::NotAModel {
            path: path.into(),
            actual: format!("a directory with {CONFIG} but neither {WEIGHTS} nor {INDEX}"),
        },
    })
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The shards that an index names, each a plain file name.
#[cfg(feature = "hub")]
pub(crate) fn shard_names(index_path: &Path) -> Result<Vec<String>> {
    let Index { weight_map } = json::read(index_path)?;
    for (tensor, shard) in &weight_map {
        check_shard_name(index_path, tensor, shard)?;
    }
    let shards: std::collections::BTreeSet<_> = weight_map.into_values().collect();
    Ok(shards.into_iter().collect())
}

fn open_shards(path: &Path, index_path: &Path) -> Result<Weights> {
    let Index { weight_map } = json::read(index_path)?;
    let mut by_shard: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in &weight_map {
        check_shard_name(index_path, tensor, shard)?;
        by_shard.entry(shard).or_default().push(tensor);
    }
    let mut shards = Vec::new();
    let mut names = Vec::new();
    let mut unlisted: HashMap<String, &str> = HashMap::new();
    for (shard, tensors) in &by_shard {
        let file_path = path.join(shard);
        if !file_path.is_file() {
            return Err(FormatError::ShardMissing {
                path: index_path.into(),
                shard: (*shard).into(),
                tensors: tensors.len(),
            });
        }
        let file = SafetensorsFile::open(file_path)?;
        if let Some(tensor) = tensors.iter().find(|tensor| file.info(tensor).is_none()) {
            return Err(FormatError::ShardTensorMissing {
                path: index_path.into(),
                tensor: (*tensor).into(),
                shard: (*shard).into(),
            });
        }
        for info in file.tensors() {
            // transformers reads whole shards, whatever the index leaves out.
            let owner = match weight_map.get(&info.name) {
                Some(owner) => owner.as_str(),
                None => unlisted.entry(info.name.clone()).or_insert(*shard),
            };
            if owner != *shard {
                return Err(FormatError::ShardDuplicate {
                    path: index_path.into(),
                    tensor: info.name.clone(),
                    first: owner.into(),
                    second: (*shard).into(),
                });
            }
            names.push((info.name.clone(), shards.len()));
        }
        shards.push(file);
    }
    Ok((shards, names))
}

/// A shard is a plain file name, so that an index cannot reach outside its directory.
fn check_shard_name(index: &Path, tensor: &str, shard: &str) -> Result<()> {
    let mut components = Path::new(shard).components();
    let plain = matches!(
        (components.next(), components.next()),
        (Some(Component::Normal(name)), None) if name == shard
    );
    // A backslash separates directories on Windows only; no honest shard has one.
    if plain && shard.ends_with(".safetensors") && !shard.contains(['\\', ':', '\0']) {
        return Ok(());
    }
    Err(FormatError::ShardName {
        path: index.into(),
        tensor: tensor.into(),
        shard: shard.into(),
    })
}

fn not_a_model(path: PathBuf) -> FormatError {
    let actual = if path.is_file() {
        "a file of another kind".to_owned()
    } else if path.join("adapter_config.json").is_file() {
        "a LoRA adapter without its base model (an adapter goes with --adapter)".to_owned()
    } else if let Some(gguf) = find_file(&path, |name| name.ends_with(".gguf")) {
        format!("a directory without {CONFIG}, but with {gguf}; name that file itself")
    } else if let Some(file) = find_pickle(&path) {
        return FormatError::Pickle { path, file };
    } else {
        format!("a directory without {CONFIG}")
    };
    FormatError::NotAModel { path, actual }
}

fn find_pickle(path: &Path) -> Option<String> {
    find_file(path, is_pickle)
}

/// Whether a file's name is that of a format that can run code when it is loaded.
pub(crate) fn is_pickle(name: &str) -> bool {
    name.rsplit_once('.')
        .is_some_and(|(_, ending)| PICKLES.contains(&ending))
}

/// The first file name, alphabetically, that `accept` takes.
fn find_file(path: &Path, accept: impl Fn(&str) -> bool) -> Option<String> {
    let entries = fs::read_dir(path).ok()?;
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| accept(name))
        .min()
}

#[cfg(test)]
mod tests;
