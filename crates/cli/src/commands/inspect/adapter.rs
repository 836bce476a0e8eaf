//! A PEFT adapter's directory.

use std::path::Path;

use backdraft_formats::PeftDir;
use backdraft_train::trained_with::{Prompting, TrainedWith};
use serde_json::Value;

use super::shown::Shown;
use crate::error::CliError;

/// What the adapter in `path` is.
pub(super) fn adapter(path: &Path) -> Result<Shown, CliError> {
    let shown = Shown::default()
        .fact("kind", "PEFT LoRA adapter")
        .fact("path", path.display().to_string());
    facts(shown, path)
}

/// Adds what the adapter in `path` is.
pub(super) fn facts(shown: Shown, path: &Path) -> Result<Shown, CliError> {
    let adapter = PeftDir::read(path)?;
    let config = &adapter.config;
    let pairs = adapter.tensors.iter();
    let values: usize = pairs.map(|pair| pair.values().count()).sum();
    let rows = adapter.tensors.tokens();
    let values = values + rows.iter().map(|rows| rows.values.len()).sum::<usize>();
    let whole = || adapter.tensors.whole();
    let values = values + whole().map(|tensor| tensor.values.len()).sum::<usize>();
    let shapes = whole().map(|tensor| (&*tensor.name, tensor.shape.clone()));
    let tokens = rows.iter().map(|rows| {
        let ids: Vec<Value> = rows.ids.iter().map(|&id| id.into()).collect();
        (rows.table.path(), Value::Array(ids))
    });
    let norm = |values: &[f32]| values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
    let b: f64 = adapter.tensors.iter().map(|pair| norm(&pair.lora_b)).sum();
    let shown = shown
        .fact("base_model", config.base_model_name_or_path.clone())
        .fact("rank", config.r)
        .fact("alpha", config.lora_alpha)
        .fact("scaling", config.scaling())
        .fact("rank_pattern", object(config.rank_pattern.iter()))
        .fact("alpha_pattern", object(config.alpha_pattern.iter()))
        .fact("use_rslora", config.use_rslora)
        .fact("use_dora", config.use_dora)
        .fact("trained_tokens", object(tokens))
        .fact("trained_whole", object(shapes))
        .fact("adapted_modules", adapter.tensors.len())
        .count("parameters", values)
        .told("norm_of_b", b.sqrt(), format!("{:.4}", b.sqrt()));
    let Some(noted) = TrainedWith::read(path)? else {
        return Ok(shown);
    };
    let value = serde_json::to_value(&noted).map_err(CliError::internal)?;
    let kept = noted.over.quantization.as_ref();
    let kept = kept.map_or_else(|| "as it is".to_owned(), |plan| plan.to_string());
    let rows = &noted.rows;
    let words = format!(
        "{}; rows: format {}, trained on {}, up to {} tokens; base {kept}",
        prompting(noted.prompting),
        rows.format,
        rows.train_on.name(),
        rows.max_seq_length
    );
    Ok(shown.told("trained_with", value, words))
}

const fn prompting(prompting: Prompting) -> &'static str {
    match prompting {
        Prompting::ChatTemplate => "chat template",
        Prompting::PromptTemplate => "prompt template",
        Prompting::Nothing => "prompts without a template",
    }
}

fn object<'a, T: Into<Value>>(entries: impl Iterator<Item = (&'a str, T)>) -> Option<Value> {
    let entries: serde_json::Map<_, _> = entries
        .map(|(key, value)| (key.to_owned(), value.into()))
        .collect();
    (!entries.is_empty()).then_some(Value::Object(entries))
}
