//! A decoder that is one part of a model, through the program.

use std::fs;
use std::path::Path;

use backdraft_arch::Family;
use backdraft_formats::SafetensorsFile;
use backdraft_testkit::random_model::RandomModel;
use backdraft_testkit::tiny;
use backdraft_testkit::wrapped::{Spelling, other_bytes, stored_bytes, wrap};
use serde_json::{Value, json};

use super::succeeds;

/// A tiny project whose model has a tower: the usual decoder, or a random one of Qwen 3.5.
fn project(spelling: Spelling, model_type: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let d = directory.path();
    tiny::project(d, "max_steps = 3\n");
    fs::rename(d.join("model"), d.join("decoder")).unwrap();
    if model_type == "qwen3_5" {
        fs::remove_dir_all(d.join("decoder")).unwrap();
        let shape = RandomModel {
            family: Family::Qwen35,
            window: None,
            hidden: 64,
            intermediate: 96,
            layers: 4,
            heads: 4,
            kv_heads: 2,
            vocab: 256,
        };
        shape.write(&d.join("decoder"));
    }
    wrap(&d.join("decoder"), &d.join("model"), model_type, spelling);
    directory
}

fn names(file: &Path) -> Vec<String> {
    let file = SafetensorsFile::open(file).unwrap();
    let mut names: Vec<String> = file.tensors().map(|info| info.name.clone()).collect();
    names.sort_unstable();
    names
}

#[test]
fn a_decoder_with_a_tower_is_trained_asked_merged_and_quantised() {
    // A DeltaNet has no `q_proj`.
    let cases = [("llama", "llava", 2), ("qwen3_5_text", "qwen3_5", 1)];
    for ((decoder, whole, adapted), spelling) in cases
        .into_iter()
        .flat_map(|case| Spelling::ALL.map(|spelling| (case, spelling)))
    {
        let directory = project(spelling, whole);
        let d = directory.path();
        let seen = succeeds(d, &["inspect", "model"]);
        assert_eq!(seen["model_type"], decoder);
        assert_eq!(seen["part_of"], whole);
        assert_eq!(seen["tensors_not_loaded"], 4);
        let parts = json!(["mtp", "multi_modal_projector", "vision_tower"]);
        assert_eq!(seen["parts_not_loaded"], parts);
        succeeds(d, &["plan", "recipe.toml"]);
        succeeds(d, &["train", "recipe.toml"]);
        let adapter = d.join("out/adapter");
        for name in names(&adapter.join("adapter_model.safetensors")) {
            let before = "base_model.model.model.language_model.layers.";
            assert!(name.starts_with(before), "{name}");
        }
        let config = fs::read(adapter.join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        let pattern = config["target_modules"].as_str().unwrap();
        assert!(pattern.contains("language_model"), "{pattern}");
        let rest = ["--raw", "--max-new-tokens", "3", "w5 w6"];
        let ask =
            |arguments: &[&str]| succeeds(d, &[arguments, &rest[..]].concat())["text"].clone();
        let trained = ask(&["generate", "--adapter", "out"]);
        let merged = succeeds(d, &["merge", "--adapter", "out", "--out", "merged"]);
        assert_eq!(merged["merged"], adapted);
        let (whole, model) = (names(&d.join("merged/model.safetensors")), d.join("model"));
        assert_eq!(whole, names(&model.join("model.safetensors")));
        for info in spelling.others() {
            assert!(stored_bytes(&d.join("merged"), &info.name) == other_bytes(&info));
        }
        assert_eq!(ask(&["generate", "--model", "merged"]), trained);
        succeeds(d, &["quantize", "--model", "merged", "--out", "quantised"]);
        ask(&["generate", "--model", "quantised"]);
    }
}

/// By the names of the decoder alone, where that is what will be served.
#[test]
fn an_adapter_has_the_names_of_the_decoder_where_that_is_asked_for() {
    let directory = project(Spelling::Hub, "llava");
    let d = directory.path();
    let text = "lora.key_prefix=\"text\"";
    succeeds(d, &["train", "recipe.toml", "--set", text]);
    for name in names(&d.join("out/adapter/adapter_model.safetensors")) {
        assert!(name.starts_with("base_model.model.model.layers."), "{name}");
    }
    // The decoder alone takes it, and the whole model does.
    for model in ["decoder", "model"] {
        let out = format!("merged-{model}");
        let merge = ["merge", "--adapter", "out", "--model", model, "--out", &out];
        assert_eq!(succeeds(d, &merge)["merged"], 2);
    }
}
