//! An adapter of a tiny case: an entry of `golden.json` beside a safetensors file of its name.

use std::error::Error;
use std::fs;
use std::path::Path;

use backdraft::formats::dtype::{Dtype, f32_bytes};
use backdraft::formats::{Existing, SafetensorsWriter, TensorInfo};
use backdraft::lora::AdapterWeights;
use backdraft::model::CausalLm;
use backdraft_testkit::golden::Tensors;
use serde::Deserialize;
use serde_json::{Map, Value, from_value, json};

use super::place;
use super::support;
use super::tiny_case::TinyCase;

/// Settings and reference values.
#[derive(Deserialize)]
pub(super) struct Entry {
    r: usize,
    lora_alpha: f64,
    target_modules: Value,
    #[serde(default)]
    options: Map<String, Value>,
    pub(super) plain_loss: f64,
    pub(super) plain_grad_norm: f64,
    pub(super) padded_loss: f64,
    pub(super) padded_grad_norm: f64,
    pub(super) merged_weights_plain_loss: f64,
}

/// An entry with its tensors and the model that carries its adapter.
pub(super) struct LoraCase {
    pub(super) name: String,
    pub(super) entry: Entry,
    pub(super) tensors: Tensors,
    pub(super) model: CausalLm,
}

impl LoraCase {
    /// Every supported adapter of a case; the others are refused as they should be.
    pub(super) fn all(case: &TinyCase) -> Vec<Self> {
        let entries = case
            .golden
            .iter()
            .filter(|(_, entry)| entry.get("lora_alpha").is_some());
        let (mut found, mut cases) = (0, Vec::new());
        for (key, entry) in entries {
            found += 1;
            let name = format!("{}, {key}", case.name);
            let entry: Entry = from_value(entry.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
            let tensors = Tensors::open(case.path.join(format!("{key}.safetensors")));
            let expected = support::unsupported_option(&entry.options, &entry.target_modules);
            match (adapted(&case.model, &entry, &tensors), expected) {
                (Ok(model), None) => cases.push(Self {
                    name,
                    entry,
                    tensors,
                    model,
                }),
                (Ok(_), Some(option)) => panic!("{name}: `{option}` should have been refused"),
                (Err(error), Some(option)) if support::chain(&*error).contains(&option) => {
                    println!(
                        "{name}: refused, as it should be: {}",
                        support::chain(&*error)
                    );
                }
                (Err(error), _) => panic!("{name}: {}", support::chain(&*error)),
            }
        }
        assert!(found > 0, "{}: no adapter", case.name);
        cases
    }
}

/// The model with the adapter, which goes through a directory as PEFT writes it.
fn adapted(model: &CausalLm, entry: &Entry, tensors: &Tensors) -> Result<CausalLm, Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let mut config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": entry.r,
        "lora_alpha": entry.lora_alpha,
        "target_modules": entry.target_modules,
    });
    for (option, value) in &entry.options {
        config[option] = value.clone();
    }
    fs::write(
        directory.path().join("adapter_config.json"),
        config.to_string(),
    )?;
    write_weights(&directory.path().join("adapter_model.safetensors"), tensors)?;
    let adapter = AdapterWeights::read(directory.path(), &place::device())?;
    Ok(model.clone().with_adapter(&adapter)?)
}

/// Everything but the reference values, under PEFT's names.
fn write_weights(path: &Path, tensors: &Tensors) -> Result<(), Box<dyn Error>> {
    let is_weight = |name: &&str| !name.starts_with("plain.") && !name.starts_with("padded.");
    let infos = tensors
        .infos()
        .filter(|info| is_weight(&info.name.as_str()));
    let infos: Vec<TensorInfo> = infos
        .map(|info| {
            let name = format!("base_model.model.{}", info.name);
            TensorInfo::new(name, Dtype::F32, info.shape.clone())
        })
        .collect();
    let mut writer = SafetensorsWriter::create(path, infos, Existing::Refuse)?;
    for name in tensors.names().filter(is_weight) {
        let bytes = f32_bytes(&tensors.f32(name));
        writer.write(&format!("base_model.model.{name}"), &bytes)?;
    }
    Ok(writer.finish()?)
}
