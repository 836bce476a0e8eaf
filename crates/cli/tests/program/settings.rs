//! What comes after training: a run's settings, adapters in other spellings, files that contradict each other.

use std::io::Write;
use std::process::Stdio;

use backdraft_formats::{Existing, HfDirWriter, ModelSource, SafetensorsFile, SafetensorsWriter};
use backdraft_testkit::tiny;
use serde_json::json;

use super::*;

const MORE: &str = "max_steps = 6\neval_steps = 3\nsave_steps = 3\nwarmup_steps = 1\n";

/// A project in a directory whose name no shell takes as it is.
fn odd_project(more: &str) -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("my \"odd\" $run it's");
    fs::create_dir(&directory).unwrap();
    tiny::project(&directory, more);
    (root, directory)
}

/// Changes a JSON file.
fn change(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn nll(d: &Path, arguments: &[&str]) -> f64 {
    let result = succeeds(d, &[&["eval"], arguments].concat());
    let value = result.get("value").unwrap_or(&result);
    let adapter = value.get("adapter").unwrap_or(&value["base"]);
    adapter["nll"].as_f64().unwrap()
}

#[track_caller]
fn close(a: f64, b: f64, tolerance: f64) {
    assert!((a - b).abs() < tolerance, "{a} and {b}");
}

#[test]
fn what_a_run_was_trained_with_is_used_after_it() {
    let (_root, d) = odd_project(MORE);
    let (d, out) = (d.as_path(), d.join("out"));
    // Rows with names of their own, and a base in 4 bits.
    let csv = |from: &str, to: &str| {
        let mut csv = "question,answer\n".to_owned();
        for row in fs::read_to_string(d.join(from)).unwrap().lines() {
            let row: Value = serde_json::from_str(row).unwrap();
            let text = |key: &str| row[key].as_str().unwrap().to_owned();
            csv += &format!("{},{}\n", text("instruction"), text("output"));
        }
        fs::write(d.join(to), csv).unwrap();
    };
    csv("train.jsonl", "train.csv");
    csv("eval.jsonl", "eval.csv");
    let recipe = fs::read_to_string(d.join("recipe.toml")).unwrap();
    let fields =
        "fields = { instruction = \"question\", output = \"answer\" }\ntrain = \"train.csv\"";
    let recipe = recipe
        .replace("train = \"train.jsonl\"", fields)
        .replace("eval.jsonl", "eval.csv")
        .replace(
            "max_seq_length = 32",
            "max_seq_length = 32\nload_in_4bit = true",
        );
    fs::write(d.join("recipe.toml"), recipe).unwrap();
    let trained = backdraft(d, &["train", "recipe.toml", "--plain"]);
    let said = String::from_utf8(trained.stdout).unwrap();
    assert!(trained.status.success(), "{said}");

    let whole = nll(d, &["recipe.toml"]);
    let named = nll(d, &["--adapter", "out", "--data", "eval.csv"]);
    close(whole, named, 1e-6);
    let summary = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let last = summary
        .lines()
        .rev()
        .find(|line| line.contains("eval_loss"))
        .unwrap();
    let eval_loss: Value = serde_json::from_str(last).unwrap();
    close(named, eval_loss["eval_loss"].as_f64().unwrap(), 1e-4);
    // Flags win.
    let fixed = ["--adapter", "out/adapter", "--data", "eval.csv"];
    let other = ["--prompt-template", "w9 {instruction} w9 {output}"];
    assert!((nll(d, &[&fixed[..], &other].concat()) - named).abs() > 1e-3);
    let plain = ["--quantization", "none"];
    assert!((nll(d, &[&fixed[..], &plain].concat()) - named).abs() > 1e-5);
    let again = [
        "--format",
        "alpaca",
        "--fields",
        "instruction=question,output=answer",
    ];
    close(nll(d, &[&fixed[..], &again].concat()), named, 1e-9);
    let set = [
        "--set",
        "data.fields={instruction=\"answer\",output=\"question\"}",
    ];
    close(nll(d, &[&fixed[..], &set].concat()), named, 1e-9);

    // A checkpoint is taken for its adapter, and chats go through the prompt template too.
    let checkpoint = out.join("checkpoints/step-000006");
    close(
        nll(
            d,
            &[
                "--adapter",
                checkpoint.to_str().unwrap(),
                "--data",
                "eval.csv",
            ],
        ),
        named,
        1e-6,
    );
    let chats: String = fs::read_to_string(d.join("eval.jsonl"))
        .unwrap()
        .lines()
        .map(|row| serde_json::from_str::<Value>(row).unwrap())
        .map(|row| {
            let turns = json!([{"role": "user", "content": row["instruction"]},
                               {"role": "assistant", "content": row["output"]}]);
            format!("{}\n", json!({ "messages": turns }))
        })
        .collect();
    fs::write(d.join("chats.jsonl"), chats).unwrap();
    let chats = [
        "--adapter",
        "out",
        "--data",
        "chats.jsonl",
        "--format",
        "messages",
    ];
    close(nll(d, &chats), named, 1e-6);
    says(
        &fails(d, &[&["eval"], &chats[..4]].concat(), 1),
        &[
            "field `question`",
            "read as \"alpaca\", like the run's own rows",
            "--format auto",
        ],
    );

    // The command that is shown works as it is shown.
    let try_it = said
        .lines()
        .find_map(|line| line.strip_prefix("try it"))
        .unwrap()
        .trim();
    let mut shell = Command::new("sh")
        .args([
            "-c",
            &try_it.replacen("backdraft", env!("CARGO_BIN_EXE_backdraft"), 1),
        ])
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    shell.stdin.take().unwrap().write_all(b"w5 w6\n\n").unwrap();
    let answered = shell.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&answered.stderr).into_owned();
    assert!(answered.status.success(), "{try_it}\n{said}");
    says(&said, &["the prompt template it was trained with", "nf4"]);

    // A merged model answers, and measures, as the trained one.
    let merge = [
        "merge",
        "--adapter",
        "out",
        "--out",
        "merged",
        "--base",
        "dequantized",
    ];
    let kl = succeeds(d, &[&merge[..], &["--kl-data", "eval.csv"]].concat());
    let value = kl.get("value").unwrap_or(&kl);
    assert!(value["mean_kl"].as_f64().unwrap() < 1e-6, "{kl}");
    let chats = ["--model", "merged", "--data", "chats.jsonl"];
    close(nll(d, &chats), named, 1e-4);
    let config = fs::read(d.join("merged/tokenizer_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let template = fs::read_to_string(d.join("merged/chat_template.jinja")).unwrap();
    assert_eq!(config["chat_template"], template);

    let seen = String::from_utf8(backdraft(d, &["inspect", "out"]).stdout).unwrap();
    says(
        &seen,
        &[
            "kind run",
            "steps 6 of 6",
            "prompt template; rows",
            "rank 64",
        ],
    );

    // What an earlier version left goes on to work.
    let settings = out.join("adapter/trained_with.json");
    let noted: Value = serde_json::from_slice(&fs::read(&settings).unwrap()).unwrap();
    fs::remove_file(&settings).unwrap();
    let over = json!({"model": noted["model"], "fingerprint": noted["fingerprint"],
                      "quantization": noted["quantization"]});
    fs::write(out.join("adapter/trained_over.json"), over.to_string()).unwrap();
    let template = ["--prompt-template", "w3 {instruction} w4 {output}"];
    let old = [&fixed[..], &again, &template].concat();
    close(nll(d, &old), named, 1e-6);
    change(&out.join("adapter/trained_over.json"), |over| {
        over["quantization"]["block_size"] = 3.into();
    });
    says(
        &fails(d, &[&["eval"], &old[..]].concat(), 1),
        &["trained_over.json", "block_size"],
    );
}

#[test]
fn a_model_without_a_chat_template_is_asked_in_other_ways() {
    let (_root, d) = odd_project(MORE);
    let ask = ["generate", "--model", "model", "--max-new-tokens", "1"];
    let with = |more: &[&'static str]| [&ask[..], more].concat();
    let said = fails(&d, &with(&["w5"]), 1);
    says(
        &said,
        &[
            "has no chat template",
            "--raw continues",
            "--chat-template NAME",
        ],
    );
    assert!(!said.contains("data."), "{said}");
    let said = fails(&d, &with(&["--chat", "w5"]), 1);
    says(&said, &["has no chat template", "--chat-template NAME"]);
    assert!(!said.contains("--raw"), "{said}");
    succeeds(&d, &with(&["--raw", "w5"]));
    succeeds(&d, &with(&["--chat-template", "alpaca", "w5"]));
}

#[test]
fn a_share_that_a_recipe_holds_out_is_measured_again() {
    let (_root, d) = odd_project(MORE);
    let d = d.as_path();
    let recipe = fs::read_to_string(d.join("recipe.toml")).unwrap();
    fs::write(
        d.join("recipe.toml"),
        recipe.replace("\"eval.jsonl\"", "0.25"),
    )
    .unwrap();
    let said = backdraft(d, &["eval", "recipe.toml"]);
    says(
        &String::from_utf8_lossy(&said.stderr),
        &["there is no adapter in"],
    );
    succeeds(d, &["train", "recipe.toml"]);
    let metrics = fs::read_to_string(d.join("out/metrics.jsonl")).unwrap();
    let last = metrics
        .lines()
        .rev()
        .find(|line| line.contains("eval_loss"))
        .unwrap();
    let eval_loss: Value = serde_json::from_str(last).unwrap();
    close(
        nll(d, &["recipe.toml"]),
        eval_loss["eval_loss"].as_f64().unwrap(),
        1e-4,
    );
    let said = fails(d, &["eval", "recipe.toml", "--generate"], 2);
    says(&said, &["--generate needs rows of their own", "--data"]);
}

/// Mean nll of some ids.
fn score(d: &Path, arguments: &[&str]) -> f64 {
    fs::write(d.join("ids.json"), "[3, 4, 5, 6, 7, 9]").unwrap();
    let fixed = [
        "score",
        "--ids",
        "ids.json",
        "--out",
        "s.safetensors",
        "--force",
    ];
    let result = succeeds(d, &[&fixed[..], arguments].concat());
    let value = result.get("value").unwrap_or(&result);
    value["mean_nll"].as_f64().unwrap()
}

/// Writes the model again with some tensors changed, under other names, or left out.
fn rewrite(from: &Path, to: &Path, config: &Value, edit: impl Fn(&str) -> Option<(String, f32)>) {
    let source = ModelSource::open(from).unwrap();
    let kept: Vec<_> = source
        .tensor_names()
        .filter_map(|name| Some((name.to_owned(), edit(name)?)))
        .collect();
    let infos = kept.iter().map(|(name, (renamed, _))| {
        let mut info = source.tensor_info(name).unwrap().clone();
        info.name.clone_from(renamed);
        info
    });
    let mut writer = HfDirWriter::create(to, infos.collect(), Existing::Replace).unwrap();
    for (name, bytes) in source.companion_files().unwrap() {
        let bytes = if name == "config.json" {
            config.to_string().into_bytes()
        } else {
            bytes
        };
        writer.companion(&name, &bytes).unwrap();
    }
    for (name, (renamed, factor)) in &kept {
        let values = source.read_f32(name).unwrap();
        let bytes = values
            .iter()
            .flat_map(|value| (value * factor).to_le_bytes());
        writer.write(renamed, &bytes.collect::<Vec<u8>>()).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn a_head_that_differs_from_the_embedding_is_the_head() {
    let root = tempfile::tempdir().unwrap();
    let d = root.path();
    tiny::model(&d.join("model"));
    fs::remove_file(d.join("model/tokenizer.json")).unwrap();
    let config = fs::read(d.join("model/config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    let untied = score(d, &["--model", "model"]);
    config["tie_word_embeddings"] = true.into();
    let same = |name: &str| Some((name.to_owned(), 1.0));
    rewrite(&d.join("model"), &d.join("tied"), &config, same);
    close(score(d, &["--model", "tied"]), untied, 1e-9);
    let said = backdraft(
        d,
        &[
            "score", "--model", "tied", "--ids", "ids.json", "--out", "x",
        ],
    );
    says(
        &String::from_utf8_lossy(&said.stderr),
        &["config.json", "lm_head.weight differs"],
    );
    // What is written of it says the same of itself.
    succeeds(d, &["quantize", "--model", "tied", "--out", "q"]);
    let written: Value =
        serde_json::from_slice(&fs::read(d.join("q/config.json")).unwrap()).unwrap();
    assert_eq!(written["tie_word_embeddings"], false);
    rewrite(&d.join("model"), &d.join("plain"), &config, |name| {
        (name != "lm_head.weight").then(|| (name.to_owned(), 1.0))
    });
    assert!((score(d, &["--model", "plain"]) - untied).abs() > 1e-3);
    // A decoder alone, as AutoModel saves it.
    rewrite(&d.join("plain"), &d.join("bare"), &config, |name| {
        Some((name.trim_start_matches("model.").to_owned(), 1.0))
    });
    close(
        score(d, &["--model", "bare"]),
        score(d, &["--model", "plain"]),
        1e-9,
    );
}

#[test]
fn files_that_contradict_each_other_are_named() {
    let root = tempfile::tempdir().unwrap();
    let d = root.path();
    tiny::model(&d.join("model"));
    fs::write(d.join("ids.json"), "[3, 4]").unwrap();
    let original: Value =
        serde_json::from_slice(&fs::read(d.join("model/config.json")).unwrap()).unwrap();
    let refused = |config: &Value, command: &str| {
        fs::write(d.join("model/config.json"), config.to_string()).unwrap();
        let arguments: &[&str] = match command {
            "score" => &[
                "score", "--model", "model", "--ids", "ids.json", "--out", "x",
            ],
            "quantize" => &["quantize", "--model", "model", "--out", "y"],
            _ => &["inspect", "model"],
        };
        fails(d, arguments, 1)
    };
    for (key, value, tensor) in [
        ("vocab_size", json!(300), "model.embed_tokens.weight"),
        ("hidden_size", json!(128), "model.embed_tokens.weight"),
        ("intermediate_size", json!(64), "mlp.gate_proj.weight"),
        ("head_dim", json!(32), "self_attn.q_proj.weight"),
        ("num_key_value_heads", json!(4), "self_attn.k_proj.weight"),
        ("num_hidden_layers", json!(3), "model.layers.2."),
        ("num_hidden_layers", json!(1), "model.layers.1."),
        ("attention_bias", json!(true), "self_attn.q_proj.bias"),
        ("mlp_bias", json!(true), "mlp.gate_proj.bias"),
    ] {
        let mut config = original.clone();
        config[key] = value;
        for command in ["score", "quantize", "inspect"] {
            says(&refused(&config, command), &["config.json", tensor]);
        }
    }
    let mut config = original.clone();
    config["head_dim"] = Value::Null;
    config["num_attention_heads"] = 5.into();
    says(
        &refused(&config, "score"),
        &["config.json", "hidden_size", "num_attention_heads"],
    );
    assert!(!d.join("y").exists());
    fs::write(d.join("model/config.json"), original.to_string()).unwrap();
    let index = d.join("model/model.safetensors.index.json");
    change(&index, |index| {
        index["weight_map"]["model.layers.9.x"] = "model-00001-of-00002.safetensors".into();
    });
    says(
        &refused(&original, "score"),
        &["index.json", "model.layers.9.x", "00001"],
    );
    change(&index, |index| {
        let map = index["weight_map"].as_object_mut().unwrap();
        map.remove("model.layers.9.x");
        index["weight_map"]["a"] = "model-00003.safetensors".into()
    });
    says(
        &refused(&original, "score"),
        &["index.json", "model-00003.safetensors"],
    );
}

#[test]
fn adapters_in_other_spellings_are_the_same_adapter() {
    let (_root, d) = odd_project("max_steps = 3\nwarmup_steps = 1\neval_steps = 3\n");
    let d = d.as_path();
    succeeds(d, &["train", "recipe.toml"]);
    let base = score(d, &["--model", "model"]);
    let with = |adapter: &str| score(d, &["--model", "model", "--adapter", adapter]);
    let expected = with("out");
    assert!((base - expected).abs() > 1e-4);
    let copy = |rename: &dyn Fn(&str) -> String| {
        let to = d.join("other");
        let _ = fs::remove_dir_all(&to);
        fs::create_dir(&to).unwrap();
        fs::copy(
            d.join("out/adapter/adapter_config.json"),
            to.join("adapter_config.json"),
        )
        .unwrap();
        let from = SafetensorsFile::open(d.join("out/adapter/adapter_model.safetensors")).unwrap();
        let infos = from.tensors().map(|info| {
            let mut info = info.clone();
            info.name = rename(&info.name);
            info
        });
        let path = to.join("adapter_model.safetensors");
        let mut writer = SafetensorsWriter::create(path, infos, Existing::Refuse).unwrap();
        for info in from.tensors() {
            writer
                .write(&rename(&info.name), &from.raw(&info.name).unwrap().bytes)
                .unwrap();
        }
        writer.finish().unwrap();
    };
    let spellings: [&dyn Fn(&str) -> String; 4] = [
        &|name| name.replace(".weight", ".default.weight"),
        &|name| name.replace("base_model.model.", ""),
        &|name| name.replace("base_model.model.model.", "base_model.model."),
        &|name| format!("_orig_mod.{name}"),
    ];
    for spelling in spellings {
        copy(spelling);
        close(with("other"), expected, 1e-9);
    }
    // Another α by pattern, and one for each module by name, make the same scale.
    let config = d.join("other/adapter_config.json");
    change(&config, |config| {
        config["lora_alpha"] = 1.into();
        config["alpha_pattern"] = json!({"q_proj": 64, "layers\\.1\\.mlp\\..*": 64});
    });
    close(with("other"), expected, 1e-9);
    let merge = [
        "merge",
        "--model",
        "model",
        "--adapter",
        "other",
        "--out",
        "merged",
    ];
    succeeds(d, &merge);
    close(score(d, &["--model", "merged"]), expected, 1e-5);
    // One for another base is refused before anything is written, by module and both shapes.
    change(&config, |config| {
        config["base_model_name_or_path"] = "org/larger".into()
    });
    copy(&|name| name.replace("layers.1.", "layers.7."));
    let merge = [
        "merge",
        "--model",
        "model",
        "--adapter",
        "other",
        "--out",
        "never",
    ];
    let said = fails(d, &merge, 1);
    says(&said, &["model.layers.7.", "2 layers"]);
    assert!(!d.join("never").exists());
    let said = fails(
        d,
        &["generate", "--model", "model", "--adapter", "other", "w3"],
        1,
    );
    says(&said, &["model.layers.7."]);
}

#[test]
fn paths_that_lead_nowhere_are_called_so() {
    let (_root, d) = odd_project(MORE);
    let d = d.as_path();
    let with = |model: &str| {
        let recipe = fs::read_to_string(d.join("recipe.toml")).unwrap();
        let recipe = recipe.replace("model = \"model\"", &format!("model = {model}"));
        fs::write(d.join("other.toml"), recipe).unwrap();
        fails(d, &["train", "other.toml"], 1)
    };
    says(
        &with("\"~/models/x\""),
        &["`~` is not expanded", "/models/x"],
    );
    says(
        &with("\"nope/\""),
        &["`model` is a path", "nope", "does not exist"],
    );
    says(
        &with("\"C:\\models\""),
        &["backslash begins an escape", "single quotes"],
    );
    fs::write(d.join("recipe.yml"), "model: model\n").unwrap();
    says(
        &fails(d, &["train", "recipe.yml"], 1),
        &["is YAML, and a recipe is TOML", "backdraft init"],
    );
    let said = fails(d, &["generate", "--model", "~/x", "hi"], 1);
    says(&said, &["expands ~ outside quotes only"]);
    let said = fails(d, &["generate", "hi"], 2);
    says(&said, &["no model is named", "--model"]);
    let said = fails(
        d,
        &["generate", "--model", "model", "--adapter", "nope", "hi"],
        1,
    );
    says(&said, &["nope does not exist"]);
    let said = fails(
        d,
        &["generate", "--model", "model", "--adapter", "model", "hi"],
        1,
    );
    says(
        &said,
        &["model holds no adapter", "output directory of a run"],
    );
}
