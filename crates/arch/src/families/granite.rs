//! Granite 3: Llama's layer with factors on embeddings, scores, branches and logits.

use super::{flagged_biases, refuse_window};
use crate::config::{ConfigError, Keys};
use crate::spec::ModelSpec;

pub(super) fn describe(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    refuse_window(keys)?;
    let biases = flagged_biases(keys)?;
    // All four are 1 where they are absent, that of the scores too.
    spec.embedding_multiplier = keys.positive_or("embedding_multiplier", 1.0)?;
    spec.logits_scaling = keys.positive_or("logits_scaling", 1.0)?;
    let attention_multiplier = keys.positive_or("attention_multiplier", 1.0)?;
    let residual_multiplier = keys.positive_or("residual_multiplier", 1.0)?;
    for layer in &mut spec.layers {
        layer.biases = biases;
        layer.attention_multiplier = Some(attention_multiplier);
        layer.residual_multiplier = residual_multiplier;
    }
    Ok(())
}
