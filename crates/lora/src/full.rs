//! Full fine-tuning: a base with trained tensors in place of its own, to and from a Hugging Face directory.

use std::borrow::Cow;
use std::path::Path;

use backdraft_arch::spec::{EMBEDDING, HEAD};
use backdraft_arch::{LoraConfig, ModelSpec};
use backdraft_formats::{Dtype, Existing, HfDirWriter, ModelSource, TensorInfo};
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::base::{MatrixError, read_values};
use crate::merge::{MergeError, fits, is_plain, tensors};
use crate::merged_files::merged_files;
use crate::weights::AdapterWeights;
use crate::whole::TrainedTensor;

/// How a model is written whose own tensors were trained.
#[derive(Clone, Debug)]
pub struct ModelWriteOptions<'a> {
    /// Trained tensors in f32, as they are trained and can be trained on, in place of the base's types.
    pub master_weights: bool,
    /// A chat template in place of the base's.
    pub chat_template: Option<&'a str>,
    /// Ids that ended answers in training: generation ends at them too.
    pub stop_token_ids: &'a [u32],
    /// What becomes of a directory that is there.
    pub existing: Existing,
}

impl AdapterWeights {
    /// Writes `path`, a Hugging Face directory of the model in `source` with the trained tensors in place of its own; all others
    /// are as the files have them, dequantised where those are quantised. It appears whole or not at all. Tensors come to the
    /// host one after the other.
    ///
    /// # Errors
    /// A trained tensor that is no number, or too large for its type; a file that cannot be read, a target that exists, a full
    /// disk.
    pub fn write_model(
        &self,
        source: &ModelSource,
        path: &Path,
        options: &ModelWriteOptions<'_>,
    ) -> Result<(), MergeError> {
        let (own, others) = tensors(source);
        let typed = |info: TensorInfo| match self.trained(source, &info.name) {
            Some(_) if options.master_weights => TensorInfo {
                dtype: Dtype::F32,
                ..info
            },
            _ => info,
        };
        let infos: Vec<TensorInfo> = own.into_iter().chain(others).map(typed).collect();
        let stored = |info: &TensorInfo| TensorInfo {
            name: source.stored_name(&info.name).to_owned(),
            ..info.clone()
        };
        let written = infos.iter().map(stored).collect();
        let mut writer = HfDirWriter::create(path, written, options.existing)?;
        for (name, bytes) in merged_files(source, options.chat_template, options.stop_token_ids)? {
            writer.companion(&name, &bytes)?;
        }
        for info in &infos {
            let bytes = match self.trained(source, &info.name) {
                Some(trained) => Cow::Owned(encoded(trained, info, path)?),
                None if is_plain(source, info) => source.raw(&info.name)?.bytes,
                None => Cow::Owned(info.encode(path, &read_values(source, &info.name)?)?),
            };
            writer.write(source.stored_name(&info.name), &bytes)?;
            source.release(&info.name);
        }
        writer.finish()?;
        Ok(())
    }

    /// The trained tensors of a directory that [`write_model`](Self::write_model) wrote with master weights: those that
    /// `config` names in a model of that shape.
    ///
    /// # Errors
    /// A tensor that is missing or cannot be read.
    pub fn read_model(
        source: &ModelSource,
        config: &LoraConfig,
        (spec, device): (&ModelSpec, &Device),
    ) -> Result<Self, MatrixError> {
        let read = |tensor: backdraft_arch::TensorSpec| {
            let values = read_values(source, &tensor.name)?;
            source.release(&tensor.name);
            let count = values.len();
            let values = TensorData::new(values, [count]);
            let values = Tensor::from_data(values, (device, DType::F32));
            let trained = TrainedTensor::new(values, tensor.shape, DType::F32);
            Ok((tensor.name, trained))
        };
        Ok(Self {
            config: config.clone(),
            adapters: Default::default(),
            tokens: Vec::new(),
            whole: config
                .whole(spec)
                .into_iter()
                .map(read)
                .collect::<Result<_, MatrixError>>()?,
        })
    }

    /// What was trained in place of a tensor.
    fn trained(&self, source: &ModelSource, name: &str) -> Option<&TrainedTensor> {
        // A copy of the embedding that some files have beside it.
        let name = match name == HEAD && source.ties_head() {
            true => EMBEDDING,
            false => name,
        };
        self.whole.get(name)
    }
}

/// A trained tensor as bytes of its type in a file.
fn encoded(trained: &TrainedTensor, info: &TensorInfo, path: &Path) -> Result<Vec<u8>, MergeError> {
    let values: Vec<f32> = trained.values().into_data().iter::<f32>().collect();
    let module = || info.name.trim_end_matches(".weight").to_owned();
    if !values.iter().all(|value| value.is_finite()) {
        return Err(MergeError::NotFinite {
            path: path.to_owned(),
            module: module(),
        });
    }
    match fits(&values, info.dtype) {
        true => Ok(info.encode(path, &values)?),
        false => Err(MergeError::Overflow {
            path: path.to_owned(),
            module: module(),
            dtype: info.dtype.to_string(),
        }),
    }
}
