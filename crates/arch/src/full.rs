//! Full fine-tuning: tensors of the base that are trained in place of adapters.

use std::collections::BTreeSet;

use crate::lora::{LoraConfig, LoraConfigError};
use crate::lora_targets::nearest;
use crate::spec::{EMBEDDING, HEAD, ModelSpec, TensorSpec, layer_scalar};
use crate::trainable::{KEY, Trainable};
use crate::whole::{modules, parts, trainable};

impl LoraConfig {
    /// No adapter: the settings of a run that trains tensors of the base themselves.
    ///
    /// # Errors
    /// A pattern that means no module of the model; a tensor whose gradient this version does not have.
    pub fn full(trainable: Trainable, spec: &ModelSpec) -> Result<Self, LoraConfigError> {
        if let Trainable::Modules(patterns) = &trainable {
            let all: Vec<String> = modules(spec).into_iter().collect();
            if let Some(name) = patterns.unmatched(&all).next() {
                return Err(LoraConfigError::NoMatch {
                    key: KEY,
                    name: name.to_owned(),
                    nearest: nearest(name, &all),
                });
            }
        }
        let config = Self {
            target_modules: Vec::new(),
            trainable,
            ..Self::default()
        };
        let can = trainable_in_full(spec);
        let taken = config.taken(spec);
        if let Some(tensor) = taken.iter().find(|tensor| !can.contains(&tensor.name)) {
            return Err(LoraConfigError::NoGradient {
                asked: config.trainable.to_string(),
                tensor: tensor.name.clone(),
            });
        }
        let embedding = taken.iter().any(|tensor| tensor.name == EMBEDDING);
        Ok(Self {
            ensure_weight_tying: embedding && spec.tie_word_embeddings,
            ..config
        })
    }

    /// The tensors of the base that are trained in place of adapters, in the order of the model's. A number that a layer's
    /// result is multiplied by is no parameter, as in transformers.
    pub(crate) fn taken(&self, spec: &ModelSpec) -> Vec<TensorSpec> {
        let tied = spec.tie_word_embeddings;
        let means = |tensor: &str| self.trainable.means(parts(tensor).0);
        let scalars: BTreeSet<String> = (0..spec.layers.len()).map(layer_scalar).collect();
        let tensors = spec.tensors();
        let taken = tensors.filter(|tensor| {
            means(&tensor.name) || (tied && tensor.name == EMBEDDING && means(HEAD))
        });
        taken
            .filter(|tensor| !scalars.contains(&tensor.name))
            .collect()
    }
}

/// The names of the tensors that can be trained in place of adapters: those of [`trainable`], and the weights of projections.
#[must_use]
pub fn trainable_in_full(spec: &ModelSpec) -> BTreeSet<String> {
    let projections = spec.projections();
    let weights = projections.map(|(layer, target)| format!("{}.weight", target.path(layer)));
    trainable(spec).into_iter().chain(weights).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(tied: bool) -> ModelSpec {
        ModelSpec::from_hf(&json!({
            "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 11,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 512, "rope_theta": 1e4, "hidden_act": "silu", "tie_word_embeddings": tied,
        }))
        .unwrap()
    }

    fn taken(spec: &ModelSpec, patterns: &[&str]) -> Result<Vec<String>, String> {
        let patterns = patterns.iter().map(|&pattern| pattern.to_owned());
        let trainable = Trainable::modules(patterns).unwrap();
        let config = LoraConfig::full(trainable, spec).map_err(|error| error.to_string())?;
        let whole = config.whole(spec).into_iter();
        Ok(whole.map(|tensor| tensor.name).collect())
    }

    #[test]
    fn all_is_every_tensor_and_no_adapter() {
        let spec = spec(false);
        let config = LoraConfig::full(Trainable::All, &spec).unwrap();
        assert_eq!(config.whole(&spec).len(), spec.tensors().count());
        assert!(
            !spec
                .projections()
                .any(|(layer, target)| config.adapts(layer, target))
        );
    }

    #[test]
    fn a_pattern_means_modules_and_what_is_inside_them() {
        let spec = spec(false);
        assert_eq!(
            taken(&spec, &["layers.1.self_attn", "norm"]).unwrap(),
            [
                "model.layers.1.self_attn.q_proj.weight",
                "model.layers.1.self_attn.q_proj.bias",
                "model.layers.1.self_attn.k_proj.weight",
                "model.layers.1.self_attn.k_proj.bias",
                "model.layers.1.self_attn.v_proj.weight",
                "model.layers.1.self_attn.v_proj.bias",
                "model.layers.1.self_attn.o_proj.weight",
                "model.norm.weight",
            ]
        );
        let mlp = taken(&spec, &["model.layers.*.mlp.*"]).unwrap();
        assert_eq!(mlp.len(), 3 * 11);
        assert!(mlp.iter().all(|name| name.contains(".mlp.")));
    }

    #[test]
    fn a_tied_head_is_the_embedding() {
        let tied = taken(&spec(true), &["lm_head"]).unwrap();
        assert_eq!(tied, [EMBEDDING]);
        assert_eq!(taken(&spec(false), &["lm_head"]).unwrap(), [HEAD]);
    }

    #[test]
    fn what_matches_nothing_or_has_no_gradient_is_refused() {
        let nothing = taken(&spec(false), &["mlpp"]).unwrap_err();
        assert!(
            nothing.contains("trainable: `mlpp` matches none"),
            "{nothing}"
        );
        let mut delta = json!({
            "model_type": "qwen3_5_text", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 256, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 512, "hidden_act": "silu", "tie_word_embeddings": true,
            "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
            "linear_conv_kernel_dim": 4, "full_attention_interval": 4,
        });
        delta["rope_parameters"] =
            json!({"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5});
        let delta = ModelSpec::from_hf(&delta).unwrap();
        let refused = LoraConfig::full(Trainable::All, &delta)
            .unwrap_err()
            .to_string();
        assert!(refused.contains("linear_attn"), "{refused}");
        assert!(taken(&delta, &[".*_proj", "in_proj_.*", "embed_tokens"]).is_ok());
    }
}
