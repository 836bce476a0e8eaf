//! Names of an adapter's tensors in the spellings that are met.
//!
//! PEFT writes `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`. A state dict that was
//! saved without PEFT keeps the adapter's name (`lora_A.default.weight`); transformers' own adapters lack
//! `base_model.model.`; one over the decoder alone lacks the second `model.`; compiled and distributed
//! models have the wrappers' names in between; in a model with more parts the decoder's path is longer. Factors of an
//! embedding are parameters of their own, `lora_embedding_A`, and not weights of modules.

use backdraft_arch::TokenTable;

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

/// What a tensor is called behind its module, without a dot at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spelling {
    name: &'static str,
    part: LoraPart,
    /// Whether the module is an embedding.
    embeds: bool,
}

impl Spelling {
    const ALL: [Self; 5] = [
        Self::new(".lora_A", LoraPart::A, false),
        Self::new(".lora_B", LoraPart::B, false),
        Self::new(".lora_embedding_A", LoraPart::A, true),
        Self::new(".lora_embedding_B", LoraPart::B, true),
        Self::new(".lora_magnitude_vector", LoraPart::Magnitude, false),
    ];

    const fn new(name: &'static str, part: LoraPart, embeds: bool) -> Self {
        Self { name, part, embeds }
    }

    /// As PEFT writes it.
    fn canonical(part: LoraPart, embeds: bool) -> String {
        let mut all = Self::ALL.into_iter();
        let found = all.find(|it| it.part == part && (it.embeds == embeds || it.is_parameter()));
        let name = found.map_or("", |it| it.name);
        let suffix = match found.is_some_and(Self::is_parameter) {
            true => "",
            false => ".weight",
        };
        format!("{name}{suffix}")
    }

    /// Whether it is a parameter of its own, and not the weight of a module.
    const fn is_parameter(self) -> bool {
        self.embeds || matches!(self.part, LoraPart::Magnitude)
    }
}

/// Whether the factors of a module are those of an embedding.
pub(crate) fn embeds(module: &str) -> bool {
    module == TokenTable::Embedding.path()
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
        let (module, spelling, rest) = match split(name) {
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
        match (spelling.embeds, embeds(&module)) {
            (true, false) => return Err("adapters of embeddings are those of embed_tokens"),
            (false, true) if spelling.part == LoraPart::Magnitude => {
                return Err("lengths of rows of embed_tokens (DoRA) are not supported");
            }
            (false, true) => {
                return Err("the adapter of embed_tokens is lora_embedding_A and lora_embedding_B");
            }
            (true, true) | (false, false) => {}
        }
        Ok(Self {
            module,
            prefix,
            adapter,
            part: spelling.part,
        })
    }

    /// As PEFT writes it for a class.
    pub(crate) fn canonical(module: &str, prefix: AdapterPrefix, part: LoraPart) -> String {
        let name = Spelling::canonical(part, embeds(module));
        format!("{PREFIX}{}{name}", prefix.name(module))
    }
}

/// The module's path, which tensor it is, and what follows.
fn split(name: &str) -> Option<(&str, Spelling, &str)> {
    let found = Spelling::ALL.into_iter().filter_map(|spelling| {
        let at = name.find(spelling.name)?;
        let rest = &name[at + spelling.name.len()..];
        let ends = rest.starts_with('.') || (rest.is_empty() && spelling.is_parameter());
        ends.then_some((at, spelling, rest))
    });
    let (at, spelling, rest) = found.min_by_key(|(at, ..)| *at)?;
    // Biases of B, and whatever else may follow.
    let whole = rest.ends_with(".weight") || spelling.is_parameter();
    whole.then_some((&name[..at], spelling, rest))
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
        Some("layers" | "embed_tokens") => (format!("model.{path}"), AdapterPrefix::Text),
        _ if is_wrapped(path) => {
            let own = decoder_name(path).unwrap_or_else(|| path.to_owned());
            (own, AdapterPrefix::Wrapped)
        }
        _ => (path.to_owned(), AdapterPrefix::Text),
    }
}

/// Why a tensor is none of LoRA's.
fn what_else(name: &str) -> &'static str {
    if name.contains("trainable_tokens") {
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
                for spelling in Spelling::ALL.into_iter().filter(|it| !it.embeds) {
                    let name = format!("{path}{}.{suffix}", spelling.name);
                    let expected = Ok(expected(path, spelling.part, adapter));
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
    fn factors_of_an_embedding_are_parameters() {
        for path in [
            "base_model.model.model.embed_tokens",
            "model.embed_tokens",
            "base_model.model.embed_tokens",
            "base_model.model.model.language_model.embed_tokens",
        ] {
            for (suffix, adapter) in [("", None), (".default", Some("default"))] {
                let name = format!("{path}.lora_embedding_B{suffix}");
                let found = LoraName::parse(&name).unwrap();
                assert_eq!(found.module, "model.embed_tokens", "{name}");
                assert_eq!(
                    (found.part, found.adapter.as_deref()),
                    (LoraPart::B, adapter)
                );
            }
            let refused = LoraName::parse(&format!("{path}.lora_A.weight")).unwrap_err();
            assert!(refused.contains("lora_embedding_A"), "{refused}");
        }
        for (module, part, expected) in [
            (
                "model.embed_tokens",
                LoraPart::A,
                "model.embed_tokens.lora_embedding_A",
            ),
            (
                "model.embed_tokens",
                LoraPart::B,
                "model.embed_tokens.lora_embedding_B",
            ),
            ("lm_head", LoraPart::A, "lm_head.lora_A.weight"),
        ] {
            let name = LoraName::canonical(module, AdapterPrefix::Text, part);
            assert_eq!(name, format!("{PREFIX}{expected}"));
        }
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
