//! Qwen 3.5: three layers of four are DeltaNets; the fourth attends with normed heads, of which a quarter turns, and a gate on
//! its output. Norms multiply by 1 + w, but for the one inside a DeltaNet.

use serde_json::Value;

use super::{attention_bias, refuse_window};
use crate::config::{ConfigError, Keys, invalid};
use crate::mixer::{DeltaNetSpec, Mixer};
use crate::ops::{Heads, NormScale};
use crate::spec::ModelSpec;
use crate::target::TargetSet;

pub(super) fn describe(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    refuse_window(keys)?;
    let gate = "attn_output_gate";
    if !keys.flag_or(gate, true)? {
        return Err(ConfigError::Unsupported {
            key: gate,
            actual: "false".to_owned(),
            supported: "true".to_owned(),
        });
    }
    let biases = attention_bias(keys)?;
    let delta_net = Mixer::DeltaNet(delta_net(keys)?);
    let attends = attending(keys, spec.layers.len())?;
    spec.norm_scale = NormScale::OnePlusWeight;
    for (layer, attends) in spec.layers.iter_mut().zip(attends) {
        layer.heads = Heads::NormedTurned;
        (layer.mixer, layer.biases) = match attends {
            true => (Mixer::GatedAttention, biases),
            false => (delta_net, TargetSet::NONE),
        };
    }
    Ok(())
}

fn delta_net(keys: &Keys<'_>) -> Result<DeltaNetSpec, ConfigError> {
    let sizes = DeltaNetSpec {
        num_key_heads: keys.size_or("linear_num_key_heads", 16)?,
        num_value_heads: keys.size_or("linear_num_value_heads", 32)?,
        key_head_dim: keys.size_or("linear_key_head_dim", 128)?,
        value_head_dim: keys.size_or("linear_value_head_dim", 128)?,
        conv_kernel_dim: keys.size_or("linear_conv_kernel_dim", 4)?,
    };
    let (keys, values) = (sizes.num_key_heads, sizes.num_value_heads);
    if !values.is_multiple_of(keys) {
        return Err(ConfigError::Inconsistent {
            key: "linear_num_value_heads",
            actual: values,
            expected: format!("a multiple of linear_num_key_heads = {keys}"),
        });
    }
    Ok(sizes)
}

/// Which layers attend: as `layer_types` says, or every `full_attention_interval`-th.
fn attending(keys: &Keys<'_>, layers: usize) -> Result<Vec<bool>, ConfigError> {
    let key = "layer_types";
    let Some(value) = keys.optional(key) else {
        let interval = keys.size_or("full_attention_interval", 4)?;
        return Ok((1..=layers).map(|n| n.is_multiple_of(interval)).collect());
    };
    let expected = "\"full_attention\" or \"linear_attention\" for each layer";
    let types = value.as_array().filter(|types| types.len() == layers);
    let types = types.ok_or_else(|| invalid(key, expected, value))?;
    let attends = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Ok(true),
        Some("linear_attention") => Ok(false),
        _ => Err(invalid(key, expected, kind)),
    };
    types.iter().map(attends).collect()
}
