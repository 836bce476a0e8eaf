//! Folding an adapter into its base, tensor by tensor.

use std::path::{Path, PathBuf};

use backdraft_arch::TargetModule;
use backdraft_arch::spec::{EMBEDDING, FINAL_NORM, HEAD, SCORE};
use backdraft_formats::{
    Dtype, Existing, FormatError, HfDirWriter, LoraPair, ModelSource, PeftDir, TensorInfo,
    TokenRows, TokenTable, WholeTensor,
};
use backdraft_kernels::gemm::{Op, gemm};
use backdraft_quant::{QuantizationPlan, Scheme};
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::base::{MatrixError, read_matrix, read_values};
use crate::merged_files::{merged_files, untie};

/// Why a merge is not possible.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// A file cannot be read or written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A weight cannot be read.
    #[error(transparent)]
    Matrix(#[from] MatrixError),
    /// The adapter names a module that the base does not have.
    #[error(
        "{}: the adapter adapts `{module}`, which the model with its {layers} layers does not have; {}",
        path.display(), made_for(base.as_ref())
    )]
    NoSuchModule {
        /// The adapter.
        path: PathBuf,
        /// The base that the adapter names.
        base: Option<String>,
        /// Layers of the model.
        layers: String,
        /// The module.
        module: String,
    },
    /// The factors do not fit the module's weight.
    #[error(
        "{}: the adapter does not fit this model: `{module}` has weight shape {expected:?}, but its factors \
         make {actual:?}; {}",
        path.display(), made_for(base.as_ref())
    )]
    Shape {
        /// The adapter.
        path: PathBuf,
        /// The base that the adapter names.
        base: Option<String>,
        /// The module.
        module: String,
        /// Shape of the weight.
        expected: Vec<usize>,
        /// Shape of B·A.
        actual: [usize; 2],
    },
    /// The adapter has rows of a head that the base does not have.
    #[error(
        "{}: the adapter trains rows of `{module}`, which the model does not have as a matrix of its own; {}",
        path.display(), made_for(base.as_ref())
    )]
    NoSuchTable {
        /// The adapter.
        path: PathBuf,
        /// The base that the adapter names.
        base: Option<String>,
        /// The module.
        module: String,
    },
    /// Rows of tokens that a table has no place for.
    #[error(
        "{}: the adapter does not fit this model: `{module}` has weight shape {expected:?}, but the adapter has a row of \
         {width} values for token {last}; {}",
        path.display(), made_for(base.as_ref())
    )]
    Tokens {
        /// The adapter.
        path: PathBuf,
        /// The base that the adapter names.
        base: Option<String>,
        /// The module.
        module: String,
        /// Its last token.
        last: usize,
        /// Values of a row.
        width: usize,
        /// Shape of the weight.
        expected: Vec<usize>,
    },
    /// A tensor that the adapter has whole, and the base not at all, or of another shape.
    #[error(
        "{}: the adapter does not fit this model: it has the whole `{tensor}` as {actual:?}, {}; {}",
        path.display(), in_model(expected.as_deref()), made_for(base.as_ref())
    )]
    Whole {
        /// The adapter.
        path: PathBuf,
        /// The base that the adapter names.
        base: Option<String>,
        /// The tensor.
        tensor: String,
        /// Its shape in the model, where that has one.
        expected: Option<Vec<usize>>,
        /// Its shape in the adapter.
        actual: Vec<usize>,
    },
    /// An adapter of a model that scores texts.
    #[error(
        "{}: the adapter is of a reward model, whose head (score.weight) takes the place of the one that predicts tokens: it stays an \
         adapter, which PEFT (task SEQ_CLS) and `backdraft eval` read",
        path.display()
    )]
    Scores {
        /// The adapter.
        path: PathBuf,
    },
    /// An embedding apart from the head that it is in the base.
    #[error(
        "{}: the adapter trains one of embed_tokens and lm_head without the other, or both apart, which in this model are one \
         matrix (PEFT's modules_to_save without ensure_weight_tying): they would come apart; train with \
         ensure_weight_tying = True, or over a base whose head is a matrix of its own",
        path.display()
    )]
    Untied {
        /// The adapter.
        path: PathBuf,
    },
    /// An adapter of one of two tables that are one matrix, in a model that is one part of several.
    #[error(
        "{}: the adapter changes {module} alone, which in this model is one matrix with the other table: merged, they come apart, and \
         of a language model inside another no file says so. It stays an adapter, which PEFT and `backdraft generate` and `eval` read",
        path.display()
    )]
    Apart {
        /// The adapter.
        path: PathBuf,
        /// The table.
        module: &'static str,
    },
    /// A factor that makes every output NaN.
    #[error(
        "{}: what was trained of `{module}` holds NaN or infinity: the training diverged, or the file is damaged; take an \
         earlier checkpoint",
        path.display()
    )]
    NotFinite {
        /// The adapter.
        path: PathBuf,
        /// The module.
        module: String,
    },
    /// A merged weight that its type cannot hold.
    #[error("{}: the merged weight of `{module}` is too large for {dtype}", path.display())]
    Overflow {
        /// The adapter.
        path: PathBuf,
        /// The module.
        module: String,
        /// Type of the weight.
        dtype: String,
    },
}

/// What a merge wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeReport {
    /// Tensors written.
    pub tensors: usize,
    /// Weights that an adapter was added to.
    pub merged: usize,
    /// Those of them that are as they were: the adapter is zero there, or too small for their type.
    pub unchanged: usize,
    /// Bytes of all tensors.
    pub bytes: usize,
}

/// The weights that an adapter is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeBase<'a> {
    /// Those of the files; of a checkpoint in codes, what the codes stand for.
    Original,
    /// Those that the adapter was trained over: of the files, quantised by the plan and back.
    Dequantized(&'a QuantizationPlan),
}

/// Writes `out`, a Hugging Face directory with W + s·B·A in place of each adapted W, its rows of the lengths that a DoRA
/// adapter has for them, in the base's
/// types (f32 where a GGUF file is quantised); it appears whole or not at all. The other parts of a model that has more
/// than its decoder are written as they are. A chat template of the
/// adapter's own takes the place of the base's, and generation also ends at `stop_token_ids`, which ended
/// answers in training.
///
/// # Errors
/// An adapter for another base, a file that cannot be read, a target that exists, a full disk.
pub fn merge(
    source: &ModelSource,
    base: MergeBase<'_>,
    adapter: &PeftDir,
    stop_token_ids: &[u32],
    out: &Path,
    existing: Existing,
    mut progress: impl FnMut(usize, usize),
) -> Result<MergeReport, MergeError> {
    check_adapter(source, adapter)?;
    let untied = unties(source, adapter)?;
    let (mut infos, others) = tensors(source);
    if untied && !infos.iter().any(|info| info.name == HEAD) {
        infos.extend(own_head(source));
    }
    let stored = |info: &TensorInfo| TensorInfo {
        name: source.stored_name(&info.name).to_owned(),
        ..info.clone()
    };
    let written = infos.iter().chain(&others).map(stored);
    let written: Vec<TensorInfo> = written.collect();
    let total = written.len();
    let mut writer = HfDirWriter::create(out, written, existing)?;
    let chat_template = PeftDir::chat_template(&adapter.path)?;
    let mut files = merged_files(source, chat_template.as_deref(), stop_token_ids)?;
    if untied {
        untie(&mut files);
    }
    for (name, bytes) in files {
        writer.companion(&name, &bytes)?;
    }
    let mut report = MergeReport {
        tensors: total,
        merged: 0,
        unchanged: 0,
        bytes: 0,
    };
    for (i, info) in infos.iter().enumerate() {
        let name = source.stored_name(&info.name);
        let has_rows = token_rows(source, adapter, info).is_some();
        let is_whole = whole(source, adapter, info).is_some();
        let has_own = has_rows || is_whole;
        if is_plain(source, info) && !has_own && !is_touched(base, adapter, info) {
            writer.write(name, &source.raw(&info.name)?.bytes)?;
        } else {
            let Folded { before, sums } = folded(source, base, Some(adapter), info)?;
            let mut bytes = info.encode(out, &before)?;
            if let Some(sums) = sums {
                if !fits(&sums, info.dtype) {
                    let module = info.name.strip_suffix(".weight").unwrap_or(&info.name);
                    return Err(MergeError::Overflow {
                        path: adapter.path.clone(),
                        module: module.to_owned(),
                        dtype: info.dtype.to_string(),
                    });
                }
                let sums = info.encode(out, &sums)?;
                report.merged += 1;
                report.unchanged += usize::from(sums == bytes);
                bytes = sums;
            }
            writer.write(name, &bytes)?;
        }
        source.release(&info.name);
        progress(i + 1, total);
    }
    for (i, info) in others.into_iter().enumerate() {
        if is_plain(source, &info) {
            writer.write(&info.name, &source.raw(&info.name)?.bytes)?;
        } else {
            let values = read_values(source, &info.name)?;
            writer.write(&info.name, &info.encode(out, &values)?)?;
        }
        source.release(&info.name);
        progress(infos.len() + i + 1, total);
    }
    report.bytes = writer.finish()?;
    Ok(report)
}

/// The tensors of a model's decoder, and those of its other parts, in the order of the files.
pub(crate) fn tensors(source: &ModelSource) -> (Vec<TensorInfo>, Vec<TensorInfo>) {
    let info = |name| source.tensor_info(name).cloned();
    let own = source.tensor_names();
    let own = own.filter(|name| *name != "rope_freqs.weight");
    let others = source.other_names().filter_map(info);
    (own.filter_map(info).collect(), others.collect())
}

/// A tensor before and after an adapter was added to it.
pub(crate) struct Folded {
    /// Its values in the base.
    pub(crate) before: Vec<f32>,
    /// Its values with the adapter; `None` where that has nothing for it.
    pub(crate) sums: Option<Vec<f32>>,
}

/// Reads a tensor and adds what the adapter has for it.
pub(crate) fn folded(
    source: &ModelSource,
    base: MergeBase<'_>,
    adapter: Option<&PeftDir>,
    info: &TensorInfo,
) -> Result<Folded, MergeError> {
    let before = match source.tensor_info(&info.name) {
        Some(_) => values(source, info, scheme(base, info))?,
        // A head that is the embedding until now.
        None => read_values(source, EMBEDDING)?,
    };
    let pair = adapter.and_then(|adapter| pair(adapter, info));
    let scaled = adapter.zip(pair);
    let sums = scaled.map(|(adapter, pair)| {
        let scaling = adapter.config.scaling_of(&pair.module);
        merged(before.clone(), pair, scaling)
    });
    let rows = adapter.and_then(|adapter| token_rows(source, adapter, info));
    let whole = adapter.and_then(|adapter| whole(source, adapter, info));
    let sums = match (rows, whole) {
        (Some(rows), _) => Some(replaced(before.clone(), rows)),
        (None, Some(whole)) => Some(whole.values.clone()),
        (None, None) => sums,
    };
    Ok(Folded { before, sums })
}

/// What stands whole in place of a tensor.
fn whole<'a>(
    source: &ModelSource,
    adapter: &'a PeftDir,
    info: &TensorInfo,
) -> Option<&'a WholeTensor> {
    let [embedding, head] = TokenTable::ALL.map(|table| format!("{}.weight", table.path()));
    // A copy of the embedding that some files have beside it.
    let name = match info.name == head && source.ties_head() {
        true => &embedding,
        false => &info.name,
    };
    adapter.tensors.whole_of(name)
}

/// Rows of tokens that stand in a tensor.
fn token_rows<'a>(
    source: &ModelSource,
    adapter: &'a PeftDir,
    info: &TensorInfo,
) -> Option<&'a TokenRows> {
    let module = info.name.strip_suffix(".weight")?;
    let table = match TokenTable::ALL.into_iter().find(|it| it.path() == module)? {
        // A copy of the embedding that some files have beside it.
        TokenTable::Head if source.ties_head() => TokenTable::Embedding,
        table => table,
    };
    let mut rows = adapter.tensors.tokens().iter();
    rows.find(|rows| rows.table == table)
}

/// A table with the adapter's rows in it.
fn replaced(mut values: Vec<f32>, rows: &TokenRows) -> Vec<f32> {
    let width = rows.width();
    for (id, row) in rows.ids.iter().zip(rows.values.chunks(width.max(1))) {
        let start = *id as usize * width;
        values[start..start + width].copy_from_slice(row);
    }
    values
}

/// Whether a tensor is stored as values of its own type.
pub(crate) fn is_plain(source: &ModelSource, info: &TensorInfo) -> bool {
    source.stored_type(&info.name).as_deref() == Some(info.dtype.name())
}

/// Whether a tensor is not written as the base has it.
fn is_touched(base: MergeBase<'_>, adapter: &PeftDir, info: &TensorInfo) -> bool {
    pair(adapter, info).is_some() || scheme(base, info).is_some()
}

fn pair<'a>(adapter: &'a PeftDir, info: &TensorInfo) -> Option<&'a LoraPair> {
    adapter.tensors.get(info.name.strip_suffix(".weight")?)
}

/// How a tensor was quantised in training, where the adapter is added to what that left of it.
fn scheme(base: MergeBase<'_>, info: &TensorInfo) -> Option<Scheme> {
    let module = info.name.strip_suffix(".weight")?;
    match base {
        MergeBase::Dequantized(plan) if TargetModule::of_path(module).is_some() => {
            plan.scheme_for(module)
        }
        MergeBase::Dequantized(_) | MergeBase::Original => None,
    }
}

fn values(
    source: &ModelSource,
    info: &TensorInfo,
    scheme: Option<Scheme>,
) -> Result<Vec<f32>, MergeError> {
    match (scheme, &info.shape[..]) {
        (Some(scheme), &[out, input]) => {
            let dims = [out, input];
            let weight = read_matrix(
                source,
                &info.name,
                dims,
                Some(scheme),
                (&Device::flex(), DType::F32),
            )?;
            Ok(weight.dequantize().into_data().iter::<f32>().collect())
        }
        _ => Ok(read_values(source, &info.name)?),
    }
}

/// Whether an adapter fits a model, by the headers of the files alone.
///
/// # Errors
/// [`MergeError::NoSuchModule`], [`MergeError::NoSuchTable`], [`MergeError::Shape`], [`MergeError::Tokens`],
/// [`MergeError::Whole`], [`MergeError::Untied`] and [`MergeError::NotFinite`].
pub fn check_adapter(source: &ModelSource, adapter: &PeftDir) -> Result<(), MergeError> {
    check_tokens(source, adapter)?;
    check_whole(source, adapter)?;
    for pair in adapter.tensors.iter() {
        let module = pair.module.clone();
        let path = adapter.path.clone();
        let table = match TokenTable::of_path(&module) {
            // The one matrix that it is put on.
            Some(TokenTable::Head) if source.ties_head() => TokenTable::Embedding.tensor(),
            _ => &format!("{module}.weight"),
        };
        let Some(info) = source.tensor_info(table) else {
            let layers = source.config().get("num_hidden_layers");
            let layers = layers.map_or_else(|| "?".to_owned(), ToString::to_string);
            return Err(MergeError::NoSuchModule {
                path,
                module,
                layers,
                base: adapter.config.base_model_name_or_path.clone(),
            });
        };
        if !pair.values().all(|factor| factor.is_finite()) {
            return Err(MergeError::NotFinite { path, module });
        }
        let actual = pair.weight_dims();
        if info.shape != actual {
            return Err(MergeError::Shape {
                path,
                module,
                expected: info.shape.clone(),
                actual,
                base: adapter.config.base_model_name_or_path.clone(),
            });
        }
    }
    Ok(())
}

/// Whether embedding and head, which are one matrix in the model, come apart with the adapter in them: it is of one of them, or of
/// both apart. What is written has a head of its own then.
///
/// # Errors
/// [`MergeError::Scores`] and [`MergeError::Apart`]: no such model can be written.
pub fn unties(source: &ModelSource, adapter: &PeftDir) -> Result<bool, MergeError> {
    let path = || adapter.path.clone();
    if adapter.config.scores() {
        return Err(MergeError::Scores { path: path() });
    }
    let adapted = |table: &TokenTable| adapter.tensors.get(table.path()).is_some();
    match TokenTable::ALL.into_iter().find(adapted) {
        Some(table) if source.ties_head() => match source.stored_name(EMBEDDING) == EMBEDDING {
            true => Ok(true),
            false => Err(MergeError::Apart {
                path: path(),
                module: table.name(),
            }),
        },
        _ => Ok(false),
    }
}

/// The head of a model whose head is its embedding, as a tensor of its own.
pub(crate) fn own_head(source: &ModelSource) -> Option<TensorInfo> {
    let embedding = source.tensor_info(EMBEDDING)?;
    Some(TensorInfo {
        name: HEAD.to_owned(),
        ..embedding.clone()
    })
}

/// Whether rows of tokens fit the tables that they stand in.
fn check_tokens(source: &ModelSource, adapter: &PeftDir) -> Result<(), MergeError> {
    for rows in adapter.tensors.tokens() {
        let (module, path) = (rows.table.path().to_owned(), adapter.path.clone());
        if !rows.values.iter().all(|value| value.is_finite()) {
            return Err(MergeError::NotFinite { path, module });
        }
        let base = adapter.config.base_model_name_or_path.clone();
        let info = source.tensor_info(&format!("{module}.weight"));
        let tied = rows.table == TokenTable::Head && source.ties_head();
        let (info, last) = match (info.filter(|_| !tied), rows.ids.last()) {
            (Some(info), Some(&last)) => (info, last as usize),
            _ => return Err(MergeError::NoSuchTable { path, module, base }),
        };
        if !matches!(info.shape[..], [count, width] if last < count && width == rows.width()) {
            return Err(MergeError::Tokens {
                path,
                module,
                last,
                width: rows.width(),
                expected: info.shape.clone(),
                base,
            });
        }
    }
    Ok(())
}

/// Whether whole tensors fit those that they stand for.
fn check_whole(source: &ModelSource, adapter: &PeftDir) -> Result<(), MergeError> {
    let [embedding, head] = TokenTable::ALL.map(|table| format!("{}.weight", table.path()));
    let path = || adapter.path.clone();
    let tables = [&embedding, &head].map(|name| adapter.tensors.whole_of(name));
    let values = tables.map(|table| table.map(|table| &table.values));
    if source.ties_head() && values[0] != values[1] {
        return Err(MergeError::Untied { path: path() });
    }
    for tensor in adapter.tensors.whole() {
        if !tensor.values.iter().all(|value| value.is_finite()) {
            return Err(MergeError::NotFinite {
                path: path(),
                module: tensor.name.clone(),
            });
        }
        let name = match tensor.name == head && source.ties_head() {
            true => &embedding,
            false => &tensor.name,
        };
        let expected = match name == SCORE {
            // One row, which the base need not have.
            true => hidden_size(source).map(|size| vec![1, size]),
            false => source.tensor_info(name).map(|info| info.shape.clone()),
        };
        if expected.as_ref() != Some(&tensor.shape) {
            return Err(MergeError::Whole {
                path: path(),
                base: adapter.config.base_model_name_or_path.clone(),
                tensor: tensor.name.clone(),
                expected,
                actual: tensor.shape.clone(),
            });
        }
    }
    Ok(())
}

/// Features of hidden states, which the final norm has as many of.
fn hidden_size(source: &ModelSource) -> Option<usize> {
    let norm = source.tensor_info(FINAL_NORM)?;
    norm.shape.first().copied()
}

/// What a model has of a tensor.
fn in_model(shape: Option<&[usize]>) -> String {
    match shape {
        Some(shape) => format!("which is {shape:?} in the model"),
        None => "which the model does not have".to_owned(),
    }
}

/// Which base an adapter names.
fn made_for(base: Option<&String>) -> String {
    match base {
        Some(base) => format!("it was made for {base}"),
        None => "was it made for another base?".to_owned(),
    }
}

/// Whether no value becomes infinite.
pub(crate) fn fits(values: &[f32], dtype: Dtype) -> bool {
    // Half of the last place above the largest number of half precision is rounded to infinity.
    let limit = match dtype {
        Dtype::F16 => 65520.0,
        _ => f32::INFINITY,
    };
    values.iter().all(|value| value.abs() < limit)
}

fn merged(values: Vec<f32>, pair: &LoraPair, scaling: f64) -> Vec<f32> {
    let device = Device::flex();
    let tensor = |values: Vec<f32>, shape: [usize; 2]| {
        Tensor::<2>::from_data(TensorData::new(values, shape), &device)
    };
    let rank = pair.rank();
    let base = tensor(values, pair.weight_dims());
    let a = tensor(pair.lora_a.clone(), [rank, pair.in_features]);
    let b = tensor(pair.lora_b.clone(), [pair.out_features, rank]);
    let scaling = scaling as f32;
    let mut sum = match pair.embeds() {
        true => gemm((Op::T, &a), (Op::T, &b), scaling, Some(base)),
        false => gemm((Op::N, &b), (Op::N, &a), scaling, Some(base)),
    };
    if let Some(magnitude) = &pair.magnitude {
        let lengths = tensor(magnitude.clone(), [pair.out_features, 1]);
        let norms = sum.clone().square().sum_dim(1).sqrt();
        // A row of zeros has no direction, and none to be brought to.
        sum = sum * (lengths / norms.clamp_min(1e-15));
    }
    sum.into_data().iter::<f32>().collect()
}
