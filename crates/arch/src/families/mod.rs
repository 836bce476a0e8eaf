//! What each family has of its own. A family is a file here and a line in [`Family::ALL`].

mod gemma;
mod gemma4;
mod glm4;
mod granite;
mod llama;
mod ministral;
mod mistral;
mod olmo;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_5;
mod smollm3;

use serde_json::Value;

use crate::config::{ConfigError, Keys, RotaryHead, invalid, rope_of};
use crate::rope::RopeConfig;
use crate::spec::ModelSpec;
use crate::target::{TargetModule, TargetSet};

/// A family of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama 1 to 3.3, SmolLM 2, TinyLlama and whatever else calls itself `llama`.
    Llama,
    /// Mistral 7B, Nemo, Small 2 and 3.
    Mistral,
    /// Ministral 8B of 2410.
    Ministral,
    /// Ministral 3.
    Ministral3,
    /// Qwen 2 and 2.5, QwQ.
    Qwen2,
    /// Qwen 3, dense.
    Qwen3,
    /// Qwen 3.5, dense, its text alone.
    Qwen35,
    /// Granite 3, dense.
    Granite,
    /// SmolLM 3.
    SmolLm3,
    /// OLMo 2.
    Olmo2,
    /// OLMo 3.
    Olmo3,
    /// Gemma 2.
    Gemma2,
    /// Gemma 3, its text alone.
    Gemma3,
    /// Gemma 4, dense, its text alone.
    Gemma4,
    /// Phi 3, 3.5 and 4, dense.
    Phi3,
    /// GLM 4 (0414), dense.
    Glm4,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Llama,
        Self::Mistral,
        Self::Ministral,
        Self::Ministral3,
        Self::Qwen2,
        Self::Qwen3,
        Self::Qwen35,
        Self::Granite,
        Self::SmolLm3,
        Self::Olmo2,
        Self::Olmo3,
        Self::Gemma2,
        Self::Gemma3,
        Self::Gemma4,
        Self::Phi3,
        Self::Glm4,
    ];

    /// `model_type` in `config.json`.
    #[must_use]
    pub const fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Ministral => "ministral",
            Self::Ministral3 => "ministral3",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Qwen35 => "qwen3_5_text",
            Self::Granite => "granite",
            Self::SmolLm3 => "smollm3",
            Self::Olmo2 => "olmo2",
            Self::Olmo3 => "olmo3",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3_text",
            Self::Gemma4 => "gemma4_text",
            Self::Phi3 => "phi3",
            Self::Glm4 => "glm4",
        }
    }

    /// The family of a `model_type`.
    #[must_use]
    pub fn of_model_type(name: &str) -> Option<Self> {
        if name == gemma4::UNIFIED {
            return Some(Self::Gemma4);
        }
        Self::ALL
            .into_iter()
            .find(|family| family.model_type() == name)
    }

    /// Every `model_type`, for an error.
    pub(crate) fn supported() -> String {
        let names = Self::ALL.map(|family| format!("\"{}\"", family.model_type()));
        let [rest @ .., last] = &names;
        format!("{} or {last}", rest.join(", "))
    }

    /// What keys that are absent stand for.
    pub(crate) const fn defaults(self) -> Defaults {
        let llama = Defaults {
            vocab_size: None,
            num_attention_heads: None,
            num_key_value_heads: None,
            head_dim: None,
            max_position_embeddings: 2048,
            rope_theta: 10_000.0,
            partial_rotary_factor: None,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
        };
        match self {
            Self::Llama | Self::Granite => llama,
            Self::Mistral | Self::Ministral => Defaults {
                num_key_value_heads: Some(8),
                max_position_embeddings: 131_072,
                ..llama
            },
            Self::Ministral3 => Defaults {
                num_key_value_heads: Some(8),
                head_dim: Some(128),
                max_position_embeddings: 262_144,
                rms_norm_eps: 1e-5,
                ..llama
            },
            Self::Qwen2 => Defaults {
                num_key_value_heads: Some(32),
                max_position_embeddings: 32_768,
                ..llama
            },
            Self::Qwen3 => Defaults {
                num_key_value_heads: Some(32),
                head_dim: Some(128),
                max_position_embeddings: 32_768,
                ..llama
            },
            Self::Qwen35 => Defaults {
                num_key_value_heads: Some(4),
                head_dim: Some(256),
                max_position_embeddings: 32_768,
                partial_rotary_factor: Some(0.25),
                ..llama
            },
            Self::Gemma2 => Defaults {
                num_key_value_heads: Some(4),
                head_dim: Some(256),
                max_position_embeddings: 8192,
                tie_word_embeddings: true,
                ..llama
            },
            Self::Gemma3 => Defaults {
                vocab_size: Some(262_208),
                num_attention_heads: Some(8),
                num_key_value_heads: Some(4),
                head_dim: Some(256),
                max_position_embeddings: 131_072,
                rope_theta: 1_000_000.0,
                tie_word_embeddings: true,
                ..llama
            },
            Self::Gemma4 => Defaults {
                vocab_size: Some(262_144),
                num_attention_heads: Some(8),
                num_key_value_heads: Some(4),
                head_dim: Some(256),
                max_position_embeddings: 131_072,
                tie_word_embeddings: true,
                ..llama
            },
            Self::Olmo2 => Defaults {
                rms_norm_eps: 1e-5,
                ..llama
            },
            Self::Olmo3 => Defaults {
                rope_theta: 500_000.0,
                rms_norm_eps: 1e-5,
                ..llama
            },
            Self::Phi3 => Defaults {
                max_position_embeddings: 4096,
                partial_rotary_factor: Some(1.0),
                rms_norm_eps: 1e-5,
                ..llama
            },
            Self::Glm4 => Defaults {
                num_key_value_heads: Some(2),
                head_dim: Some(128),
                max_position_embeddings: 131_072,
                partial_rotary_factor: Some(0.5),
                rms_norm_eps: 1.5625e-7,
                ..llama
            },
            Self::SmolLm3 => Defaults {
                num_key_value_heads: Some(4),
                max_position_embeddings: 32_768,
                rope_theta: 2_000_000.0,
                tie_word_embeddings: true,
                ..llama
            },
        }
    }

    /// Adds what this family has of its own to what all decoders have.
    pub(crate) fn describe(self, keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
        match self {
            Self::Llama => llama::describe(keys, spec),
            Self::Mistral => mistral::describe(keys, spec),
            Self::Ministral => ministral::describe(keys, spec),
            Self::Ministral3 => ministral::describe_3(keys, spec),
            Self::Qwen2 => qwen2::describe(keys, spec),
            Self::Qwen3 => qwen3::describe(keys, spec),
            Self::Qwen35 => qwen3_5::describe(keys, spec),
            Self::Granite => granite::describe(keys, spec),
            Self::SmolLm3 => smollm3::describe(keys, spec),
            Self::Olmo2 => olmo::describe_2(keys, spec),
            Self::Olmo3 => olmo::describe_3(keys, spec),
            Self::Gemma2 => gemma::describe_2(keys, spec),
            Self::Gemma3 => gemma::describe_3(keys, spec),
            Self::Gemma4 => gemma4::describe(keys, spec),
            Self::Phi3 => phi3::describe(keys, spec),
            Self::Glm4 => glm4::describe(keys, spec),
        }
    }
}

/// Values of absent keys that differ between families, as transformers 5 has them. A key that is null is another matter
/// there: heads are then not grouped, and a head has its share of the hidden size.
pub(crate) struct Defaults {
    /// Where files in the wild leave it out.
    pub(crate) vocab_size: Option<usize>,
    /// Where files in the wild leave it out.
    pub(crate) num_attention_heads: Option<usize>,
    /// As many as query heads where that is not said.
    pub(crate) num_key_value_heads: Option<usize>,
    /// `hidden_size / num_attention_heads` where that is not said.
    pub(crate) head_dim: Option<usize>,
    pub(crate) max_position_embeddings: usize,
    pub(crate) rope_theta: f64,
    /// The part of a head that turns; absent where a family always turns the whole head.
    pub(crate) partial_rotary_factor: Option<f64>,
    pub(crate) rms_norm_eps: f64,
    pub(crate) tie_word_embeddings: bool,
}

/// Biases on q, k, v and o where `attention_bias` says so.
fn attention_bias(keys: &Keys<'_>) -> Result<TargetSet, ConfigError> {
    use TargetModule as M;
    Ok(match keys.flag_or("attention_bias", false)? {
        true => TargetSet::NONE.with([M::QProj, M::KProj, M::VProj, M::OProj]),
        false => TargetSet::NONE,
    })
}

/// As [`attention_bias`], and biases on gate, up and down where `mlp_bias` says so.
fn flagged_biases(keys: &Keys<'_>) -> Result<TargetSet, ConfigError> {
    use TargetModule as M;
    let biases = attention_bias(keys)?;
    Ok(match keys.flag_or("mlp_bias", false)? {
        true => biases.with([M::GateProj, M::UpProj, M::DownProj]),
        false => biases,
    })
}

/// Refuses a sliding window, for families that have none.
fn refuse_window(keys: &Keys<'_>) -> Result<(), ConfigError> {
    match keys.optional("sliding_window") {
        None => Ok(()),
        Some(actual) => Err(ConfigError::Unsupported {
            key: "sliding_window",
            actual: actual.to_string(),
            supported: "null (full attention)".to_owned(),
        }),
    }
}

/// Qwen's windows: none unless `use_sliding_window`; then `layer_types` says which layers have one, or, in files older
/// than that key, the first `max_window_layers` have none.
fn qwen_windows(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    if !keys.flag_or("use_sliding_window", false)? || keys.optional("sliding_window").is_none() {
        return Ok(());
    }
    let window = keys.size("sliding_window")?;
    if keys.optional("layer_types").is_some() {
        return windows_by_type(keys, spec, window);
    }
    let full = keys.index_or("max_window_layers", 28)?;
    for layer in spec.layers.iter_mut().skip(full) {
        layer.sliding_window = Some(window);
    }
    Ok(())
}

/// Windows of the layers that `layer_types` calls `sliding_attention`.
fn windows_by_type(
    keys: &Keys<'_>,
    spec: &mut ModelSpec,
    window: usize,
) -> Result<(), ConfigError> {
    let key = "layer_types";
    let value = keys.optional(key).ok_or(ConfigError::Missing { key })?;
    let expected = "\"full_attention\" or \"sliding_attention\" for each layer";
    let Some(types) = value
        .as_array()
        .filter(|types| types.len() == spec.layers.len())
    else {
        return Err(invalid(key, expected, value));
    };
    for (layer, kind) in spec.layers.iter_mut().zip(types) {
        layer.sliding_window = match kind.as_str() {
            Some("full_attention") => None,
            Some("sliding_attention") => Some(window),
            _ => return Err(invalid(key, expected, kind)),
        };
    }
    Ok(())
}

/// The rotary settings of one type of layers, where `rope_parameters` has them by type.
fn rope_of_type(
    keys: &Keys<'_>,
    kind: &'static str,
    head: (RotaryHead, f64),
    max_position_embeddings: usize,
) -> Result<Option<RopeConfig>, ConfigError> {
    let of_type = match keys.object("rope_parameters")? {
        Some(by_type) => by_type.object(kind)?,
        None => None,
    };
    let Some(of_type) = of_type else {
        return Ok(None);
    };
    rope_of(keys, Some(of_type), head, max_position_embeddings).map(Some)
}

/// Refuses a flag that is on, for what the family does not have.
fn refuse(keys: &Keys<'_>, key: &'static str) -> Result<(), ConfigError> {
    match keys.optional(key) {
        None | Some(Value::Bool(false)) => Ok(()),
        Some(actual) => Err(ConfigError::Unsupported {
            key,
            actual: actual.to_string(),
            supported: "false".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests;
