use backdraft_arch::DeltaNetSpec;
use backdraft_testkit::golden;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::super::decoder::{GgufDeltaNets, GgufFactors, GgufGemma, GgufRope};
use super::super::file::GgufFile;
use super::super::model::GgufModel;
use super::*;
use crate::checkpoint::ModelSource;

fn decoder(config: &Value) -> GgufDecoder {
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let heads = size("num_attention_heads");
    let theta = config["rope_theta"].as_f64();
    let nested = &config["rope_parameters"];
    let of_full = &nested["full_attention"]["rope_theta"];
    let theta = theta.or(nested["rope_theta"].as_f64()).or(of_full.as_f64());
    let scaling = [&config["rope_scaling"], &config["rope_parameters"]];
    let kind = |kind: &str| scaling.into_iter().find(|it| it["rope_type"] == kind);
    let linear = kind("linear");
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
        full_heads: is_gemma4(config)
            .then(|| (size("global_head_dim"), size("num_global_key_value_heads"))),
        rotary_dim: match config["global_head_dim"].as_u64() {
            Some(head_dim) => head_dim as usize,
            None => {
                let part = config["partial_rotary_factor"].as_f64();
                let part = part.or(nested["partial_rotary_factor"].as_f64());
                let head_dim = config["head_dim"].as_f64();
                let head_dim = head_dim.unwrap_or((size("hidden_size") / heads) as f64);
                (part.unwrap_or(1.0) * head_dim) as usize
            }
        },
        vocab_size: size("vocab_size"),
        rms_norm_eps: config["rms_norm_eps"].as_f64().unwrap(),
        rope_theta: theta.unwrap(),
        rope: kind("llama3").map_or(
            long_rope(config)
                .or(proportional(config))
                .unwrap_or(other_rope(linear, kind("yarn"))),
            |scaling| GgufRope::Llama3 {
                factor: scaling["factor"].as_f64().unwrap(),
                low_freq_factor: scaling["low_freq_factor"].as_f64().unwrap(),
                high_freq_factor: scaling["high_freq_factor"].as_f64().unwrap(),
                original: scaling["original_max_position_embeddings"]
                    .as_f64()
                    .unwrap(),
            },
        ),
        sliding_window: config["sliding_window"].as_u64().map(|n| n as usize),
        full_layers: full(config),
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
        gemma: (is_gemma(config) || is_gemma4(config)).then(|| GgufGemma {
            attention: match config["query_pre_attn_scalar"].as_f64() {
                Some(scalar) => scalar.powf(-0.5),
                None => 1.0,
            },
            scores_cap: config["attn_logit_softcapping"].as_f64(),
            logits_cap: config["final_logit_softcapping"].as_f64(),
            local_theta: config["rope_local_base_freq"]
                .as_f64()
                .or(nested["sliding_attention"]["rope_theta"].as_f64()),
        }),
        query_scaling: kind("yarn").and_then(|yarn| yarn["llama_4_scaling_beta"].as_f64()),
        delta_nets: (config["model_type"] == "qwen3_5_text").then(|| delta_nets(config)),
    }
}

fn is_gemma4(config: &Value) -> bool {
    config["model_type"] == "gemma4_text"
}

fn delta_nets(config: &Value) -> GgufDeltaNets {
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let types = config["layer_types"].as_array().unwrap();
    GgufDeltaNets {
        sizes: DeltaNetSpec {
            num_key_heads: size("linear_num_key_heads"),
            num_value_heads: size("linear_num_value_heads"),
            key_head_dim: size("linear_key_head_dim"),
            value_head_dim: size("linear_value_head_dim"),
            conv_kernel_dim: size("linear_conv_kernel_dim"),
        },
        attending: (0..types.len())
            .filter(|&layer| types[layer] == "full_attention")
            .collect(),
    }
}

fn proportional(config: &Value) -> Option<GgufRope> {
    let full = &config["rope_parameters"]["full_attention"];
    let part = full["partial_rotary_factor"].as_f64()?;
    let head_dim = config["global_head_dim"].as_f64()?;
    let pairs = (part * head_dim / 2.0) as usize;
    Some(GgufRope::Proportional { pairs })
}

fn is_gemma(config: &Value) -> bool {
    config["model_type"] == "gemma2" || config["model_type"] == "gemma3_text"
}

fn long_rope(config: &Value) -> Option<GgufRope> {
    let list = |key| {
        let factors = config["rope_scaling"][key].as_array()?.iter();
        Some(
            factors
                .map(|factor| factor.as_f64().unwrap() as f32)
                .collect(),
        )
    };
    Some(GgufRope::LongRope {
        short: list("short_factor")?,
        long: list("long_factor")?,
        original: config["original_max_position_embeddings"].as_f64().unwrap(),
        attention_factor: 1.25,
    })
}

fn other_rope(linear: Option<&Value>, yarn: Option<&Value>) -> GgufRope {
    let number = |scaling: &Value, key: &str| scaling[key].as_f64().unwrap();
    match (linear, yarn) {
        (Some(linear), _) => GgufRope::Linear {
            factor: number(linear, "factor"),
        },
        (None, Some(yarn)) => GgufRope::Yarn {
            factor: number(yarn, "factor"),
            original: number(yarn, "original_max_position_embeddings"),
            beta_fast: number(yarn, "beta_fast"),
            beta_slow: number(yarn, "beta_slow"),
        },
        (None, None) => GgufRope::Default,
    }
}

/// Layers without a window where others have one, by their list or a Gemma's pattern.
fn full(config: &Value) -> Vec<usize> {
    let mixed = config["model_type"] == "ministral" || is_gemma4(config);
    if !is_gemma(config) && !mixed {
        return Vec::new();
    }
    let layers = config["num_hidden_layers"].as_u64().unwrap() as usize;
    let pattern = config["sliding_window_pattern"].as_u64().unwrap_or(2) as usize;
    let is_full = |layer: &usize| match config["layer_types"].as_array() {
        Some(types) => types[*layer] == "full_attention",
        None => (layer + 1).is_multiple_of(pattern),
    };
    (0..layers).filter(is_full).collect()
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
    GgufExport::new(&decoder(&usual(source.config())), &[], Vec::new(), tensors)
}

/// With the scale of scores that llama.cpp takes; other ones of a Gemma are refused.
fn usual(config: &Value) -> Value {
    let mut config = config.clone();
    if is_gemma(&config) {
        let refused = decoder(&config).architecture().unwrap_err().to_string();
        assert!(
            refused.contains("the scale of attention's scores is"),
            "{refused}"
        );
        config["query_pre_attn_scalar"] = config["head_dim"].clone();
    }
    config
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
        if model_type == "smollm3" && source.config()["no_rope_layers"] == json!([1, 0, 1]) {
            let refused = export(&source).unwrap_err().to_string();
            assert!(refused.contains("layers without RoPE is [1]"), "{refused}");
            continue;
        }
        if model_type == "ministral" {
            let refused = export(&source).unwrap_err().to_string();
            assert!(refused.contains("the sliding window is 7"), "{refused}");
            continue;
        }
        models += 1;
        let (_root, written) = write(&source, &[GgufFileType::F32], None);
        let model = GgufModel::open(&written[0].1[0].path).unwrap();
        assert_eq!(model.tensor_names().len(), source.tensor_names().count());
        for name in source.tensor_names() {
            let what = format!("{}, {name}", folder.name());
            let expected = read_again(source.read_f32(name).unwrap(), name, source.config());
            assert_eq!(model.read_f32(name).unwrap(), expected, "{what}");
        }
        let (ours, theirs) = (decoder(model.config()), decoder(&usual(source.config())));
        // Without a window a Mistral is a Llama.
        let model_type = theirs.model_type.clone();
        let ours = GgufDecoder { model_type, ..ours };
        assert_eq!(ours, theirs, "{}", folder.name());
    }
    assert!(models >= 14, "{models}");
}

/// Norms of a Gemma 2 or 3 and of a Qwen 3.5 are one more in a file, in f32, and what a DeltaNet forgets by is a power.
fn read_again(mut values: Vec<f32>, name: &str, config: &Value) -> Vec<f32> {
    let qwen = config["model_type"] == "qwen3_5_text" && !name.contains("linear_attn");
    if (is_gemma(config) || qwen) && name.ends_with("norm.weight") {
        values.iter_mut().for_each(|w| *w = *w + 1.0 - 1.0);
    }
    if name.ends_with("A_log") {
        values.iter_mut().for_each(|a| *a = a.exp().ln());
    }
    values
}

/// What llama.cpp's Qwen 3.5 and Gemma 4 have not.
#[test]
fn layers_of_two_kinds_that_llama_cpp_would_compute_otherwise_are_refused() {
    let of = |model_type: &str| {
        let folders = golden::folders("tiny", "config.json");
        let mut sources = folders
            .iter()
            .map(|folder| ModelSource::open(&**folder).unwrap());
        sources.find(|source| source.config()["model_type"] == model_type)
    };
    let refused = |decoder: GgufDecoder, expected: &str| {
        let refused = decoder.architecture().unwrap_err().to_string();
        assert!(refused.starts_with(expected), "{refused}");
    };
    if let Some(source) = of("qwen3_5_text") {
        let usual = decoder(source.config());
        let change = |change: &dyn Fn(&mut GgufDeltaNets)| {
            let mut decoder = usual.clone();
            change(decoder.delta_nets.as_mut().unwrap());
            decoder
        };
        usual.architecture().unwrap();
        refused(
            change(&|delta| delta.sizes.key_head_dim = 8),
            "the size of a DeltaNet's heads is 8 for keys and 16 for values",
        );
        refused(
            change(&|delta| delta.attending = vec![0, 3]),
            "the list of layers that attend is [0, 3]",
        );
        let none = change(&|delta| delta.attending.clear());
        let interval = Entry::new("qwen35.full_attention_interval", 5);
        assert!(
            none.entries(none.architecture().unwrap())
                .contains(&interval)
        );
    }
    if let Some(source) = of("gemma4_text") {
        let usual = decoder(source.config());
        usual.architecture().unwrap();
        let rope = GgufRope::Default;
        refused(
            GgufDecoder {
                rope,
                ..usual.clone()
            },
            "the RoPE of layers without a window is Default",
        );
        refused(
            GgufDecoder {
                gemma: None,
                ..usual
            },
            "the RoPE of layers with a window is none",
        );
    }
}

#[test]
fn a_gemma_that_llama_cpp_would_compute_otherwise_is_refused() {
    let gemma = |model_type: &str, change: Value| {
        let mut config = json!({
            "model_type": model_type, "max_position_embeddings": 64, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 6, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
            "vocab_size": 8, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "query_pre_attn_scalar": 16,
            "sliding_window": 4,
        });
        if model_type == "gemma2" {
            config["attn_logit_softcapping"] = json!(50.0);
            config["final_logit_softcapping"] = json!(30.0);
        } else {
            config["sliding_window_pattern"] = json!(6);
            config["rope_local_base_freq"] = json!(1e4);
        }
        for (key, value) in change.as_object().unwrap() {
            config[key] = value.clone();
        }
        decoder(&config)
    };
    let keys = |decoder: &GgufDecoder| -> Vec<String> {
        let entries = decoder.entries(decoder.architecture().unwrap());
        entries.iter().map(|entry| entry.key.clone()).collect()
    };
    let plain = keys(&gemma("gemma3_text", json!({})));
    assert!(plain.contains(&"gemma3.attention.sliding_window".to_owned()));
    // What llama.cpp takes where nothing is said, is not.
    let pattern = "gemma3.attention.sliding_window_pattern".to_owned();
    let base = "gemma3.rope.freq_base_swa".to_owned();
    assert!(!plain.contains(&pattern) && !plain.contains(&base));
    let other = json!({"sliding_window_pattern": 3, "rope_local_base_freq": 2e4});
    let other = keys(&gemma("gemma3_text", other));
    assert!(other.contains(&pattern) && other.contains(&base));
    for (model_type, change, expected) in [
        ("gemma2", json!({"query_pre_attn_scalar": 24}), "the scale"),
        (
            "gemma2",
            json!({"attn_logit_softcapping": null}),
            "the caps",
        ),
        (
            "gemma2",
            json!({"sliding_window": null}),
            "the sliding window",
        ),
        (
            "gemma3_text",
            json!({"final_logit_softcapping": 30.0}),
            "the caps",
        ),
        (
            "gemma3_text",
            json!({"layer_types": ["full_attention", "sliding_attention", "sliding_attention",
                "sliding_attention", "sliding_attention", "sliding_attention"]}),
            "the list of layers without a window is [0]",
        ),
    ] {
        let refused = gemma(model_type, change).architecture().unwrap_err();
        assert!(refused.to_string().starts_with(expected), "{refused}");
    }
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
