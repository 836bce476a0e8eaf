//! Qwen 3: Llama's layer with a norm of each query and key head before its rotation.

use super::{attention_bias, qwen_windows};
use crate::config::{ConfigError, Keys};
use crate::ops::Heads;
use crate::spec::ModelSpec;

pub(super) fn describe(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    let biases = attention_bias(keys)?;
    for layer in &mut spec.layers {
        layer.heads = Heads::NormedTurned;
        layer.biases = biases;
    }
    qwen_windows(keys, spec)
}
