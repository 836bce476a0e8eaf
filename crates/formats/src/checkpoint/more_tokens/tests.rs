use std::fs;

use super::*;
use crate::dtype::{Dtype, from_f32};
use crate::{
    AdapterTensors, Existing, LoraPair, PeftConfig, PeftWriteOptions, SafetensorsWriter,
    TensorInfo, TokenRows, TrainableTokens,
};

/// A tied model of three tokens in bf16, whose tokenizer has two of them and one that was added.
fn model(rows: usize) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let write = |name: &str, value: Value| {
        fs::write(root.path().join(name), value.to_string()).unwrap();
    };
    let config = json!({"tie_word_embeddings": true, "vocab_size": rows});
    write("config.json", config);
    write(
        "tokenizer.json",
        json!({
            "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}},
            "added_tokens": [{"id": 2, "content": "</s>", "special": true}],
        }),
    );
    let path = root.path().join("model.safetensors");
    let infos = [TensorInfo::new(EMBEDDING, Dtype::BF16, [rows, 2])];
    let mut writer = SafetensorsWriter::create(path, infos, Existing::Refuse).unwrap();
    let values: Vec<f32> = (0..2 * rows).map(|i| i as f32).collect();
    let bytes = from_f32(Dtype::BF16, &values).unwrap();
    writer.write(EMBEDDING, &bytes).unwrap();
    writer.finish().unwrap();
    root
}

fn texts(tokens: &[&str]) -> Vec<String> {
    tokens.iter().map(|&token| token.to_owned()).collect()
}

#[test]
fn tokens_follow_those_that_are_there() {
    let root = model(3);
    let open = || ModelSource::open(root.path()).unwrap();
    let (more, ids) = open().with_added_tokens(&texts(&["<x>", "<y>"])).unwrap();
    assert_eq!(ids, [3, 4]);
    assert_eq!(more.config()["vocab_size"], 5);
    assert_eq!(more.tensor_info(EMBEDDING).unwrap().shape, [5, 2]);
    let expected = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 0.0, 0.0, 0.0];
    assert_eq!(more.read_f32(EMBEDDING).unwrap(), expected);
    let raw = more.raw(EMBEDDING).unwrap();
    assert_eq!((raw.info.dtype, raw.bytes.len()), (Dtype::BF16, 20));
    assert_eq!(raw.to_f32().unwrap(), expected);
    assert_ne!(more.fingerprint().unwrap(), open().fingerprint().unwrap());
    let tokenizer = more.tokenizer().unwrap().tokenizer_json;
    let files = more.companion_files().unwrap();
    assert!(files.contains(&(TOKENIZER.to_owned(), tokenizer.clone())));
    let tokenizer: Value = serde_json::from_slice(&tokenizer).unwrap();
    let added = tokenizer["added_tokens"].as_array().unwrap();
    let added: Vec<_> = added.iter().map(|it| (&it["id"], &it["content"])).collect();
    let expected = [2, 3, 4].map(Value::from);
    let contents = ["</s>", "<x>", "<y>"].map(Value::from);
    let expected: Vec<_> = expected.iter().zip(&contents).collect();
    assert_eq!(added, expected);
    assert!(!more.has_untied_head());

    // Rows to spare are used first.
    let spare = model(4);
    let source = ModelSource::open(spare.path()).unwrap();
    let before = source.fingerprint().unwrap();
    let (more, ids) = source.with_added_tokens(&texts(&["<x>"])).unwrap();
    assert_eq!((ids.as_slice(), more.embedding_rows()), (&[3][..], 4));
    assert_eq!(more.fingerprint().unwrap(), before);

    for tokens in [&["a"][..], &["</s>"], &["<x>", "<x>"], &[""]] {
        let error = open().with_added_tokens(&texts(tokens)).unwrap_err();
        assert!(error.to_string().contains("is a token already"), "{error}");
    }
}

/// An adapter with rows of the embedding.
fn adapter(root: &tempfile::TempDir, ids: &[u32]) -> PeftDir {
    let module = "model.layers.0.self_attn.q_proj".to_owned();
    let pair = LoraPair {
        module,
        in_features: 2,
        out_features: 2,
        lora_a: vec![0.0; 2],
        lora_b: vec![0.0; 2],
        magnitude: None,
    };
    let rows = TokenRows {
        table: TokenTable::Embedding,
        ids: ids.to_vec(),
        values: vec![1.0; 2 * ids.len()],
    };
    let tensors = AdapterTensors::from_iter([pair]).with_tokens(vec![rows]);
    let mut config = PeftConfig::new(1, 1.0, ["q_proj"]);
    config.trainable_tokens = TrainableTokens::new(vec![(TokenTable::Embedding, ids.to_vec())]);
    let path = root.path().join("adapter");
    let options = PeftWriteOptions {
        existing: Existing::Replace,
        ..Default::default()
    };
    PeftDir::write(&path, &config, &tensors, &options).unwrap();
    let read = PeftDir::read(&path).unwrap();
    assert_eq!((&read.config, &read.tensors), (&config, &tensors));
    read
}

#[test]
fn an_adapter_brings_its_tokens_and_no_more() {
    let root = model(3);
    let with = |ids: &[u32]| {
        let adapter = adapter(&root, ids);
        let source = ModelSource::open(root.path()).unwrap();
        source.with_tokens_of(&adapter)
    };
    let rows = |ids: &[u32]| with(ids).unwrap().embedding_rows();
    assert_eq!((rows(&[1]), rows(&[0, 3]), rows(&[3, 4])), (3, 4, 5));
    // What is claimed is not made room for.
    for ids in [&[4][..], &[3, u32::MAX], &[u32::MAX - 1]] {
        let error = with(ids).unwrap_err().to_string();
        assert!(error.contains("do not follow"), "{error}");
    }
}

#[test]
fn ids_beyond_the_embedding_are_not_made_room_for() {
    let root = model(3);
    let path = root.path().join("tokenizer.json");
    let text = fs::read_to_string(&path).unwrap();
    for id in [3, 4_294_967_294_u32] {
        fs::write(&path, text.replace("\"id\":2", &format!("\"id\":{id}"))).unwrap();
        let source = ModelSource::open(root.path()).unwrap();
        let error = source.with_added_tokens(&texts(&["<x>"])).unwrap_err();
        let expected = format!("has ids up to {id}, and its embedding 3 rows");
        assert!(error.to_string().contains(&expected), "{error}");
    }
}
