//! Folding an adapter into its base, tensor by tensor.

use std::path::Path;

use backdraft_formats::dtype::from_f32;
use backdraft_formats::{
    Existing, FormatError, HfDirWriter, LoraPair, ModelSource, PeftDir, TensorInfo,
};
use backdraft_kernels::gemm::{Op, gemm};
use backdraft_quant::{QuantizationPlan, Scheme};
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::base::{MatrixError, read_matrix, read_values};

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
        "the adapter adapts `{module}`, which the model does not have; was it made for another base?"
    )]
    NoSuchModule {
        /// The module.
        module: String,
    },
    /// The factors do not fit the module's weight.
    #[error(
        "the adapter does not fit this model: `{module}` has weight shape {expected:?}, but its factors \
         make {actual:?}; was it made for another base?"
    )]
    Shape {
        /// The module.
        module: String,
        /// Shape of the weight.
        expected: Vec<usize>,
        /// Shape of B·A.
        actual: [usize; 2],
    },
}

/// What a merge wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeReport {
    /// Tensors written.
    pub tensors: usize,
    /// Weights that an adapter changed.
    pub merged: usize,
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

/// Writes `out`, a Hugging Face directory with W + s·B·A in place of each adapted W, in the base's
/// types (f32 where a GGUF file is quantised); it appears whole or not at all. A chat template of the
/// adapter's own takes the place of the base's.
///
/// # Errors
/// An adapter for another base, a file that cannot be read, a target that exists, a full disk.
pub fn merge(
    source: &ModelSource,
    base: MergeBase<'_>,
    adapter: &PeftDir,
    out: &Path,
    existing: Existing,
    mut progress: impl FnMut(usize, usize),
) -> Result<MergeReport, MergeError> {
    check(source, adapter)?;
    let infos: Vec<TensorInfo> = source
        .tensor_names()
        .filter(|name| *name != "rope_freqs.weight")
        .filter_map(|name| source.tensor_info(name).cloned())
        .collect();
    let mut writer = HfDirWriter::create(out, infos.clone(), existing)?;
    let chat_template = PeftDir::chat_template(&adapter.path)?;
    if let Some(template) = &chat_template {
        writer.companion(PeftDir::CHAT_TEMPLATE, template.as_bytes())?;
    }
    for (name, bytes) in source.companion_files()? {
        if chat_template.is_some() && name == PeftDir::CHAT_TEMPLATE {
            continue;
        }
        let bytes = match name.as_str() {
            "config.json" => without_quantization(source.config()),
            _ => bytes,
        };
        writer.companion(&name, &bytes)?;
    }
    let mut report = MergeReport {
        tensors: infos.len(),
        merged: 0,
        bytes: 0,
    };
    for (i, info) in infos.iter().enumerate() {
        let module = info.name.strip_suffix(".weight");
        let pair = module.and_then(|module| adapter.tensors.get(module));
        let scheme = module.filter(|module| module.ends_with("_proj"));
        let scheme = match base {
            MergeBase::Original => None,
            MergeBase::Dequantized(plan) => scheme.and_then(|module| plan.scheme_for(module)),
        };
        let stored = source.stored_type(&info.name);
        let as_it_is = stored.is_some_and(|stored| stored == info.dtype.name());
        if pair.is_none() && scheme.is_none() && as_it_is {
            writer.write(&info.name, &source.raw(&info.name)?.bytes)?;
        } else {
            let values = values(source, info, scheme)?;
            let values = match pair {
                Some(pair) => merged(values, pair, adapter.config.scaling()),
                None => values,
            };
            report.merged += usize::from(pair.is_some());
            writer.write(
                &info.name,
                &from_f32(info.dtype, &values).unwrap_or_default(),
            )?;
        }
        source.release(&info.name);
        progress(i + 1, infos.len());
    }
    report.bytes = writer.finish()?;
    Ok(report)
}

/// The config of a model whose weights are numbers again.
fn without_quantization(config: &serde_json::Value) -> Vec<u8> {
    let mut config = config.clone();
    if let Some(fields) = config.as_object_mut() {
        fields.remove("quantization_config");
    }
    format!("{config:#}\n").into_bytes()
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

/// Everything that could be wrong, before anything is written.
fn check(source: &ModelSource, adapter: &PeftDir) -> Result<(), MergeError> {
    for pair in adapter.tensors.iter() {
        let module = pair.module.clone();
        let Some(info) = source.tensor_info(&format!("{module}.weight")) else {
            return Err(MergeError::NoSuchModule { module });
        };
        let actual = [pair.out_features, pair.in_features];
        if info.shape != actual {
            return Err(MergeError::Shape {
                module,
                expected: info.shape.clone(),
                actual,
            });
        }
    }
    Ok(())
}

fn merged(values: Vec<f32>, pair: &LoraPair, scaling: f64) -> Vec<f32> {
    let device = Device::flex();
    let tensor = |values: Vec<f32>, shape: [usize; 2]| {
        Tensor::<2>::from_data(TensorData::new(values, shape), &device)
    };
    let rank = pair.lora_a.len() / pair.in_features.max(1);
    let base = tensor(values, [pair.out_features, pair.in_features]);
    let a = tensor(pair.lora_a.clone(), [rank, pair.in_features]);
    let b = tensor(pair.lora_b.clone(), [pair.out_features, rank]);
    let sum = gemm((Op::N, &b), (Op::N, &a), scaling as f32, Some(base));
    sum.into_data().iter::<f32>().collect()
}
