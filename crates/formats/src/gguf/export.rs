//! A model as GGUF files of several types, from one pass over its weights.

use std::path::PathBuf;

use half::f16;
use rayon::prelude::*;

use super::architectures::Architecture;
use super::decoder::GgufDecoder;
use super::entry::{Entry, EntryValue};
use super::export_error::GgufExportError;
use super::file_type::{GgufFileType, Mixture, value_layer};
use super::ggml_type::GgmlType;
use super::model::CONV;
use super::names::{ROPE_FREQS, gguf_name};
use super::order::{Arrangement, Change};
use super::quantize::{quantize, quantized_bytes};
use super::writer::{GgufWriter, TensorPlan, WrittenFile, file_bytes};
use crate::atomic::Existing;
use crate::error::{FormatError, Result};

/// The version of the quantised blocks.
const QUANTIZATION_VERSION: u32 = 2;

/// What becomes of a model: metadata and tensors, without their values.
#[derive(Debug, Clone)]
pub struct GgufExport {
    metadata: Vec<Entry>,
    tensors: Vec<ExportTensor>,
    mixture: Mixture,
}

/// A tensor of an export.
#[derive(Debug, Clone)]
pub struct ExportTensor {
    /// Where its values come from.
    pub source: ExportSource,
    name: String,
    shape: Vec<usize>,
    /// Its rows or columns in the file, where they are in another order.
    arrangement: Option<Arrangement>,
    /// What becomes of its values.
    change: Change,
}

/// Where values come from.
#[derive(Debug, Clone, PartialEq)]
pub enum ExportSource {
    /// A tensor by Hugging Face's name.
    Tensor(String),
    /// These.
    Values(Vec<f32>),
}

impl GgufExport {
    /// Plans an export of `tensors`, Hugging Face's names and shapes; `general` and `vocabulary` are metadata about the model
    /// as a whole and its tokenizer.
    ///
    /// # Errors
    /// A model that GGUF has no form for, or tensors that are not its own.
    pub fn new<'a>(
        decoder: &GgufDecoder,
        general: &[Entry],
        vocabulary: Vec<Entry>,
        tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>,
    ) -> Result<Self, GgufExportError> {
        let architecture = decoder.architecture()?;
        let mut planned = Vec::new();
        for (name, shape) in tensors {
            if name == ROPE_FREQS {
                continue;
            }
            planned.push(tensor(name, shape, decoder, architecture)?);
        }
        let has = |name: &str| {
            planned
                .iter()
                .any(|tensor: &ExportTensor| tensor.name == name)
        };
        for tensor in ["token_embd.weight", "output_norm.weight"] {
            if !has(tensor) {
                return Err(GgufExportError::TensorMissing { tensor });
            }
        }
        let tied = !has("output.weight");
        if tied && architecture.is_strict() {
            let tensor = "output.weight";
            return Err(GgufExportError::TensorMissing { tensor });
        }
        if !tied && architecture == Architecture::Gemma2 {
            return Err(GgufExportError::Feature {
                what: "the head",
                actual: "a tensor of its own".to_owned(),
                hint: "llama.cpp takes the embedding for that of a Gemma 2",
            });
        }
        for (name, factors) in decoder.factor_tensors() {
            planned.push(ExportTensor {
                name: name.to_owned(),
                shape: vec![factors.len()],
                source: ExportSource::Values(factors),
                arrangement: None,
                change: Change::None,
            });
        }
        // The order of llama.cpp's own files: what is in no layer, then layer by layer.
        planned.sort_by(|a, b| (layer(&a.name), &a.name).cmp(&(layer(&b.name), &b.name)));
        let mut metadata = vec![
            Entry::new("general.architecture", architecture.name()),
            Entry::new("general.type", "model"),
        ];
        metadata.extend_from_slice(general);
        metadata.extend(decoder.entries(architecture));
        metadata.extend(vocabulary);
        let values = planned
            .iter()
            .filter_map(|tensor| value_layer(&tensor.name));
        let values = values.collect();
        let grouped = decoder.heads != decoder.key_value_heads;
        Ok(Self {
            metadata,
            tensors: planned,
            mixture: Mixture {
                layers: decoder.layers,
                values,
                tied,
                is_70b: decoder.layers == 80 && grouped && architecture.has_70b(),
            },
        })
    }

    /// Its tensors, in the order in which their values are written.
    #[must_use]
    pub fn tensors(&self) -> &[ExportTensor] {
        &self.tensors
    }

    /// The metadata of a file of one type.
    #[must_use]
    pub fn metadata(&self, file_type: GgufFileType) -> Vec<Entry> {
        let mut metadata = self.metadata.clone();
        let version = EntryValue::U32(QUANTIZATION_VERSION);
        metadata.push(Entry::new("general.quantization_version", version));
        metadata.push(Entry::new("general.file_type", file_type.id()));
        metadata
    }

    /// The tensors of a file of one type.
    #[must_use]
    pub fn plan(&self, file_type: GgufFileType) -> Vec<TensorPlan> {
        let plan = |tensor: &ExportTensor| TensorPlan {
            name: tensor.name.clone(),
            kind: file_type.of_tensor(&tensor.name, &tensor.shape, &self.mixture),
            shape: tensor.shape.clone(),
        };
        self.tensors.iter().map(plan).collect()
    }

    /// The size of a file of one type.
    #[must_use]
    pub fn bytes(&self, file_type: GgufFileType) -> u64 {
        file_bytes(&self.metadata(file_type), &self.plan(file_type))
    }
}

fn tensor(
    name: &str,
    shape: &[usize],
    decoder: &GgufDecoder,
    architecture: Architecture,
) -> Result<ExportTensor, GgufExportError> {
    let Some((ours, rows)) = gguf_name(name, architecture) else {
        return Err(GgufExportError::Tensor {
            tensor: name.to_owned(),
            architecture: architecture.name(),
        });
    };
    let delta = decoder.delta_nets.as_ref().map(|delta| delta.sizes);
    let mut shape = shape.to_vec();
    if name.ends_with(CONV) && shape.len() == 3 {
        shape.remove(1);
    }
    Ok(ExportTensor {
        source: ExportSource::Tensor(name.to_owned()),
        name: ours,
        shape,
        arrangement: rows.arrangement(architecture, decoder.head_dim, delta),
        change: architecture.change(name),
    })
}

/// The layer of a tensor; `None` is less than any.
fn layer(name: &str) -> Option<u64> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// The files of an export while they are written.
#[derive(Debug)]
pub struct GgufFiles<'a> {
    export: &'a GgufExport,
    files: Vec<(GgufFileType, GgufWriter)>,
    next: usize,
}

impl<'a> GgufFiles<'a> {
    /// Starts a file, or parts of at most `part_bytes`, for each type.
    ///
    /// # Errors
    /// As [`GgufWriter::create`].
    pub fn create(
        export: &'a GgufExport,
        targets: impl IntoIterator<Item = (GgufFileType, PathBuf)>,
        part_bytes: Option<u64>,
        existing: Existing,
    ) -> Result<Self> {
        let start = |(file_type, path)| {
            let metadata = export.metadata(file_type);
            let plan = export.plan(file_type);
            let writer = GgufWriter::create(path, &metadata, plan, part_bytes, existing)?;
            Ok((file_type, writer))
        };
        Ok(Self {
            export,
            files: targets.into_iter().map(start).collect::<Result<_>>()?,
            next: 0,
        })
    }

    /// Writes the values of the next tensor, in Hugging Face's order, to every file.
    ///
    /// # Errors
    /// A value that a type cannot hold, or what [`GgufWriter::write`] says.
    pub fn write(&mut self, mut values: Vec<f32>) -> Result<()> {
        let Some(tensor) = self.export.tensors.get(self.next) else {
            return Ok(());
        };
        tensor.change.to_file(&mut values);
        let values = match tensor.arrangement {
            Some(arrangement) => arrangement.to_file(&values, tensor.shape[0]),
            None => values,
        };
        let mut done: Vec<GgmlType> = Vec::new();
        for i in 0..self.files.len() {
            let kind = self.files[i].1.tensors()[self.next].kind;
            if done.contains(&kind) {
                continue;
            }
            done.push(kind);
            check(&tensor.name, kind, &values)?;
            let mut bytes = vec![0; quantized_bytes(kind, values.len())];
            quantize(kind, &values, &mut bytes);
            for (_, writer) in &mut self.files {
                if writer.tensors()[self.next].kind == kind {
                    writer.write(&bytes)?;
                }
            }
        }
        self.next += 1;
        Ok(())
    }

    /// Gives all files their names.
    ///
    /// # Errors
    /// As [`GgufWriter::finish`].
    pub fn finish(self) -> Result<Vec<(GgufFileType, Vec<WrittenFile>)>> {
        let finish = |(file_type, writer): (_, GgufWriter)| Ok((file_type, writer.finish()?));
        self.files.into_iter().map(finish).collect()
    }
}

/// Refuses values that a type cannot hold.
fn check(tensor: &str, kind: GgmlType, values: &[f32]) -> Result<()> {
    let fits = |value: &&f32| match kind {
        GgmlType::F16 => f16::from_f32(**value).is_finite(),
        _ => value.is_finite(),
    };
    match values.par_iter().find_any(|value| !fits(value)) {
        None => Ok(()),
        Some(value) => Err(FormatError::GgufExport {
            source: GgufExportError::unfit(tensor, *value),
        }),
    }
}

#[cfg(test)]
mod golden_tests;
