//! Folding an adapter into its base, tensor by tensor.

use std::path::Path;

use backdraft_formats::dtype::from_f32;
use backdraft_formats::{
    AtomicDir, Dtype, Existing, FormatError, LoraPair, ModelSource, PeftDir, SafetensorsWriter,
    TensorInfo, write_file,
};
use backdraft_kernels::gemm::{Op, gemm};
use burn::tensor::{Device, Tensor, TensorData};

/// Bytes of tensors in one file of a sharded model.
const SHARD_BYTES: usize = 5_000_000_000;

/// Why a merge is not possible.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// A file cannot be read or written.
    #[error(transparent)]
    Format(#[from] FormatError),
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

/// Writes `out`, a Hugging Face directory with W + s·B·A in place of each adapted W, in the base's
/// types (f32 where the base is quantised); it appears whole or not at all.
///
/// # Errors
/// An adapter for another base, a file that cannot be read, a target that exists, a full disk.
pub fn merge(
    source: &ModelSource,
    adapter: &PeftDir,
    out: &Path,
    existing: Existing,
    mut progress: impl FnMut(usize, usize),
) -> Result<MergeReport, MergeError> {
    check(source, adapter)?;
    let names: Vec<&str> = source
        .tensor_names()
        .filter(|name| *name != "rope_freqs.weight")
        .collect();
    let infos = names
        .iter()
        .map(|name| target_info(source, name))
        .collect::<Result<Vec<_>, _>>()?;
    let shards = shards(&infos);
    let directory = AtomicDir::create(out, existing)?;
    for (name, bytes) in source.companion_files()? {
        write_file(directory.path().join(name), &bytes, Existing::Refuse)?;
    }
    let mut report = MergeReport {
        tensors: 0,
        merged: 0,
        bytes: 0,
    };
    let mut index = serde_json::Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let file = shard_name(i, shards.len());
        let mut writer = SafetensorsWriter::create(
            directory.path().join(&file),
            shard.to_vec(),
            Existing::Refuse,
        )?;
        for info in *shard {
            let pair = info
                .name
                .strip_suffix(".weight")
                .and_then(|m| adapter.tensors.get(m));
            let bytes = match pair {
                Some(pair) => merged(source, info, pair, adapter.config.scaling())?,
                None => source.raw(&info.name)?.bytes.into_owned(),
            };
            writer.write(&info.name, &bytes)?;
            report.tensors += 1;
            report.merged += usize::from(pair.is_some());
            report.bytes += bytes.len();
            index.insert(info.name.clone(), file.clone().into());
            progress(report.tensors, infos.len());
        }
        writer.finish()?;
    }
    if shards.len() > 1 {
        let index = serde_json::json!({
            "metadata": {"total_size": report.bytes}, "weight_map": index,
        });
        let path = directory.path().join("model.safetensors.index.json");
        write_file(path, index.to_string().as_bytes(), Existing::Refuse)?;
    }
    directory.commit()?;
    Ok(report)
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

fn target_info(source: &ModelSource, name: &str) -> Result<TensorInfo, MergeError> {
    Ok(source.raw(name)?.info.into_owned())
}

fn merged(
    source: &ModelSource,
    info: &TensorInfo,
    pair: &LoraPair,
    scaling: f64,
) -> Result<Vec<u8>, MergeError> {
    let device = Device::flex();
    let tensor = |values: Vec<f32>, shape: [usize; 2]| {
        Tensor::<2>::from_data(TensorData::new(values, shape), &device)
    };
    let rank = pair.lora_a.len() / pair.in_features.max(1);
    let base = tensor(
        source.read_f32(&info.name)?,
        [pair.out_features, pair.in_features],
    );
    let a = tensor(pair.lora_a.clone(), [rank, pair.in_features]);
    let b = tensor(pair.lora_b.clone(), [pair.out_features, rank]);
    let sum = gemm((Op::N, &b), (Op::N, &a), scaling as f32, Some(base));
    let values: Vec<f32> = sum.into_data().iter::<f32>().collect();
    let dtype = if info.dtype.is_float() {
        info.dtype
    } else {
        Dtype::F32
    };
    Ok(from_f32(dtype, &values).unwrap_or_default())
}

fn shards(infos: &[TensorInfo]) -> Vec<&[TensorInfo]> {
    let (mut shards, mut start, mut bytes) = (Vec::new(), 0, 0usize);
    for (i, info) in infos.iter().enumerate() {
        let size = info.checked_bytes().unwrap_or(usize::MAX);
        if i > start && bytes.saturating_add(size) > SHARD_BYTES {
            shards.push(&infos[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes = bytes.saturating_add(size);
    }
    shards.push(&infos[start..]);
    shards
}

fn shard_name(index: usize, count: usize) -> String {
    if count == 1 {
        "model.safetensors".to_owned()
    } else {
        format!("model-{:05}-of-{count:05}.safetensors", index + 1)
    }
}
