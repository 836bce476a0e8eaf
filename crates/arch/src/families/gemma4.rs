//! Gemma 4, dense text: norms around attention and MLP that multiply by w, values normed by no weight, scores as they are,
//! GELU, a number for each layer that the residual stream is multiplied by. Layers without a window have heads of their own,
//! of which some pairs turn, and may have no `v_proj`: their values are their keys before the norm.

use serde_json::Value;

use super::gemma::cap;
use super::{attention_bias, rope_of_type, windows_by_type};
use crate::config::{ConfigError, Keys, RotaryHead, invalid};
use crate::ops::{Activation, Heads, NormPlaces, ValueHeads};
use crate::rope::{RopeConfig, RopeScaling, RotaryPairs};
use crate::spec::{LayerSpec, ModelSpec};

/// What the decoder of a `gemma4_unified` calls itself; absent keys stand for something else there.
pub(super) const UNIFIED: &str = "gemma4_unified_text";
/// Of so many layers the last has no window, where `layer_types` does not say it.
const PATTERN: usize = 6;
const KEY_VALUE_HEADS: &str = "num_key_value_heads";

pub(super) fn describe(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    let unified = keys.optional("model_type") == Some(&UNIFIED.into());
    refuse_others(keys, unified)?;
    if unified {
        let key = "max_position_embeddings";
        spec.max_position_embeddings = keys.size_or(key, 262_144)?;
    }
    let biases = attention_bias(keys)?;
    spec.embedding_multiplier = (spec.hidden_size as f64).sqrt();
    spec.rounds_embedding_multiplier = true;
    spec.logits_softcap = cap(keys, "final_logit_softcapping", None)?;
    for layer in &mut spec.layers {
        layer.norm_places = NormPlaces::Around;
        layer.heads = Heads::NormedTurned;
        layer.values = ValueHeads::Normed;
        layer.activation = Activation::GeluTanh;
        layer.attention_multiplier = Some(1.0);
        layer.scaled = true;
        layer.biases = biases;
    }
    windows(keys, spec, if unified { 1024 } else { 512 })?;
    let values_are_keys = keys.flag_or("attention_k_eq_v", false)?;
    let full = full_heads(keys, spec, values_are_keys)?;
    for layer in spec.layers.iter_mut().filter(|layer| is_full(layer)) {
        if values_are_keys {
            layer.values = ValueHeads::NormedKeys;
        }
        (layer.head_dim, layer.num_key_value_heads) = full;
    }
    ropes(keys, spec)
}

/// What E2B, E4B and 26B have, and text that is read both ways.
fn refuse_others(keys: &Keys<'_>, unified: bool) -> Result<(), ConfigError> {
    let refused = |key, actual: String, supported: &str| {
        let supported = supported.to_owned();
        Err(ConfigError::Unsupported {
            key,
            actual,
            supported,
        })
    };
    let key = "hidden_size_per_layer_input";
    let dense =
        "0: embeddings for each layer (E2B, E4B) are not supported, dense models (12B, 31B) are";
    match keys.optional(key) {
        None if !unified => return refused(key, "absent, which is 256".to_owned(), dense),
        None => {}
        Some(Value::Number(size)) if size.as_u64() == Some(0) => {}
        Some(size) => return refused(key, size.to_string(), dense),
    }
    let key = "num_kv_shared_layers";
    let shared = keys.index_or(key, 0)?;
    if shared > 0 {
        let own = "0: each layer has keys and values of its own";
        return refused(key, shared.to_string(), own);
    }
    let key = "enable_moe_block";
    if keys.flag_or(key, false)? {
        let dense = "false: experts (26B-A4B) are not supported, dense models (12B, 31B) are";
        return refused(key, "true".to_owned(), dense);
    }
    let key = "use_bidirectional_attention";
    match keys.optional(key) {
        None => Ok(()),
        // Tokens of images alone.
        Some(value) if value == "vision" => Ok(()),
        Some(other) => refused(key, other.to_string(), "null or \"vision\""),
    }
}

/// The last layer has none, whatever is said of it.
fn windows(keys: &Keys<'_>, spec: &mut ModelSpec, absent: usize) -> Result<(), ConfigError> {
    let window = keys.size_or("sliding_window", absent)?;
    match keys.optional("layer_types") {
        Some(_) => windows_by_type(keys, spec, window)?,
        None => {
            for (index, layer) in spec.layers.iter_mut().enumerate() {
                layer.sliding_window = (!(index + 1).is_multiple_of(PATTERN)).then_some(window);
            }
        }
    }
    if let Some(last) = spec.layers.last_mut() {
        last.sliding_window = None;
    }
    Ok(())
}

fn is_full(layer: &LayerSpec) -> bool {
    layer.sliding_window.is_none()
}

/// The size of heads and the number of key–value heads of layers without a window: by keys of their own, of which the second
/// counts only where values are keys, or as newer versions of transformers write it, layer by layer.
fn full_heads(
    keys: &Keys<'_>,
    spec: &ModelSpec,
    values_are_keys: bool,
) -> Result<(usize, usize), ConfigError> {
    let layer = &spec.layers[0];
    let usual = (layer.head_dim, layer.num_key_value_heads);
    let by_layer = "per_layer_config";
    let Some(layers) = keys.object(by_layer)? else {
        let groups = match values_are_keys {
            true => keys.size_or("num_global_key_value_heads", usual.1)?,
            false => usual.1,
        };
        return Ok((keys.size_or("global_head_dim", 512)?, groups));
    };
    let mut found = vec![usual; spec.layers.len()];
    for (index, own) in layers.entries() {
        let expected = "an object of sizes for each of some layers, by their numbers";
        let place = index
            .parse()
            .ok()
            .and_then(|index: usize| found.get_mut(index));
        let (Some(place), Value::Object(own)) = (place, own) else {
            return Err(invalid(by_layer, expected, own));
        };
        let own = Keys::of(own);
        if let Some((other, _)) =
            (own.entries()).find(|(key, _)| !["head_dim", KEY_VALUE_HEADS].contains(key))
        {
            return Err(ConfigError::Unsupported {
                key: by_layer,
                actual: format!("`{other}` of layer {index}"),
                supported: "head_dim and num_key_value_heads".to_owned(),
            });
        }
        *place = (
            own.size_or("head_dim", usual.0)?,
            own.size_or(KEY_VALUE_HEADS, usual.1)?,
        );
    }
    let last = found[found.len() - 1];
    let fits = |(layer, found): (&LayerSpec, &(usize, usize))| {
        *found == if is_full(layer) { last } else { usual }
    };
    match spec.layers.iter().zip(&found).all(fits) {
        true => Ok(last),
        false => Err(ConfigError::Unsupported {
            key: by_layer,
            actual: "heads that differ otherwise than by windows".to_owned(),
            supported: "the same for all layers with a window, and for all without".to_owned(),
        }),
    }
}

/// A θ for either type of layer; where nothing is said, a quarter of the pairs turns in layers without a window.
fn ropes(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    let sliding = spec.rope.head_dim;
    let full = spec.layers[spec.layers.len() - 1].head_dim;
    let longest = spec.max_position_embeddings;
    let usual = |head_dim, theta, scaling| RopeConfig {
        theta,
        head_dim,
        rotary_dim: head_dim,
        pairs: RotaryPairs::Halves,
        scaling,
    };
    let quarter = RopeScaling::Proportional {
        pairs: full / 8,
        factor: 1.0,
    };
    let said = keys.object("rope_parameters")?.is_some();
    let of_type = |kind, usual: RopeConfig| {
        let head = (RotaryHead::whole(usual.head_dim), usual.theta);
        match rope_of_type(keys, kind, head, longest)? {
            Some(rope) => Ok(rope),
            None if said => Err(ConfigError::Missing { key: kind }),
            None => Ok(usual),
        }
    };
    spec.rope = of_type("full_attention", usual(full, 1_000_000.0, quarter))?;
    if spec.layers.iter().any(|layer| !is_full(layer)) {
        let default = usual(sliding, 10_000.0, RopeScaling::Default);
        spec.local_rope = Some(of_type("sliding_attention", default)?);
    }
    Ok(())
}
