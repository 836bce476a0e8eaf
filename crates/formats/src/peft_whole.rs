//! Whole tensors of the base that an adapter has in their place: PEFT's `modules_to_save`, and trained biases.

use backdraft_arch::{Bias, TokenTable};

use crate::peft_config::{PREFIX, PeftConfig};
use crate::peft_names::module_name;
use crate::wrapped::AdapterPrefix;

/// What PEFT puts between an adapted module and what was there before.
const BASE_LAYER: &str = ".base_layer";
/// What PEFT keeps a saved module under while it is loaded; some programs leave it in files.
const SAVED: [&str; 2] = [".modules_to_save.default", ".modules_to_save"];

/// A tensor of the base as an adapter has it.
#[derive(Debug, Clone, PartialEq)]
pub struct WholeTensor {
    /// Its name in the base, such as `model.norm.weight`.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f32>,
}

/// Which tensor of the base one in an adapter's file is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WholeName {
    /// As PEFT names the module in a decoder alone.
    pub(crate) module: String,
    /// `weight` or `bias`.
    pub(crate) part: &'static str,
    /// What it was called in the file.
    pub(crate) prefix: AdapterPrefix,
    /// Whether the module has an adapter, which stands around it.
    pub(crate) adapted: bool,
}

impl WholeName {
    /// Reads a tensor's name; `None` for one that is part of an adapter.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        if ["lora_", "token_adapter"]
            .iter()
            .any(|part| name.contains(part))
        {
            return None;
        }
        let (module, part) = name.rsplit_once('.')?;
        let part = match part {
            "weight" => "weight",
            "bias" => "bias",
            _ => return None,
        };
        let wrappers = SAVED.iter().chain([&BASE_LAYER]);
        let module = wrappers.fold(module, |module, end| {
            module.strip_suffix(*end).unwrap_or(module)
        });
        let adapted = name.contains(BASE_LAYER);
        let (module, prefix) = module_name(module);
        Some(Self {
            module,
            part,
            prefix,
            adapted,
        })
    }

    /// The tensor's name in the base.
    pub(crate) fn tensor(&self) -> String {
        format!("{}.{}", self.module, self.part)
    }

    /// As PEFT writes it for a class; `adapted` says whether the module has an adapter.
    pub(crate) fn canonical(tensor: &str, prefix: AdapterPrefix, adapted: bool) -> String {
        let (module, part) = tensor.rsplit_once('.').unwrap_or((tensor, "weight"));
        let between = if adapted { BASE_LAYER } else { "" };
        format!("{PREFIX}{}{between}.{part}", prefix.name(module))
    }

    /// Whether it is a frozen table under an adapter, which PEFT saves too: the base has it.
    pub(crate) fn is_frozen_table(&self, config: &PeftConfig) -> bool {
        let table = TokenTable::of_path(&self.module).is_some() && self.part == "weight";
        table && self.adapted && !config.saves(&self.module)
    }

    /// Why the config has no such tensor, where it does not.
    pub(crate) fn refusal(&self, config: &PeftConfig) -> Option<&'static str> {
        if config.saves(&self.module) || (self.part == "bias" && config.bias != Bias::None) {
            return None;
        }
        Some(match self.part {
            "bias" => "bias of adapter_config.json is \"none\", so that no bias is in the file",
            _ => {
                "modules_to_save of adapter_config.json does not name its module; a weight that was saved only because \
                 the vocabulary had changed belongs to the base: save that, and name it as the model"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_base() {
        for (name, tensor) in [
            ("base_model.model.lm_head.weight", "lm_head.weight"),
            ("base_model.model.model.norm.weight", "model.norm.weight"),
            (
                "base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias",
                "model.layers.0.self_attn.q_proj.bias",
            ),
            (
                "base_model.model.model.layers.0.self_attn.k_proj.bias",
                "model.layers.0.self_attn.k_proj.bias",
            ),
            (
                "base_model.model.model.embed_tokens.modules_to_save.default.weight",
                "model.embed_tokens.weight",
            ),
            (
                "base_model.model.model.language_model.norm.weight",
                "model.norm.weight",
            ),
        ] {
            let found = WholeName::parse(name).unwrap();
            assert_eq!(found.tensor(), tensor, "{name}");
            let adapted = name.contains("base_layer");
            if !name.contains("modules_to_save") {
                assert_eq!(WholeName::canonical(tensor, found.prefix, adapted), name);
            }
        }
        for name in [
            "m.q_proj.lora_A.weight",
            "m.q_proj.lora_B.bias",
            "m.embed_tokens.token_adapter.trainable_tokens_delta",
            "m.embed_tokens.lora_embedding_A.default",
            "weight",
            "m.linear_attn.dt_bias",
        ] {
            assert_eq!(WholeName::parse(name), None, "{name}");
        }
    }

    #[test]
    fn a_tensor_that_the_config_does_not_name_is_refused() {
        let mut config = PeftConfig::new(8, 8.0, ["q_proj"]);
        let [norm, bias] = [
            "base_model.model.model.norm.weight",
            "model.layers.0.self_attn.q_proj.bias",
        ]
        .map(|name| WholeName::parse(name).unwrap());
        assert!(norm.refusal(&config).unwrap().contains("modules_to_save"));
        assert!(bias.refusal(&config).unwrap().contains("bias"));
        config.modules_to_save = vec!["norm".to_owned()];
        config.bias = Bias::LoraOnly;
        assert_eq!((norm.refusal(&config), bias.refusal(&config)), (None, None));
    }
}
