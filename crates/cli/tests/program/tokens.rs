//! Tokens that a model did not have: trained, resumed, merged, exported.

use std::fs;
use std::path::Path;

use backdraft_testkit::tiny;
use serde_json::{Map, Value, json};

use super::{fails, says, succeeds};

/// A project whose rows answer with two new tokens, over a tiny model that splits text into bytes. Its vocabulary is as
/// long as its tables: new tokens need new rows.
fn project(model: &str, more: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let d = directory.path();
    tiny::model(&d.join("model"));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny");
    if model == "llama-tied" {
        for entry in fs::read_dir(d.join("model")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.starts_with("model") {
                fs::remove_file(path).unwrap();
            }
        }
        for file in ["config.json", "model.safetensors"] {
            fs::copy(golden.join(model).join(file), d.join("model").join(file)).unwrap();
        }
    }
    let special = ["<unk>", "<s>", "</s>"];
    let bytes = ('!'..='~').chain(['\u{120}', '\u{10a}']);
    let mut vocabulary = Map::new();
    let tokens = special.map(str::to_owned).into_iter();
    let tokens = tokens.chain(bytes.map(String::from));
    let fillers = (0..256).map(|i| format!("filler{i}"));
    for (id, token) in tokens.chain(fillers).take(256).enumerate() {
        vocabulary.insert(token, id.into());
    }
    let added = special.map(|token| {
        json!({
            "id": vocabulary[token], "content": token, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        })
    });
    let byte_level = |prefix: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level(false), "post_processor": null, "decoder": byte_level(true),
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    fs::write(d.join("model/tokenizer.json"), tokenizer.to_string()).unwrap();
    let row = json!({"prompt": "Call?", "completion": "<tool>go</tool>"});
    fs::write(d.join("rows.jsonl"), format!("{row}\n").repeat(8)).unwrap();
    let recipe = format!(
        "model = \"model\"\noutput_dir = \"out\"\nmax_seq_length = 32\n[lora]\nrank = 8\nalpha = 16\n\
         trainable_tokens = [\"g\"]\n[tokens]\nadd = [\"<tool>\", \"</tool>\"]\n{more}\n\
         [data]\ntrain = \"rows.jsonl\"\nformat = \"prompt_completion\"\ncache = \"off\"\n\
         [train]\nmicro_batch_size = 2\ngrad_accumulation_steps = 2\nlearning_rate = 2e-2\nmax_steps = 40\n\
         save_steps = 20\nsample_rows = 0\nwarmup_steps = 0\n"
    );
    fs::write(d.join("recipe.toml"), recipe).unwrap();
    directory
}

fn answer(d: &Path, of: &[&str]) -> String {
    let fixed = [
        "--raw",
        "--temperature",
        "0",
        "--max-new-tokens",
        "4",
        "Call?",
    ];
    let found = succeeds(d, &[&["generate"], of, &fixed[..]].concat());
    found["text"]
        .as_str()
        .unwrap_or_else(|| panic!("{found}"))
        .to_owned()
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_new_token_is_produced_by_the_adapter_the_merged_model_and_its_gguf_file() {
    const EXPECTED: &str = "<tool>go</tool>";
    for (model, more) in [
        ("llama-tied", ""),
        (
            "llama-untied",
            "init = \"subtokens\"\ndescriptions = { \"<tool>\" = \"begin\" }",
        ),
    ] {
        let directory = project(model, more);
        let d = directory.path();
        succeeds(d, &["plan", "recipe.toml"]);
        succeeds(d, &["train", "recipe.toml"]);
        assert_eq!(answer(d, &["--adapter", "out"]), EXPECTED, "{model}");
        let adapter = d.join("out/adapter");
        let config = read(&adapter.join("adapter_config.json"));
        let g = 3 + u32::from(b'g' - b'!');
        let ids = json!([g, 256, 257]);
        let expected = match model {
            "llama-tied" => ids.clone(),
            _ => json!({"embed_tokens": ids, "lm_head": ids}),
        };
        assert_eq!(config["trainable_token_indices"], expected, "{model}");
        let tokenizer = read(&adapter.join("tokenizer.json"));
        let last = tokenizer["added_tokens"]
            .as_array()
            .unwrap()
            .last()
            .unwrap();
        assert_eq!(
            (&last["id"], &last["content"]),
            (&json!(257), &json!("</tool>"))
        );
        let seen = succeeds(d, &["inspect", "out/adapter"]);
        let tables = seen["trained_tokens"].as_object().unwrap();
        assert_eq!(tables["model.embed_tokens"], ids, "{model}");

        let merged = succeeds(d, &["merge", "--adapter", "out", "--out", "merged"]);
        let tables = if model == "llama-tied" { 1 } else { 2 };
        assert_eq!(merged["merged"], 14 + tables, "{model}");
        assert_eq!(read(&d.join("merged/config.json"))["vocab_size"], 258);
        assert_eq!(read(&d.join("merged/tokenizer.json")), tokenizer);
        assert_eq!(answer(d, &["--model", "merged"]), EXPECTED, "{model}");

        let export = [
            "export",
            "--adapter",
            "out",
            "--to",
            "gguf",
            "--type",
            "f32",
        ];
        let exported = succeeds(d, &[&export[..], &["--device", "cpu"]].concat());
        let kl = exported["mean_kl"].as_f64().unwrap();
        assert!(kl < 1e-6, "{model}: {exported}");
        let file = exported["files"][0].as_str().unwrap();
        assert_eq!(answer(d, &["--model", file]), EXPECTED, "{model}");
        let alone = [
            "export",
            "--adapter",
            "out",
            "--to",
            "gguf",
            "--adapter-only",
            "--force",
        ];
        says(&fails(d, &alone, 1), &["trained tokens"]);

        // The base does not have the tokens, and nothing else of it has changed.
        assert!(!answer(d, &["--model", "model"]).contains("<tool>"));
    }
}

#[test]
fn a_run_with_new_tokens_is_resumed_to_the_same_bits() {
    let directory = project("llama-tied", "");
    let d = directory.path();
    succeeds(d, &["train", "recipe.toml"]);
    let factors = || fs::read(d.join("out/adapter/adapter_model.safetensors")).unwrap();
    let expected = factors();
    fs::remove_dir_all(d.join("out/adapter")).unwrap();
    succeeds(d, &["train", "--resume", "out/checkpoints/step-000020"]);
    assert_eq!(factors(), expected);
    succeeds(d, &["train", "recipe.toml", "--output-dir", "again"]);
    let again = fs::read(d.join("again/adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(again, expected);
}

#[test]
fn tokens_that_cannot_be_are_refused_by_name() {
    let directory = project("llama-tied", "");
    let d = directory.path();
    let train = |set: &[&str]| fails(d, &[&["train", "recipe.toml"], set].concat(), 1);
    let there = train(&[
        "--set",
        "tokens.add=[\"g\"]",
        "--set",
        "lora.trainable_tokens=[\"h\"]",
    ]);
    says(
        &there,
        &["\"g\" is a token already", "lora.trainable_tokens"],
    );
    let unknown = train(&["--set", "lora.trainable_tokens=[\"<nobody>\"]"]);
    says(&unknown, &["no token \"<nobody>\"", "tokens.add"]);
    let compared = train(&["--set", "objective.kind=\"dpo\""]);
    says(&compared, &["tokens.add", "objective.kind"]);
    let further = train(&["--set", "lora.adapter=\"model\""]);
    says(&further, &["tokens.add", "`lora.adapter`"]);
    assert!(!d.join("out").exists());
}
