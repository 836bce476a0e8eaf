//! A decoder that is one part of a model, through the program.

use std::fs;
use std::path::Path;

use backdraft_formats::SafetensorsFile;
use backdraft_testkit::tiny;
use backdraft_testkit::wrapped::{Spelling, other_bytes, stored_bytes, wrap};
use serde_json::{Value, json};

use super::succeeds;

/// A tiny project whose model has a tower.
fn project(spelling: Spelling) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let d = directory.path();
    tiny::project(d, "max_steps = 3\n");
    fs::rename(d.join("model"), d.join("decoder")).unwrap();
    wrap(&d.join("decoder"), &d.join("model"), "llava", spelling);
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
    for spelling in Spelling::ALL {
        let directory = project(spelling);
        let d = directory.path();
        let seen = succeeds(d, &["inspect", "model"]);
        assert_eq!(seen["model_type"], "llama");
        assert_eq!(seen["part_of"], "llava");
        assert_eq!(seen["tensors_not_loaded"], 3);
        let parts = json!(["multi_modal_projector", "vision_tower"]);
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
        assert_eq!(merged["merged"], 2);
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
    let directory = project(Spelling::Hub);
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
