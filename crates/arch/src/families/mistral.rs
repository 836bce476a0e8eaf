//! Mistral: Llama's layer with a window, the same in all layers, unless it is null.

use super::refuse;
use crate::config::{ConfigError, Keys};
use crate::spec::ModelSpec;

pub(super) fn describe(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    refuse(keys, "attention_bias")?;
    refuse(keys, "mlp_bias")?;
    let window = match keys.optional("sliding_window") {
        Some(_) => Some(keys.size("sliding_window")?),
        // What transformers takes where the key is absent; null means none.
        None if !keys.has("sliding_window") => Some(4096),
        None => None,
    };
    for layer in &mut spec.layers {
        layer.sliding_window = window;
    }
    Ok(())
}
