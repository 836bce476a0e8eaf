//! Names of an adapter's tensors in the spellings that are met.
//!
//! PEFT writes `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`. A state dict that was
//! saved without PEFT keeps the adapter's name (`lora_A.default.weight`); transformers' own adapters lack
//! `base_model.model.`; one over the decoder alone lacks the second `model.`; compiled and distributed
//! models have the wrappers' names in between; in a model with more parts the decoder's path is longer.

use crate::peft_config::PREFIX;
use crate::wrapped::{AdapterPrefix, decoder_name, is_wrapped};

/// Which of a module's tensors one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoraPart {
    /// A, applied first.
    A,
    /// B.
    B,
    /// The lengths of rows that DoRA trains.
    Magnitude,
}

impl LoraPart {
    const ALL: [Self; 3] = [Self::A, Self::B, Self::Magnitude];

    /// What it is called behind its module, without a dot at the end.
    const fn name(self) -> &'static str {
        match self {
            Self::A => ".lora_A",
            Self::B => ".lora_B",
            Self::Magnitude => ".lora_magnitude_vector",
        }
    }

    /// What follows the name as PEFT writes it.
    const fn suffix(self) -> &'static str {
        match self {
            Self::A | Self::B => ".weight",
            Self::Magnitude => "",
        }
    }
}

/// What `torch.compile`, FSDP and activation checkpointing put around modules.
const WRAPPERS: [&str; 3] = [
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
];

/// One of the tensors of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoraName {
    /// The module as PEFT names it in a decoder alone, such as `model.layers.0.self_attn.q_proj`.
    pub(crate) module: String,
    /// What it was called in the file.
    pub(crate) prefix: AdapterPrefix,
    /// The adapter's name, where the tensor's has one.
    pub(crate) adapter: Option<String>,
    /// Which one it is.
    pub(crate) part: LoraPart,
}

impl LoraName {
    /// Reads a tensor's name; the error says what the tensor is instead.
    pub(crate) fn parse(name: &str) -> Result<Self, &'static str> {
        let (module, part, rest) = match split(name) {
            Some(parts) => parts,
            None => return Err(what_else(name)),
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
            part,
        })
    }

    /// As PEFT writes it for a class.
    pub(crate) fn canonical(module: &str, prefix: AdapterPrefix, part: LoraPart) -> String {
        let module = prefix.name(module);
        format!("{PREFIX}{module}{}{}", part.name(), part.suffix())
    }
}

/// The module's path, which tensor it is, and what follows.
fn split(name: &str) -> Option<(&str, LoraPart, &str)> {
    let found = LoraPart::ALL.into_iter().filter_map(|part| {
        let at = name.find(part.name())?;
        let rest = &name[at + part.name().len()..];
        let ends = rest.starts_with('.') || (rest.is_empty() && part == LoraPart::Magnitude);
        ends.then_some((at, part, rest))
    });
    let (at, part, rest) = found.min_by_key(|(at, ..)| *at)?;
    // Biases of B, and whatever else may follow.
    let whole = rest.ends_with(".weight") || part == LoraPart::Magnitude;
    whole.then_some((&name[..at], part, rest))
}

/// A module's path without what PEFT and wrappers put around it, and whose it was.
pub(crate) fn module_name(path: &str) -> (String, AdapterPrefix) {
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

/// Why a tensor is none of LoRA's.
fn what_else(name: &str) -> &'static str {
    if name.contains("lora_embedding_") {
        "adapters of embeddings are not supported"
    } else if name.contains("trainable_tokens") {
        "trained rows of tokens are those of embed_tokens and lm_head"
    } else if name.contains("lora_bias") || name.ends_with(".bias") {
        "biases of the factors themselves (lora_bias) are not supported"
    } else if name.ends_with(".lora_a") || name.ends_with(".lora_b") {
        "it is an adapter of mlx-lm; its factors are transposed, and lora_A.weight is expected"
    } else {
        "it is neither lora_A.weight nor lora_B.weight nor lora_magnitude_vector, nor the weight or the bias of a module"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_one_module() {
        let expected = |path: &str, part, adapter: Option<&str>| LoraName {
            module: "model.layers.3.mlp.up_proj".into(),
            prefix: match path.contains("language_model") {
                true => AdapterPrefix::Wrapped,
                false => AdapterPrefix::Text,
            },
            adapter: adapter.map(Into::into),
            part,
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
                for part in LoraPart::ALL {
                    let name = format!("{path}{}.{suffix}", part.name());
                    let expected = Ok(expected(path, part, adapter));
                    assert_eq!(LoraName::parse(&name), expected, "{name}");
                }
            }
            for (suffix, adapter) in [("", None), (".default", Some("default"))] {
                let name = format!("{path}.lora_magnitude_vector{suffix}");
                let expected = Ok(expected(path, LoraPart::Magnitude, adapter));
                assert_eq!(LoraName::parse(&name), expected, "{name}");
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
            let name = LoraName::canonical("model.layers.3.mlp.up_proj", prefix, LoraPart::A);
            assert_eq!(name, expected);
        }
        let name = LoraName::canonical("x", AdapterPrefix::Text, LoraPart::Magnitude);
        assert_eq!(name, "base_model.model.x.lora_magnitude_vector");
    }

    #[test]
    fn what_is_no_matrix_of_lora_is_named() {
        for (name, reason) in [
            ("m.q_proj.lora_magnitude_vector.a.b.weight", "neither"),
            ("m.q_proj.lora_magnitude_vectors", "neither"),
            ("m.embed_tokens.lora_embedding_A.default", "embeddings"),
            (
                "m.embed_tokens.token_adapter.trainable_tokens_delta",
                "tokens",
            ),
            ("m.q_proj.lora_B.bias", "biases"),
            ("m.q_proj.lora_B.default.bias", "biases"),
            ("model.layers.0.self_attn.q_proj.lora_a", "mlx-lm"),
            ("base_model.model.lm_head.weights", "neither"),
            ("m.q_proj.lora_A.a.b.weight", "neither"),
            ("", "neither"),
        ] {
            let found = LoraName::parse(name).unwrap_err();
            assert!(found.contains(reason), "{name}: {found}");
        }
    }
}
