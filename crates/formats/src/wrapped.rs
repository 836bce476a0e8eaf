//! Checkpoints in which the decoder is one part of several: names of its tensors, and of adapters over it.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::Value;

use crate::error::{FormatError, Result};

/// What stands before the decoder's names in a model with more parts, and what a decoder alone has there: as files on the
/// hub have it, as transformers 5 writes it, and as it writes a model without its head.
const PREFIXES: [(&str, &str); 4] = [
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
    ("language_model.", "model."),
];
/// What is the decoder's without any such prefix.
const OWN: [&str; 4] = [
    "lm_head.",
    "model.embed_tokens.",
    "model.layers.",
    "model.norm.",
];
/// What transformers 5 puts before the modules of a decoder, and a decoder alone has there.
const WRAPPED: (&str, &str) = ("model.language_model.", "model.");

/// A tensor or module of the decoder by the name that a decoder alone would give it; `None` for any other part's.
pub(crate) fn decoder_name(name: &str) -> Option<String> {
    let other = PREFIXES
        .iter()
        .find_map(|(prefix, own)| Some(format!("{own}{}", name.strip_prefix(prefix)?)));
    let own = || OWN.iter().any(|part| name.starts_with(part));
    other.or_else(|| own().then(|| name.to_owned()))
}

/// Whether a module's path is that of a decoder beside other parts.
pub(crate) fn is_wrapped(path: &str) -> bool {
    PREFIXES.iter().any(|(prefix, _)| path.starts_with(prefix))
}

/// What the modules of an adapter are called: by the class that is to serve them. One that has the names of another class
/// is taken without an error by some servers, and changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdapterPrefix {
    /// `model.layers.…`: a decoder alone.
    #[default]
    Text,
    /// `model.language_model.layers.…`: a model of which the decoder is one part.
    Wrapped,
}

impl AdapterPrefix {
    /// The name of a decoder's module.
    #[must_use]
    pub fn name(self, module: &str) -> String {
        let (wrapped, own) = WRAPPED;
        match module.strip_prefix(own) {
            Some(rest) if self == Self::Wrapped => format!("{wrapped}{rest}"),
            _ => module.to_owned(),
        }
    }
}

/// A checkpoint in which the decoder is one part of several.
#[derive(Debug)]
pub(crate) struct Wrapped {
    /// The whole `config.json`.
    pub(crate) config: Value,
    /// The names of the decoder's tensors in the files, by those of a decoder alone.
    stored: HashMap<String, String>,
    /// The tensors of the other parts, in the order of the files.
    pub(crate) others: Vec<String>,
}

impl Wrapped {
    /// Deals the names of the files out.
    ///
    /// # Errors
    /// A tensor of the decoder that is there twice, under two prefixes.
    pub(crate) fn new<'a>(
        path: &Path,
        config: Value,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<Self> {
        let mut wrapped = Self {
            config,
            stored: HashMap::new(),
            others: Vec::new(),
        };
        for name in names {
            let Some(own) = decoder_name(name) else {
                wrapped.others.push(name.to_owned());
                continue;
            };
            if wrapped.stored.insert(own, name.to_owned()).is_some() {
                return Err(FormatError::TensorUnexpected {
                    path: path.into(),
                    tensor: name.into(),
                    reason: "the same tensor of the language model is there under another prefix",
                });
            }
        }
        // A name of another part that is one of the decoder's after renaming would hide it.
        let hidden = wrapped
            .others
            .iter()
            .find(|name| wrapped.stored.contains_key(*name));
        match hidden {
            None => Ok(wrapped),
            Some(name) => Err(FormatError::TensorUnexpected {
                path: path.into(),
                tensor: name.clone(),
                reason: "a tensor of the language model has the same name without its prefix",
            }),
        }
    }

    /// Whether the decoder has a tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.stored.contains_key(name)
    }

    /// Takes the other parts' tensors out of `names`, from which parts of quantised weights have gone.
    pub(crate) fn keep_others(&mut self, names: &mut Vec<String>) {
        let others: HashSet<String> = self.others.drain(..).collect();
        self.others = names.extract_if(.., |name| others.contains(name)).collect();
    }

    /// The name of a tensor in the files.
    pub(crate) fn stored<'a>(&'a self, name: &'a str) -> &'a str {
        self.stored.get(name).map_or(name, String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_is_one_tensor() {
        for (name, expected) in [
            (
                "language_model.model.layers.0.mlp.up_proj.weight",
                Some("model.layers.0.mlp.up_proj.weight"),
            ),
            (
                "model.language_model.layers.0.mlp.up_proj.weight",
                Some("model.layers.0.mlp.up_proj.weight"),
            ),
            (
                "language_model.layers.0.mlp.up_proj",
                Some("model.layers.0.mlp.up_proj"),
            ),
            (
                "model.layers.0.mlp.up_proj",
                Some("model.layers.0.mlp.up_proj"),
            ),
            ("language_model.lm_head.weight", Some("lm_head.weight")),
            ("lm_head.weight", Some("lm_head.weight")),
            (
                "model.language_model.norm.weight",
                Some("model.norm.weight"),
            ),
            ("model.vision_tower.encoder.layers.0.mlp.fc1.weight", None),
            (
                "vision_tower.vision_model.embeddings.patch_embedding.weight",
                None,
            ),
            ("multi_modal_projector.linear_1.weight", None),
            ("mtp.layers.0.mlp.up_proj.weight", None),
        ] {
            assert_eq!(decoder_name(name).as_deref(), expected, "{name}");
        }
        let module = "model.layers.3.self_attn.q_proj";
        assert_eq!(AdapterPrefix::Text.name(module), module);
        let wrapped = AdapterPrefix::Wrapped.name(module);
        assert_eq!(wrapped, "model.language_model.layers.3.self_attn.q_proj");
        assert!(is_wrapped(&wrapped) && !is_wrapped(module));
        assert_eq!(decoder_name(&wrapped).as_deref(), Some(module));
    }

    #[test]
    fn a_tensor_under_two_prefixes_is_refused() {
        let names = [
            "language_model.model.norm.weight",
            "model.language_model.norm.weight",
        ];
        let twice = Wrapped::new(Path::new("m"), Value::Null, names.into_iter());
        let error = twice.unwrap_err().to_string();
        assert!(error.contains("under another prefix"), "{error}");
    }
}
