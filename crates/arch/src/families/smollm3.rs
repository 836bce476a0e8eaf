//! SmolLM 3: Llama's layer, in some layers without RoPE.

use serde_json::Value;

use super::{flagged_biases, windows_by_type};
use crate::config::{ConfigError, Keys, invalid};
use crate::ops::Heads;
use crate::spec::ModelSpec;

pub(super) fn describe(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    let biases = flagged_biases(keys)?;
    let turned = turned(keys, spec.layers.len())?;
    for (layer, turned) in spec.layers.iter_mut().zip(turned) {
        layer.biases = biases;
        if !turned {
            layer.heads = Heads::Plain;
        }
    }
    windows(keys, spec)
}

/// Whether heads are turned in each layer: `no_rope_layers` has a 1 where they are, or, without it, they are not in every
/// `no_rope_layer_interval`-th.
fn turned(keys: &Keys<'_>, layers: usize) -> Result<Vec<bool>, ConfigError> {
    let key = "no_rope_layers";
    let Some(value) = keys.optional(key) else {
        let interval = keys.size_or("no_rope_layer_interval", 4)?;
        return Ok((1..=layers).map(|n| !n.is_multiple_of(interval)).collect());
    };
    let flags = value.as_array().filter(|flags| flags.len() >= layers);
    let turned = |flag: &Value| match flag.as_u64() {
        Some(flag @ 0..=1) => Some(flag == 1),
        _ => None,
    };
    let found = flags.and_then(|flags| flags.iter().take(layers).map(turned).collect());
    found.ok_or_else(|| invalid(key, "a 0 or a 1 for each layer", value))
}

/// Off unless `use_sliding_window`; then in the layers that `layer_types` names, or in those without RoPE.
fn windows(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    if !keys.flag_or("use_sliding_window", false)? || keys.optional("sliding_window").is_none() {
        return Ok(());
    }
    let window = keys.size("sliding_window")?;
    if keys.optional("layer_types").is_some() {
        return windows_by_type(keys, spec, window);
    }
    for layer in &mut spec.layers {
        layer.sliding_window = (layer.heads == Heads::Plain).then_some(window);
    }
    Ok(())
}
