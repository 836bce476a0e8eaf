//! Gemma 2 and 3: norms before and after attention and MLP that multiply by 1 + w, GELU, embeddings multiplied by
//! √`hidden_size`, windows in some layers. Gemma 2 caps scores and logits; Gemma 3 norms heads instead, and turns those of
//! layers with a window by angles of their own.

use super::{attention_bias, refuse, rope_of_type, windows_by_type};
use crate::config::{ConfigError, Keys, RotaryHead, rope_of};
use crate::ops::{Activation, Heads, NormPlaces, NormScale};
use crate::spec::ModelSpec;

/// Every layer of either; all but each `pattern`-th have a window where `layer_types` does not say it.
fn describe(keys: &Keys<'_>, spec: &mut ModelSpec, pattern: usize) -> Result<(), ConfigError> {
    let biases = attention_bias(keys)?;
    let scalar = keys.positive_or("query_pre_attn_scalar", 256.0)?;
    spec.norm_scale = NormScale::OnePlusWeight;
    spec.embedding_multiplier = (spec.hidden_size as f64).sqrt();
    spec.rounds_embedding_multiplier = true;
    for layer in &mut spec.layers {
        layer.norm_places = NormPlaces::Around;
        layer.activation = Activation::GeluTanh;
        layer.attention_multiplier = Some(scalar.powf(-0.5));
        layer.biases = biases;
    }
    let key = "sliding_window";
    let window = match keys.optional(key) {
        Some(_) => keys.size(key)?,
        None if !keys.has(key) => 4096,
        None => return Err(ConfigError::Missing { key }),
    };
    if keys.optional("layer_types").is_some() {
        return windows_by_type(keys, spec, window);
    }
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        layer.sliding_window = (!(index + 1).is_multiple_of(pattern)).then_some(window);
    }
    Ok(())
}

pub(super) fn describe_2(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    describe(keys, spec, 2)?;
    spec.logits_softcap = cap(keys, "final_logit_softcapping", Some(30.0))?;
    let scores = cap(keys, "attn_logit_softcapping", Some(50.0))?;
    for layer in &mut spec.layers {
        layer.attention_softcap = scores;
    }
    Ok(())
}

pub(super) fn describe_3(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    refuse(keys, "use_bidirectional_attention")?;
    let key = "attn_logit_softcapping";
    if let Some(actual) = keys.optional(key) {
        // transformers reads it and computes without it.
        return Err(ConfigError::Unsupported {
            key,
            actual: actual.to_string(),
            supported: "null (scores of a Gemma 3 have no cap)".to_owned(),
        });
    }
    describe(keys, spec, keys.size_or("sliding_window_pattern", 6)?)?;
    spec.logits_softcap = cap(keys, "final_logit_softcapping", None)?;
    for layer in &mut spec.layers {
        layer.heads = Heads::NormedTurned;
    }
    ropes(keys, spec)
}

/// A cap where it is given, or as transformers has it where nothing is said; null is none.
pub(super) fn cap(
    keys: &Keys<'_>,
    key: &'static str,
    absent: Option<f64>,
) -> Result<Option<f64>, ConfigError> {
    match keys.optional(key) {
        Some(_) => Ok(Some(keys.positive_or(key, 1.0)?)),
        None if !keys.has(key) => Ok(absent),
        None => Ok(None),
    }
}

/// Layers with a window have a θ of their own and no scaling: `rope_local_base_freq` beside what is said of the others, or
/// `rope_parameters` by type of layer.
fn ropes(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    let (head, longest) = (
        RotaryHead::whole(spec.rope.head_dim),
        spec.max_position_embeddings,
    );
    let theta = keys.number_or("rope_theta", 1_000_000.0)?;
    if let Some(full) = rope_of_type(keys, "full_attention", (head, theta), longest)? {
        spec.rope = full;
    }
    let theta = keys.number_or("rope_local_base_freq", 10_000.0)?;
    let local = match rope_of_type(keys, "sliding_attention", (head, theta), longest)? {
        Some(local) => local,
        None => rope_of(keys, None, (head, theta), longest)?,
    };
    spec.local_rope = Some(local);
    Ok(())
}
