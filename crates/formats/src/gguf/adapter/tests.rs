use super::super::decoder::{GgufDeltaNets, GgufRope};
use super::super::file::GgufFile;
use super::*;
use crate::peft_config::PeftConfig;
use crate::wrapped::AdapterPrefix;
use backdraft_arch::{DeltaNetSpec, ModulePattern};

fn adapter(alpha_pattern: bool) -> PeftDir {
    let mut config = PeftConfig::new(2, 8.0, ["q_proj", "v_proj"]);
    if alpha_pattern {
        config.alpha_pattern = ModulePattern::new([("v_proj".to_owned(), 2.0)]).unwrap();
    }
    let pair = |module: &str| LoraPair {
        module: format!("model.layers.0.self_attn.{module}"),
        in_features: 3,
        out_features: 4,
        lora_a: vec![1.0; 6],
        lora_b: (0..8u8).map(f32::from).collect(),
        magnitude: None,
    };
    PeftDir {
        path: "adapter".into(),
        prefix: AdapterPrefix::Text,
        config,
        tensors: ["q_proj", "v_proj"].map(pair).into_iter().collect(),
    }
}

fn decoder(model_type: &str) -> GgufDecoder {
    GgufDecoder {
        model_type: model_type.to_owned(),
        context_length: 8,
        embedding_length: 3,
        feed_forward_length: 3,
        layers: 1,
        heads: 1,
        key_value_heads: 1,
        head_dim: 4,
        full_heads: None,
        rotary_dim: 4,
        vocab_size: 3,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        rope: GgufRope::Default,
        sliding_window: None,
        full_layers: Vec::new(),
        unturned_layers: Vec::new(),
        factors: None,
        query_scaling: None,
        gemma: None,
        delta_nets: None,
    }
}

fn written(adapter: &PeftDir, model_type: &str) -> (tempfile::TempDir, GgufFile) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("a.gguf");
    write_gguf_adapter(adapter, &decoder(model_type), &[], &path, Existing::Refuse).unwrap();
    (root, GgufFile::open(path).unwrap())
}

#[test]
fn rows_of_rotary_heads_are_moved_and_alpha_is_kept() {
    let (_root, file) = written(&adapter(false), "llama");
    let text = |key| file.metadata().str(key).unwrap();
    assert_eq!(text("general.type"), Some("adapter"));
    assert_eq!(text("adapter.type"), Some("lora"));
    assert_eq!(
        file.metadata().f64("adapter.lora.alpha").unwrap(),
        Some(8.0)
    );
    let tensor = |name: &str| {
        let tensor = file.tensor(name).unwrap();
        (tensor.shape.clone(), file.read_f32(tensor))
    };
    assert_eq!(
        tensor("blk.0.attn_q.weight.lora_a"),
        (vec![2, 3], vec![1.0; 6])
    );
    let moved = vec![0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0];
    assert_eq!(tensor("blk.0.attn_q.weight.lora_b"), (vec![4, 2], moved));
    let (_, kept) = tensor("blk.0.attn_v.weight.lora_b");
    assert_eq!(kept, (0..8u8).map(f32::from).collect::<Vec<_>>());
}

#[test]
fn scalings_that_differ_are_folded_in() {
    let (_root, file) = written(&adapter(true), "qwen2");
    assert_eq!(
        file.metadata().f64("adapter.lora.alpha").unwrap(),
        Some(0.0)
    );
    let last = |name: &str| *file.read_f32(file.tensor(name).unwrap()).last().unwrap();
    assert_eq!(last("blk.0.attn_q.weight.lora_b"), 28.0);
    assert_eq!(last("blk.0.attn_v.weight.lora_b"), 7.0);
}

/// Of a DeltaNet with two key heads and four value heads of one feature: B's rows of values, and A's columns behind them.
#[test]
fn value_heads_of_delta_nets_are_moved_on_either_side() {
    let mut adapter = adapter(false);
    let pair = |module: &str, in_features: usize, out_features: usize| LoraPair {
        module: format!("model.layers.0.linear_attn.{module}"),
        in_features,
        out_features,
        lora_a: (0..in_features as u8).map(f32::from).collect(),
        lora_b: (0..out_features as u8).map(f32::from).collect(),
        magnitude: None,
    };
    adapter.tensors = [pair("in_proj_qkv", 3, 8), pair("out_proj", 4, 3)]
        .into_iter()
        .collect();
    let sizes = DeltaNetSpec {
        num_key_heads: 2,
        num_value_heads: 4,
        key_head_dim: 1,
        value_head_dim: 1,
        conv_kernel_dim: 4,
    };
    let decoder = GgufDecoder {
        delta_nets: Some(GgufDeltaNets {
            sizes,
            attending: Vec::new(),
        }),
        ..decoder("qwen3_5_text")
    };
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("a.gguf");
    write_gguf_adapter(&adapter, &decoder, &[], &path, Existing::Refuse).unwrap();
    let file = GgufFile::open(path).unwrap();
    let values = |name: &str| file.read_f32(file.tensor(name).unwrap());
    assert_eq!(values("blk.0.attn_qkv.weight.lora_a"), [0.0, 1.0, 2.0]);
    let moved = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 5.0, 7.0];
    assert_eq!(values("blk.0.attn_qkv.weight.lora_b"), moved);
    assert_eq!(values("blk.0.ssm_out.weight.lora_a"), [0.0, 2.0, 1.0, 3.0]);
    assert_eq!(values("blk.0.ssm_out.weight.lora_b"), [0.0, 1.0, 2.0]);
}
