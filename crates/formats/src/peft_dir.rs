//! Adapter directories as PEFT lays them out.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use backdraft_arch::TokenTable;

use crate::atomic::Existing;
use crate::atomic_dir::AtomicDir;
use crate::dtype::Dtype;
use crate::error::{FormatError, Result};
use crate::json;
use crate::peft_config::{PeftConfig, PeftConfigError};
use crate::peft_names::{LoraName, LoraPart, embeds};
use crate::peft_tokens::{self, TokenRows};
use crate::peft_whole::{WholeName, WholeTensor};
use crate::safetensors_file::SafetensorsFile;
use crate::safetensors_writer::SafetensorsWriter;
use crate::tensor::TensorInfo;
use crate::wrapped::AdapterPrefix;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PICKLE: &str = "adapter_model.bin";
/// The two matrices of one adapted projection, and the lengths of its rows where those are trained.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraPair {
    /// The module's name, for instance `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// The projection's inputs; an embedding's are the tokens.
    pub in_features: usize,
    /// The projection's outputs.
    pub out_features: usize,
    /// A, `[r, in_features]`, row-major.
    pub lora_a: Vec<f32>,
    /// B, `[out_features, r]`, row-major.
    pub lora_b: Vec<f32>,
    /// Of DoRA: the lengths of the rows of W + s·B·A, `[out_features]`.
    pub magnitude: Option<Vec<f32>>,
}

impl LoraPair {
    /// Whether they are those of an embedding, which turns tokens into rows: its weight is changed by (s·B·A)ᵀ.
    #[must_use]
    pub fn embeds(&self) -> bool {
        embeds(&self.module)
    }

    /// The shape of the weight that they change.
    #[must_use]
    pub fn weight_dims(&self) -> [usize; 2] {
        match self.embeds() {
            true => [self.in_features, self.out_features],
            false => [self.out_features, self.in_features],
        }
    }

    /// The rank.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.lora_a.len() / self.in_features.max(1)
    }

    /// Every value that was trained.
    pub fn values(&self) -> impl Iterator<Item = &f32> {
        let factors = self.lora_a.iter().chain(&self.lora_b);
        factors.chain(self.magnitude.iter().flatten())
    }
}

/// Every pair of an adapter, in the order of the modules' names, rows of tokens, and whole tensors of the base.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AdapterTensors {
    pairs: BTreeMap<String, LoraPair>,
    tokens: Vec<TokenRows>,
    whole: BTreeMap<String, WholeTensor>,
}

impl AdapterTensors {
    /// Every pair, in the order of the modules' names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &LoraPair> {
        self.pairs.values()
    }

    /// The same with rows of the embedding or the head, which stand in place of the base's.
    #[must_use]
    pub fn with_tokens(mut self, tokens: Vec<TokenRows>) -> Self {
        self.tokens = tokens;
        self
    }

    /// Rows of the embedding and the head.
    #[must_use]
    pub fn tokens(&self) -> &[TokenRows] {
        &self.tokens
    }

    /// The same with tensors that stand whole in place of the base's.
    #[must_use]
    pub fn with_whole(mut self, whole: impl IntoIterator<Item = WholeTensor>) -> Self {
        let whole = whole.into_iter();
        self.whole = whole.map(|tensor| (tensor.name.clone(), tensor)).collect();
        self
    }

    /// Tensors that stand whole in place of the base's, in the order of their names.
    pub fn whole(&self) -> impl ExactSizeIterator<Item = &WholeTensor> {
        self.whole.values()
    }

    /// One of those, by its name in the base.
    #[must_use]
    pub fn whole_of(&self, tensor: &str) -> Option<&WholeTensor> {
        self.whole.get(tensor)
    }

    /// The pair of one module.
    #[must_use]
    pub fn get(&self, module: &str) -> Option<&LoraPair> {
        self.pairs.get(module)
    }

    /// The number of adapted modules.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there is no pair at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }
}

impl FromIterator<LoraPair> for AdapterTensors {
    /// Of two pairs for one module the later one stays.
    fn from_iter<I: IntoIterator<Item = LoraPair>>(pairs: I) -> Self {
        let pairs = pairs.into_iter();
        Self {
            pairs: pairs.map(|pair| (pair.module.clone(), pair)).collect(),
            tokens: Vec::new(),
            whole: BTreeMap::new(),
        }
    }
}

/// How an adapter is written.
#[derive(Debug, Clone)]
pub struct PeftWriteOptions {
    /// The type of the matrices: `F32` by default, or `BF16` or `F16`.
    pub dtype: Dtype,
    /// What to do with a directory that is already there.
    pub existing: Existing,
    /// More files for the directory: plain names and contents.
    pub companions: Vec<(String, Vec<u8>)>,
    /// What its modules are called.
    pub prefix: AdapterPrefix,
}

impl Default for PeftWriteOptions {
    fn default() -> Self {
        Self {
            dtype: Dtype::F32,
            existing: Existing::Refuse,
            companions: Vec::new(),
            prefix: AdapterPrefix::Text,
        }
    }
}

/// An adapter that was read from a directory.
#[derive(Debug, Clone, PartialEq)]
pub struct PeftDir {
    /// The directory.
    pub path: PathBuf,
    /// `adapter_config.json`, by the names of a decoder alone.
    pub config: PeftConfig,
    /// `adapter_model.safetensors`, likewise.
    pub tensors: AdapterTensors,
    /// What the modules are called in the files.
    pub prefix: AdapterPrefix,
}

/// What an adapter in a directory is, without its values.
#[derive(Debug, Clone, PartialEq)]
pub struct PeftOutline {
    /// The directory.
    pub path: PathBuf,
    /// `adapter_config.json`.
    pub config: PeftConfig,
    /// Its modules, in the order of their names.
    pub modules: Vec<PeftModule>,
}

/// A module that an adapter has matrices for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeftModule {
    /// Its name, for instance `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// The rank of its matrices.
    pub rank: usize,
    /// Outputs and inputs of the projection.
    pub dims: [usize; 2],
}

impl PeftDir {
    /// The file that holds a chat template of the adapter's own.
    pub const CHAT_TEMPLATE: &str = "chat_template.jinja";

    /// The chat template that an adapter was trained with, where it lies in its directory: it takes
    /// the place of the base model's.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn chat_template(directory: &Path) -> Result<Option<String>> {
        let path = directory.join(Self::CHAT_TEMPLATE);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(FormatError::io(&path, "read")(error)),
        }
    }

    /// What may lie beside the config and the matrices: see [`PeftWriteOptions::companions`].
    pub const COMPANIONS: [&str; 3] = [
        Self::CHAT_TEMPLATE,
        "trained_over.json",
        "trained_with.json",
    ];

    /// The files of a tokenizer with tokens of the adapter's own, as transformers reads them beside an adapter.
    pub const TOKENIZER: [&str; 3] = [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ];

    /// Whether a file inside an adapter's directory is one that [`Self::write`] may have left: another
    /// adapter does without it.
    #[must_use]
    pub fn is_ours(file: &Path) -> bool {
        let name = file.to_str().unwrap_or_default();
        let ours = [&[CONFIG, WEIGHTS][..], &Self::COMPANIONS, &Self::TOKENIZER];
        ours.iter().any(|names| names.contains(&name))
    }

    /// Reads a directory, and checks that the tensors come in pairs and agree with the rank.
    ///
    /// # Errors
    /// If a file is missing or malformed, a feature is not supported, or a tensor has no partner,
    /// the wrong shape, or a name that is no spelling of a LoRA matrix's.
    pub fn read(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let (config, file) = open(&path)?;
        let whole = whole(&file, &config)?;
        let (pairs, prefix) = pairs(&file, &config)?;
        let pairs = pairs.into_iter().map(|pair| pair.read(&file));
        let tensors: AdapterTensors = pairs.collect::<Result<_>>()?;
        let tokens = token_rows(&file, &config)?.into_iter();
        let tokens = tokens.map(|(table, ids, info)| {
            Ok(TokenRows::sorted(table, ids, &file.read_f32(&info.name)?))
        });
        let whole = whole.into_iter().map(|(name, info)| {
            Ok(WholeTensor {
                name,
                shape: info.shape.clone(),
                values: file.read_f32(&info.name)?,
            })
        });
        let tensors = tensors.with_tokens(tokens.collect::<Result<_>>()?);
        let tensors = tensors.with_whole(whole.collect::<Result<Vec<_>>>()?);
        Ok(Self {
            path,
            config,
            tensors,
            prefix,
        })
    }

    /// Reads what an adapter is, and which modules it has, without its values; checks what [`Self::read`] does.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn outline(path: impl Into<PathBuf>) -> Result<PeftOutline> {
        let path = path.into();
        let (config, file) = open(&path)?;
        whole(&file, &config)?;
        let (pairs, _) = pairs(&file, &config)?;
        token_rows(&file, &config)?;
        let modules = pairs.iter().map(Pair::outline).collect();
        Ok(PeftOutline {
            path,
            config,
            modules,
        })
    }

    /// Writes a directory, which appears whole or not at all.
    ///
    /// # Errors
    /// If a matrix does not have the size that the rank needs, the type is not a floating-point
    /// one, the target exists, or the system refuses.
    pub fn write(
        path: impl Into<PathBuf>,
        config: &PeftConfig,
        tensors: &AdapterTensors,
        options: &PeftWriteOptions,
    ) -> Result<()> {
        let directory = AtomicDir::create(path, options.existing, Self::is_ours)?;
        let config_path = directory.path().join(CONFIG);
        let written = config.under(options.prefix).to_json();
        write_plain(&config_path, &json::pretty(&written))?;
        for (name, bytes) in &options.companions {
            write_plain(&directory.path().join(name), bytes)?;
        }
        write_tensors(&directory, config, tensors, (options.dtype, options.prefix))?;
        directory.commit()
    }
}

/// The config and the matrices' file of a directory.
fn open(path: &Path) -> Result<(PeftConfig, SafetensorsFile)> {
    let config_path = path.join(CONFIG);
    if !config_path.is_file() {
        return Err(FormatError::NotFound { path: config_path });
    }
    let config = PeftConfig::read(&config_path)?.of_decoder();
    let weights = path.join(WEIGHTS);
    if !weights.is_file() {
        return Err(if path.join(PICKLE).is_file() {
            FormatError::Pickle {
                path: path.into(),
                file: PICKLE.into(),
            }
        } else {
            FormatError::NotFound { path: weights }
        });
    }
    Ok((config, SafetensorsFile::open(weights)?))
}

fn write_plain(path: &Path, bytes: &[u8]) -> Result<()> {
    crate::fault::point("write", path)?;
    fs::write(path, bytes).map_err(FormatError::io(path, "write"))
}

fn write_tensors(
    directory: &AtomicDir,
    config: &PeftConfig,
    tensors: &AdapterTensors,
    (dtype, prefix): (Dtype, AdapterPrefix),
) -> Result<()> {
    let tokens = tensors.tokens().iter().map(|rows| {
        let shape = vec![rows.ids.len(), rows.width()];
        (peft_tokens::key(rows.table), shape, rows.values.as_slice())
    });
    let pairs = tensors.iter().flat_map(|pair| parts(pair, config, prefix));
    let whole = tensors.whole().map(|tensor| {
        let module = tensor
            .name
            .rsplit_once('.')
            .map_or("", |(module, _)| module);
        let adapted = tensors.get(module).is_some();
        let key = WholeName::canonical(&tensor.name, prefix, adapted);
        (key, tensor.shape.clone(), tensor.values.as_slice())
    });
    let all: Vec<(TensorInfo, &[f32])> = tokens
        .chain(whole)
        .chain(pairs)
        .map(|(key, shape, values)| (TensorInfo::new(key, dtype, shape), values))
        .collect();
    for (info, values) in &all {
        if info.checked_elements() != Some(values.len()) || !dtype.is_float() {
            return Err(FormatError::TensorShape {
                path: directory.target().into(),
                tensor: info.name.clone(),
                expected: format!("{:?} of a floating-point type", info.shape),
                actual: vec![values.len()],
            });
        }
    }
    let path = directory.path().join(WEIGHTS);
    let infos = all.iter().map(|(info, _)| info.clone());
    let mut writer = SafetensorsWriter::create(path, infos, Existing::Refuse)?;
    for (info, values) in &all {
        writer.write(&info.name, &info.encode(directory.target(), values)?)?;
    }
    writer.finish()
}

/// Key, shape and values of A, of B and of m.
fn parts<'a>(
    pair: &'a LoraPair,
    config: &PeftConfig,
    prefix: AdapterPrefix,
) -> impl Iterator<Item = (String, Vec<usize>, &'a [f32])> {
    let (rank, out) = (config.rank_of(&pair.module), pair.out_features);
    let magnitude = pair.magnitude.as_deref();
    let parts = [
        (LoraPart::A, vec![rank, pair.in_features], &pair.lora_a[..]),
        (LoraPart::B, vec![out, rank], &pair.lora_b),
    ];
    let magnitude = magnitude.map(|values| (LoraPart::Magnitude, vec![out], values));
    let key = move |part| LoraName::canonical(&pair.module, prefix, part);
    let parts = parts.into_iter().chain(magnitude);
    parts.map(move |(part, shape, values)| (key(part), shape, values))
}

/// The matrices of a file that belong together.
#[derive(Default)]
struct Found<'a> {
    a: Option<&'a TensorInfo>,
    b: Option<&'a TensorInfo>,
    magnitude: Option<&'a TensorInfo>,
}

/// Both matrices of a module and its magnitudes, of shapes that fit each other.
struct Pair<'a> {
    module: String,
    a: &'a TensorInfo,
    b: &'a TensorInfo,
    magnitude: Option<&'a TensorInfo>,
    rank: usize,
    dims: [usize; 2],
}

impl Pair<'_> {
    fn outline(&self) -> PeftModule {
        PeftModule {
            module: self.module.clone(),
            rank: self.rank,
            dims: self.dims,
        }
    }

    fn read(self, file: &SafetensorsFile) -> Result<LoraPair> {
        let [out_features, in_features] = self.dims;
        Ok(LoraPair {
            module: self.module,
            in_features,
            out_features,
            lora_a: file.read_f32(&self.a.name)?,
            lora_b: file.read_f32(&self.b.name)?,
            magnitude: (self.magnitude)
                .map(|info| file.read_f32(&info.name))
                .transpose()?,
        })
    }
}

fn pairs<'a>(
    file: &'a SafetensorsFile,
    config: &PeftConfig,
) -> Result<(Vec<Pair<'a>>, AdapterPrefix)> {
    let mut found: BTreeMap<String, Found<'_>> = BTreeMap::new();
    let mut adapter = None;
    let mut prefix = AdapterPrefix::Text;
    for info in file.tensors() {
        let refuse = |reason| unexpected(file, &info.name, reason);
        if peft_tokens::of_key(&info.name).is_some() {
            continue;
        }
        if let Some(name) = WholeName::parse(&info.name) {
            if name.prefix == AdapterPrefix::Wrapped {
                prefix = name.prefix;
            }
            continue;
        }
        let name = LoraName::parse(&info.name).map_err(refuse)?;
        if *adapter.get_or_insert_with(|| name.adapter.clone()) != name.adapter {
            return Err(refuse(
                "the file holds several adapters; save one alone (`save_pretrained(…, selected_adapters=[…])`)",
            ));
        }
        if config.target_modules.includes(&name.module) == Some(false) {
            return Err(refuse(
                "its module is not among the target_modules of adapter_config.json",
            ));
        }
        if name.prefix == AdapterPrefix::Wrapped {
            prefix = name.prefix;
        }
        let pair = found.entry(name.module).or_default();
        let part = match name.part {
            LoraPart::A => &mut pair.a,
            LoraPart::B => &mut pair.b,
            LoraPart::Magnitude if config.use_dora => &mut pair.magnitude,
            LoraPart::Magnitude => {
                return Err(refuse("use_dora of adapter_config.json is not true"));
            }
        };
        if part.replace(info).is_some() {
            return Err(refuse("the same tensor is in the file under another name"));
        }
    }
    let adapted = |table: &TokenTable| found.contains_key(table.path());
    if let Some(table) = TokenTable::ALL.into_iter().find(adapted)
        && config.ensure_weight_tying
    {
        return Err(FormatError::PeftConfig {
            path: file.path().with_file_name(CONFIG),
            source: PeftConfigError::TiedAdapters {
                module: table.name(),
            },
        });
    }
    if found.is_empty() {
        return Err(FormatError::TensorMissing {
            path: file.path().into(),
            tensor: LoraName::canonical("…", prefix, LoraPart::A),
        });
    }
    let missing = |module: &str, part| FormatError::TensorMissing {
        path: file.path().into(),
        tensor: LoraName::canonical(module, prefix, part),
    };
    let pair = |(module, Found { a, b, magnitude }): (String, Found<'a>)| {
        let (Some(a), Some(b)) = (a, b) else {
            let part = if a.is_none() {
                LoraPart::A
            } else {
                LoraPart::B
            };
            return Err(missing(&module, part));
        };
        if config.use_dora && magnitude.is_none() {
            return Err(missing(&module, LoraPart::Magnitude));
        }
        let rank = config.rank_of(&module);
        let dims = dims(file, [a, b], rank)?;
        if let Some(info) = magnitude.filter(|info| info.shape != [dims[0]]) {
            return Err(FormatError::TensorShape {
                path: file.path().into(),
                tensor: info.name.clone(),
                expected: format!("[{}], a number for each output", dims[0]),
                actual: info.shape.clone(),
            });
        }
        Ok(Pair {
            module,
            a,
            b,
            magnitude,
            rank,
            dims,
        })
    };
    let pairs: Result<_> = found.into_iter().map(pair).collect();
    Ok((pairs?, prefix))
}

/// The rows of tokens that the config names, and that the file must have, no more and no less.
fn token_rows<'a>(
    file: &'a SafetensorsFile,
    config: &'a PeftConfig,
) -> Result<Vec<(TokenTable, &'a [u32], &'a TensorInfo)>> {
    let mut found: BTreeMap<TokenTable, &TensorInfo> = BTreeMap::new();
    for info in file.tensors() {
        let Some(table) = peft_tokens::of_key(&info.name) else {
            continue;
        };
        if config.trainable_tokens.get(table).is_none() {
            let reason = "trainable_token_indices of adapter_config.json does not name its tokens";
            return Err(unexpected(file, &info.name, reason));
        }
        if found.insert(table, info).is_some() {
            let reason = "the same rows are in the file under another name";
            return Err(unexpected(file, &info.name, reason));
        }
    }
    let rows = config.trainable_tokens.iter().map(|(table, ids)| {
        let Some(&info) = found.get(&table) else {
            return Err(FormatError::TensorMissing {
                path: file.path().into(),
                tensor: peft_tokens::key(table),
            });
        };
        match info.shape[..] {
            [rows, width] if rows == ids.len() && width > 0 => Ok((table, ids, info)),
            _ => Err(FormatError::TensorShape {
                path: file.path().into(),
                tensor: info.name.clone(),
                expected: format!("[{}, hidden], a row for each token", ids.len()),
                actual: info.shape.clone(),
            }),
        }
    });
    rows.collect()
}

/// The tensors that stand whole in place of the base's, by their names there: the config names each, and each name of its has
/// one.
fn whole<'a>(
    file: &'a SafetensorsFile,
    config: &PeftConfig,
) -> Result<BTreeMap<String, &'a TensorInfo>> {
    let mut found: BTreeMap<String, &TensorInfo> = BTreeMap::new();
    let mut modules = Vec::new();
    for info in file.tensors() {
        let Some(name) = WholeName::parse(&info.name).filter(|it| !it.is_frozen_table(config))
        else {
            continue;
        };
        // A tied head is there a second time.
        let tied = config.ensure_weight_tying && name.module == TokenTable::Head.path();
        if let Some(reason) = name.refusal(config).filter(|_| !tied) {
            return Err(unexpected(file, &info.name, reason));
        }
        if found.insert(name.tensor(), info).is_some() {
            let reason = "the same tensor is in the file under another name";
            return Err(unexpected(file, &info.name, reason));
        }
        modules.push(name.module);
    }
    let has = |name: &&String| modules.iter().any(|module| module.ends_with(name.as_str()));
    match config.modules_to_save.iter().find(|name| !has(name)) {
        None => Ok(found),
        Some(name) => Err(FormatError::TensorMissing {
            path: file.path().into(),
            tensor: WholeName::canonical(&format!("{name}.weight"), AdapterPrefix::Text, false),
        }),
    }
}

/// Outputs and inputs of the module that both matrices belong to.
fn dims(file: &SafetensorsFile, [a, b]: [&TensorInfo; 2], rank: usize) -> Result<[usize; 2]> {
    let wrong = |info: &TensorInfo, expected| FormatError::TensorShape {
        path: file.path().into(),
        tensor: info.name.clone(),
        expected,
        actual: info.shape.clone(),
    };
    let in_features = match a.shape[..] {
        [r, in_features] if r == rank => in_features,
        _ => return Err(wrong(a, format!("[{rank}, in] (r is {rank})"))),
    };
    match b.shape[..] {
        [out_features, r] if r == rank => Ok([out_features, in_features]),
        _ => Err(wrong(b, format!("[out, {rank}] (r is {rank})"))),
    }
}

fn unexpected(file: &SafetensorsFile, name: &str, reason: &'static str) -> FormatError {
    FormatError::TensorUnexpected {
        path: file.path().into(),
        tensor: name.into(),
        reason,
    }
}

#[cfg(test)]
mod tests;
