//! What a GGUF file has of its own in each architecture that is read.

use serde_json::{Value, json};

use super::error::GgufError;
use super::file::GgufFile;
use super::value::{GgufMetadata, GgufValue};

/// An architecture, or one of the families that share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    /// `llama`.
    Llama,
    /// `llama` with a sliding window. Without one a file of this family is no different from a Llama.
    Mistral,
    /// `mistral3`: Ministral 3.
    Ministral3,
    /// `qwen2`: Qwen 2 and 2.5.
    Qwen2,
    /// `qwen3`.
    Qwen3,
    /// `granite`: Granite 3, dense.
    Granite,
    /// `smollm3`.
    SmolLm3,
    /// `olmo2`.
    Olmo2,
    /// `olmo2` with a sliding window in some layers. Without one a file of this family is no different from an OLMo 2.
    Olmo3,
    /// `gemma2`.
    Gemma2,
    /// `gemma3`, its text.
    Gemma3,
    /// `phi3`: Phi 3, 3.5 and 4.
    Phi3,
    /// `glm4`: GLM 4 (0414).
    Glm4,
}

/// llama.cpp turns no head of a SmolLM 3 in every so many layers; no metadata say it.
pub(super) const UNTURNED_INTERVAL: usize = 4;

/// Which projections of a layer have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Biases {
    /// None.
    None,
    /// Those that the file holds.
    AsInFile,
    /// q, k and v, always.
    QueryKeyValue,
    /// q, k and v, where the file holds them.
    QueryKeyValueInFile,
}

/// The metadata key of a sliding window, below the name.
pub(super) const SLIDING_WINDOW: &str = "attention.sliding_window";
/// That of the layers that have it: a flag for each, or the interval of those that have none.
pub(super) const SLIDING_WINDOW_PATTERN: &str = "attention.sliding_window_pattern";
/// The interval where there is none; llama.cpp takes it for that of a list of flags too.
pub(super) const FULL_INTERVAL: usize = 4;

/// The values of `general.architecture` that are read.
const SUPPORTED: &str = "\"llama\" (Mistral's files too), \"mistral3\", \"qwen2\", \"qwen3\", \"granite\", \"smollm3\", \"olmo2\" (OLMo 3's files too), \"gemma2\", \"gemma3\", \"phi3\" and \"glm4\"";

/// The metadata keys of Gemma's caps and of the rotary base of its layers with a window, below the name.
pub(super) const SCORES_CAP: &str = "attn_logit_softcapping";
pub(super) const LOGITS_CAP: &str = "final_logit_softcapping";
pub(super) const LOCAL_BASE: &str = "rope.freq_base_swa";
/// Where a file says nothing of that base.
pub(super) const LOCAL_THETA: f64 = 10_000.0;

/// The metadata keys of Ministral 3's YaRN and of its factor on queries: the mscale of all dimensions; what the logarithm of
/// the position is multiplied by, and the positions without it, which are YaRN's original ones.
pub(super) const YARN_LOG: &str = "rope.scaling.yarn_log_multiplier";
pub(super) const TEMPERATURE: &str = "attention.temperature_scale";
pub(super) const TEMPERATURE_LENGTH: &str = "attention.temperature_length";

/// The metadata keys of Granite's factors, below the name.
pub(super) const ATTENTION_SCALE: &str = "attention.scale";
pub(super) const EMBEDDING_SCALE: &str = "embedding_scale";
pub(super) const RESIDUAL_SCALE: &str = "residual_scale";
pub(super) const LOGIT_SCALE: &str = "logit_scale";

impl Architecture {
    /// The architecture that the metadata names.
    ///
    /// # Errors
    /// If it names none, or one that is not supported.
    pub(super) fn of(metadata: GgufMetadata<'_>) -> Result<Self, GgufError> {
        let key = "general.architecture";
        match metadata.str(key)? {
            Some("llama") if sliding_window(metadata, "llama")?.is_some() => Ok(Self::Mistral),
            Some("llama") => Ok(Self::Llama),
            Some("mistral3") => Ok(Self::Ministral3),
            Some("qwen2") => Ok(Self::Qwen2),
            Some("qwen3") => Ok(Self::Qwen3),
            Some("granite") => Ok(Self::Granite),
            Some("smollm3") => Ok(Self::SmolLm3),
            Some("olmo2") if sliding_window(metadata, "olmo2")?.is_some() => Ok(Self::Olmo3),
            Some("olmo2") => Ok(Self::Olmo2),
            Some("gemma2") => Ok(Self::Gemma2),
            Some("gemma3") => Ok(Self::Gemma3),
            Some("phi3") => Ok(Self::Phi3),
            Some("glm4") => Ok(Self::Glm4),
            Some(actual) => Err(GgufError::Architecture {
                actual: actual.into(),
                expected: SUPPORTED,
            }),
            None => Err(GgufError::KeyMissing { key: key.into() }),
        }
    }

    /// The architecture of a `model_type` of Hugging Face's.
    pub(super) fn of_model_type(model_type: &str) -> Option<Self> {
        match model_type {
            "llama" => Some(Self::Llama),
            "mistral" | "ministral" => Some(Self::Mistral),
            "ministral3" => Some(Self::Ministral3),
            "qwen2" => Some(Self::Qwen2),
            "qwen3" => Some(Self::Qwen3),
            "granite" => Some(Self::Granite),
            "smollm3" => Some(Self::SmolLm3),
            "olmo2" => Some(Self::Olmo2),
            "olmo3" => Some(Self::Olmo3),
            "gemma2" => Some(Self::Gemma2),
            "gemma3_text" => Some(Self::Gemma3),
            "phi3" => Some(Self::Phi3),
            "glm4" => Some(Self::Glm4),
            _ => None,
        }
    }

    /// `general.architecture`, and the beginning of its metadata keys.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Llama | Self::Mistral => "llama",
            Self::Ministral3 => "mistral3",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Granite => "granite",
            Self::SmolLm3 => "smollm3",
            Self::Olmo2 | Self::Olmo3 => "olmo2",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3",
            Self::Phi3 => "phi3",
            Self::Glm4 => "glm4",
        }
    }

    /// Whether the rows of q and k are `(pair, half)` within a head and have to be drawn apart; otherwise they are in
    /// Hugging Face's order.
    pub(super) const fn interleaved(self) -> bool {
        match self {
            Self::Llama | Self::Mistral | Self::Ministral3 | Self::Granite | Self::SmolLm3 => true,
            Self::Qwen2
            | Self::Qwen3
            | Self::Olmo2
            | Self::Olmo3
            | Self::Gemma2
            | Self::Gemma3
            | Self::Phi3 => false,
            // Its RoPE turns neighbours in Hugging Face's files too.
            Self::Glm4 => false,
        }
    }

    const fn biases(self) -> Biases {
        match self {
            Self::Llama | Self::Granite | Self::SmolLm3 => Biases::AsInFile,
            Self::Qwen2 => Biases::QueryKeyValue,
            Self::Mistral
            | Self::Ministral3
            | Self::Qwen3
            | Self::Olmo2
            | Self::Olmo3
            | Self::Gemma2
            | Self::Gemma3
            | Self::Phi3 => Biases::None,
            Self::Glm4 => Biases::QueryKeyValueInFile,
        }
    }

    /// The norms of a layer.
    const fn norms(self) -> &'static [&'static str] {
        match self {
            Self::Llama
            | Self::Mistral
            | Self::Ministral3
            | Self::Qwen2
            | Self::Granite
            | Self::SmolLm3
            | Self::Phi3 => &["attn_norm", "ffn_norm"],
            Self::Qwen3 => &["attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm"],
            Self::Olmo2 | Self::Olmo3 => &[
                "post_attention_norm",
                "post_ffw_norm",
                "attn_q_norm",
                "attn_k_norm",
            ],
            Self::Gemma2 | Self::Glm4 => &[
                "attn_norm",
                "post_attention_norm",
                "ffn_norm",
                "post_ffw_norm",
            ],
            Self::Gemma3 => &[
                "attn_norm",
                "post_attention_norm",
                "ffn_norm",
                "post_ffw_norm",
                "attn_q_norm",
                "attn_k_norm",
            ],
        }
    }

    /// The projections of a layer.
    const fn projections(self) -> &'static [&'static str] {
        match self {
            Self::Phi3 => &["attn_qkv", "attn_output", "ffn_up", "ffn_down"],
            Self::Glm4 => &[
                "attn_q",
                "attn_k",
                "attn_v",
                "attn_output",
                "ffn_up",
                "ffn_down",
            ],
            _ => &PROJECTIONS,
        }
    }

    /// Whether the rows of gate and up are one tensor, by the name of up.
    const fn fuses_gate_up(self) -> bool {
        matches!(self, Self::Phi3 | Self::Glm4)
    }

    /// Whether a part of each head may be left as it is.
    pub(super) const fn turns_in_part(self) -> bool {
        matches!(self, Self::Phi3 | Self::Glm4)
    }

    /// Whether it is a Gemma: norms around attention and MLP, whose weights are one more in a file, and GELU.
    pub(super) const fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3)
    }

    /// What is added to a tensor of Hugging Face's name when it is written.
    pub(super) fn shift(self, name: &str) -> f32 {
        if self.is_gemma() && name.ends_with("norm.weight") {
            1.0
        } else {
            0.0
        }
    }

    /// Whether a module of GGUF's is that of Hugging Face's, where either has several.
    pub(super) fn is_same(self, ours: &str, theirs: &str) -> bool {
        match (ours, theirs) {
            ("ffn_norm", "post_attention_layernorm") => !self.is_gemma(),
            ("ffn_norm", "pre_feedforward_layernorm") => self.is_gemma(),
            ("post_attention_norm", "post_self_attn_layernorm")
            | ("post_ffw_norm", "post_mlp_layernorm") => self == Self::Glm4,
            ("post_attention_norm", "post_attention_layernorm")
            | ("post_ffw_norm", "post_feedforward_layernorm") => self != Self::Glm4,
            ("ffn_up", "mlp.up_proj") => !self.fuses_gate_up(),
            ("ffn_up", "mlp.gate_up_proj") => self.fuses_gate_up(),
            _ => true,
        }
    }

    /// Of how many layers the last has no window, where a file does not say.
    pub(super) const fn full_interval(self) -> usize {
        match self {
            Self::Gemma2 => 2,
            Self::Gemma3 => 6,
            _ => FULL_INTERVAL,
        }
    }

    /// The divisor under the root in the scale of attention's scores, which llama.cpp takes from the number of layers: those
    /// of 27B have another.
    pub(super) const fn score_divisor(
        self,
        layers: usize,
        head_dim: usize,
        per_head: usize,
    ) -> usize {
        match (self, layers) {
            (Self::Gemma2, 46) | (Self::Gemma3, 62) => per_head,
            _ => head_dim,
        }
    }

    /// Whether the norms of q and k are of all heads together, not of one.
    pub(super) const fn norms_heads_together(self) -> bool {
        matches!(self, Self::Olmo2 | Self::Olmo3)
    }

    /// Whether llama.cpp takes no embedding for a head, and no heads of a size of their own.
    pub(super) const fn is_strict(self) -> bool {
        matches!(self, Self::Olmo2 | Self::Olmo3)
    }

    /// Whether a file may hold a factor for each rotary frequency.
    pub(super) const fn rope_factors(self) -> bool {
        match self {
            Self::Llama | Self::Mistral | Self::Granite => true,
            Self::Ministral3
            | Self::Qwen2
            | Self::Qwen3
            | Self::SmolLm3
            | Self::Olmo2
            | Self::Olmo3
            | Self::Gemma2
            | Self::Gemma3
            | Self::Phi3
            | Self::Glm4 => false,
        }
    }

    /// Whether a file may hold two such lists, LongRoPE's.
    pub(super) const fn long_rope_factors(self) -> bool {
        matches!(self, Self::Phi3)
    }

    /// Whether llama.cpp takes a model of 80 layers for one of 70B, which it quantises otherwise.
    pub(super) const fn has_70b(self) -> bool {
        match self {
            Self::Llama | Self::Mistral | Self::Qwen2 => true,
            Self::Ministral3
            | Self::Qwen3
            | Self::Granite
            | Self::SmolLm3
            | Self::Olmo2
            | Self::Olmo3
            | Self::Gemma2
            | Self::Gemma3
            | Self::Phi3
            | Self::Glm4 => false,
        }
    }

    /// Whether a metadata key below the name is one that only this architecture has.
    pub(super) fn has_key(self, key: &str) -> bool {
        match self {
            Self::Llama | Self::Qwen2 | Self::Qwen3 | Self::SmolLm3 | Self::Olmo2 | Self::Glm4 => {
                false
            }
            Self::Mistral | Self::Phi3 => key == SLIDING_WINDOW,
            Self::Ministral3 => [YARN_LOG, TEMPERATURE, TEMPERATURE_LENGTH].contains(&key),
            Self::Olmo3 => [SLIDING_WINDOW, SLIDING_WINDOW_PATTERN].contains(&key),
            Self::Gemma2 => {
                let keys = [
                    SLIDING_WINDOW,
                    SLIDING_WINDOW_PATTERN,
                    SCORES_CAP,
                    LOGITS_CAP,
                ];
                keys.contains(&key)
            }
            // A cap of logits is left out by llama.cpp where there are windows.
            Self::Gemma3 => [SLIDING_WINDOW, SLIDING_WINDOW_PATTERN, LOCAL_BASE].contains(&key),
            Self::Granite => [
                ATTENTION_SCALE,
                EMBEDDING_SCALE,
                RESIDUAL_SCALE,
                LOGIT_SCALE,
            ]
            .contains(&key),
        }
    }

    /// Whether a module of a layer may have a parameter.
    pub(super) fn has_parameter(self, module: &str, parameter: &str) -> bool {
        match parameter {
            "weight" => self.projections().contains(&module) || self.norms().contains(&module),
            "bias" => match self.biases() {
                Biases::None => false,
                Biases::AsInFile => PROJECTIONS.contains(&module),
                Biases::QueryKeyValue | Biases::QueryKeyValueInFile => {
                    QUERY_KEY_VALUE.contains(&module)
                }
            },
            _ => false,
        }
    }

    /// What each layer must have, as modules with parameters.
    pub(super) fn layer_parameters(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let with_bias = self.biases() == Biases::QueryKeyValue;
        let biased = QUERY_KEY_VALUE.into_iter().filter(move |_| with_bias);
        let weights = self.norms().iter().chain(self.projections()).copied();
        weights
            .map(|module| (module, "weight"))
            .chain(biased.map(|module| (module, "bias")))
    }

    /// What `config.json` says of this family alone.
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

const QUERY_KEY_VALUE: [&str; 3] = ["attn_q", "attn_k", "attn_v"];

/// The projections of a layer that fuses none.
const PROJECTIONS: [&str; 7] = [
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
];

/// Positions that a token sees, itself among them.
fn sliding_window(metadata: GgufMetadata<'_>, name: &str) -> Result<Option<u64>, GgufError> {
    let window = metadata.unsigned(&format!("{name}.{SLIDING_WINDOW}"))?;
    Ok(window.filter(|window| *window != 0))
}

/// A number below the name that is not 0.
fn number(
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
const FULL: &str = "full_attention";

/// Which layers have the window, where some have.
fn layer_types(
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
