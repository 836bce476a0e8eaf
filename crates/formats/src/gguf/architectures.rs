//! What a GGUF file has of its own in each architecture that is read.

use serde_json::{Value, json};

use super::error::GgufError;
use super::file::GgufFile;
use super::value::GgufMetadata;

/// An architecture, or one of the families that share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    /// `llama`.
    Llama,
    /// `llama` with a sliding window. Without one a file of this family is no different from a Llama.
    Mistral,
    /// `qwen2`: Qwen 2 and 2.5.
    Qwen2,
    /// `qwen3`.
    Qwen3,
    /// `granite`: Granite 3, dense.
    Granite,
    /// `smollm3`.
    SmolLm3,
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
}

/// The metadata key of a sliding window, below the name.
pub(super) const SLIDING_WINDOW: &str = "attention.sliding_window";

/// The values of `general.architecture` that are read.
const SUPPORTED: &str =
    "\"llama\" (Mistral's files too), \"qwen2\", \"qwen3\", \"granite\" and \"smollm3\"";

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
            Some("llama") if sliding_window(metadata)?.is_some() => Ok(Self::Mistral),
            Some("llama") => Ok(Self::Llama),
            Some("qwen2") => Ok(Self::Qwen2),
            Some("qwen3") => Ok(Self::Qwen3),
            Some("granite") => Ok(Self::Granite),
            Some("smollm3") => Ok(Self::SmolLm3),
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
            "mistral" => Some(Self::Mistral),
            "qwen2" => Some(Self::Qwen2),
            "qwen3" => Some(Self::Qwen3),
            "granite" => Some(Self::Granite),
            "smollm3" => Some(Self::SmolLm3),
            _ => None,
        }
    }

    /// `general.architecture`, and the beginning of its metadata keys.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Llama | Self::Mistral => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Granite => "granite",
            Self::SmolLm3 => "smollm3",
        }
    }

    /// Whether the rows of q and k are `(pair, half)` within a head and have to be drawn apart; otherwise they are in
    /// Hugging Face's order.
    pub(super) const fn interleaved(self) -> bool {
        match self {
            Self::Llama | Self::Mistral | Self::Granite | Self::SmolLm3 => true,
            Self::Qwen2 | Self::Qwen3 => false,
        }
    }

    const fn biases(self) -> Biases {
        match self {
            Self::Llama | Self::Granite | Self::SmolLm3 => Biases::AsInFile,
            Self::Qwen2 => Biases::QueryKeyValue,
            Self::Mistral | Self::Qwen3 => Biases::None,
        }
    }

    /// Whether the heads of q and k have norms.
    const fn head_norms(self) -> bool {
        match self {
            Self::Qwen3 => true,
            _ => false,
        }
    }

    /// Whether a file may hold a factor for each rotary frequency.
    pub(super) const fn rope_factors(self) -> bool {
        match self {
            Self::Llama | Self::Mistral | Self::Granite => true,
            Self::Qwen2 | Self::Qwen3 | Self::SmolLm3 => false,
        }
    }

    /// Whether llama.cpp takes a model of 80 layers for one of 70B, which it quantises otherwise.
    pub(super) const fn has_70b(self) -> bool {
        match self {
            Self::Llama | Self::Mistral | Self::Qwen2 => true,
            Self::Qwen3 | Self::Granite | Self::SmolLm3 => false,
        }
    }

    /// Whether a metadata key below the name is one that only this architecture has.
    pub(super) fn has_key(self, key: &str) -> bool {
        match self {
            Self::Llama | Self::Qwen2 | Self::Qwen3 | Self::SmolLm3 => false,
            Self::Mistral => key == SLIDING_WINDOW,
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
            "weight" => self.head_norms() || !HEAD_NORMS.contains(&module),
            "bias" => match self.biases() {
                Biases::None => false,
                Biases::AsInFile => !module.ends_with("norm"),
                Biases::QueryKeyValue => QUERY_KEY_VALUE.contains(&module),
            },
            _ => false,
        }
    }

    /// What each layer must have, as modules with parameters.
    pub(super) fn layer_parameters(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let norms = HEAD_NORMS.into_iter().filter(move |_| self.head_norms());
        let with_bias = self.biases() == Biases::QueryKeyValue;
        let biased = QUERY_KEY_VALUE.into_iter().filter(move |_| with_bias);
        let weights = EVERY_LAYER.into_iter().chain(norms);
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
                "sliding_window": sliding_window(file.metadata())?,
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

/// The norms of the heads of q and k.
const HEAD_NORMS: [&str; 2] = ["attn_q_norm", "attn_k_norm"];
const QUERY_KEY_VALUE: [&str; 3] = ["attn_q", "attn_k", "attn_v"];

/// The modules whose weights every layer of every architecture has.
const EVERY_LAYER: [&str; 9] = [
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
];

/// Positions that a token of a `llama` file sees, itself among them.
fn sliding_window(metadata: GgufMetadata<'_>) -> Result<Option<u64>, GgufError> {
    let window = metadata.unsigned(&format!("llama.{SLIDING_WINDOW}"))?;
    Ok(window.filter(|window| *window != 0))
}
