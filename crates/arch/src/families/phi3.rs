//! Phi 3, 3.5 and 4: Llama's layer with q, k and v in one matrix and gate and up in another; a window in all layers of some;
//! heads that turn in part and LongRoPE in others.

use super::refuse;
use crate::config::{ConfigError, Keys};
use crate::spec::ModelSpec;
use crate::target::{TargetModule, TargetSet};

pub(super) fn describe(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    refuse(keys, "attention_bias")?;
    for key in ["resid_pdrop", "embd_pdrop"] {
        // transformers drops out what branches add, and embeddings.
        if keys.number_or(key, 0.0)? != 0.0 {
            return Err(ConfigError::Unsupported {
                key,
                actual: keys.number(key)?.to_string(),
                supported: "0 (lora.dropout drops out inputs of adapters)".to_owned(),
            });
        }
    }
    let window = match keys.optional("sliding_window") {
        Some(_) => Some(keys.size("sliding_window")?),
        None => None,
    };
    let fused = TargetSet::NONE.with([TargetModule::QkvProj, TargetModule::GateUpProj]);
    for layer in &mut spec.layers {
        layer.fused = fused;
        layer.sliding_window = window;
    }
    Ok(())
}
