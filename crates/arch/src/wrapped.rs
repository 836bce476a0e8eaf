//! Configurations of models that are more than a decoder: towers for images or sound beside it.

use serde_json::Value;

/// Where such a `config.json` describes its decoder.
pub const TEXT_CONFIG: &str = "text_config";

/// Keys that may stand beside [`TEXT_CONFIG`] instead of in it.
const SHARED: [&str; 7] = [
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "pad_token_id",
    "quantization_config",
    "tie_word_embeddings",
    "torch_dtype",
];

/// The config of the decoder inside that of a model with more parts, as a decoder alone would have it; `None` where the
/// decoder is all there is, or is of no family that `is_family` knows by its `model_type`.
pub(crate) fn decoder_config(config: &Value, is_family: impl Fn(&str) -> bool) -> Option<Value> {
    let is_known = |config: &Value| {
        let name = config.get("model_type").and_then(Value::as_str);
        name.is_some_and(&is_family)
    };
    let decoder = config.get(TEXT_CONFIG).filter(|_| !is_known(config));
    let mut decoder = decoder.filter(|decoder| is_known(decoder))?.clone();
    let fields = decoder.as_object_mut()?;
    for key in SHARED {
        if fields.get(key).is_none_or(Value::is_null)
            && let Some(value) = config.get(key)
        {
            fields.insert(key.to_owned(), value.clone());
        }
    }
    Some(decoder)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use serde_json::Value;

    use crate::config::decoder_config;
    use crate::families::Family;
    use crate::spec::ModelSpec;

    /// As the hub has Gemma 3 of 4 B: what is not said is what transformers takes.
    #[test]
    fn a_decoder_is_described_by_its_own_family() {
        let config = json!({
            "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
            "eos_token_id": [1, 106], "image_token_index": 262_144, "torch_dtype": "bfloat16",
            "text_config": {
                "hidden_size": 2560, "intermediate_size": 10_240, "model_type": "gemma3_text",
                "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024, "eos_token_id": null,
            },
            "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
        });
        let decoder = decoder_config(&config).unwrap();
        assert_eq!(decoder["eos_token_id"], json!([1, 106]));
        assert_eq!(decoder["torch_dtype"], "bfloat16");
        assert_eq!(decoder_config(&decoder), None);
        let spec = ModelSpec::from_hf(&config).unwrap();
        assert_eq!(spec, ModelSpec::from_hf(&decoder).unwrap());
        assert_eq!(spec.family, Family::Gemma3);
        assert_eq!(spec.vocab_size, 262_208);
        assert!(spec.tie_word_embeddings);
        let layer = &spec.layers[0];
        assert_eq!(
            (
                layer.num_attention_heads,
                layer.num_key_value_heads,
                layer.head_dim
            ),
            (8, 4, 256)
        );
    }

    #[test]
    fn a_decoder_of_no_known_family_is_refused_where_it_is_described() {
        let found = |config: Value| ModelSpec::from_hf(&config).unwrap_err().to_string();
        let other = found(json!({"model_type": "x", "text_config": {"model_type": "y"}}));
        assert!(
            other.starts_with(
                "`text_config.model_type` is \"y\", which is not supported: expected \"llama\""
            ),
            "{other}"
        );
        let unnamed = found(json!({"model_type": "x", "text_config": {"hidden_size": 8}}));
        assert_eq!(unnamed, "`text_config.model_type` is missing");
        let nothing = found(json!({"model_type": "x", "text_config": 3}));
        assert!(nothing.starts_with("`model_type` is \"x\""), "{nothing}");
    }
}
