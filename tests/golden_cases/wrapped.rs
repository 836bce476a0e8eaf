//! A decoder that is one part of a model: the numbers are those of the decoder alone, the other parts stay what they were.

use std::path::Path;

use backdraft::burn::tensor::Device;
use backdraft::formats::{
    AdapterPrefix, Existing, ModelSource, PeftDir, PeftWriteOptions, SafetensorsFile,
};
use backdraft::lora::{AdapterWeights, MergeBase, merge};
use backdraft::model::{CausalLm, ModelSpec, quantize};
use backdraft::quant::{QuantizationPlan, Scheme};
use backdraft_testkit::golden::json;
use backdraft_testkit::tolerance::{TINY_LOGITS, TINY_LOSS};
use backdraft_testkit::wrapped::{Spelling, other_bytes, stored_bytes, wrap};
use serde_json::Value;

use super::compare::scalar;
use super::files::{exported, has_no_gguf, load, logits};
use super::lora_entry::LoraCase;
use super::tiny_case::TinyCase;

/// Decoders that are found inside such models.
fn cases() -> Vec<(TinyCase, &'static str)> {
    let inside = |case: TinyCase| {
        let model_type = match case.model.spec().family.model_type() {
            "gemma3_text" => "gemma3",
            "gemma4_text" => "gemma4",
            "mistral" | "ministral3" => "mistral3",
            "llama" => "llava",
            "qwen3_5_text" => "qwen3_5",
            _ => return None,
        };
        Some((case, model_type))
    };
    TinyCase::all().into_iter().filter_map(inside).collect()
}

/// Names of `model.safetensors`, sorted.
fn names(directory: &Path) -> Vec<String> {
    let file = SafetensorsFile::open(directory.join("model.safetensors")).unwrap();
    let mut names: Vec<String> = file.tensors().map(|info| info.name.clone()).collect();
    names.sort_unstable();
    names
}

/// The towers of a directory are what they were.
fn check_others(directory: &Path, spelling: Spelling) {
    for info in spelling.others() {
        let found = stored_bytes(directory, &info.name);
        assert!(found == other_bytes(&info), "{}", info.name);
    }
    let beside = directory.join("preprocessor_config.json");
    assert!(beside.is_file(), "{}", beside.display());
}

#[test]
fn golden_tiny_wrapped_models_are_their_decoders() {
    for (case, model_type) in cases() {
        for spelling in Spelling::ALL {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join("model");
            wrap(&case.path, &path, model_type, spelling);
            let what = format!("{}, {spelling:?}", case.name);
            let source = ModelSource::open(&path).unwrap();
            let spec = backdraft::model::check(&source).unwrap();
            assert_eq!(&spec, case.model.spec(), "{what}");
            let config: Value = json(&path.join("config.json"));
            assert_eq!(ModelSpec::from_hf(&config).unwrap(), spec, "{what}");
            assert_eq!(source.other_names().count(), spelling.others().len());
            let parts: Vec<&str> = source.other_parts().into_iter().collect();
            assert_eq!(parts, ["mtp", "multi_modal_projector", "vision_tower"]);
            let original = ModelSource::open(&*case.path).unwrap();
            assert_eq!(
                source.eos_token_ids().unwrap(),
                original.eos_token_ids().unwrap()
            );
            let found = logits(&load(&path), &case.plain_rows());
            TINY_LOGITS.check(&what, &found, &case.tensors.f32("plain.logits"));
            match exported(&source, None, &root.path().join("x.gguf")) {
                Ok(model) => {
                    let found = logits(&model, &case.plain_rows());
                    TINY_LOGITS.check(&what, &found, &case.tensors.f32("plain.logits"));
                }
                Err(error) => {
                    let why = has_no_gguf(&case);
                    assert!(
                        why.is_some_and(|why| error.contains(why)),
                        "{what}: {error}"
                    );
                }
            }
        }
    }
}

/// An adapter has the names of the class that serves it, is read under either, and is merged into the whole model.
#[test]
fn golden_tiny_adapters_of_wrapped_models() {
    for (case, model_type) in cases() {
        for lora in LoraCase::all(&case) {
            for spelling in Spelling::ALL {
                check_adapters(&case, &lora, model_type, spelling);
            }
        }
    }
}

fn check_adapters(case: &TinyCase, lora: &LoraCase, model_type: &str, spelling: Spelling) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("model");
    wrap(&case.path, &path, model_type, spelling);
    let source = ModelSource::open(&path).unwrap();
    assert_eq!(source.adapter_prefix(), AdapterPrefix::Wrapped);
    let (rows, batch) = (case.plain_rows(), case.plain());
    for (prefix, expected) in [
        (
            AdapterPrefix::Wrapped,
            "base_model.model.model.language_model.layers.",
        ),
        (AdapterPrefix::Text, "base_model.model.model.layers."),
    ] {
        let what = format!("{}, {spelling:?}, {prefix:?}", lora.name);
        let adapter = root.path().join(format!("{prefix:?}"));
        let options = PeftWriteOptions {
            prefix,
            ..Default::default()
        };
        let weights = lora.model.adapter().unwrap();
        weights.write(&adapter, "base", &options).unwrap();
        let file = SafetensorsFile::open(adapter.join("adapter_model.safetensors")).unwrap();
        assert!(file.tensors().len() > 0);
        for info in file.tensors() {
            assert!(info.name.starts_with(expected), "{what}: {}", info.name);
        }
        let read = AdapterWeights::read(&adapter, &Device::flex()).unwrap();
        assert_eq!(read.config, weights.config, "{what}");
        let again = load(&path).with_adapter(&read).unwrap();
        TINY_LOGITS.check(&what, &logits(&again, &rows), &logits(&lora.model, &rows));

        let adapter = PeftDir::read(&adapter).unwrap();
        assert_eq!(adapter.prefix, prefix);
        let out = root.path().join(format!("{prefix:?}-merged"));
        let base = MergeBase::Original;
        merge(
            &source,
            base,
            &adapter,
            &[],
            &out,
            Existing::Refuse,
            |_, _| (),
        )
        .unwrap();
        assert_eq!(names(&out), names(&path), "{what}");
        check_others(&out, spelling);
        let (before, after): (Value, Value) = (
            json(&path.join("config.json")),
            json(&out.join("config.json")),
        );
        assert_eq!(before, after, "{what}");
        let model = load(&out);
        let nll = scalar(&model.nll(&batch.tokens, &batch.targets).mean());
        TINY_LOSS.check_one(&what, nll, lora.entry.merged_weights_plain_loss);
    }
}

/// In codes, and merged out of them.
#[test]
fn golden_tiny_wrapped_models_in_codes() {
    for (case, model_type) in cases() {
        for spelling in Spelling::ALL {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join("model");
            wrap(&case.path, &path, model_type, spelling);
            let source = ModelSource::open(&path).unwrap();
            let plan = QuantizationPlan::new(Scheme::NF4);
            let out = root.path().join("codes");
            quantize(&source, &plan, &out, Existing::Refuse, |_, _| ()).unwrap();
            let what = format!("{}, {spelling:?}", case.name);
            let rows = case.plain_rows();
            let model = CausalLm::load_quantized(&source, Some(&plan), &Device::flex()).unwrap();
            assert!(
                logits(&load(&out), &rows) == logits(&model, &rows),
                "{what}"
            );
            check_others(&out, spelling);
            let config: Value = json(&out.join("config.json"));
            assert_eq!(config["model_type"], model_type);
            let skipped = &config["quantization_config"]["llm_int8_skip_modules"];
            let skipped = skipped.as_array().unwrap();
            for module in [
                "vision_tower",
                "model.vision_tower",
                "multi_modal_projector",
            ] {
                assert!(skipped.contains(&module.into()), "{what}: {skipped:?}");
            }

            let lora = LoraCase::all(&case).remove(0);
            let adapter = root.path().join("adapter");
            let weights = lora.model.adapter().unwrap();
            weights
                .write(&adapter, "base", &PeftWriteOptions::default())
                .unwrap();
            let merged = root.path().join("merged");
            let source = ModelSource::open(&out).unwrap();
            let adapter = PeftDir::read(&adapter).unwrap();
            let base = MergeBase::Original;
            merge(
                &source,
                base,
                &adapter,
                &[],
                &merged,
                Existing::Refuse,
                |_, _| (),
            )
            .unwrap();
            assert_eq!(names(&merged), names(&path), "{what}");
            check_others(&merged, spelling);
            load(&merged);
        }
    }
}

/// As the hub has Qwen 3.5 of 0.8 B. Sections of positions are for images: of texts all three are the same.
#[test]
fn qwen_3_5_is_found_inside_its_whole() {
    let kinds = ["linear_attention"; 3]
        .into_iter()
        .chain(["full_attention"]);
    let kinds: Vec<&str> = kinds.cycle().take(24).collect();
    let config = serde_json::json!({
        "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5",
        "image_token_id": 248_056, "tie_word_embeddings": true,
        "text_config": {
            "attention_bias": false, "attn_output_gate": true, "dtype": "bfloat16", "full_attention_interval": 4,
            "head_dim": 256, "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3584, "layer_types": kinds,
            "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_num_key_heads": 16,
            "linear_num_value_heads": 16, "linear_value_head_dim": 128, "mamba_ssm_dtype": "float32",
            "max_position_embeddings": 262_144, "model_type": "qwen3_5_text", "mtp_num_hidden_layers": 1,
            "num_attention_heads": 8, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "mrope_interleaved": true, "mrope_section": [11, 11, 10], "partial_rotary_factor": 0.25,
                "rope_theta": 10_000_000, "rope_type": "default",
            },
            "vocab_size": 248_320,
        },
        "vision_config": {"depth": 12, "model_type": "qwen3_5"},
    });
    let spec = ModelSpec::from_hf(&config).unwrap();
    assert_eq!(spec.family.model_type(), "qwen3_5_text");
    assert!(spec.tie_word_embeddings && spec.has_delta_nets());
    assert_eq!((spec.layers.len(), spec.rope.rotary_dim), (24, 64));
    assert_eq!(spec.rope.theta, 1e7);
}
