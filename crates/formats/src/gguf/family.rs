//! What `config.json` says of one family alone, from the metadata and tensors of a file.

use serde_json::{Value, json};

use super::architectures::{
    Architecture, LOCAL_BASE, LOCAL_THETA, LOGITS_CAP, SCORES_CAP, SLIDING_WINDOW_PATTERN,
    UNTURNED_INTERVAL, sliding_window,
};
use super::error::GgufError;
use super::file::GgufFile;
use super::value::{GgufMetadata, GgufValue};

impl Architecture {
    /// What `config.json` says of this family alone; for those that need its sizes, see `config`.
    pub(super) fn config(self, file: &GgufFile) -> Result<Value, GgufError> {
        let has = |tensor| file.tensor(tensor).is_some();
        Ok(match self {
            Self::Llama => json!({
                "model_type": "llama",
                "architectures": ["LlamaForCausalLM"],
                "attention_bias": has("blk.0.attn_q.bias"),
                "mlp_bias": has("blk.0.ffn_gate.bias"),
            }),
            Self::Granite => json!({
                "model_type": "granite",
                "architectures": ["GraniteForCausalLM"],
                "attention_bias": has("blk.0.attn_q.bias"),
                "mlp_bias": has("blk.0.ffn_gate.bias"),
            }),
            Self::SmolLm3 => json!({
                "model_type": "smollm3",
                "architectures": ["SmolLM3ForCausalLM"],
                "attention_bias": has("blk.0.attn_q.bias"),
                "mlp_bias": has("blk.0.ffn_gate.bias"),
                "no_rope_layer_interval": UNTURNED_INTERVAL,
                "sliding_window": null,
                "use_sliding_window": false,
            }),
            Self::Mistral => json!({
                "model_type": "mistral",
                "architectures": ["MistralForCausalLM"],
                "sliding_window": sliding_window(file.metadata(), "llama")?,
            }),
            Self::Ministral3 => json!({
                "model_type": "ministral3",
                "architectures": ["Ministral3ForCausalLM"],
                "sliding_window": null,
            }),
            Self::Olmo2 => json!({
                "model_type": "olmo2",
                "architectures": ["Olmo2ForCausalLM"],
                "attention_bias": false,
            }),
            Self::Olmo3 => json!({
                "model_type": "olmo3",
                "architectures": ["Olmo3ForCausalLM"],
                "attention_bias": false,
                "sliding_window": sliding_window(file.metadata(), "olmo2")?,
                "layer_types": layer_types(file.metadata(), self)?,
            }),
            Self::Gemma2 => json!({
                "model_type": "gemma2",
                "architectures": ["Gemma2ForCausalLM"],
                "attention_bias": false,
                "attn_logit_softcapping": number(file.metadata(), self, SCORES_CAP)?.unwrap_or(50.0),
                "final_logit_softcapping": number(file.metadata(), self, LOGITS_CAP)?.unwrap_or(30.0),
                "hidden_activation": "gelu_pytorch_tanh",
                "sliding_window": sliding_window(file.metadata(), "gemma2")?.unwrap_or(4096),
                "layer_types": layer_types(file.metadata(), self)?,
            }),
            Self::Gemma3 => {
                let window = sliding_window(file.metadata(), "gemma3")?;
                let types = layer_types(file.metadata(), self)?;
                let types = types.into_iter();
                // Without a window llama.cpp takes all layers for full ones.
                let types = types.map(|kind| if window.is_some() { kind } else { FULL });
                json!({
                    "model_type": "gemma3_text",
                    "architectures": ["Gemma3ForCausalLM"],
                    "attention_bias": false,
                    "attn_logit_softcapping": null,
                    "final_logit_softcapping": null,
                    "hidden_activation": "gelu_pytorch_tanh",
                    "rope_local_base_freq": number(file.metadata(), self, LOCAL_BASE)?.unwrap_or(LOCAL_THETA),
                    "sliding_window": window.unwrap_or(4096),
                    "layer_types": types.collect::<Vec<_>>(),
                })
            }
            Self::Gemma4 | Self::Qwen35 => json!({}),
            Self::Phi3 => json!({
                "model_type": "phi3",
                "architectures": ["Phi3ForCausalLM"],
                "attention_bias": false,
                // llama.cpp computes without it, as it says when it reads the file.
                "sliding_window": sliding_window(file.metadata(), "phi3")?,
            }),
            Self::Glm4 => json!({
                "model_type": "glm4",
                "architectures": ["Glm4ForCausalLM"],
                "attention_bias": has("blk.0.attn_q.bias"),
            }),
            Self::Qwen2 => json!({
                "model_type": "qwen2",
                "architectures": ["Qwen2ForCausalLM"],
                "sliding_window": null,
                "use_sliding_window": false,
            }),
            Self::Qwen3 => json!({
                "model_type": "qwen3",
                "architectures": ["Qwen3ForCausalLM"],
                "attention_bias": false,
                "sliding_window": null,
                "use_sliding_window": false,
            }),
        })
    }
}

/// A number below the name that is not 0.
pub(super) fn number(
    metadata: GgufMetadata<'_>,
    architecture: Architecture,
    key: &str,
) -> Result<Option<f64>, GgufError> {
    let key = format!("{}.{key}", architecture.name());
    let found = metadata.f64(&key)?.filter(|value| *value != 0.0);
    if let Some(value) = found.filter(|value| !value.is_finite() || *value < 0.0) {
        return Err(GgufError::KeyValue {
            key,
            expected: "a finite number above 0",
            actual: value.to_string(),
        });
    }
    // As it was before it was stored in single precision.
    Ok(found.map(|value| (value as f32).to_string().parse().unwrap_or(value)))
}

/// What a layer without a window is called.
pub(super) const FULL: &str = "full_attention";

/// Which layers have the window, where some have.
pub(super) fn layer_types(
    metadata: GgufMetadata<'_>,
    architecture: Architecture,
) -> Result<Vec<&'static str>, GgufError> {
    let name = architecture.name();
    let layers = metadata.unsigned(&format!("{name}.block_count"))?;
    let layers = layers.unwrap_or_default();
    let key = format!("{name}.{SLIDING_WINDOW_PATTERN}");
    let flags = match metadata.get(&key) {
        Some(GgufValue::Array(_)) => metadata.integers(&key)?.unwrap_or_default(),
        _ => {
            let interval = metadata
                .unsigned(&key)?
                .unwrap_or(architecture.full_interval() as u64);
            let is_full = |layer: u64| interval != 0 && (layer + 1).is_multiple_of(interval);
            (0..layers)
                .map(|layer| i64::from(!is_full(layer)))
                .collect()
        }
    };
    if flags.len() as u64 != layers {
        return Err(GgufError::KeyValue {
            key,
            expected: "a flag for each layer",
            actual: format!("a list of {}", flags.len()),
        });
    }
    let name = |flag| match flag {
        0 => FULL,
        _ => "sliding_attention",
    };
    Ok(flags.into_iter().map(name).collect())
}
