//! Models of a real shape with random weights: to measure reading, quantising and training without a
//! download, and to compare losses with other programs.
//!
//! A value is a pure function of its tensor's name and its index: [`mix`]. Norms are ones.

use std::path::Path;

use anyhow::bail;
use backdraft_arch::{Family, ModelSpec};
use backdraft_formats::{Dtype, Existing, HfDirWriter, TensorInfo};
use half::bf16;
use rayon::prelude::*;
use serde_json::{Value, json};

/// Family and sizes of a model.
struct Shape {
    family: Family,
    /// What its `config.json` has beside sizes.
    more: Value,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
    tied: bool,
}

fn shape(name: &str) -> anyhow::Result<Shape> {
    let llama = Value::Null;
    let (family, more) = match name {
        "qwen3-8b" => (Family::Qwen3, llama),
        "qwen3.5-9b" => {
            let rope =
                json!({"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25});
            let more = json!({
                "rms_norm_eps": 1e-6, "full_attention_interval": 4, "attn_output_gate": true, "rope_parameters": rope,
                "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
                "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
            });
            (Family::Qwen35, more)
        }
        "gemma3-12b" => {
            let rope = |theta| json!({"rope_type": "default", "rope_theta": theta});
            let mut windows: Vec<&str> = vec!["sliding_attention"; 48];
            windows
                .iter_mut()
                .skip(5)
                .step_by(6)
                .for_each(|kind| *kind = "full_attention");
            let more = json!({
                "rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 1024,
                "layer_types": windows,
                "rope_parameters": {"full_attention": rope(1e6), "sliding_attention": rope(1e4)},
            });
            (Family::Gemma3, more)
        }
        "phi4" => (
            Family::Phi3,
            json!({"rope_theta": 250_000.0, "sliding_window": null}),
        ),
        _ => (Family::Llama, llama),
    };
    let (hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, tied) = match name {
        "8b" => (4096, 14_336, 32, 32, 8, 128, 128_256, false),
        "1b" => (2048, 8192, 16, 32, 8, 64, 128_256, true),
        "qwen3-8b" => (4096, 12_288, 36, 32, 8, 128, 151_936, false),
        "qwen3.5-9b" => (4096, 12_288, 32, 16, 4, 256, 248_320, false),
        "gemma3-12b" => (3840, 15_360, 48, 16, 8, 256, 262_208, true),
        "phi4" => (5120, 17_920, 40, 40, 10, 128, 100_352, false),
        "70b" => (8192, 28_672, 80, 64, 8, 128, 128_256, false),
        "tiny" => (64, 192, 2, 4, 2, 16, 512, false),
        _ => bail!(
            "no shape is called {name}: 70b, 8b and 1b are Llama-3-70B's, Llama-3-8B's and Llama-3.2-1B's; qwen3-8b, qwen3.5-9b, gemma3-12b and \
             phi4 are of these; tiny is for trying"
        ),
    };
    Ok(Shape {
        family,
        more,
        hidden,
        intermediate,
        layers,
        heads,
        kv_heads,
        head_dim,
        vocab,
        tied,
    })
}

/// Writes a sharded bf16 model without tokenizer, with so many of its layers, or all.
pub(crate) fn write(name: &str, layers: Option<usize>, out: &Path) -> anyhow::Result<()> {
    let s = shape(name)?;
    let layers = layers.unwrap_or(s.layers);
    let mut config = json!({
        "model_type": s.family.model_type(), "dtype": "bfloat16",
        "hidden_size": s.hidden, "intermediate_size": s.intermediate,
        "num_hidden_layers": layers, "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads, "head_dim": s.head_dim, "vocab_size": s.vocab,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
        "tie_word_embeddings": s.tied,
    });
    if let (Value::Object(config), Value::Object(more)) = (&mut config, s.more) {
        config.extend(more);
    }
    if let Some(Value::Array(types)) = config.get_mut("layer_types") {
        types.truncate(layers);
    }
    let infos: Vec<TensorInfo> = ModelSpec::from_hf(&config)?
        .tensors()
        .map(|tensor| TensorInfo::new(tensor.name, Dtype::BF16, tensor.shape))
        .collect();
    let mut writer = HfDirWriter::create(out, infos.clone(), Existing::Refuse)?;
    writer.companion("config.json", config.to_string().as_bytes())?;
    for info in &infos {
        let values = info.checked_elements().unwrap_or(0);
        let bytes = match info.shape.len() {
            1 => bf16::ONE.to_le_bytes().repeat(values),
            _ => normal_bf16(&info.name, values),
        };
        writer.write(&info.name, &bytes)?;
    }
    let bytes = writer.finish()?;
    println!(
        "wrote {} with {:.2} GB of weights",
        out.display(),
        bytes as f64 / 1e9
    );
    Ok(())
}

/// The stream that belongs to a name: FNV-1a.
fn key(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

/// Number `i` of a stream: splitmix64 of a counter.
pub(crate) fn mix(key: u64, i: u64) -> u64 {
    let z = key.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

/// Near a normal distribution with a standard deviation of 0.02: sums of four uniform numbers.
fn normal_bf16(name: &str, values: usize) -> Vec<u8> {
    const TASK: usize = 1 << 20;
    let key = key(name);
    let scale = (0.02 / 37_837.226_6) as f32;
    let mut bytes = vec![0; 2 * values];
    bytes
        .par_chunks_mut(2 * TASK)
        .enumerate()
        .for_each(|(task, bytes)| {
            for (i, value) in bytes.chunks_exact_mut(2).enumerate() {
                let h = mix(key, (task * TASK + i) as u64);
                let sum: i64 = (0..4).map(|part| (h >> (16 * part) & 0xFFFF) as i64).sum();
                let x = (sum - 131_070) as f32 * scale;
                value.copy_from_slice(&bf16::from_f32(x).to_le_bytes());
            }
        });
    bytes
}

/// Uniform in [−bound, bound).
pub(crate) fn uniform(name: &str, values: usize, bound: f32) -> Vec<f32> {
    let key = key(name);
    let value = |i| ((mix(key, i) >> 40) as f32 * 2f32.powi(-23) - 1.0) * bound;
    (0..values as u64).map(value).collect()
}

/// Token ids of a stream, `[batch][length]`.
pub(crate) fn tokens(stream: &str, [batch, length]: [usize; 2], vocab: usize) -> Vec<Vec<u32>> {
    let key = key(&format!("tokens/{stream}"));
    let id = |i: usize| ((mix(key, i as u64) >> 33) % vocab as u64) as u32;
    (0..batch)
        .map(|row| (0..length).map(|i| id(row * length + i)).collect())
        .collect()
}
