//! Models with random weights in a directory of their own.

use std::path::Path;

use backdraft_arch::{Family, ModelSpec, NormScale};
use backdraft_formats::dtype::{Dtype, f32_bytes};
use backdraft_formats::{Existing, HfDirWriter, TensorInfo};
use serde_json::{Map, Value, json};

use crate::byte_level;

/// Sizes of a model.
#[derive(Clone, Copy, Debug)]
pub struct RandomModel {
    /// Its family.
    pub family: Family,
    /// Keys that a query sees, where not all before it.
    pub window: Option<usize>,
    /// Features of the residual stream.
    pub hidden: usize,
    /// Features inside the MLP.
    pub intermediate: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key–value heads.
    pub kv_heads: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
}

impl RandomModel {
    /// Writes `config.json`, weights in f32, and a tokenizer whose words are `w2`, `w3` and so on.
    ///
    /// # Panics
    /// If the directory exists or cannot be written.
    pub fn write(&self, out: &Path) {
        self.fill(out, 0.05, &self.words());
    }

    /// The same with weights in ±`range` and a tokenizer of bytes, which a GGUF file can have.
    ///
    /// # Panics
    /// As [`write`](Self::write).
    pub fn write_in_bytes(&self, out: &Path, range: f32) {
        self.fill(out, range, &byte_level::tokenizer());
    }

    fn fill(&self, out: &Path, range: f32, tokenizer: &Value) {
        let config = self.config();
        let spec = match ModelSpec::from_hf(&config) {
            Ok(spec) => spec,
            Err(error) => panic!("{config}: {error}"),
        };
        let infos: Vec<TensorInfo> = spec
            .tensors()
            .map(|tensor| TensorInfo::new(tensor.name, Dtype::F32, tensor.shape))
            .collect();
        let write = || -> Result<(), Box<dyn std::error::Error>> {
            let mut writer = HfDirWriter::create(out, infos.clone(), Existing::Refuse)?;
            writer.companion("config.json", config.to_string().as_bytes())?;
            writer.companion("tokenizer.json", tokenizer.to_string().as_bytes())?;
            let specials = json!({ "eos_token": "</s>", "unk_token": "<unk>" });
            writer.companion("tokenizer_config.json", specials.to_string().as_bytes())?;
            for (seed, info) in infos.iter().enumerate() {
                let count = info.checked_elements().unwrap_or(0);
                // What multiplies lies around 1.
                let offset = match (info.shape.len(), spec.norm_scale) {
                    (1, NormScale::Weight) => 1.0,
                    _ if info.name.ends_with("linear_attn.norm.weight") => 1.0,
                    // Taps of a convolution, which would take its input away.
                    (3, _) => 0.5,
                    _ => 0.0,
                };
                let values = random(seed as u64 + 1, count, range, offset);
                writer.write(&info.name, &f32_bytes(&values))?;
            }
            writer.finish()?;
            Ok(())
        };
        if let Err(error) = write() {
            panic!("{}: {error}", out.display());
        }
    }
}

impl RandomModel {
    fn config(&self) -> Value {
        // Heads of Qwen 3, 3.5 and Gemma 3 have a size of their own.
        let head_dim = match self.family {
            Family::Qwen3 | Family::Qwen35 | Family::Gemma3 => 2 * self.hidden / self.heads,
            _ => self.hidden / self.heads,
        };
        // llama.cpp knows no OLMo whose head is the embedding.
        let tied = !matches!(self.family, Family::Olmo2 | Family::Olmo3);
        let head_turns = match self.family {
            Family::Phi3 => 0.75,
            Family::Glm4 => 0.5,
            Family::Qwen35 => 0.25,
            _ => 1.0,
        };
        let long = (self.family == Family::Phi3).then(|| {
            let half = head_dim * 3 / 8;
            let factors = |step: f64| (0..half).map(|i| 1.0 + step * i as f64).collect::<Vec<_>>();
            json!({"type": "longrope", "short_factor": factors(0.05), "long_factor": factors(0.8)})
        });
        // Gemma has no layer without a window unless each has its own; Gemma 3 has no caps.
        let window = match self.family {
            Family::Gemma2 | Family::Gemma3 | Family::Gemma4 => Some(self.window.unwrap_or(4096)),
            _ => self.window,
        };
        let (scores_cap, logits_cap) = match self.family {
            Family::Gemma2 => (Some(0.5), Some(3.0)),
            Family::Gemma4 => (None, Some(3.0)),
            _ => (None, None),
        };
        let mut config = json!({
            "model_type": self.family.model_type(), "dtype": "float32",
            "hidden_size": self.hidden, "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": head_dim, "vocab_size": self.vocab,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0,
            "tie_word_embeddings": tied, "eos_token_id": 1, "sliding_window": window,
            "use_sliding_window": self.window.is_some(), "max_window_layers": 0,
            "embedding_multiplier": 12.0, "attention_multiplier": 0.3, "residual_multiplier": 0.22,
            "logits_scaling": 0.4, "query_pre_attn_scalar": head_dim, "attn_logit_softcapping": scores_cap,
            "final_logit_softcapping": logits_cap, "partial_rotary_factor": head_turns,
            "original_max_position_embeddings": 16, "rope_scaling": long,
            "linear_num_key_heads": self.kv_heads, "linear_num_value_heads": self.heads,
            "linear_key_head_dim": head_dim, "linear_value_head_dim": head_dim,
        });
        // Stretched from fewer tokens than texts have.
        let mut yarn = json!({
            "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 8.0, "original_max_position_embeddings": 16,
        });
        match self.family {
            Family::Ministral3 => {
                for key in ["mscale", "mscale_all_dim"] {
                    yarn[key] = json!(1.0);
                }
                yarn["llama_4_scaling_beta"] = json!(0.1);
                config["rope_parameters"] = yarn;
            }
            Family::Olmo3 => config["rope_scaling"] = yarn,
            // Every other layer has larger heads of which one has keys, and they are its values.
            Family::Gemma4 => {
                let kinds = ["sliding_attention", "full_attention"];
                let types = (0..self.layers).map(|layer| kinds[layer % 2]);
                config["layer_types"] = types.collect();
                config["attention_k_eq_v"] = json!(true);
                config["global_head_dim"] = json!(2 * head_dim);
                config["num_global_key_value_heads"] = json!(1);
                config["hidden_size_per_layer_input"] = json!(0);
            }
            Family::Ministral if self.window.is_some() => {
                let kinds = ["full_attention", "sliding_attention"];
                let types = (0..self.layers).map(|layer| kinds[layer % 2]);
                config["layer_types"] = types.collect();
            }
            _ => {}
        }
        config
    }

    fn words(&self) -> Value {
        let special = |id: u32, content: &str| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        };
        let mut vocab = Map::new();
        vocab.insert("<unk>".to_owned(), json!(0));
        vocab.insert("</s>".to_owned(), json!(1));
        for id in 2..self.vocab {
            vocab.insert(format!("w{id}"), json!(id));
        }
        json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [special(0, "<unk>"), special(1, "</s>")],
            "normalizer": null, "pre_tokenizer": { "type": "WhitespaceSplit" },
            "post_processor": null, "decoder": null,
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" },
        })
    }
}

/// Values in ±`range` around `offset`.
fn random(seed: u64, count: usize, range: f32, offset: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 * (2.0 * range) - range
    };
    (0..count).map(|_| next() + offset).collect()
}
