//! Models of a real shape with random weights: to measure reading and quantising without a download.

use std::path::Path;

use anyhow::bail;
use backdraft_formats::{Dtype, Existing, HfDirWriter, TensorInfo};
use rayon::prelude::*;
use serde_json::json;

/// Sizes of a Llama.
struct Shape {
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
}

fn shape(name: &str) -> anyhow::Result<Shape> {
    let (hidden, intermediate, layers, heads, kv_heads, head_dim, vocab) = match name {
        "8b" => (4096, 14_336, 32, 32, 8, 128, 128_256),
        "1b" => (2048, 8192, 16, 32, 8, 64, 128_256),
        _ => bail!("no shape is called {name}: 8b and 1b are Llama-3.1-8B's and Llama-3.2-1B's"),
    };
    Ok(Shape {
        hidden,
        intermediate,
        layers,
        heads,
        kv_heads,
        head_dim,
        vocab,
    })
}

/// Writes a sharded bf16 model without tokenizer.
pub(crate) fn write(name: &str, out: &Path) -> anyhow::Result<()> {
    let s = shape(name)?;
    let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    let mut tensors = vec![("model.embed_tokens".to_owned(), vec![s.vocab, s.hidden])];
    for layer in 0..s.layers {
        let parts: [(&str, Vec<usize>); 9] = [
            ("input_layernorm", vec![s.hidden]),
            ("self_attn.q_proj", vec![q, s.hidden]),
            ("self_attn.k_proj", vec![kv, s.hidden]),
            ("self_attn.v_proj", vec![kv, s.hidden]),
            ("self_attn.o_proj", vec![s.hidden, q]),
            ("post_attention_layernorm", vec![s.hidden]),
            ("mlp.gate_proj", vec![s.intermediate, s.hidden]),
            ("mlp.up_proj", vec![s.intermediate, s.hidden]),
            ("mlp.down_proj", vec![s.hidden, s.intermediate]),
        ];
        let named = |(part, shape)| (format!("model.layers.{layer}.{part}"), shape);
        tensors.extend(parts.into_iter().map(named));
    }
    tensors.push(("model.norm".to_owned(), vec![s.hidden]));
    tensors.push(("lm_head".to_owned(), vec![s.vocab, s.hidden]));
    let infos: Vec<TensorInfo> = tensors
        .into_iter()
        .map(|(name, shape)| TensorInfo::new(format!("{name}.weight"), Dtype::BF16, shape))
        .collect();
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16",
        "hidden_size": s.hidden, "intermediate_size": s.intermediate,
        "num_hidden_layers": s.layers, "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads, "head_dim": s.head_dim, "vocab_size": s.vocab,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
        "tie_word_embeddings": false,
    });
    let mut writer = HfDirWriter::create(out, infos.clone(), Existing::Refuse)?;
    writer.companion("config.json", config.to_string().as_bytes())?;
    for (seed, info) in infos.iter().enumerate() {
        let values = info.checked_elements().unwrap_or(0);
        writer.write(&info.name, &random_bf16(seed as u64, values))?;
    }
    let bytes = writer.finish()?;
    println!(
        "wrote {} with {:.2} GB of weights",
        out.display(),
        bytes as f64 / 1e9
    );
    Ok(())
}

/// Values of magnitude 2⁻⁷ to 2⁻⁵ and either sign.
fn random_bf16(seed: u64, values: usize) -> Vec<u8> {
    const TASK: usize = 1 << 20;
    let mut bytes = vec![0; 2 * values];
    bytes
        .par_chunks_mut(TASK)
        .enumerate()
        .for_each(|(task, bytes)| {
            let mut state = (seed << 32 | task as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            for value in bytes.chunks_exact_mut(2) {
                // xorshift64
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let random = (state >> 32) as u16;
                let exponent = 120 + (random >> 8 & 1);
                value.copy_from_slice(&(random & 0x807F | exponent << 7).to_le_bytes());
            }
        });
    bytes
}
