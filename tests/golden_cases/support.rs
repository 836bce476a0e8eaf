//! What the program promises to support, so that a refusal is either right or a failure.

use std::error::Error;

use backdraft::arch::{Family, TargetModule};
use backdraft::model::{ConfigError, LoadError};
use serde_json::{Map, Value};

/// The first feature of a `config.json` that is beyond the promise.
pub(super) fn unsupported_feature(config: &Value) -> Option<&'static str> {
    let active = |key: &str| config.get(key).filter(|value| !value.is_null());
    let outside = |key: &'static str, supported: &[&str]| {
        active(key).is_some_and(|value| !supported.iter().any(|name| value == name))
    };
    let model_type = active("model_type").and_then(Value::as_str);
    if model_type.and_then(Family::of_model_type).is_none() {
        return Some("model_type");
    }
    let act = match model_type {
        Some("gemma2" | "gemma3_text" | "gemma4_text") => {
            ("hidden_activation", &["gelu_pytorch_tanh"][..])
        }
        _ => ("hidden_act", &["silu", "swish"][..]),
    };
    if outside(act.0, act.1) {
        return Some(act.0);
    }
    if let Some(key) = unsupported_in_family(config, model_type) {
        return Some(key);
    }
    if active("quantization_config").is_some() {
        return Some("quantization_config");
    }
    let rope = active("rope_parameters").or(active("rope_scaling"));
    let partial = "partial_rotary_factor";
    let partial = rope.and_then(|rope| rope.get(partial)).or(active(partial));
    let in_part = matches!(model_type, Some("phi3" | "glm4" | "qwen3_5_text"));
    if !in_part && partial.is_some_and(|factor| factor.as_f64() != Some(1.0)) {
        return Some("partial_rotary_factor");
    }
    let kind = rope.and_then(|rope| rope.get("rope_type").or(rope.get("type")));
    let kinds = ["default", "linear", "llama3", "yarn", "longrope", "su"];
    match kind {
        Some(kind) if !kinds.iter().any(|name| kind == name) => Some("rope_type"),
        _ => None,
    }
}

/// What the other families have and this one has not.
fn unsupported_in_family(config: &Value, model_type: Option<&str>) -> Option<&'static str> {
    let active = |key: &&str| !config[*key].is_null() && config[*key] != false && config[*key] != 0;
    let keys: &[&str] = match model_type {
        Some("mistral" | "ministral" | "ministral3") => &["attention_bias", "mlp_bias"],
        Some("phi3") => &["attention_bias"],
        Some("qwen2" | "qwen3" | "smollm3" | "olmo3" | "gemma2") => &[],
        Some("qwen3_5_text") => &["sliding_window"],
        Some("gemma3_text") => &["use_bidirectional_attention", "attn_logit_softcapping"],
        Some("gemma4_text") => &[
            "hidden_size_per_layer_input",
            "num_kv_shared_layers",
            "enable_moe_block",
        ],
        // Llama, Granite, OLMo 2 and GLM 4.
        _ => &["sliding_window"],
    };
    keys.iter().copied().find(active)
}

/// A refused configuration must have the feature, and the refusal its name.
#[track_caller]
pub(super) fn check_refusal(case: &str, config: &Value, error: &ConfigError) {
    let feature = unsupported_feature(config);
    match error {
        ConfigError::Unsupported { key, .. } if Some(*key) == feature => {
            println!("{case}: refused, as it should be: {error}");
        }
        _ => panic!("{case}: should be {}: {error}", expectation(feature)),
    }
}

/// As [`check_refusal`], of a whole model.
#[track_caller]
pub(super) fn check_load_refusal(case: &str, config: &Value, error: &LoadError) {
    match error {
        LoadError::Config { source, .. } => check_refusal(case, config, source),
        other => {
            let expected = expectation(unsupported_feature(config));
            panic!("{case}: should be {expected}: {}", chain(other));
        }
    }
}

fn expectation(feature: Option<&str>) -> String {
    match feature {
        Some(feature) => format!("refused for its `{feature}`"),
        None => "loaded".to_owned(),
    }
}

/// The first of PEFT's options, or of the targets, that is beyond the promise.
pub(super) fn unsupported_option(options: &Map<String, Value>, targets: &Value) -> Option<String> {
    let inactive = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        other => other == "none",
    };
    let supported = [
        "use_rslora",
        "use_dora",
        "layers_to_transform",
        "lora_dropout",
    ];
    let option = options
        .iter()
        .find(|(name, value)| !inactive(value) && !supported.contains(&name.as_str()));
    if let Some((name, _)) = option {
        return Some(name.clone());
    }
    let targets = targets.as_array().into_iter().flatten();
    let mut targets = targets.filter_map(Value::as_str);
    targets
        .find(|target| target.parse::<TargetModule>().is_err())
        .map(str::to_owned)
}

/// An error with its causes.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
