use proptest::prelude::*;
use serde_json::json;

use super::super::rope_freqs::Llama3Scaling;
use super::super::testing::{Builder, TensorSpec, llama};
use super::*;

fn open(builder: &Builder) -> Result<GgufModel> {
    let (_root, path) = builder.write();
    GgufModel::open(path)
}

fn problem(builder: &Builder) -> GgufError {
    match open(builder).unwrap_err() {
        FormatError::Gguf { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn untied_model_in_hugging_face_terms() {
    let model = open(&llama()).unwrap();
    assert_eq!(model.config()["head_dim"], 4);
    assert_eq!(model.config()["rms_norm_eps"], 1e-5);
    assert_eq!(model.config()["rope_theta"], 500_000.0);
    assert_eq!(model.config()["tie_word_embeddings"], false);
    assert_eq!(model.config()["vocab_size"], 3);
    assert_eq!(model.tensor_names().count(), 12);
    assert!(model.info("lm_head.weight").is_some());
    assert!(model.info("blk.0.attn_q.weight").is_none());
    let rows = |name: &str| -> Vec<f32> {
        let values = model.read_f32(name).unwrap();
        let raw = model.raw(name).unwrap();
        assert_eq!(raw.to_f32().unwrap(), values);
        values.iter().step_by(8).copied().collect()
    };
    // Two heads of four rows each: even rows first, then odd ones.
    let q = rows("model.layers.0.self_attn.q_proj.weight");
    assert_eq!(q, [0.0, 16.0, 8.0, 24.0, 32.0, 48.0, 40.0, 56.0]);
    let k = rows("model.layers.0.self_attn.k_proj.weight");
    assert_eq!(k, [0.0, 16.0, 8.0, 24.0]);
    let v = rows("model.layers.0.self_attn.v_proj.weight");
    assert_eq!(v, [0.0, 8.0, 16.0, 24.0]);
}

#[test]
fn tied_model_has_no_head() {
    let model = open(&llama().without_tensor("output.weight")).unwrap();
    assert_eq!(model.config()["tie_word_embeddings"], true);
}

#[test]
fn biases_move_with_their_rows() {
    let builder = llama().tensor("blk.0.attn_k.bias", &[4], &[0.0, 1.0, 2.0, 3.0]);
    let model = open(&builder.tensor("blk.0.attn_q.bias", &[8], &[0.0; 8])).unwrap();
    assert_eq!(model.config()["attention_bias"], true);
    let bias = model.read_f32("model.layers.0.self_attn.k_proj.bias");
    assert_eq!(bias.unwrap(), [0.0, 2.0, 1.0, 3.0]);
}

#[test]
fn quantised_rows_are_moved_whole() {
    // 32 columns: one Q8_0 block per row, all of whose values are the row's number.
    let block = |row: u8| {
        let mut block = half::f16::ONE.to_le_bytes().to_vec();
        block.extend([row; 32]);
        block
    };
    let spec = TensorSpec {
        name: "blk.0.attn_q.weight".into(),
        shape: vec![8, 32],
        kind: GgmlType::Q8_0.id(),
        data: (0..8).flat_map(block).collect(),
        offset: None,
    };
    let model = open(&llama().without_tensor("blk.0.attn_q.weight").spec(spec)).unwrap();
    let name = "model.layers.0.self_attn.q_proj.weight";
    let values = model.read_f32(name).unwrap();
    let rows: Vec<_> = values.iter().step_by(32).copied().collect();
    assert_eq!(rows, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    assert_eq!(model.stored_type(name), Some(GgmlType::Q8_0));
    assert_eq!(model.info(name).unwrap().dtype, Dtype::F32);
    assert_eq!(model.raw(name).unwrap().to_f32().unwrap(), values);
}

#[test]
fn rope_scaling_is_mapped() {
    let scaling = |builder: Builder| open(&builder).unwrap().config()["rope_scaling"].clone();
    let base = "llama.rope.scaling";
    assert_eq!(scaling(llama()), Value::Null);
    let linear = llama()
        .string(&format!("{base}.type"), "linear")
        .f32(&format!("{base}.factor"), 4.0);
    assert_eq!(
        scaling(linear),
        json!({"rope_type": "linear", "factor": 4.0})
    );
    let yarn = llama()
        .string(&format!("{base}.type"), "yarn")
        .f32(&format!("{base}.factor"), 4.0)
        .u32(&format!("{base}.original_context_length"), 2048);
    assert_eq!(
        scaling(yarn),
        json!({
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 2048,
        })
    );
    assert!(matches!(
        problem(&llama().string(&format!("{base}.type"), "longrope")),
        GgufError::Feature { .. }
    ));
}

#[test]
fn rope_factors_become_llama3_or_stay_a_tensor() {
    let scaling = Llama3Scaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let factors: Vec<f32> = scaling.factors(500_000.0, 2).map(|f| f as f32).collect();
    let model = open(&llama().tensor(ROPE_FREQS, &[2], &factors)).unwrap();
    assert_eq!(model.config()["rope_scaling"]["rope_type"], "llama3");
    assert!(model.info(ROPE_FREQS).is_none());
    let model = open(&llama().tensor(ROPE_FREQS, &[2], &[3.0, 2.0])).unwrap();
    assert_eq!(model.config()["rope_scaling"], Value::Null);
    assert_eq!(model.read_f32(ROPE_FREQS).unwrap(), [3.0, 2.0]);
    assert!(matches!(
        problem(&llama().tensor(ROPE_FREQS, &[3], &[1.0; 3])),
        GgufError::TensorShape { .. }
    ));
}

#[test]
fn what_is_not_supported_is_named() {
    let message = |builder: Builder| problem(&builder).to_string();
    let architecture = llama()
        .without("general.architecture")
        .string("general.architecture", "gpt2");
    assert!(message(architecture).contains("\"gpt2\""));
    assert!(message(llama().without("general.architecture")).contains("missing"));
    assert!(message(llama().string("general.type", "adapter")).contains("adapter"));
    for (key, value) in [
        ("llama.expert_count", 8),
        ("llama.some_future_feature", 1),
        ("llama.rope.dimension_count", 2),
        ("llama.attention.value_length", 8),
    ] {
        let message = message(llama().u32(key, value));
        assert!(
            message.contains(key) && message.contains("not supported"),
            "{message}"
        );
    }
    assert!(open(&llama().u32("llama.expert_count", 0)).is_ok());
    assert!(message(llama().bool("llama.attention.causal", false)).contains("causal"));
    let part = llama().u32("split.count", 3).u32("split.no", 1);
    assert!(message(part).contains("part 2 of 3 of a split model; name the first"));
    let strange = llama().tensor("blk.0.attn_q_norm.weight", &[4], &[0.0; 4]);
    assert!(message(strange).contains("attn_q_norm"));
}

#[test]
fn metadata_that_disagrees_with_the_tensors() {
    let replace = |key: &str, value| problem(&llama().without(key).u32(key, value)).to_string();
    assert!(replace("llama.attention.head_count", 0).contains("from 1"));
    assert!(replace("llama.attention.head_count", 3).contains("divisor"));
    assert!(replace("llama.attention.head_count_kv", 2).contains("attn_k"));
    let hidden = llama()
        .without("llama.embedding_length")
        .u32("llama.embedding_length", 16)
        .u32("llama.attention.key_length", 4);
    assert!(problem(&hidden).to_string().contains("token_embd"));
    assert!(replace("llama.block_count", 0).contains("from 1"));
    let vocabulary = problem(&llama().u32("llama.vocab_size", 4)).to_string();
    assert!(vocabulary.contains("[4, 8]"), "{vocabulary}");
    for key in [
        "llama.block_count",
        "llama.embedding_length",
        "llama.attention.layer_norm_rms_epsilon",
    ] {
        assert!(problem(&llama().without(key)).to_string().contains(key));
    }
}

proptest! {
    #[test]
    fn damaged_bytes_do_no_harm(damage in prop::collection::vec((0_usize..2000, any::<u8>()), 1..4)) {
        let mut bytes = llama().build();
        for (at, value) in damage {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x.gguf");
        std::fs::write(&path, bytes).unwrap();
        if let Ok(model) = GgufModel::open(path) {
            for name in model.tensor_names() {
                model.read_f32(name).unwrap();
                model.raw(name).unwrap();
            }
            let _ = model.tokenizer();
        }
    }
}
