//! Writing a model in codes, as transformers and bitsandbytes load it.

use std::path::Path;

use backdraft_arch::TargetModule;
use backdraft_formats::bnb::{BnbConfig, BnbKind};
use backdraft_formats::{Dtype, Existing, FormatError, HfDirWriter, ModelSource, TensorInfo};
use backdraft_lora::base::{MatrixError, bnb_kind, maps, read_matrix, to_bnb};
use backdraft_quant::{QuantizationPlan, Scheme};
use burn::tensor::{DType, Device};

use crate::error::LoadError;
use crate::load::check;

/// Why a model cannot be written in codes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A weight cannot be read.
    #[error(transparent)]
    Matrix(#[from] MatrixError),
    /// A file cannot be read or written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The model is in codes already.
    #[error("{} is quantised already; quantise the model that it was made from", path.display())]
    Quantized {
        /// The model.
        path: std::path::PathBuf,
    },
    /// Codes that such a directory cannot hold.
    #[error(
        "bitsandbytes has no {scheme}: a directory that transformers loads holds nf4, fp4 or int8; quantise most of the \
         model in one of those"
    )]
    Unknown {
        /// The scheme of most matrices.
        scheme: Scheme,
    },
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizeReport {
    /// Weights in codes.
    pub quantized: usize,
    /// Values in them.
    pub quantized_params: usize,
    /// Bytes of their codes and scales.
    pub quantized_bytes: usize,
    /// Tensors that are written as values.
    pub kept: usize,
    /// Bytes of all tensors.
    pub bytes: usize,
}

/// Writes `out`, a directory that transformers loads with bitsandbytes; it appears whole or not at all. The
/// tensors that the plan leaves alone keep their type. Such a directory has one kind of codes, the plan's own: matrices
/// with a scheme of their own are written as the values that their codes stand for, and are listed as skipped.
///
/// # Errors
/// A model that cannot be read or is in codes already, a scheme that bitsandbytes lacks, a target that exists, a full
/// disk.
pub fn quantize(
    source: &ModelSource,
    plan: &QuantizationPlan,
    out: &Path,
    existing: Existing,
    mut progress: impl FnMut(usize, usize),
) -> Result<QuantizeReport, QuantizeError> {
    check(source)?;
    if source.quantization().is_some() {
        let path = source.path().to_owned();
        return Err(QuantizeError::Quantized { path });
    }
    let kind = bnb_kind(plan.scheme).ok_or(QuantizeError::Unknown {
        scheme: plan.scheme,
    })?;
    let decoder = source.tensor_names().count();
    let names = source.tensor_names().chain(source.other_names());
    let infos: Vec<(&TensorInfo, Option<Scheme>)> = names
        .enumerate()
        .filter(|(_, name)| *name != "rope_freqs.weight")
        .filter_map(|(place, name)| {
            let info = source.tensor_info(name)?;
            // Other parts than the decoder stay as they are.
            let scheme = scheme_of(info, plan).filter(|_| place < decoder);
            Some((info, scheme))
        })
        .collect();
    let stored = |info: &TensorInfo| TensorInfo {
        name: source.stored_name(&info.name).to_owned(),
        ..info.clone()
    };
    let targets: Vec<Vec<TensorInfo>> = infos
        .iter()
        .map(|(info, scheme)| match scheme {
            Some(scheme) if *scheme == plan.scheme => kind.layout(&stored(info)),
            _ => vec![stored(info)],
        })
        .collect();
    let mut writer = HfDirWriter::create(out, targets.concat(), existing)?;
    for (name, bytes) in source.companion_files()? {
        let bytes = match name.as_str() {
            "config.json" => config(source, kind, plan),
            _ => bytes,
        };
        writer.companion(&name, &bytes)?;
    }
    let mut report = QuantizeReport {
        quantized: 0,
        quantized_params: 0,
        quantized_bytes: 0,
        kept: 0,
        bytes: 0,
    };
    for (done, &(info, scheme)) in infos.iter().enumerate() {
        let name = source.stored_name(&info.name);
        match (scheme, &info.shape[..]) {
            (Some(scheme), &[output, input]) => {
                let dims = [output, input];
                let device = Device::flex();
                let weight = read_matrix(
                    source,
                    &info.name,
                    dims,
                    Some(scheme),
                    (&device, DType::F32),
                )?;
                match to_bnb(&weight, info.dtype) {
                    Some(tensor) if scheme == plan.scheme => {
                        report.quantized += 1;
                        report.quantized_params += weight.num_params();
                        report.quantized_bytes += weight.num_bytes();
                        for (part, bytes) in tensor.parts(out, name, maps())? {
                            writer.write(&part, &bytes)?;
                        }
                    }
                    _ => {
                        report.kept += 1;
                        // What the codes stand for, in the type that the values had.
                        let values: Vec<f32> = weight.dequantize().into_data().iter().collect();
                        writer.write(name, &info.encode(out, &values)?)?;
                    }
                }
            }
            _ => {
                report.kept += 1;
                writer.write(name, &source.raw(&info.name)?.bytes)?;
                source.release(&info.name);
            }
        }
        progress(done + 1, infos.len());
    }
    report.bytes = writer.finish()?;
    Ok(report)
}

/// How a tensor is stored: only projections are ever in codes.
fn scheme_of(info: &TensorInfo, plan: &QuantizationPlan) -> Option<Scheme> {
    let module = info.name.strip_suffix(".weight")?;
    let projection = TargetModule::of_path(module).is_some() && info.shape.len() == 2;
    projection.then(|| plan.scheme_for(module)).flatten()
}

fn config(source: &ModelSource, kind: BnbKind, plan: &QuantizationPlan) -> Vec<u8> {
    let mut config = source.whole_config().clone();
    let compute = source
        .tensor_names()
        .find(|name| name.ends_with("_proj.weight"))
        .and_then(|name| source.tensor_info(name))
        .map_or(Dtype::F32, |info| info.dtype);
    let entry = BnbConfig::to_json(kind, compute, &skipped(source, plan));
    if let Some(fields) = config.as_object_mut() {
        fields.insert("quantization_config".to_owned(), entry);
    }
    format!("{config:#}\n").into_bytes()
}

/// The modules that are written as values, in full: transformers does not know components of a path. Those of a model's
/// other parts are named by the parts, as files and as transformers 5 call them.
fn skipped(source: &ModelSource, plan: &QuantizationPlan) -> Vec<String> {
    let modules = source
        .tensor_names()
        .filter_map(|name| name.strip_suffix(".weight"))
        .filter(|module| TargetModule::of_path(module).is_some())
        .filter(|module| plan.scheme_for(module) != Some(plan.scheme));
    let prefix = source.adapter_prefix();
    let modules = modules.map(|module| prefix.name(module));
    let parts = source.other_parts().into_iter();
    let parts = parts.flat_map(|part| [part.to_owned(), format!("model.{part}")]);
    std::iter::once("lm_head".to_owned())
        .chain(modules)
        .chain(parts)
        .collect()
}
