//! Llama: the plain decoder, with biases where flags say so.

use serde_json::Value;

use super::attention_bias;
use crate::config::{ConfigError, Keys};
use crate::spec::ModelSpec;
use crate::target::TargetModule as M;

pub(super) fn describe(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    if let Some(actual) = keys.optional("sliding_window") {
        return Err(ConfigError::Unsupported {
            key: "sliding_window",
            actual: Value::to_string(actual),
            supported: "null (full attention)".to_owned(),
        });
    }
    let mut biases = attention_bias(keys)?;
    if keys.flag_or("mlp_bias", false)? {
        biases = biases.with([M::GateProj, M::UpProj, M::DownProj]);
    }
    for layer in &mut spec.layers {
        layer.biases = biases;
    }
    Ok(())
}
