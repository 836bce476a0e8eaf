//! OLMo 2 and 3: norms after attention and MLP instead of before them, all heads of queries and of keys normed together;
//! in OLMo 3 three of four layers have a window, and a rotary scaling is for the others.

use super::{attention_bias, rope_of_type, windows_by_type};
use crate::config::{ConfigError, Keys, RotaryHead};
use crate::ops::{Heads, NormPlaces};
use crate::rope::{RopeConfig, RopeScaling};
use crate::spec::ModelSpec;

/// Every layer of either.
fn describe(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    let biases = attention_bias(keys)?;
    for layer in &mut spec.layers {
        layer.norm_places = NormPlaces::After;
        layer.heads = Heads::NormedTogetherTurned;
        layer.biases = biases;
    }
    Ok(())
}

pub(super) fn describe_2(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    super::refuse_window(keys)?;
    describe(keys, spec)
}

pub(super) fn describe_3(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    describe(keys, spec)?;
    let longest = spec.max_position_embeddings;
    let head = (RotaryHead::whole(spec.rope.head_dim), spec.rope.theta);
    if let Some(full) = rope_of_type(keys, "full_attention", head, longest)? {
        spec.rope = full;
    }
    let window = match keys.optional("sliding_window") {
        Some(_) => keys.size("sliding_window")?,
        None if !keys.has("sliding_window") => 4096,
        None => return Ok(()),
    };
    if keys.optional("layer_types").is_some() {
        windows_by_type(keys, spec, window)?;
    } else {
        for (index, layer) in spec.layers.iter_mut().enumerate() {
            layer.sliding_window = (!(index + 1).is_multiple_of(4)).then_some(window);
        }
    }
    let windowed = (spec.layers.iter()).any(|layer| layer.sliding_window.is_some());
    let local = match rope_of_type(keys, "sliding_attention", head, longest)? {
        Some(local) => local,
        None => RopeConfig {
            scaling: RopeScaling::Default,
            ..spec.rope.clone()
        },
    };
    spec.local_rope = Some(local).filter(|local| windowed && *local != spec.rope);
    Ok(())
}
