//! What a GGUF file has of its own in each architecture that is read.

use super::error::GgufError;
use super::order::Change;
use super::value::GgufMetadata;

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
    /// `qwen35`: Qwen 3.5, dense.
    Qwen35,
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
    /// `gemma4`, dense, its text.
    Gemma4,
    /// `phi3`: Phi 3, 3.5 and 4.
    Phi3,
    /// `glm4`: GLM 4 (0414).
    Glm4,
}

/// What a layer is, where layers of one file have different tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LayerKind {
    /// As in most architectures: it attends, with values of its own.
    Usual,
    /// A Qwen 3.5's DeltaNet.
    DeltaNet,
    /// It attends, and its values are its keys: a Gemma 4's layer without a window.
    ValuesAreKeys,
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
const SUPPORTED: &str = "\"llama\" (Mistral's files too), \"mistral3\", \"qwen2\", \"qwen3\", \"qwen35\", \"granite\", \"smollm3\", \"olmo2\" (OLMo 3's files too), \"gemma2\", \"gemma3\", \"gemma4\", \"phi3\" and \"glm4\"";

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

/// The metadata keys of the heads of a Gemma 4's layers with a window; the others are without the ending.
pub(super) const LOCAL_KEY_LENGTH: &str = "attention.key_length_swa";
pub(super) const LOCAL_VALUE_LENGTH: &str = "attention.value_length_swa";
pub(super) const LOCAL_ROTARY: &str = "rope.dimension_count_swa";
/// What E2B and E4B have, which llama.cpp wants to be told of others too.
pub(super) const PER_LAYER_EMBEDDING: &str = "embedding_length_per_layer_input";
pub(super) const SHARED_LAYERS: &str = "attention.shared_kv_layers";

/// The metadata keys of a Qwen 3.5's DeltaNets: taps of the convolution; features of a query or a key; key heads; value heads;
/// features of all values; of how many layers the last attends, or a flag for each that does not; layers behind the last that
/// predict further tokens; the parts of RoPE that images have.
pub(super) const CONV_KERNEL: &str = "ssm.conv_kernel";
pub(super) const STATE_SIZE: &str = "ssm.state_size";
pub(super) const GROUP_COUNT: &str = "ssm.group_count";
pub(super) const TIME_STEP_RANK: &str = "ssm.time_step_rank";
pub(super) const INNER_SIZE: &str = "ssm.inner_size";
pub(super) const ATTENTION_INTERVAL: &str = "full_attention_interval";
pub(super) const RECURRENT_LAYERS: &str = "attention.recurrent_layers";
pub(super) const FURTHER_LAYERS: &str = "nextn_predict_layers";
pub(super) const ROPE_SECTIONS: &str = "rope.dimension_sections";

/// What a layer's part of the residual stream is multiplied by.
pub(super) const SCALAR: &str = "layer_output_scale.weight";

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
            Some("qwen35") => Ok(Self::Qwen35),
            Some("granite") => Ok(Self::Granite),
            Some("smollm3") => Ok(Self::SmolLm3),
            Some("olmo2") if sliding_window(metadata, "olmo2")?.is_some() => Ok(Self::Olmo3),
            Some("olmo2") => Ok(Self::Olmo2),
            Some("gemma2") => Ok(Self::Gemma2),
            Some("gemma3") => Ok(Self::Gemma3),
            Some("gemma4") => Ok(Self::Gemma4),
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
            "qwen3_5_text" => Some(Self::Qwen35),
            "granite" => Some(Self::Granite),
            "smollm3" => Some(Self::SmolLm3),
            "olmo2" => Some(Self::Olmo2),
            "olmo3" => Some(Self::Olmo3),
            "gemma2" => Some(Self::Gemma2),
            "gemma3_text" => Some(Self::Gemma3),
            "gemma4_text" => Some(Self::Gemma4),
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
            Self::Qwen35 => "qwen35",
            Self::Granite => "granite",
            Self::SmolLm3 => "smollm3",
            Self::Olmo2 | Self::Olmo3 => "olmo2",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3",
            Self::Gemma4 => "gemma4",
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
            | Self::Qwen35
            | Self::Olmo2
            | Self::Olmo3
            | Self::Gemma2
            | Self::Gemma3
            | Self::Gemma4
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
            | Self::Qwen35
            | Self::Olmo2
            | Self::Olmo3
            | Self::Gemma2
            | Self::Gemma3
            | Self::Gemma4
            | Self::Phi3 => Biases::None,
            Self::Glm4 => Biases::QueryKeyValueInFile,
        }
    }

    /// The norms of a layer; of one that attends, where not all do.
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
            Self::Qwen35 => &[
                "attn_norm",
                "post_attention_norm",
                "attn_q_norm",
                "attn_k_norm",
            ],
            Self::Gemma3 | Self::Gemma4 => &[
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
        matches!(self, Self::Phi3 | Self::Glm4 | Self::Qwen35)
    }

    /// Whether it is a Gemma: norms around attention and MLP, and GELU.
    pub(super) const fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma2 | Self::Gemma3 | Self::Gemma4)
    }

    /// What becomes of the values of a tensor of Hugging Face's name when it is written.
    pub(super) fn change(self, name: &str) -> Change {
        let one_more = match self {
            Self::Gemma2 | Self::Gemma3 => name.ends_with("norm.weight"),
            Self::Qwen35 => {
                name.ends_with("norm.weight") && !name.ends_with("linear_attn.norm.weight")
            }
            _ => false,
        };
        match one_more {
            true => Change::PlusOne,
            false if name.ends_with("linear_attn.A_log") => Change::MinusExp,
            false => Change::None,
        }
    }

    /// Whether `q_proj` gives a gate beside each query.
    pub(super) const fn gates_queries(self) -> bool {
        matches!(self, Self::Qwen35)
    }

    /// Whether a module of GGUF's is that of Hugging Face's, where either has several.
    pub(super) fn is_same(self, ours: &str, theirs: &str) -> bool {
        match (ours, theirs) {
            ("ffn_norm", "post_attention_layernorm") => !self.is_gemma(),
            ("ffn_norm", "pre_feedforward_layernorm") => self.is_gemma(),
            ("post_attention_norm", "post_self_attn_layernorm")
            | ("post_ffw_norm", "post_mlp_layernorm") => self == Self::Glm4,
            ("attn_qkv", "self_attn.qkv_proj") => self == Self::Phi3,
            ("attn_qkv", "linear_attn.in_proj_qkv") => self == Self::Qwen35,
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
            Self::Llama | Self::Mistral | Self::Granite | Self::Gemma4 => true,
            Self::Ministral3
            | Self::Qwen2
            | Self::Qwen3
            | Self::Qwen35
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
            | Self::Qwen35
            | Self::Granite
            | Self::SmolLm3
            | Self::Olmo2
            | Self::Olmo3
            | Self::Gemma2
            | Self::Gemma3
            | Self::Gemma4
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
            Self::Gemma4 => {
                let keys = [
                    SLIDING_WINDOW,
                    SLIDING_WINDOW_PATTERN,
                    LOCAL_BASE,
                    LOCAL_KEY_LENGTH,
                    LOCAL_VALUE_LENGTH,
                    LOCAL_ROTARY,
                    LOGITS_CAP,
                ];
                keys.contains(&key)
            }
            Self::Qwen35 => {
                let keys = [
                    CONV_KERNEL,
                    STATE_SIZE,
                    GROUP_COUNT,
                    TIME_STEP_RANK,
                    INNER_SIZE,
                    ATTENTION_INTERVAL,
                    RECURRENT_LAYERS,
                    FURTHER_LAYERS,
                    ROPE_SECTIONS,
                ];
                keys.contains(&key)
            }
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
            "weight" => {
                let delta = self == Self::Qwen35 && DELTA_NET.contains(&module);
                self.projections().contains(&module) || self.norms().contains(&module) || delta
            }
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

    /// Whether a layer may have a tensor that is no parameter of a module.
    pub(super) fn has_bare(self, tensor: &str) -> bool {
        match self {
            Self::Qwen35 => DELTA_NET_BARE.contains(&tensor),
            Self::Gemma4 => tensor == SCALAR,
            _ => false,
        }
    }

    /// What a layer must have.
    pub(super) fn layer_tensors(self, kind: LayerKind) -> Vec<String> {
        let weights = |modules: &[&str]| -> Vec<String> {
            let weights = modules.iter().map(|module| format!("{module}.weight"));
            weights.collect()
        };
        if kind == LayerKind::DeltaNet {
            let bare = DELTA_NET_BARE.map(str::to_owned);
            return [weights(&DELTA_NET), bare.into()].concat();
        }
        let mut tensors = [weights(self.norms()), weights(self.projections())].concat();
        if kind == LayerKind::ValuesAreKeys {
            tensors.retain(|tensor| tensor != "attn_v.weight");
        }
        if self.biases() == Biases::QueryKeyValue {
            tensors.extend(QUERY_KEY_VALUE.map(|module| format!("{module}.bias")));
        }
        if self == Self::Gemma4 {
            tensors.push(SCALAR.to_owned());
        }
        tensors
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

/// The modules of a layer with a DeltaNet, its norms and MLP among them.
const DELTA_NET: [&str; 12] = [
    "attn_norm",
    "post_attention_norm",
    "attn_qkv",
    "attn_gate",
    "ssm_beta",
    "ssm_alpha",
    "ssm_conv1d",
    "ssm_norm",
    "ssm_out",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
];

/// What else it has.
const DELTA_NET_BARE: [&str; 2] = ["ssm_a", "ssm_dt.bias"];

/// Positions that a token sees, itself among them.
pub(super) fn sliding_window(
    metadata: GgufMetadata<'_>,
    name: &str,
) -> Result<Option<u64>, GgufError> {
    let window = metadata.unsigned(&format!("{name}.{SLIDING_WINDOW}"))?;
    Ok(window.filter(|window| *window != 0))
}
