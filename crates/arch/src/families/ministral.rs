//! Ministral: Mistral's layer, with a window in layers that `layer_types` names. Ministral 3: Mistral's layer, with YaRN
//! and queries that grow with their positions.

use super::{refuse, windows_by_type};
use crate::config::{ConfigError, Keys};
use crate::rope::{QueryScaling, RopeConfig, RopeScaling};
use crate::spec::ModelSpec;

pub(super) fn describe(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    super::mistral::describe(keys, spec)?;
    match spec.layers[0].sliding_window {
        Some(window) if keys.optional("layer_types").is_some() => {
            windows_by_type(keys, spec, window)
        }
        _ => Ok(()),
    }
}

pub(super) fn describe_3(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    refuse(keys, "attention_bias")?;
    refuse(keys, "mlp_bias")?;
    if keys.optional("sliding_window").is_some() {
        let window = keys.size("sliding_window")?;
        for layer in &mut spec.layers {
            layer.sliding_window = Some(window);
        }
    }
    let rope = match keys.object("rope_parameters")? {
        Some(rope) => Some(rope),
        None => keys.object("rope_scaling")?,
    };
    let Some(rope) = rope else {
        // What transformers takes where nothing is said.
        let original_max_position_embeddings = 16_384.0;
        spec.rope = RopeConfig {
            theta: 1_000_000.0,
            scaling: RopeScaling::Yarn {
                factor: 16.0,
                original_max_position_embeddings,
                beta_fast: 32.0,
                beta_slow: 1.0,
                truncate: true,
                attention_factor: 1.0,
            },
            ..spec.rope.clone()
        };
        spec.query_scaling = Some(QueryScaling {
            beta: 0.1,
            original_max_position_embeddings,
        });
        return Ok(());
    };
    let beta = rope.number_or("llama_4_scaling_beta", 0.0)?;
    if beta > 0.0 {
        let key = "original_max_position_embeddings";
        rope.number(key)?;
        spec.query_scaling = Some(QueryScaling {
            beta,
            original_max_position_embeddings: rope.positive_or(key, 1.0)?,
        });
    }
    Ok(())
}
