//! Which tensors of a base are trained whole, beside adapters.

use std::collections::BTreeSet;

use crate::lora::{Bias, LoraConfig, LoraConfigError, place};
use crate::lora_targets::nearest;
use crate::mixer::DeltaVector;
use crate::spec::{EMBEDDING, FINAL_NORM, HEAD, ModelSpec, TensorSpec};
use crate::token_table::TokenTable;

const KEY: &str = "lora.modules_to_save";

/// The module of a tensor, and what the tensor is of it.
pub(crate) fn parts(tensor: &str) -> (&str, &str) {
    tensor.rsplit_once('.').unwrap_or(("", tensor))
}

impl LoraConfig {
    /// The tensors of a base that are trained whole, in the order of the model's. Where the head is the embedding, the name of
    /// either means the one table. Where no adapters are made, those that are trained in their place.
    ///
    /// # Source
    /// PEFT 0.21: `modules_to_save` takes every module whose path ends in one of its texts, and `bias` every parameter of that
    /// name, or those of adapted modules.
    #[must_use]
    pub fn whole(&self, spec: &ModelSpec) -> Vec<TensorSpec> {
        if self.trainable.is_full() {
            return self.taken(spec);
        }
        let tied = spec.tie_word_embeddings;
        let tensors = spec.tensors();
        tensors
            .filter(|tensor| self.trains(&tensor.name, tied))
            .collect()
    }

    fn saves(&self, module: &str) -> bool {
        let mut names = self.modules_to_save.iter();
        names.any(|name| module.ends_with(name.as_str()))
    }

    fn trains(&self, tensor: &str, tied: bool) -> bool {
        let (module, part) = parts(tensor);
        let saved =
            self.saves(module) || (tied && tensor == EMBEDDING && self.saves(parts(HEAD).0));
        match (part, self.bias) {
            ("weight", _) => saved,
            ("bias", Bias::None) => saved,
            ("bias", Bias::All) => true,
            ("bias", Bias::LoraOnly) => {
                saved || place(module).is_some_and(|(layer, target)| self.adapts(layer, target))
            }
            _ => false,
        }
    }

    /// The same settings for a model of that shape.
    ///
    /// # Errors
    /// A name that means no module, or one of a module that is not trained whole; biases that the model does not have.
    pub fn with_whole(self, spec: &ModelSpec) -> Result<Self, LoraConfigError> {
        if self.trainable.is_full() {
            return Self::full(self.trainable, spec);
        }
        let can = trainable(spec);
        let weights = can.iter().filter(|name| parts(name).1 == "weight");
        let can: BTreeSet<String> = weights.map(|name| parts(name).0.to_owned()).collect();
        for name in &self.modules_to_save {
            let all = modules(spec);
            let ends = |module: &&String| module.ends_with(name.as_str());
            if let Some(module) = all
                .iter()
                .filter(ends)
                .find(|it| !can.contains(it.as_str()))
            {
                return Err(LoraConfigError::NotWhole {
                    key: KEY,
                    asked: name.clone(),
                    module: module.clone(),
                });
            }
            if !all.iter().any(|module| module.ends_with(name.as_str())) {
                let can: Vec<String> = can.iter().cloned().collect();
                return Err(LoraConfigError::NoMatch {
                    key: KEY,
                    name: name.clone(),
                    nearest: nearest(name, &can),
                });
            }
        }
        let whole = self.whole(spec);
        let has_bias = whole.iter().any(|tensor| parts(&tensor.name).1 == "bias");
        match self.bias {
            Bias::None => {}
            // PEFT goes by the names of parameters.
            Bias::All if spec.has_delta_nets() => {
                return Err(LoraConfigError::NotWhole {
                    key: "lora.bias",
                    asked: self.bias.name().to_owned(),
                    module: DeltaVector::DtBias.tensor(0),
                });
            }
            bias if !has_bias => return Err(LoraConfigError::NoBias { bias }),
            Bias::All | Bias::LoraOnly => {}
        }
        let tied = spec.tie_word_embeddings;
        let trains = |table: &TokenTable| {
            let one = tied && *table == TokenTable::Head;
            let name = if one { EMBEDDING } else { table.tensor() };
            whole.iter().any(|tensor| tensor.name == name)
        };
        if let Some(table) = self.target_tables.iter().find(|table| trains(table)) {
            return Err(LoraConfigError::TrainedTwice {
                module: table.name(),
                key: KEY,
            });
        }
        let embedding = whole.iter().any(|tensor| tensor.name == EMBEDDING);
        Ok(Self {
            ensure_weight_tying: embedding && spec.tie_word_embeddings,
            ..self
        })
    }
}

/// The head's name; a head even where it is the embedding.
fn head(spec: &ModelSpec) -> &'static str {
    spec.head_name().unwrap_or(HEAD)
}

/// The names of the tensors that can be trained whole beside adapters: norms, embedding, head, biases of projections. A head even where it is
/// the embedding.
#[must_use]
pub fn trainable(spec: &ModelSpec) -> BTreeSet<String> {
    let layers = spec.layers.iter().enumerate();
    let of_layers = layers.flat_map(|(i, layer)| {
        let norms = layer.norms();
        let norms = norms.map(move |(norm, _)| norm.tensor(i, layer.norm_names));
        let biased = layer
            .modules()
            .filter(|&target| layer.biases.contains(target));
        norms.chain(biased.map(move |target| format!("{}.bias", target.path(i))))
    });
    let others = [EMBEDDING, FINAL_NORM, head(spec)].map(str::to_owned);
    of_layers.chain(others).collect()
}

/// Modules of the model, and what holds modules; a head even where it is the embedding.
pub(crate) fn modules(spec: &ModelSpec) -> BTreeSet<String> {
    let mut modules: BTreeSet<String> = [parts(head(spec)).0.to_owned()].into();
    for tensor in spec.tensors() {
        let mut name = tensor.name.as_str();
        while let Some((before, _)) = name.rsplit_once('.') {
            name = before;
            modules.insert(name.to_owned());
        }
    }
    modules
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(model_type: &str, tied: bool) -> ModelSpec {
        ModelSpec::from_hf(&json!({
            "model_type": model_type, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 512, "rope_theta": 1e4, "hidden_act": "silu", "tie_word_embeddings": tied,
        }))
        .unwrap()
    }

    fn config(bias: Bias, modules: &[&str]) -> LoraConfig {
        LoraConfig {
            bias,
            modules_to_save: modules.iter().map(|&name| name.to_owned()).collect(),
            target_modules: vec![crate::TargetModule::QProj],
            ..LoraConfig::default()
        }
    }

    fn names(config: &LoraConfig, spec: &ModelSpec) -> Vec<String> {
        let whole = config.whole(spec).into_iter();
        whole.map(|tensor| tensor.name).collect()
    }

    #[test]
    fn names_are_the_ends_of_paths() {
        let llama = spec("llama", false);
        let norms = config(Bias::None, &["input_layernorm", "norm"]);
        assert_eq!(
            names(&norms, &llama),
            [
                "model.layers.0.input_layernorm.weight",
                "model.layers.0.post_attention_layernorm.weight",
                "model.layers.1.input_layernorm.weight",
                "model.layers.1.post_attention_layernorm.weight",
                "model.norm.weight",
            ]
        );
        let tables = config(Bias::None, &["embed_tokens", "lm_head"]);
        assert_eq!(names(&tables, &llama), [EMBEDDING, HEAD]);
        assert!(
            !tables
                .clone()
                .with_whole(&llama)
                .unwrap()
                .ensure_weight_tying
        );
        let tied = spec("llama", true);
        for one in ["embed_tokens", "lm_head"] {
            let one = config(Bias::None, &[one]);
            assert_eq!(names(&one, &tied), [EMBEDDING]);
            assert!(one.with_whole(&tied).unwrap().ensure_weight_tying);
        }
    }

    #[test]
    fn a_head_that_scores_is_trained_under_its_own_name() {
        let spec = spec("llama", true).scoring();
        let score = config(Bias::None, &["score"]);
        let whole = score.whole(&spec);
        assert_eq!(whole.len(), 1);
        assert_eq!(
            (&*whole[0].name, &*whole[0].shape),
            ("score.weight", &[1, 64][..])
        );
        assert!(!score.with_whole(&spec).unwrap().ensure_weight_tying);
        let refused = config(Bias::None, &["lm_head"])
            .with_whole(&spec)
            .unwrap_err();
        assert!(refused.to_string().contains("near it are"), "{refused}");
    }

    #[test]
    fn biases_are_all_or_those_of_adapted_projections() {
        let qwen = spec("qwen2", true);
        assert_eq!(names(&config(Bias::All, &[]), &qwen).len(), 6);
        let adapted = names(&config(Bias::LoraOnly, &[]), &qwen);
        let expected = [0, 1].map(|i| format!("model.layers.{i}.self_attn.q_proj.bias"));
        assert_eq!(adapted, expected);
        assert!(names(&config(Bias::None, &[]), &qwen).is_empty());
    }

    #[test]
    fn what_is_not_trained_whole_is_refused_by_name() {
        let llama = spec("llama", false);
        let refused = |bias, modules: &[&str]| {
            let refused = config(bias, modules).with_whole(&llama).unwrap_err();
            refused.to_string()
        };
        let projection = refused(Bias::None, &["q_proj"]);
        assert!(
            projection.contains("`model.layers.0.self_attn.q_proj`"),
            "{projection}"
        );
        let holder = refused(Bias::None, &["mlp"]);
        assert!(holder.contains("`model.layers.0.mlp`"), "{holder}");
        let unknown = refused(Bias::None, &["lm_haed"]);
        assert!(
            unknown.contains("trained whole; near it are lm_head"),
            "{unknown}"
        );
        for bias in [Bias::All, Bias::LoraOnly] {
            assert!(refused(bias, &[]).contains("has a bias"));
        }
    }
}
