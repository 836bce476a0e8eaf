//! Names of LoRA matrices in the spellings that are met.
//!
//! PEFT writes `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`. A state dict that was
//! saved without PEFT keeps the adapter's name (`lora_A.default.weight`); transformers' own adapters lack
//! `base_model.model.`; one over the decoder alone lacks the second `model.`; compiled and distributed
//! models have the wrappers' names in between; in a model with more parts the decoder's path is longer.

use crate::peft_config::PREFIX;
use crate::wrapped::{AdapterPrefix, decoder_name, is_wrapped};

pub(crate) const LORA_A: &str = ".lora_A.weight";
pub(crate) const LORA_B: &str = ".lora_B.weight";

/// What `torch.compile`, FSDP and activation checkpointing put around modules.
const WRAPPERS: [&str; 3] = [
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
];

/// One of the two matrices of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoraName {
    /// The module as PEFT names it in a decoder alone, such as `model.layers.0.self_attn.q_proj`.
    pub(crate) module: String,
    /// What it was called in the file.
    pub(crate) prefix: AdapterPrefix,
    /// The adapter's name, where the matrix's has one.
    pub(crate) adapter: Option<String>,
    /// Whether it is A.
    pub(crate) is_a: bool,
}

impl LoraName {
    /// Reads a tensor's name; the error says what the tensor is instead.
    pub(crate) fn parse(name: &str) -> Result<Self, &'static str> {
        let (module, parameter) = match split(name) {
            Some(parts) => parts,
            None => return Err(what_else(name)),
        };
        let (is_a, rest) = match parameter.strip_prefix("lora_A") {
            Some(rest) => (true, rest),
            None => (false, parameter.trim_start_matches("lora_B")),
        };
        let adapter = match rest {
            ".weight" | "" => None,
            rest => {
                let inner = rest.strip_prefix('.').unwrap_or(rest);
                let adapter = inner.strip_suffix(".weight").unwrap_or(inner);
                if adapter.is_empty() || adapter.contains('.') {
                    return Err(what_else(name));
                }
                Some(adapter.to_owned())
            }
        };
        let (module, prefix) = module_name(module);
        Ok(Self {
            module,
            prefix,
            adapter,
            is_a,
        })
    }

    /// As PEFT writes it for a class.
    pub(crate) fn canonical(module: &str, prefix: AdapterPrefix, is_a: bool) -> String {
        let module = prefix.name(module);
        format!("{PREFIX}{module}{}", if is_a { LORA_A } else { LORA_B })
    }
}

/// The module's path, and `lora_A…` or `lora_B…`.
fn split(name: &str) -> Option<(&str, &str)> {
    let at = [".lora_A.", ".lora_B."]
        .into_iter()
        .filter_map(|part| name.find(part))
        .min()?;
    let parameter = &name[at + 1..];
    // Biases of B, and whatever else may follow.
    parameter
        .ends_with(".weight")
        .then_some((&name[..at], parameter))
}

/// A module's path without what PEFT and wrappers put around it, and whose it was.
fn module_name(path: &str) -> (String, AdapterPrefix) {
    let inner = path.strip_prefix("module.").unwrap_or(path);
    let parts: Vec<&str> = (inner.split('.'))
        .filter(|part| !WRAPPERS.contains(part))
        .collect();
    let path = parts.join(".");
    let path = path.strip_prefix(PREFIX).unwrap_or(&path);
    match path.split('.').next() {
        Some("layers") => (format!("model.{path}"), AdapterPrefix::Text),
        _ if is_wrapped(path) => {
            let own = decoder_name(path).unwrap_or_else(|| path.to_owned());
            (own, AdapterPrefix::Wrapped)
        }
        _ => (path.to_owned(), AdapterPrefix::Text),
    }
}

/// Why a tensor is no LoRA matrix.
fn what_else(name: &str) -> &'static str {
    if name.contains("lora_magnitude_vector") {
        "DoRA is not supported"
    } else if name.contains("lora_embedding_") {
        "adapters of embeddings are not supported"
    } else if name.contains("trainable_tokens") {
        "trained rows of tokens are those of embed_tokens and lm_head"
    } else if name.contains("lora_bias") || name.ends_with(".bias") {
        "biases in adapters are not supported"
    } else if name.ends_with(".lora_a") || name.ends_with(".lora_b") {
        "it is an adapter of mlx-lm; its factors are transposed, and lora_A.weight is expected"
    } else {
        "it is neither lora_A.weight nor lora_B.weight; whole saved modules are not supported"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_one_module() {
        let expected = |path: &str, is_a, adapter: Option<&str>| LoraName {
            module: "model.layers.3.mlp.up_proj".into(),
            prefix: match path.contains("language_model") {
                true => AdapterPrefix::Wrapped,
                false => AdapterPrefix::Text,
            },
            adapter: adapter.map(Into::into),
            is_a,
        };
        for path in [
            "base_model.model.model.layers.3.mlp.up_proj",
            "base_model.model.layers.3.mlp.up_proj",
            "model.layers.3.mlp.up_proj",
            "layers.3.mlp.up_proj",
            "module.base_model.model.model.layers.3.mlp.up_proj",
            "_orig_mod.base_model.model.model.layers.3.mlp.up_proj",
            "base_model.model._orig_mod.model.layers.3.mlp.up_proj",
            "base_model.model.model.layers.3._fsdp_wrapped_module.mlp.up_proj",
            "base_model.model.model.layers.3._checkpoint_wrapped_module.mlp.up_proj",
            "base_model.model.model.language_model.layers.3.mlp.up_proj",
            "base_model.model.language_model.model.layers.3.mlp.up_proj",
            "language_model.layers.3.mlp.up_proj",
        ] {
            for (suffix, adapter) in [
                ("weight", None),
                ("default.weight", Some("default")),
                ("my-adapter_2.weight", Some("my-adapter_2")),
            ] {
                for (side, is_a) in [("A", true), ("B", false)] {
                    let name = format!("{path}.lora_{side}.{suffix}");
                    assert_eq!(
                        LoraName::parse(&name),
                        Ok(expected(path, is_a, adapter)),
                        "{name}"
                    );
                }
            }
        }
        for (prefix, expected) in [
            (
                AdapterPrefix::Text,
                "base_model.model.model.layers.3.mlp.up_proj.lora_A.weight",
            ),
            (
                AdapterPrefix::Wrapped,
                "base_model.model.model.language_model.layers.3.mlp.up_proj.lora_A.weight",
            ),
        ] {
            let name = LoraName::canonical("model.layers.3.mlp.up_proj", prefix, true);
            assert_eq!(name, expected);
        }
    }

    #[test]
    fn what_is_no_matrix_of_lora_is_named() {
        for (name, reason) in [
            ("m.q_proj.lora_magnitude_vector.default.weight", "DoRA"),
            ("m.embed_tokens.lora_embedding_A.default", "embeddings"),
            (
                "m.embed_tokens.token_adapter.trainable_tokens_delta",
                "tokens",
            ),
            ("m.q_proj.lora_B.bias", "biases"),
            ("m.q_proj.lora_B.default.bias", "biases"),
            ("model.layers.0.self_attn.q_proj.lora_a", "mlx-lm"),
            ("base_model.model.lm_head.weight", "whole saved modules"),
            (
                "base_model.model.model.layers.0.mlp.up_proj.base_layer.weight",
                "whole",
            ),
            ("m.q_proj.lora_A.a.b.weight", "neither"),
            ("", "neither"),
        ] {
            let found = LoraName::parse(name).unwrap_err();
            assert!(found.contains(reason), "{name}: {found}");
        }
    }
}
