//! A LoRA adapter as a GGUF file, for programs that put it on a base that is loaded already.

use std::path::PathBuf;

use backdraft_arch::TokenTable;

use super::decoder::GgufDecoder;
use super::entry::Entry;
use super::export_error::GgufExportError;
use super::ggml_type::GgmlType;
use super::names::gguf_name;
use super::order::Arrangement;
use super::writer::{GgufWriter, TensorPlan, WrittenFile};
use crate::atomic::Existing;
use crate::error::Result;
use crate::peft_dir::{LoraPair, PeftDir};

/// Writes an adapter over a model of this architecture, in single precision. `general` are metadata about it as a whole.
///
/// llama.cpp computes W·x + (alpha / rank)·B·A·x with one alpha for all modules. Where modules are scaled otherwise, their
/// scaling is folded into B, and alpha is 0, which llama.cpp takes for a scaling of 1.
///
/// # Errors
/// A module that GGUF has no name for, factors that are not finite, or what [`GgufWriter`] says.
pub fn write_gguf_adapter(
    adapter: &PeftDir,
    decoder: &GgufDecoder,
    general: &[Entry],
    path: impl Into<PathBuf>,
    existing: Existing,
) -> Result<Vec<WrittenFile>> {
    let architecture = decoder.architecture()?;
    if !adapter.tensors.tokens().is_empty() {
        let unknown = GgufExportError::Feature {
            what: "a tensor of the adapter",
            actual: "rows of trained tokens".to_owned(),
            hint: "adapter files have none; export it merged, without --adapter-only",
        };
        return Err(unknown.into());
    }
    if let Some(whole) = adapter.tensors.whole().next() {
        let unknown = GgufExportError::Feature {
            what: "a tensor of the adapter",
            actual: format!("the whole {}", whole.name),
            hint: "adapter files have none; export it merged, without --adapter-only",
        };
        return Err(unknown.into());
    }
    let table = |pair: &&LoraPair| TokenTable::of_path(&pair.module).is_some();
    if let Some(pair) = adapter.tensors.iter().find(table) {
        let unknown = GgufExportError::Feature {
            what: "a module of the adapter",
            actual: pair.module.clone(),
            hint: "adapter files have projections of layers; export it merged, without --adapter-only",
        };
        return Err(unknown.into());
    }
    if adapter.config.use_dora {
        let unknown = GgufExportError::Feature {
            what: "a tensor of the adapter",
            actual: "the lengths of rows that DoRA trains".to_owned(),
            hint: "adapter files have none; export it merged, without --adapter-only",
        };
        return Err(unknown.into());
    }
    let alpha = |pair: &LoraPair| adapter.config.scaling_of(&pair.module) * pair.rank() as f64;
    let mut alphas = adapter.tensors.iter().map(alpha);
    let first = alphas.next().unwrap_or_default();
    let common = alphas.all(|other| other == first).then_some(first);
    let (mut plans, mut values) = (Vec::new(), Vec::new());
    for pair in adapter.tensors.iter() {
        let name = format!("{}.weight", pair.module);
        let Some((name, rows)) = gguf_name(&name, architecture) else {
            let unknown = GgufExportError::Tensor {
                tensor: name,
                architecture: architecture.name(),
            };
            return Err(unknown.into());
        };
        let rank = pair.rank();
        let scaling = match common {
            Some(_) => 1.0,
            None => adapter.config.scaling_of(&pair.module) as f32,
        };
        let mut b: Vec<f32> = pair.lora_b.iter().map(|value| value * scaling).collect();
        let mut a = pair.lora_a.clone();
        let delta = decoder.delta_nets.as_ref().map(|delta| delta.sizes);
        match rows.arrangement(architecture, decoder.head_dim, delta) {
            Some(rows @ Arrangement::Rows(_)) => b = rows.to_file(&b, pair.out_features),
            Some(columns @ Arrangement::Columns(_)) => a = columns.to_file(&a, rank),
            None => {}
        }
        let plan = |name, shape| TensorPlan {
            name,
            kind: GgmlType::F32,
            shape,
        };
        let (of_a, of_b) = (format!("{name}.lora_a"), format!("{name}.lora_b"));
        for value in a.iter().chain(&b) {
            if !value.is_finite() {
                return Err(GgufExportError::unfit(&name, *value).into());
            }
        }
        plans.push(plan(of_a, vec![rank, pair.in_features]));
        plans.push(plan(of_b, vec![pair.out_features, rank]));
        values.push(a);
        values.push(b);
    }
    let mut metadata = vec![
        Entry::new("general.architecture", architecture.name()),
        Entry::new("general.type", "adapter"),
        Entry::new("adapter.type", "lora"),
    ];
    metadata.extend_from_slice(general);
    let alpha = common.unwrap_or_default() as f32;
    metadata.push(Entry::new("adapter.lora.alpha", alpha));
    let mut writer = GgufWriter::create(path, &metadata, plans, None, existing)?;
    for values in values {
        writer.write(bytemuck::cast_slice(&values))?;
    }
    writer.finish()
}

#[cfg(test)]
mod tests;
