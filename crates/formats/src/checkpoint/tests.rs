use std::fs;

use serde_json::json;

use super::*;
use crate::dtype::{Dtype, from_f32};
use crate::{Existing, SafetensorsWriter};

/// A directory with one norm and one weight.
fn directory(config: &Value, norm: f32) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("config.json"), config.to_string()).unwrap();
    let infos = [
        TensorInfo::new("norm", Dtype::F32, [1]),
        TensorInfo::new("weight", Dtype::BF16, [1, 2]),
    ];
    let path = root.path().join("model.safetensors");
    let mut writer = SafetensorsWriter::create(path, infos, Existing::Refuse).unwrap();
    let bytes = |dtype, values: &[f32]| from_f32(dtype, values).unwrap();
    writer.write("norm", &bytes(Dtype::F32, &[norm])).unwrap();
    writer
        .write("weight", &bytes(Dtype::BF16, &[1.0, 2.0]))
        .unwrap();
    writer.finish().unwrap();
    root
}

fn fingerprint(config: &Value, norm: f32) -> String {
    let root = directory(config, norm);
    ModelSource::open(root.path())
        .unwrap()
        .fingerprint()
        .unwrap()
}

#[test]
fn directory_behind_the_common_face() {
    let config = json!({"model_type": "llama", "eos_token_id": [1, 2]});
    let root = directory(&config, 1.0);
    let source = ModelSource::open(root.path()).unwrap();
    assert_eq!(source.config(), &config);
    assert_eq!(
        source.tensor_names().collect::<Vec<_>>(),
        ["norm", "weight"]
    );
    assert_eq!(source.tensor_info("weight").unwrap().shape, [1, 2]);
    assert_eq!(source.raw("weight").unwrap().info.dtype, Dtype::BF16);
    assert_eq!(source.read_f32("weight").unwrap(), [1.0, 2.0]);
    assert_eq!(source.eos_token_ids().unwrap(), [1, 2]);
    assert!(matches!(
        source.tokenizer().unwrap_err(),
        FormatError::TokenizerMissing { .. }
    ));
    let generation = root.path().join("generation_config.json");
    fs::write(&generation, r#"{"eos_token_id": 7}"#).unwrap();
    let source = ModelSource::open(root.path()).unwrap();
    assert_eq!(source.eos_token_ids().unwrap(), [7]);
    let names: Vec<_> = source.companion_files().unwrap();
    assert_eq!(names.len(), 2);
    fs::write(&generation, r#"{"eos_token_id": "</s>"}"#).unwrap();
    let error = ModelSource::open(root.path()).unwrap().eos_token_ids();
    assert!(error.unwrap_err().to_string().contains("generation_config"));
}

/// A tied model whose files hold a head too.
fn with_head(embedding: (Dtype, &[f32]), head: (Dtype, &[f32])) -> bool {
    let root = tempfile::tempdir().unwrap();
    let config = json!({"tie_word_embeddings": true, "vocab_size": 2});
    fs::write(root.path().join("config.json"), config.to_string()).unwrap();
    let tensors = [(EMBEDDING, embedding), (HEAD, head)];
    let infos = tensors.map(|(name, (dtype, v))| TensorInfo::new(name, dtype, [v.len(), 1]));
    let path = root.path().join("model.safetensors");
    let mut writer = SafetensorsWriter::create(path, infos, Existing::Refuse).unwrap();
    for (name, (dtype, values)) in tensors {
        writer
            .write(name, &from_f32(dtype, values).unwrap())
            .unwrap();
    }
    writer.finish().unwrap();
    let source = ModelSource::open(root.path()).unwrap();
    assert_eq!(source.config()[TIE], !source.has_untied_head());
    source.has_untied_head()
}

#[test]
fn a_head_that_is_not_the_embedding_is_never_tied_to_it() {
    let (f32, bf16) = (Dtype::F32, Dtype::BF16);
    assert!(!with_head((f32, &[1.0, 2.0]), (f32, &[1.0, 2.0])));
    assert!(!with_head((bf16, &[1.0, 2.0]), (f32, &[1.0, 2.0])));
    assert!(with_head((f32, &[1.0, 2.0]), (f32, &[1.0, 2.5])));
    assert!(with_head((bf16, &[1.0, 2.0]), (f32, &[1.0, 2.001])));
    assert!(with_head((f32, &[1.0, 2.0]), (f32, &[1.0, 2.0, 3.0])));
}

#[test]
fn fingerprint_tells_bases_apart() {
    let config = json!({"hidden_size": 2, "rope_theta": 10000.0});
    let base = fingerprint(&config, 1.0);
    assert_eq!(base, fingerprint(&config, 1.0));
    let reordered = json!({
        "transformers_version": "5.0",
        "rope_theta": 10000.0,
        "hidden_size": 2,
    });
    assert_eq!(base, fingerprint(&reordered, 1.0));
    assert_ne!(base, fingerprint(&config, 2.0));
    assert_ne!(base, fingerprint(&json!({"hidden_size": 2}), 1.0));
}

#[test]
fn what_cannot_be_opened() {
    let root = tempfile::tempdir().unwrap();
    let missing = ModelSource::open(root.path().join("none.gguf")).unwrap_err();
    assert!(matches!(missing, FormatError::NotFound { .. }));
    let path = root.path().join("empty.gguf");
    fs::write(&path, "").unwrap();
    let empty = ModelSource::open(&path).unwrap_err();
    assert!(matches!(empty, FormatError::Gguf { .. }));
}
