//! Comparison with values made by the reference Python stack.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

use backdraft_formats::gguf::{GgmlType, GgufFile, GgufLlama, GgufValue, dequantize};
use backdraft_formats::{Existing, ModelSource, SafetensorsFile, SafetensorsWriter};
use backdraft_testkit::golden;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The SmolLM2 weights, which are not kept in the project.
fn smollm2() -> Option<GgufLlama> {
    let file = "backdraft/models/SmolLM2-135M-Instruct.Q4_1.gguf";
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let path = variable("BACKDRAFT_SMOLLM2")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join(file)))
        .or_else(|| Some(variable("HOME")?.join(".cache").join(file)))?;
    if !path.is_file() {
        println!("nothing is tested: {} is not there", path.display());
        return None;
    }
    Some(GgufLlama::open(path).unwrap())
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

fn sha256_f32(values: &[f32]) -> String {
    hex(Sha256::digest(bytemuck::cast_slice::<f32, u8>(values)))
}

#[test]
fn golden_gguf_blocks() {
    let misc = golden::root().join("misc");
    let file = SafetensorsFile::open(misc.join("gguf_blocks.safetensors")).unwrap();
    let kinds = read_json(&misc.join("gguf_blocks.json"));
    let mut decoded = 0;
    for raw in file.tensors().filter(|info| info.name.ends_with(".raw")) {
        let name = raw.name.strip_suffix(".raw").unwrap();
        let kind = name.rsplit('.').next().unwrap();
        let Some(kind) = GgmlType::ALL.into_iter().find(|k| k.name() == kind) else {
            let id = kinds[kind]["ggml_type"].as_u64().unwrap() as u32;
            assert_eq!(GgmlType::from_id(id), None, "{kind}");
            continue;
        };
        if let Some(expected) = kinds.get(name) {
            assert_eq!(expected["ggml_type"], kind.id());
            assert_eq!(expected["values_per_block"], kind.block_elements());
            assert_eq!(expected["bytes_per_block"], kind.block_bytes());
        }
        let expected = file.read_f32(&format!("{name}.dequantised")).unwrap();
        let mut actual = vec![f32::NAN; expected.len()];
        dequantize(kind, &file.raw(&raw.name).unwrap().bytes, &mut actual);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&actual), bits(&expected), "{name}");
        decoded += 1;
    }
    assert!(decoded > 0);
}

#[test]
fn golden_tiny_checkpoints_are_read() {
    for case in golden::folders("tiny", "config.json") {
        let source = ModelSource::open(&*case).unwrap();
        let config = source.config();
        let names: Vec<_> = source.tensor_names().collect();
        let tied = config["tie_word_embeddings"] == true;
        assert_eq!(tied, !names.contains(&"lm_head.weight"));
        let embedding = source.tensor_info("model.embed_tokens.weight").unwrap();
        let shape: Vec<_> = embedding.shape.iter().map(|dim| json!(dim)).collect();
        assert_eq!(shape[0], config["vocab_size"]);
        assert_eq!(shape[1], config["hidden_size"]);
        for name in names {
            let values = source.read_f32(name).unwrap();
            let info = source.tensor_info(name).unwrap();
            assert_eq!(Some(values.len()), info.checked_elements());
            assert!(values.iter().all(|value| value.is_finite()), "{name}");
        }
        let eos = source.eos_token_ids().unwrap();
        match &config["eos_token_id"] {
            Value::Array(ids) => assert_eq!(json!(eos), json!(ids)),
            id => assert_eq!(json!(eos), json!([id])),
        }
        assert_eq!(source.fingerprint().unwrap().len(), 64);
    }
}

#[test]
fn golden_smollm2_metadata() {
    let Some(model) = smollm2() else { return };
    let reference = read_json(&golden::root().join("smollm2/gguf.json"));
    let metadata = model.file().metadata();
    let expected = reference["metadata"].as_object().unwrap();
    let keys: Vec<_> = metadata.iter().map(|(key, _)| key).collect();
    assert_eq!(keys, expected.keys().collect::<Vec<_>>());
    for (key, value) in metadata.iter() {
        let expected = &expected[key];
        match value {
            GgufValue::Array(_) => check_list(key, &metadata_list(&model, key), expected),
            GgufValue::Unsigned(value) => assert_eq!(expected, &json!(value), "{key}"),
            GgufValue::Signed(value) => assert_eq!(expected, &json!(value), "{key}"),
            GgufValue::F32(value) => {
                assert_eq!(expected.as_f64(), Some(f64::from(*value)), "{key}");
            }
            GgufValue::Bool(value) => assert_eq!(expected, &json!(value), "{key}"),
            GgufValue::String(value) => assert_eq!(expected, value, "{key}"),
            other => panic!("{key}: {other:?}"),
        }
    }
}

fn metadata_list(model: &GgufLlama, key: &str) -> Vec<Value> {
    let metadata = model.file().metadata();
    match metadata.strings(key) {
        Ok(strings) => strings.unwrap().into_iter().map(Into::into).collect(),
        Err(_) => {
            let integers = metadata.integers(key).unwrap().unwrap();
            integers.into_iter().map(Into::into).collect()
        }
    }
}

/// Long lists are kept as their length, ends and hash.
fn check_list(key: &str, actual: &[Value], expected: &Value) {
    let Some(summary) = expected.as_object() else {
        assert_eq!(expected, &json!(actual), "{key}");
        return;
    };
    assert_eq!(summary["len"], actual.len(), "{key}");
    let lines: Vec<_> = actual
        .iter()
        .map(|value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        })
        .collect();
    let hash = hex(Sha256::digest(lines.join("\n")));
    assert_eq!(summary["sha256_of_newline_joined"], hash, "{key}");
}

#[test]
fn golden_smollm2_tensors() {
    let Some(model) = smollm2() else { return };
    let reference = read_json(&golden::root().join("smollm2/gguf.json"));
    let file: &GgufFile = model.file();
    let expected = reference["tensors"].as_array().unwrap();
    assert_eq!(file.tensors().len(), expected.len());
    for (tensor, expected) in file.tensors().iter().zip(expected) {
        assert_eq!(expected["name"], tensor.name);
        assert_eq!(expected["type"], tensor.kind.name(), "{}", tensor.name);
        assert_eq!(expected["shape_row_major"], json!(tensor.shape));
        assert_eq!(expected["data_offset"], tensor.range.start);
        assert_eq!(expected["bytes"], tensor.range.len());
        let values = file.read_f32(tensor);
        assert_eq!(
            expected["sha256_f32_le"],
            sha256_f32(&values),
            "{}",
            tensor.name
        );
        check_rows(&model, &tensor.name, &values);
    }
}

/// In Hugging Face's terms: the same values, with the rows of q and k drawn apart.
fn check_rows(model: &GgufLlama, name: &str, values: &[f32]) {
    let Some(layer) = name.strip_prefix("blk.") else {
        return;
    };
    let (layer, rest) = layer.split_once('.').unwrap();
    let (name, heads) = match rest {
        "attn_q.weight" => ("self_attn.q_proj", 9),
        "attn_k.weight" => ("self_attn.k_proj", 3),
        "attn_v.weight" => ("self_attn.v_proj", 0),
        "ffn_down.weight" => ("mlp.down_proj", 0),
        _ => return,
    };
    let name = format!("model.layers.{layer}.{name}.weight");
    let ours = model.read_f32(&name).unwrap();
    if heads == 0 {
        assert!(ours == values, "{name}");
        return;
    }
    // w.reshape(heads, d/2, 2, in).swapaxes(1, 2)
    let (pairs, width) = (32, values.len() / heads / 64);
    for head in 0..heads {
        for half in 0..2 {
            for pair in 0..pairs {
                let to = (head * 64 + half * pairs + pair) * width;
                let from = (head * 64 + pair * 2 + half) * width;
                assert!(ours[to..to + width] == values[from..from + width], "{name}");
            }
        }
    }
}

#[test]
fn golden_smollm2_config() {
    let Some(model) = smollm2() else { return };
    let expected = json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-5,
        "rope_scaling": null,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": true,
        "torch_dtype": "float32",
        "vocab_size": 49152,
        "bos_token_id": 1,
        "pad_token_id": 2,
        "eos_token_id": 2,
    });
    assert_eq!(model.config(), &expected);
}

#[test]
fn golden_smollm2_tokenizer() {
    let Some(model) = smollm2() else { return };
    let files = model.tokenizer().unwrap();
    assert_eq!(files.bos_token.as_deref(), Some("<|im_start|>"));
    assert_eq!(files.eos_token.as_deref(), Some("<|im_end|>"));
    assert_eq!(files.add_bos_token, Some(false));
    assert!(files.chat_template.unwrap().contains("<|im_start|>"));
    let tokenizer = Tokenizer::from_bytes(&files.tokenizer_json).unwrap();
    assert_eq!(tokenizer.get_vocab_size(true), 49152);
    let reference = read_json(&golden::root().join("smollm2/tokenizer.json"));
    let cases = reference["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let encoding = tokenizer.encode(text, false).unwrap();
        assert_eq!(case["ids"], json!(encoding.get_ids()), "{text:?}");
        for (key, skip) in [
            ("decoded_keep_special", false),
            ("decoded_skip_special", true),
        ] {
            let decoded = tokenizer.decode(encoding.get_ids(), skip).unwrap();
            assert_eq!(case[key], decoded, "{text:?}");
        }
    }
}

#[test]
fn golden_smollm2_becomes_a_directory() {
    let Some(gguf) = smollm2() else { return };
    let gguf = ModelSource::Gguf(Box::new(gguf));
    let root = tempfile::tempdir().unwrap();
    for (name, bytes) in gguf.companion_files().unwrap() {
        fs::write(root.path().join(name), bytes).unwrap();
    }
    // One layer is enough to see that nothing changes on the way.
    let names = || gguf.tensor_names().filter(|name| name.contains(".0."));
    let infos = names().map(|name| gguf.tensor_info(name).unwrap().clone());
    let path = root.path().join("model.safetensors");
    let mut writer = SafetensorsWriter::create(path, infos, Existing::Refuse).unwrap();
    for name in names() {
        writer.write(name, &gguf.raw(name).unwrap().bytes).unwrap();
    }
    writer.finish().unwrap();
    let directory = ModelSource::open(root.path()).unwrap();
    assert_eq!(directory.config(), gguf.config());
    assert_eq!(
        directory.tokenizer().unwrap().chat_template,
        gguf.tokenizer().unwrap().chat_template
    );
    assert_eq!(directory.eos_token_ids().unwrap(), [2]);
    assert_eq!(directory.tensor_names().count(), 9);
    for name in names() {
        assert!(directory.read_f32(name).unwrap() == gguf.read_f32(name).unwrap());
    }
}
