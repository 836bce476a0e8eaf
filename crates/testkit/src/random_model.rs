//! Models with random weights in a directory of their own.

use std::path::Path;

use backdraft_formats::dtype::{Dtype, from_f32};
use backdraft_formats::{Existing, HfDirWriter, TensorInfo};
use serde_json::{Map, Value, json};

/// Sizes of a Llama.
#[derive(Clone, Copy, Debug)]
pub struct RandomModel {
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
        let head = self.hidden / self.heads;
        let (h, m, q, kv) = (
            self.hidden,
            self.intermediate,
            self.hidden,
            self.kv_heads * head,
        );
        let mut tensors = vec![("model.embed_tokens".to_owned(), vec![self.vocab, h])];
        for layer in 0..self.layers {
            let parts = [
                ("input_layernorm", vec![h]),
                ("self_attn.q_proj", vec![q, h]),
                ("self_attn.k_proj", vec![kv, h]),
                ("self_attn.v_proj", vec![kv, h]),
                ("self_attn.o_proj", vec![h, q]),
                ("post_attention_layernorm", vec![h]),
                ("mlp.gate_proj", vec![m, h]),
                ("mlp.up_proj", vec![m, h]),
                ("mlp.down_proj", vec![h, m]),
            ];
            let named = |(part, shape)| (format!("model.layers.{layer}.{part}"), shape);
            tensors.extend(parts.map(named));
        }
        tensors.push(("model.norm".to_owned(), vec![h]));
        let infos: Vec<TensorInfo> = tensors
            .into_iter()
            .map(|(name, shape)| TensorInfo::new(format!("{name}.weight"), Dtype::F32, shape))
            .collect();
        let config = json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "float32",
            "hidden_size": h, "intermediate_size": m, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": head,
            "vocab_size": self.vocab, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0, "tie_word_embeddings": true, "eos_token_id": 1,
        });
        let write = || -> Result<(), Box<dyn std::error::Error>> {
            let mut writer = HfDirWriter::create(out, infos.clone(), Existing::Refuse)?;
            writer.companion("config.json", config.to_string().as_bytes())?;
            writer.companion("tokenizer.json", self.tokenizer().to_string().as_bytes())?;
            let specials = json!({ "eos_token": "</s>", "unk_token": "<unk>" });
            writer.companion("tokenizer_config.json", specials.to_string().as_bytes())?;
            for (seed, info) in infos.iter().enumerate() {
                let count = info.checked_elements().unwrap_or(0);
                let values = random(seed as u64 + 1, count, info.shape.len() == 1);
                writer.write(
                    &info.name,
                    &from_f32(Dtype::F32, &values).unwrap_or_default(),
                )?;
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
    fn tokenizer(&self) -> Value {
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

/// Values in ±0.05; around 1 for a norm.
fn random(seed: u64, count: usize, norm: bool) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 * 0.1 - 0.05
    };
    let offset = if norm { 1.0 } else { 0.0 };
    (0..count).map(|_| next() + offset).collect()
}
