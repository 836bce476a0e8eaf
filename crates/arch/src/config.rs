//! Reading a `config.json`.
//!
//! What all decoders have in common is read here, what a family has of its own in [`families`](crate::families).
//! Unknown keys are ignored; an active feature that is not supported is refused by name.

use serde_json::{Map, Value};

use crate::families::{Defaults, Family};
use crate::mixer::Mixer;
use crate::ops::{Activation, Heads, NormNames, NormPlaces, NormScale, ValueHeads};
use crate::rope::{RopeConfig, RopeScaling, RotaryPairs, longrope_attention_factor, yarn_mscale};
use crate::spec::{LayerSpec, ModelSpec};
use crate::target::TargetSet;
use crate::wrapped::{self, TEXT_CONFIG};

/// Why a `config.json` does not describe a model that can be loaded.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum ConfigError {
    /// A key is absent.
    #[error("`{key}` is missing")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A key has a value of another kind or outside its range.
    #[error("`{key}` should be {expected}, found {actual}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// What it should be.
        expected: &'static str,
        /// What was found.
        actual: String,
    },
    /// A feature that this version does not have.
    #[error("`{key}` is {actual}, which is not supported: expected {supported}")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// What was found.
        actual: String,
        /// What is supported.
        supported: String,
    },
    /// Two sizes contradict each other.
    #[error("`{key}` = {actual} does not fit: expected {expected}")]
    Inconsistent {
        /// The key.
        key: &'static str,
        /// Its value.
        actual: usize,
        /// What the other sizes ask for.
        expected: String,
    },
}

impl ModelSpec {
    /// Reads the object of a `config.json`; of a model with more parts, its decoder.
    ///
    /// # Errors
    /// A missing or wrong key, an unsupported feature, sizes that contradict each other.
    pub fn from_hf(config: &Value) -> Result<Self, ConfigError> {
        let inner = decoder_config(config);
        let keys = Keys(
            inner
                .as_ref()
                .unwrap_or(config)
                .as_object()
                .ok_or(ConfigError::Missing { key: "model_type" })?,
        );
        let family = family(&keys)?;
        refuse_unsupported(&keys, family)?;
        let mut spec = decoder(&keys, family)?;
        family.describe(&keys, &mut spec)?;
        check(&spec)?;
        Ok(spec)
    }
}

/// The config of the decoder inside that of a model with more parts, as a decoder alone would have it; `None` where the
/// decoder is all there is, or is of no family that is known.
#[must_use]
pub fn decoder_config(config: &Value) -> Option<Value> {
    wrapped::decoder_config(config, |name| Family::of_model_type(name).is_some())
}

fn family(keys: &Keys<'_>) -> Result<Family, ConfigError> {
    let key = "model_type";
    let value = keys.optional(key);
    let named = value.and_then(Value::as_str);
    if let Some(family) = named.and_then(Family::of_model_type) {
        return Ok(family);
    }
    let (value, key) = match keys.optional(TEXT_CONFIG) {
        Some(Value::Object(decoder)) => (Keys(decoder).optional(key), "text_config.model_type"),
        _ => (value, key),
    };
    let value = value.ok_or(ConfigError::Missing { key })?;
    Err(ConfigError::Unsupported {
        key,
        actual: value.to_string(),
        supported: Family::supported(),
    })
}

/// What every family has: all layers alike, full attention, no biases.
fn decoder(keys: &Keys<'_>, family: Family) -> Result<ModelSpec, ConfigError> {
    let hidden_size = keys.size("hidden_size")?;
    let defaults = family.defaults();
    let size = |key, default: Option<usize>| match default {
        Some(default) => keys.size_or(key, default),
        None => keys.size(key),
    };
    let num_attention_heads = size("num_attention_heads", defaults.num_attention_heads)?;
    let absent = |key, default: Option<usize>| default.filter(|_| !keys.has(key));
    let head_dim = match keys.optional("head_dim") {
        Some(_) => keys.size("head_dim")?,
        None if let Some(head_dim) = absent("head_dim", defaults.head_dim) => head_dim,
        None if hidden_size.is_multiple_of(num_attention_heads) => {
            hidden_size / num_attention_heads
        }
        None => {
            return Err(ConfigError::Inconsistent {
                key: "hidden_size",
                actual: hidden_size,
                expected: format!(
                    "a multiple of num_attention_heads = {num_attention_heads}, or head_dim beside it"
                ),
            });
        }
    };
    let key_value_heads = "num_key_value_heads";
    let groups =
        absent(key_value_heads, defaults.num_key_value_heads).unwrap_or(num_attention_heads);
    let layer = LayerSpec {
        hidden_size,
        intermediate_size: keys.size("intermediate_size")?,
        num_attention_heads,
        num_key_value_heads: keys.size_or(key_value_heads, groups)?,
        head_dim,
        mixer: Mixer::Attention,
        heads: Heads::Turned,
        values: ValueHeads::Plain,
        norm_places: NormPlaces::Before,
        norm_names: NormNames::Usual,
        activation: Activation::Silu,
        sliding_window: None,
        attention_multiplier: None,
        attention_softcap: None,
        residual_multiplier: 1.0,
        scaled: false,
        fused: TargetSet::NONE,
        biases: TargetSet::NONE,
    };
    let max_position_embeddings =
        keys.size_or("max_position_embeddings", defaults.max_position_embeddings)?;
    Ok(ModelSpec {
        family,
        vocab_size: size("vocab_size", defaults.vocab_size)?,
        hidden_size,
        rms_norm_eps: keys.number_or("rms_norm_eps", defaults.rms_norm_eps)?,
        norm_scale: NormScale::Weight,
        max_position_embeddings,
        tie_word_embeddings: keys.flag_or("tie_word_embeddings", defaults.tie_word_embeddings)?,
        scores: false,
        embedding_multiplier: 1.0,
        rounds_embedding_multiplier: false,
        logits_scaling: 1.0,
        logits_softcap: None,
        rope: rope(keys, (head_dim, &defaults), max_position_embeddings)?,
        local_rope: None,
        query_scaling: None,
        layers: vec![layer; keys.count("num_hidden_layers")?],
    })
}

fn check(spec: &ModelSpec) -> Result<(), ConfigError> {
    let inconsistent = |key, actual, expected: String| {
        Err(ConfigError::Inconsistent {
            key,
            actual,
            expected,
        })
    };
    for layer in &spec.layers {
        let (heads, groups) = (layer.num_attention_heads, layer.num_key_value_heads);
        if !heads.is_multiple_of(groups) {
            let expected = format!("a divisor of num_attention_heads = {heads}");
            return inconsistent("num_key_value_heads", groups, expected);
        }
        if !layer.head_dim.is_multiple_of(2) {
            return inconsistent("head_dim", layer.head_dim, "an even number".to_owned());
        }
    }
    let half = spec.rope.rotary_dim / 2;
    if let Some(local) = &spec.local_rope
        && matches!(local.scaling, RopeScaling::LongRope { .. })
    {
        return Err(ConfigError::Unsupported {
            key: "rope_type",
            actual: "longrope in layers with a window".to_owned(),
            supported: "another type there".to_owned(),
        });
    }
    let lists: &[(&'static str, &[f32])] = match &spec.rope.scaling {
        RopeScaling::Factors(factors) => &[("rope factors", factors)],
        RopeScaling::LongRope {
            short_factor,
            long_factor,
            ..
        } => &[("short_factor", short_factor), ("long_factor", long_factor)],
        _ => &[],
    };
    for (key, factors) in lists {
        if factors.len() != half {
            let expected = format!("one factor for each of {half} frequencies");
            return inconsistent(key, factors.len(), expected);
        }
    }
    Ok(())
}

fn refuse_unsupported(keys: &Keys<'_>, family: Family) -> Result<(), ConfigError> {
    let expect = |key, supported: &'static str, wanted: &[&str]| match keys.optional(key) {
        None => Ok(()),
        Some(Value::String(actual)) if wanted.contains(&actual.as_str()) => Ok(()),
        Some(actual) => Err(ConfigError::Unsupported {
            key,
            actual: actual.to_string(),
            supported: supported.to_owned(),
        }),
    };
    match family {
        // Their older files have a `hidden_act` beside it, which counts for nothing.
        Family::Gemma2 | Family::Gemma3 | Family::Gemma4 => {
            let tanh = "gelu_pytorch_tanh";
            expect("hidden_activation", "\"gelu_pytorch_tanh\"", &[tanh])?;
        }
        _ => expect("hidden_act", "\"silu\"", &["silu", "swish"])?,
    }
    match keys.optional("quantization_config") {
        Some(config) if config.get("quant_method") != Some(&"bitsandbytes".into()) => {
            let method = config.get("quant_method").unwrap_or(config);
            Err(ConfigError::Unsupported {
                key: "quantization_config",
                actual: method.to_string(),
                supported: "\"bitsandbytes\", an unquantised checkpoint, or a GGUF file".to_owned(),
            })
        }
        _ => Ok(()),
    }
}

/// Both spellings: `rope_theta` with `rope_scaling`, or `rope_parameters`.
fn rope(
    keys: &Keys<'_>,
    (head_dim, defaults): (usize, &Defaults),
    max_position_embeddings: usize,
) -> Result<RopeConfig, ConfigError> {
    let nested = match keys.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => keys.object("rope_scaling")?,
    };
    let theta = keys.number_or("rope_theta", defaults.rope_theta)?;
    let head = RotaryHead {
        head_dim,
        partial_rotary_factor: defaults.partial_rotary_factor,
    };
    rope_of(keys, nested, (head, theta), max_position_embeddings)
}

/// The features of a head, and what part of them turns where that is not said; absent where a family always turns all.
#[derive(Clone, Copy)]
pub(crate) struct RotaryHead {
    pub(crate) head_dim: usize,
    pub(crate) partial_rotary_factor: Option<f64>,
}

impl RotaryHead {
    /// For a family that turns whole heads.
    pub(crate) const fn whole(head_dim: usize) -> Self {
        Self {
            head_dim,
            partial_rotary_factor: None,
        }
    }

    /// Of `proportional` rotary settings, the pairs that turn: as many as `partial_rotary_factor` says, rounded down.
    fn turning_pairs(self, keys: &Keys<'_>, nested: &Keys<'_>) -> Result<usize, ConfigError> {
        let (key, said) = partial_rotary_factor(keys, nested);
        let part = said.map_or(Some(1.0), Value::as_f64);
        match part.filter(|part| (0.0..=1.0).contains(part)) {
            Some(part) => Ok((part * self.head_dim as f64) as usize / 2),
            None => Err(invalid(
                key,
                "a part of the head: from 0 to 1",
                said.unwrap_or(&Value::Null),
            )),
        }
    }

    /// The features that turn: as many as `partial_rotary_factor` says, rounded down.
    fn rotary_dim(self, keys: &Keys<'_>, nested: &Keys<'_>) -> Result<usize, ConfigError> {
        let (key, said) = partial_rotary_factor(keys, nested);
        let factor = said.map(|value| value.as_f64().ok_or(value));
        let invalid = |actual| {
            invalid(
                key,
                "a part of the head: above 0, at most 1, with an even number of features",
                actual,
            )
        };
        match (factor, self.partial_rotary_factor) {
            (Some(Err(actual)), _) => Err(invalid(actual)),
            (None, None) | (Some(Ok(1.0)), _) => Ok(self.head_dim),
            (Some(Ok(factor)), None) => Err(ConfigError::Unsupported {
                key,
                actual: factor.to_string(),
                supported: "1 (the whole head turns)".to_owned(),
            }),
            (factor, Some(default)) => {
                let factor = factor.and_then(Result::ok).unwrap_or(default);
                let turning = self.head_dim as f64 * factor;
                let fits = turning >= 2.0 && factor <= 1.0;
                let turning = turning as usize;
                match fits && turning.is_multiple_of(2) {
                    true => Ok(turning),
                    false => Err(invalid(&factor.into())),
                }
            }
        }
    }
}

/// The part of a head that turns, as it is said, after its key.
fn partial_rotary_factor<'a>(
    keys: &Keys<'a>,
    nested: &Keys<'a>,
) -> (&'static str, Option<&'a Value>) {
    let key = "partial_rotary_factor";
    (key, nested.optional(key).or(keys.optional(key)))
}

/// What an object of rotary settings says, with what counts where it says nothing of θ.
pub(crate) fn rope_of(
    keys: &Keys<'_>,
    nested: Option<Keys<'_>>,
    (head, default_theta): (RotaryHead, f64),
    max_position_embeddings: usize,
) -> Result<RopeConfig, ConfigError> {
    let empty = Map::new();
    let nested = nested.unwrap_or(Keys(&empty));
    let kind = nested
        .optional("rope_type")
        .or_else(|| nested.optional("type"));
    let kind_name = kind.map_or(Some("default"), Value::as_str);
    let rotary_dim = match kind_name {
        Some("proportional") => head.head_dim,
        _ => head.rotary_dim(keys, &nested)?,
    };
    let theta = nested.number_or("rope_theta", default_theta)?;
    let original = || {
        nested.number_or(
            "original_max_position_embeddings",
            max_position_embeddings as f64,
        )
    };
    let scaling = match kind_name {
        Some("default") => RopeScaling::Default,
        Some("linear") => RopeScaling::Linear {
            factor: nested.number("factor")?,
        },
        Some("llama3") => RopeScaling::Llama3 {
            factor: nested.number("factor")?,
            low_freq_factor: nested.number("low_freq_factor")?,
            high_freq_factor: nested.number("high_freq_factor")?,
            original_max_position_embeddings: nested.number("original_max_position_embeddings")?,
        },
        Some(name) if is_longrope(name, keys, &nested) => {
            longrope(keys, &nested, max_position_embeddings as f64)?
        }
        Some("yarn") => yarn(&nested, original()?, max_position_embeddings)?,
        Some("proportional") => RopeScaling::Proportional {
            pairs: head.turning_pairs(keys, &nested)?,
            factor: nested.positive_or("factor", 1.0)?,
        },
        _ => {
            return Err(ConfigError::Unsupported {
                key: "rope_type",
                actual: kind.map(Value::to_string).unwrap_or_default(),
                supported:
                    "\"default\", \"linear\", \"llama3\", \"yarn\", \"longrope\" or \"proportional\""
                        .to_owned(),
            });
        }
    };
    if !(theta.is_finite() && theta > 1.0) {
        return Err(ConfigError::Invalid {
            key: "rope_theta",
            expected: "a number above 1",
            actual: theta.to_string(),
        });
    }
    Ok(RopeConfig {
        theta,
        head_dim: head.head_dim,
        rotary_dim,
        pairs: RotaryPairs::Halves,
        scaling,
    })
}

fn yarn(
    keys: &Keys<'_>,
    original: f64,
    max_position_embeddings: usize,
) -> Result<RopeScaling, ConfigError> {
    let factor = match keys.optional("factor") {
        None if keys.has("factor") => max_position_embeddings as f64 / original,
        _ => keys.number("factor")?,
    };
    let mscales = (
        keys.number_or("mscale", 0.0)?,
        keys.number_or("mscale_all_dim", 0.0)?,
    );
    let attention_factor = match (keys.optional("attention_factor"), mscales) {
        (Some(_), _) => keys.number("attention_factor")?,
        (None, (mscale, all_dim)) if mscale != 0.0 && all_dim != 0.0 => {
            yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim)
        }
        (None, _) => yarn_mscale(factor, 1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        original_max_position_embeddings: original,
        beta_fast: keys.number_or("beta_fast", 32.0)?,
        beta_slow: keys.number_or("beta_slow", 1.0)?,
        truncate: keys.flag_or("truncate", true)?,
        attention_factor,
    })
}

/// `su` in older files; `yarn` in Phi 3's first ones, which is told from YaRN by the lists that this has not.
fn is_longrope(name: &str, keys: &Keys<'_>, nested: &Keys<'_>) -> bool {
    let is_phi = || {
        keys.optional("model_type")
            .is_some_and(|name| name == "phi3")
    };
    matches!(name, "longrope" | "su") || name == "yarn" && nested.has("short_factor") && is_phi()
}

/// The original context stands beside the rotary settings in files in the wild, within them in newer ones.
fn longrope(keys: &Keys<'_>, nested: &Keys<'_>, longest: f64) -> Result<RopeScaling, ConfigError> {
    let key = "original_max_position_embeddings";
    let original = match nested.optional(key) {
        Some(_) => nested.number(key)?,
        None => keys.number_or(key, longest)?,
    };
    let factor = nested.positive_or("factor", longest / original.max(1.0))?;
    let attention_factor = nested.positive_or(
        "attention_factor",
        longrope_attention_factor(factor, original),
    )?;
    Ok(RopeScaling::LongRope {
        short_factor: nested.factors("short_factor")?,
        long_factor: nested.factors("long_factor")?,
        original_max_position_embeddings: original,
        attention_factor,
    })
}

/// Typed access to an object; `null` counts as absent.
pub(crate) struct Keys<'a>(&'a Map<String, Value>);

impl<'a> Keys<'a> {
    pub(crate) const fn of(map: &'a Map<String, Value>) -> Self {
        Self(map)
    }

    /// All of them with their values.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    pub(crate) fn optional(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there, be it null.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    pub(crate) fn object(&self, key: &'static str) -> Result<Option<Self>, ConfigError> {
        match self.optional(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self(map))),
            Some(other) => Err(invalid(key, "an object", other)),
        }
    }

    pub(crate) fn size(&self, key: &'static str) -> Result<usize, ConfigError> {
        let value = self.optional(key).ok_or(ConfigError::Missing { key })?;
        // Far above any model, far below what could overflow a product of three.
        const LIMIT: u64 = 1 << 31;
        match value.as_u64() {
            Some(size) if (1..LIMIT).contains(&size) => Ok(size as usize),
            _ => Err(invalid(key, "a whole number of at least 1", value)),
        }
    }

    /// A number of layers: each takes memory as soon as it is read.
    pub(crate) fn count(&self, key: &'static str) -> Result<usize, ConfigError> {
        const LIMIT: usize = 1 << 16;
        match self.size(key)? {
            count if count <= LIMIT => Ok(count),
            count => Err(invalid(
                key,
                "a whole number of at most 65536",
                &count.into(),
            )),
        }
    }

    /// A number that may be zero.
    pub(crate) fn index_or(&self, key: &'static str, default: usize) -> Result<usize, ConfigError> {
        self.optional(key).map_or(Ok(default), |value| {
            let whole = value
                .as_u64()
                .and_then(|number| usize::try_from(number).ok());
            whole.ok_or_else(|| invalid(key, "a whole number", value))
        })
    }

    pub(crate) fn size_or(&self, key: &'static str, default: usize) -> Result<usize, ConfigError> {
        self.optional(key).map_or(Ok(default), |_| self.size(key))
    }

    pub(crate) fn number(&self, key: &'static str) -> Result<f64, ConfigError> {
        let value = self.optional(key).ok_or(ConfigError::Missing { key })?;
        value
            .as_f64()
            .filter(|number| number.is_finite() && *number >= 0.0)
            .ok_or_else(|| invalid(key, "a finite number of at least 0", value))
    }

    pub(crate) fn number_or(&self, key: &'static str, default: f64) -> Result<f64, ConfigError> {
        self.optional(key).map_or(Ok(default), |_| self.number(key))
    }

    /// A list of divisors.
    fn factors(&self, key: &'static str) -> Result<Vec<f32>, ConfigError> {
        let value = self.optional(key).ok_or(ConfigError::Missing { key })?;
        let of = |value: &Value| {
            let factor = value.as_f64()? as f32;
            (factor.is_finite() && factor > 0.0).then_some(factor)
        };
        let factors = value
            .as_array()
            .and_then(|list| list.iter().map(of).collect());
        factors.ok_or_else(|| invalid(key, "a list of finite numbers above 0", value))
    }

    /// A factor or a divisor.
    pub(crate) fn positive_or(&self, key: &'static str, default: f64) -> Result<f64, ConfigError> {
        self.optional(key).map_or(Ok(default), |value| {
            let positive = value.as_f64().filter(|n| n.is_finite() && *n > 0.0);
            positive.ok_or_else(|| invalid(key, "a finite number above 0", value))
        })
    }

    pub(crate) fn flag_or(&self, key: &'static str, default: bool) -> Result<bool, ConfigError> {
        self.optional(key).map_or(Ok(default), |value| {
            value
                .as_bool()
                .ok_or_else(|| invalid(key, "true or false", value))
        })
    }
}

pub(crate) fn invalid(key: &'static str, expected: &'static str, actual: &Value) -> ConfigError {
    let actual: String = actual.to_string().chars().take(60).collect();
    ConfigError::Invalid {
        key,
        expected,
        actual,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config() -> Value {
        json!({
            "model_type": "llama", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "rope_theta": 10000.0, "some_future_key": {"a": 1},
        })
    }

    #[track_caller]
    fn check(change: Value, expected: &str) {
        let mut config = config();
        for (key, value) in change.as_object().unwrap() {
            config[key] = value.clone();
        }
        let actual = match ModelSpec::from_hf(&config) {
            Ok(_) => "fine".to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(actual, expected);
    }

    #[test]
    fn unknown_keys_are_ignored_and_defaults_filled_in() {
        let config = ModelSpec::from_hf(&config()).unwrap();
        assert_eq!(config.layers[0].head_dim, 16);
        assert!(!config.tie_word_embeddings);
        assert_eq!(config.rope.scaling, RopeScaling::Default);
    }

    #[test]
    fn unsupported_features_are_refused_by_name() {
        check(
            json!({"model_type": "gpt_neox"}),
            "`model_type` is \"gpt_neox\", which is not supported: expected \"llama\", \"mistral\", \
             \"ministral\", \"ministral3\", \"qwen2\", \"qwen3\", \"qwen3_5_text\", \"granite\", \"smollm3\", \
             \"olmo2\", \"olmo3\", \"gemma2\", \"gemma3_text\", \"gemma4_text\", \"phi3\" or \"glm4\"",
        );
        check(
            json!({"hidden_act": "gelu"}),
            "`hidden_act` is \"gelu\", which is not supported: expected \"silu\"",
        );
        check(
            json!({"rope_scaling": {"rope_type": "dynamic"}}),
            "`rope_type` is \"dynamic\", which is not supported: expected \"default\", \"linear\", \
             \"llama3\", \"yarn\", \"longrope\" or \"proportional\"",
        );
        check(
            json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
            "`partial_rotary_factor` is 0.5, which is not supported: expected 1 (the whole head turns)",
        );
        check(
            json!({"sliding_window": 4096}),
            "`sliding_window` is 4096, which is not supported: expected null (full attention)",
        );
        check(
            json!({"quantization_config": {"quant_method": "gptq"}}),
            "`quantization_config` is \"gptq\", which is not supported: expected \"bitsandbytes\", an \
             unquantised checkpoint, or a GGUF file",
        );
    }

    #[test]
    fn wrong_values_are_named() {
        check(json!({"hidden_size": null}), "`hidden_size` is missing");
        check(
            json!({"hidden_size": -3}),
            "`hidden_size` should be a whole number of at least 1, found -3",
        );
        check(
            json!({"num_key_value_heads": 3}),
            "`num_key_value_heads` = 3 does not fit: expected a divisor of num_attention_heads = 4",
        );
        check(
            json!({"rope_scaling": {"rope_type": "linear"}}),
            "`factor` is missing",
        );
    }

    #[test]
    fn both_spellings_of_the_rotary_settings_agree() {
        let scaling = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        });
        let mut old = config();
        old["rope_theta"] = json!(500000.0);
        old["rope_scaling"] = scaling.clone();
        let mut new = config();
        new.as_object_mut().unwrap().remove("rope_theta");
        new["rope_parameters"] = scaling;
        new["rope_parameters"]["rope_theta"] = json!(500000.0);
        let (old, new) = (
            ModelSpec::from_hf(&old).unwrap(),
            ModelSpec::from_hf(&new).unwrap(),
        );
        assert_eq!(old, new);
    }
}
