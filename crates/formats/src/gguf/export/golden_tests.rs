use backdraft_testkit::golden;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::super::decoder::{GgufFactors, GgufRope};
use super::super::file::GgufFile;
use super::super::model::GgufModel;
use super::*;
use crate::checkpoint::ModelSource;

fn decoder(config: &Value) -> GgufDecoder {
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let heads = size("num_attention_heads");
    let theta = config["rope_theta"].as_f64();
    let theta = theta.or(config["rope_parameters"]["rope_theta"].as_f64());
    let scaling = [&config["rope_scaling"], &config["rope_parameters"]];
    let scaling = scaling.into_iter().find(|it| it["rope_type"] == "llama3");
    GgufDecoder {
        model_type: config["model_type"].as_str().unwrap().to_owned(),
        context_length: size("max_position_embeddings"),
        embedding_length: size("hidden_size"),
        feed_forward_length: size("intermediate_size"),
        layers: size("num_hidden_layers"),
        heads,
        key_value_heads: size("num_key_value_heads"),
        head_dim: config["head_dim"]
            .as_u64()
            .map_or(size("hidden_size") / heads, |d| d as usize),
        vocab_size: size("vocab_size"),
        rms_norm_eps: config["rms_norm_eps"].as_f64().unwrap(),
        rope_theta: theta.unwrap(),
        rope: scaling.map_or(GgufRope::Default, |scaling| GgufRope::Llama3 {
            factor: scaling["factor"].as_f64().unwrap(),
            low_freq_factor: scaling["low_freq_factor"].as_f64().unwrap(),
            high_freq_factor: scaling["high_freq_factor"].as_f64().unwrap(),
            original: scaling["original_max_position_embeddings"]
                .as_f64()
                .unwrap(),
        }),
        sliding_window: config["sliding_window"].as_u64().map(|n| n as usize),
        full_layers: Vec::new(),
        unturned_layers: unturned(config),
        factors: (config["model_type"] == "granite").then(|| {
            let factor = |key: &str| config[key].as_f64().unwrap();
            GgufFactors {
                attention: factor("attention_multiplier"),
                embedding: factor("embedding_multiplier"),
                residual: factor("residual_multiplier"),
                logits: factor("logits_scaling"),
            }
        }),
    }
}

/// As transformers has it: no RoPE where the list has a 0, or without a list in every so many layers.
fn unturned(config: &Value) -> Vec<usize> {
    let layers = config["num_hidden_layers"].as_u64().unwrap();
    let interval = config["no_rope_layer_interval"].as_u64();
    let listed = config["no_rope_layers"].as_array();
    let is_turned = |layer: &u64| match (listed, interval) {
        (Some(list), _) => list[*layer as usize] == 1,
        (None, Some(interval)) => !(layer + 1).is_multiple_of(interval),
        (None, None) => true,
    };
    let unturned = (0..layers).filter(|layer| !is_turned(layer));
    unturned.map(|layer| layer as usize).collect()
}

fn export(source: &ModelSource) -> Result<GgufExport, GgufExportError> {
    let shape = |name| source.tensor_info(name).unwrap().shape.as_slice();
    let tensors = source.tensor_names().map(|name| (name, shape(name)));
    GgufExport::new(&decoder(source.config()), &[], Vec::new(), tensors)
}

fn write(
    source: &ModelSource,
    types: &[GgufFileType],
    part_bytes: Option<u64>,
) -> (tempfile::TempDir, Vec<(GgufFileType, Vec<WrittenFile>)>) {
    let root = tempfile::tempdir().unwrap();
    let export = export(source).unwrap();
    let targets = types
        .iter()
        .map(|kind| (*kind, root.path().join(format!("x-{}.gguf", kind.name()))));
    let mut files = GgufFiles::create(&export, targets, part_bytes, Existing::Refuse).unwrap();
    for tensor in export.tensors() {
        let values = match &tensor.source {
            ExportSource::Tensor(name) => source.read_f32(name).unwrap(),
            ExportSource::Values(values) => values.clone(),
        };
        files.write(values).unwrap();
    }
    let written = files.finish().unwrap();
    for (kind, files) in &written {
        let bytes: u64 = files.iter().map(|file| file.bytes).sum();
        assert!(files.len() > 1 || bytes == export.bytes(*kind), "{kind:?}");
        for file in files {
            assert_eq!(std::fs::metadata(&file.path).unwrap().len(), file.bytes);
        }
    }
    (root, written)
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// Types, shapes, order and bytes of every tensor are those of llama.cpp's own quantisation.
#[test]
fn golden_exports_are_those_of_llama_cpp() {
    for folder in golden::folders("gguf", "tiny-llama.json") {
        let source = ModelSource::open(&*folder).unwrap();
        let expected: Value = golden::json(&folder.join("tiny-llama.json"));
        let (_root, written) = write(&source, &GgufFileType::ALL, None);
        let mut compared = 0;
        for (kind, files) in written {
            let expected = match kind {
                // As it was before it was quantised, in another order.
                GgufFileType::F32 => &expected["f32_tensors"],
                _ => &expected["quantised_by_llama_cpp"][kind.name().to_uppercase()]["tensors"],
            };
            let expected = expected.as_object().unwrap();
            let file = GgufFile::open(&files[0].path).unwrap();
            let names: Vec<&str> = file.tensors().iter().map(|t| t.name.as_str()).collect();
            if kind != GgufFileType::F32 {
                assert_eq!(names, expected.keys().collect::<Vec<_>>(), "{kind:?}");
            }
            assert_eq!(names.len(), expected.len());
            for tensor in file.tensors() {
                let what = format!("{kind:?}, {}", tensor.name);
                let expected = &expected[&tensor.name];
                assert_eq!(expected["type"], tensor.kind.name(), "{what}");
                assert_eq!(expected["shape"], json!(tensor.shape), "{what}");
                let hash = hex(Sha256::digest(file.bytes(tensor)));
                assert_eq!(expected["sha256_of_bytes"], hash, "{what}");
                compared += 1;
            }
        }
        assert_eq!(compared, 13 * 39);
    }
}

/// What is written and read again is what was written, in every family.
#[test]
fn golden_exports_read_back() {
    let mut models = 0;
    for folder in golden::folders("tiny", "config.json") {
        let source = ModelSource::open(&*folder).unwrap();
        let model_type = source.config()["model_type"].as_str().unwrap();
        if Architecture::of_model_type(model_type).is_none() {
            let refused = export(&source).unwrap_err().to_string();
            assert!(refused.contains("cannot be exported"), "{refused}");
            continue;
        }
        if model_type == "smollm3" && source.config()["no_rope_layers"] == json!([1, 0, 1]) {
            let refused = export(&source).unwrap_err().to_string();
            assert!(refused.contains("layers without RoPE is [1]"), "{refused}");
            continue;
        }
        models += 1;
        let (_root, written) = write(&source, &[GgufFileType::F32], None);
        let model = GgufModel::open(&written[0].1[0].path).unwrap();
        assert_eq!(model.tensor_names().len(), source.tensor_names().count());
        for name in source.tensor_names() {
            let what = format!("{}, {name}", folder.name());
            assert_eq!(
                model.read_f32(name).unwrap(),
                source.read_f32(name).unwrap(),
                "{what}"
            );
        }
        let (ours, theirs) = (decoder(model.config()), decoder(source.config()));
        // Without a window a Mistral is a Llama.
        let model_type = theirs.model_type.clone();
        let ours = GgufDecoder { model_type, ..ours };
        assert_eq!(ours, theirs, "{}", folder.name());
    }
    assert!(models >= 9, "{models}");
}

#[test]
fn golden_split_files_are_read_as_one() {
    for folder in golden::folders("gguf", "tiny-llama.json") {
        let source = ModelSource::open(&*folder).unwrap();
        let (root, written) = write(&source, &[GgufFileType::Q8_0], Some(400_000));
        let parts = &written[0].1;
        assert_eq!(parts.len(), 5);
        let name = |index: usize| parts[index].path.file_name().unwrap().to_str().unwrap();
        assert_eq!(name(0), "x-q8_0-00001-of-00005.gguf");
        let (_whole, whole) = write(&source, &[GgufFileType::Q8_0], None);
        let whole = GgufModel::open(&whole[0].1[0].path).unwrap();
        let model = GgufModel::open(&parts[0].path).unwrap();
        for name in source.tensor_names() {
            assert_eq!(model.read_f32(name).unwrap(), whole.read_f32(name).unwrap());
        }
        let message = |path| match GgufModel::open(path).unwrap_err() {
            FormatError::Gguf { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        let second = message(parts[1].path.clone());
        assert!(
            second.contains("it is part 2 of 5 of a split model"),
            "{second}"
        );
        std::fs::copy(&parts[1].path, &parts[2].path).unwrap();
        let twice = message(parts[0].path.clone());
        assert!(twice.contains("split.no is 1 in x-q8_0-00003-of-00005.gguf, expected 2"));
        std::fs::remove_file(&parts[2].path).unwrap();
        let missing = message(parts[0].path.clone());
        assert!(
            missing.contains("x-q8_0-00003-of-00005.gguf does not exist"),
            "{missing}"
        );
        drop(root);
    }
}
