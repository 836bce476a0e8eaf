//! What a file says of a Gemma 4: heads of two sizes, and how those of layers without a window turn.

use serde_json::{Map, Value, json};

use super::architectures::{
    Architecture, LOCAL_BASE, LOCAL_KEY_LENGTH, LOCAL_ROTARY, LOCAL_THETA, LOCAL_VALUE_LENGTH,
    LOGITS_CAP, SLIDING_WINDOW, SLIDING_WINDOW_PATTERN, sliding_window,
};
use super::error::GgufError;
use super::family::{FULL, layer_types, number};
use super::file::GgufFile;
use super::keys::{Keys, Sizes};
use super::names::ROPE_FREQS;
use super::value::GgufValue;

/// A divisor from which on a pair stands still; llama.cpp's converter writes 10³⁰.
const STILL: f32 = 1e30;

/// Divisors of `pairs` of a head's pairs that turn and of the others, as files have them.
pub(super) fn rope_factors(pairs: usize, head_dim: usize) -> Vec<f32> {
    let factors = (0..head_dim / 2).map(|pair| if pair < pairs { 1.0 } else { STILL });
    factors.collect()
}

/// Which layers have no window.
fn full_layers(keys: &Keys<'_>) -> Result<Vec<bool>, GgufError> {
    let types = layer_types(keys.metadata, Architecture::Gemma4)?;
    Ok(types.into_iter().map(|kind| kind == FULL).collect())
}

/// The size of heads and the number of key–value heads of layers with a window, then of those without.
pub(super) fn heads(keys: &Keys<'_>, heads: u64) -> Result<[(usize, usize); 2], GgufError> {
    let same = |key, expected: u64| match keys.positive(key)? {
        Some(other) if other != expected => Err(keys.feature(key, other)),
        _ => Ok(()),
    };
    let full = keys.required("attention.key_length")?;
    same("attention.value_length", full)?;
    same("rope.dimension_count", full)?;
    let local = keys.required(LOCAL_KEY_LENGTH)?;
    same(LOCAL_VALUE_LENGTH, local)?;
    same(LOCAL_ROTARY, local)?;
    for (key, length) in [("attention.key_length", full), (LOCAL_KEY_LENGTH, local)] {
        if !length.is_multiple_of(2) {
            return Err(keys.feature(key, length));
        }
    }
    let [of_local, of_full] = key_value_heads(keys, heads)?;
    Ok([(local as usize, of_local), (full as usize, of_full)])
}

/// Key–value heads of layers with a window, and of those without: one number, or one for each layer.
fn key_value_heads(keys: &Keys<'_>, heads: u64) -> Result<[usize; 2], GgufError> {
    let key = "attention.head_count_kv";
    let name = keys.full(key);
    if !matches!(keys.metadata.get(&name), Some(GgufValue::Array(_))) {
        let all = keys.positive(key)?.unwrap_or(heads) as usize;
        return Ok([all; 2]);
    }
    let counts = keys.metadata.integers(&name)?.unwrap_or_default();
    let wrong = |actual: String| GgufError::KeyValue {
        key: name.clone(),
        expected: "a number of heads for each layer, one for those with a window and one for those without",
        actual,
    };
    if counts.len() as u64 != keys.required("block_count")? {
        return Err(wrong(format!("a list of {}", counts.len())));
    }
    let full = full_layers(keys)?;
    let of = |is_full: bool| {
        let all = counts.iter().zip(&full);
        let mut own = all.filter(|(_, full)| **full == is_full);
        let Some((first, _)) = own.next() else {
            return Ok(None);
        };
        match own.find(|(count, _)| *count != first) {
            Some((other, _)) => Err(wrong(format!("{first} and {other} for the same kind"))),
            None => Ok(Some(*first)),
        }
    };
    let (local, full) = (of(false)?, of(true)?);
    let count = |count: Option<i64>, other: Option<i64>| {
        let count = count.or(other).unwrap_or_default();
        let fits = u32::try_from(count).ok().filter(|count| *count > 0);
        fits.map(|count| count as usize)
            .ok_or_else(|| wrong(count.to_string()))
    };
    Ok([count(local, full)?, count(full, local)?])
}

/// The part of its `config.json` that is no other family's.
pub(super) fn config(
    file: &GgufFile,
    keys: &Keys<'_>,
    sizes: Sizes,
) -> Result<Map<String, Value>, GgufError> {
    let full = full_layers(keys)?;
    // The last layer has none, whatever a config says.
    if full.last() == Some(&false) {
        let last = "a window in the last layer";
        return Err(keys.feature(SLIDING_WINDOW_PATTERN, last));
    }
    let window = sliding_window(keys.metadata, Architecture::Gemma4.name())?;
    if window.is_none() && full.contains(&false) {
        let key = keys.full(SLIDING_WINDOW);
        return Err(GgufError::KeyMissing { key });
    }
    let has_values = |layer: usize| file.tensor(&format!("blk.{layer}.attn_v.weight")).is_some();
    let mut without = (0..full.len()).filter(|&layer| full[layer]);
    let values_are_keys = !without.any(has_values);
    let (global_head_dim, global_heads) = sizes.full.unwrap_or((sizes.head_dim, 1));
    if !values_are_keys && global_heads != sizes.key_value_heads {
        let other = format!("{global_heads} where there is no window, beside values of their own");
        return Err(keys.feature("attention.head_count_kv", other));
    }
    let theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    let local = number(keys.metadata, Architecture::Gemma4, LOCAL_BASE)?.unwrap_or(LOCAL_THETA);
    let config = json!({
        "model_type": "gemma4_text",
        "architectures": ["Gemma4ForCausalLM"],
        "attention_bias": false,
        "attention_k_eq_v": values_are_keys,
        "enable_moe_block": false,
        "final_logit_softcapping": number(keys.metadata, Architecture::Gemma4, LOGITS_CAP)?,
        "global_head_dim": global_head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size_per_layer_input": 0,
        "layer_types": layer_types(keys.metadata, Architecture::Gemma4)?,
        "num_global_key_value_heads": global_heads,
        "num_kv_shared_layers": 0,
        "rope_parameters": {
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": turning_part(file, global_head_dim)?,
                "rope_theta": theta,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
        "sliding_window": window.unwrap_or(512),
        "use_bidirectional_attention": null,
        "use_double_wide_mlp": false,
    });
    match config {
        Value::Object(config) => Ok(config),
        _ => Ok(Map::new()),
    }
}

/// The part of a head without a window that turns: pairs whose frequency is divided by 1 before those that stand still.
fn turning_part(file: &GgufFile, head_dim: usize) -> Result<f64, GgufError> {
    let missing = || GgufError::TensorMissing {
        tensor: ROPE_FREQS.into(),
    };
    let tensor = file.tensor(ROPE_FREQS).ok_or_else(missing)?;
    let half = head_dim / 2;
    if tensor.elements() != half {
        return Err(GgufError::TensorShape {
            tensor: ROPE_FREQS.into(),
            expected: format!("[{half}]"),
            actual: tensor.shape.clone(),
        });
    }
    let factors = file.read_f32(tensor);
    let pairs = factors.iter().take_while(|factor| **factor == 1.0).count();
    if let Some(other) = factors[pairs..]
        .iter()
        .find(|factor| factor.is_nan() || **factor < STILL)
    {
        return Err(GgufError::Feature {
            key: ROPE_FREQS.into(),
            actual: format!("{other} behind {pairs} of 1"),
        });
    }
    Ok(part_of(pairs, half))
}

/// The part of which `pairs` of `half` pairs are the whole ones, as transformers rounds it down.
fn part_of(pairs: usize, half: usize) -> f64 {
    let part = pairs as f64 / half as f64;
    match (part * (2 * half) as f64) as usize / 2 < pairs {
        true => part.next_up(),
        false => part,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_come_back_from_their_part() {
        for half in 1..300 {
            for pairs in 0..=half {
                let part = part_of(pairs, half);
                assert!((0.0..=1.0).contains(&part));
                assert_eq!(
                    (part * (2 * half) as f64) as usize / 2,
                    pairs,
                    "{pairs} of {half}"
                );
            }
        }
        assert_eq!(part_of(64, 256), 0.25);
        assert_eq!(rope_factors(1, 6), [1.0, 1e30, 1e30]);
    }
}
