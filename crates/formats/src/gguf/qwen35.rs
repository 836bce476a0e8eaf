//! What a file says of a Qwen 3.5: which layers are DeltaNets, and their sizes.

use backdraft_arch::DeltaNetSpec;
use serde_json::{Map, Value, json};

use super::architectures::{
    ATTENTION_INTERVAL, CONV_KERNEL, FURTHER_LAYERS, GROUP_COUNT, INNER_SIZE, RECURRENT_LAYERS,
    STATE_SIZE, TIME_STEP_RANK,
};
use super::error::GgufError;
use super::keys::{Keys, Sizes};

/// Of how many layers the last attends, where a file does not say.
const USUAL_INTERVAL: u64 = 4;

/// Layers behind the last, which predict further tokens and are left alone.
pub(super) fn further_layers(keys: &Keys<'_>) -> Result<u64, GgufError> {
    let (key, layers) = (keys.full(FURTHER_LAYERS), keys.required("block_count")?);
    let further = keys.metadata.unsigned(&key)?.unwrap_or_default();
    match further < layers {
        true => Ok(further),
        false => Err(GgufError::KeyValue {
            key,
            expected: "fewer layers than there are",
            actual: further.to_string(),
        }),
    }
}

/// The sizes of its DeltaNets. Queries, keys and values have heads of one size.
pub(super) fn delta_net(keys: &Keys<'_>) -> Result<DeltaNetSpec, GgufError> {
    // Checked by `required` to fit 32 bits.
    let size = |key| Ok(keys.required(key)? as usize);
    let head_dim = size(STATE_SIZE)?;
    let sizes = DeltaNetSpec {
        num_key_heads: size(GROUP_COUNT)?,
        num_value_heads: size(TIME_STEP_RANK)?,
        key_head_dim: head_dim,
        value_head_dim: head_dim,
        conv_kernel_dim: size(CONV_KERNEL)?,
    };
    let wrong = |key, expected, actual: usize| {
        Err(GgufError::KeyValue {
            key: keys.full(key),
            expected,
            actual: actual.to_string(),
        })
    };
    if !sizes.num_value_heads.is_multiple_of(sizes.num_key_heads) {
        let expected = "a multiple of ssm.group_count";
        return wrong(TIME_STEP_RANK, expected, sizes.num_value_heads);
    }
    let inner = size(INNER_SIZE)?;
    match sizes.num_value_heads.checked_mul(head_dim) == Some(inner) {
        true => Ok(sizes),
        false => wrong(INNER_SIZE, "ssm.time_step_rank × ssm.state_size", inner),
    }
}

/// The part of its `config.json` that is no other family's; `scaling` is what is said of the rotary frequencies.
pub(super) fn config(
    keys: &Keys<'_>,
    sizes: Sizes,
    scaling: Value,
) -> Result<Map<String, Value>, GgufError> {
    let delta = delta_net(keys)?;
    let theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    let mut rope = match scaling {
        Value::Object(scaling) => scaling,
        _ => Map::from_iter([("rope_type".to_owned(), json!("default"))]),
    };
    let part = sizes.rotary_dim as f64 / sizes.head_dim as f64;
    let sections = sections(sizes.rotary_dim / 2);
    rope.insert("rope_theta".into(), json!(theta));
    rope.insert("partial_rotary_factor".into(), json!(part));
    rope.insert("mrope_interleaved".into(), json!(true));
    rope.insert("mrope_section".into(), json!(sections));
    let config = json!({
        "model_type": "qwen3_5_text",
        "architectures": ["Qwen3_5ForCausalLM"],
        "attention_bias": false,
        "attn_output_gate": true,
        "layer_types": layer_types(keys, sizes.layers)?,
        "linear_conv_kernel_dim": delta.conv_kernel_dim,
        "linear_key_head_dim": delta.key_head_dim,
        "linear_num_key_heads": delta.num_key_heads,
        "linear_num_value_heads": delta.num_value_heads,
        "linear_value_head_dim": delta.value_head_dim,
        "rope_parameters": rope,
    });
    match config {
        Value::Object(config) => Ok(config),
        _ => Ok(Map::new()),
    }
}

/// The pairs of a head that turn by time, height and width, in turns; for text, where the three are one, without effect.
pub(super) const fn sections(pairs: usize) -> [usize; 3] {
    [pairs.div_ceil(3), (pairs + 1) / 3, pairs / 3]
}

/// What each layer is.
fn layer_types(keys: &Keys<'_>, layers: u64) -> Result<Vec<&'static str>, GgufError> {
    let name = |recurrent: bool| match recurrent {
        true => "linear_attention",
        false => "full_attention",
    };
    let key = keys.full(RECURRENT_LAYERS);
    if let Some(flags) = keys.metadata.integers(&key)? {
        // Those behind the last have a flag too.
        if (flags.len() as u64) < layers {
            return Err(GgufError::KeyValue {
                key,
                expected: "a flag for each layer",
                actual: format!("a list of {}", flags.len()),
            });
        }
        let flags = flags.into_iter().take(layers as usize);
        return Ok(flags.map(|flag| name(flag != 0)).collect());
    }
    let interval = keys.positive(ATTENTION_INTERVAL)?.unwrap_or(USUAL_INTERVAL);
    let layers = 1..=layers;
    Ok(layers.map(|n| name(!n.is_multiple_of(interval))).collect())
}
