//! `push`: what is shown, asked and sent, against a hub on this machine.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use backdraft_testkit::tiny;
use serde_json::Value;

use super::says;

#[allow(dead_code)]
#[path = "../../../formats/src/hub/push/tests/fake.rs"]
mod fake;

use fake::{FakeHub, Repository, TOKEN};

/// A run over a model in a directory, whose adapter names the base by a path.
fn project() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    tiny::project(directory.path(), "max_steps = 4\neval_steps = 2\n");
    let card = "---\nlicense: apache-2.0\nlanguage:\n- en\n---\n# Tiny\n";
    fs::write(directory.path().join("model/README.md"), card).unwrap();
    let output = super::backdraft(directory.path(), &["train", "recipe.toml"]);
    assert!(output.status.success(), "{}", said(&output));
    directory
}

fn push(directory: &Path, hub: &FakeHub, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backdraft"));
    command
        .current_dir(directory)
        .arg("push")
        .args(arguments)
        .env_remove("HF_HUB_OFFLINE")
        .env("HF_ENDPOINT", &hub.endpoint)
        .env("HF_TOKEN", TOKEN)
        .env("HF_HOME", directory);
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

#[track_caller]
fn sends(directory: &Path, hub: &FakeHub, arguments: &[&str]) -> Value {
    let output = push(directory, hub, &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", said(&output));
    assert!(!said(&output).contains(TOKEN));
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[track_caller]
fn refuses(directory: &Path, hub: &FakeHub, arguments: &[&str], code: i32) -> String {
    let output = push(directory, hub, arguments);
    assert_eq!(output.status.code(), Some(code), "{}", said(&output));
    assert!(!said(&output).contains(TOKEN));
    said(&output)
}

const TO: [&str; 2] = ["--repo", "org/name"];

#[test]
fn nothing_is_sent_unasked() {
    let (directory, hub) = (project(), FakeHub::new());
    let d = directory.path();
    let record = sends(
        d,
        &hub,
        &["out", TO[0], TO[1], "--dry-run", "--base-model", "org/base"],
    );
    assert_eq!(
        (&record["dry_run"], &record["private"]),
        (&true.into(), &true.into())
    );
    let names: Vec<&str> = record["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["name"].as_str().unwrap())
        .collect();
    let adapter = [
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "trained_with.json",
        "README.md",
    ];
    assert_eq!(names, adapter);
    let card = record["card"].as_str().unwrap();
    for part in [
        "---\nbase_model: org/base\nbase_model_relation: adapter\nlibrary_name: peft\n",
        "license: apache-2.0\nlanguage:\n- en\n",
        "# name\n\nA LoRA adapter for [org/base](https://huggingface.co/org/base), made with [backdraft ",
        "AutoPeftModelForCausalLM.from_pretrained(\"org/name\")",
        "w3 {instruction} w4 {output}",
        "| trained on | 24 |",
        "| held out | 6 |",
        "| adapter | rank 64, alpha 64 |",
        "| steps | 4 of 4;",
        "| memory |",
        "| first | 2 |",
        "| 4 |",
        "model = \"model\"",
        "train = \"train.jsonl\"",
        "learning_rate = 0.005",
    ] {
        assert!(card.contains(part), "`{part}` is not in:\n{card}");
    }
    assert!(
        !card.contains(&d.display().to_string()) && !card.contains("output_dir"),
        "{card}"
    );

    let asked = refuses(d, &hub, &["out", TO[0], TO[1]], 2);
    says(&asked, &["nobody to ask here", "--yes", "--dry-run"]);
    assert!(hub.requests().is_empty());
    assert!(!d.join("out/adapter/README.md").exists());
}

#[test]
fn a_run_becomes_a_private_repository() {
    let (directory, hub) = (project(), FakeHub::new());
    let d = directory.path();
    let yes = ["out", TO[0], TO[1], "--yes"];
    let record = sends(d, &hub, &yes);
    assert_eq!(
        (&record["created"], &record["private"]),
        (&true.into(), &true.into())
    );
    assert_eq!(record["commit"], "commit-2");
    let files = hub.files("main");
    let read = |name: &str| fs::read(d.join("out/adapter").join(name)).unwrap();
    for name in [
        "adapter_config.json",
        "adapter_model.safetensors",
        "trained_with.json",
    ] {
        assert_eq!(files[name], read(name), "{name}");
    }
    assert_eq!(files.len(), 6);
    for request in hub.requests() {
        assert!(!String::from_utf8_lossy(&request.body).contains(TOKEN));
    }
    let again = push(d, &hub, &yes);
    says(
        &said(&again),
        &[
            "is on the hub already",
            "(replaces",
            "names the base by a path of this machine",
        ],
    );
    let record = sends(
        d,
        &hub,
        &[&yes[..], &["--base-model", "org/base", "--revision", "v2"]].concat(),
    );
    assert_eq!(
        (&record["created"], &record["present"]),
        (&false.into(), &1.into())
    );
    let config: Value = serde_json::from_slice(&hub.files("v2")["adapter_config.json"]).unwrap();
    assert_eq!(config["base_model_name_or_path"], "org/base");
    assert_eq!(
        read("adapter_config.json"),
        hub.files("main")["adapter_config.json"]
    );
}

#[test]
fn a_card_of_ones_own_is_sent_as_it_is() {
    let (directory, hub) = (project(), FakeHub::new());
    let d = directory.path();
    let scores = r#"{"nll":1.5,"perplexity":4.5,"tokens":12,"exact_match":0.25}"#;
    let line = format!(
        r#"{{"event":"evaluation","schema_version":1,"base":{scores},"adapter":{scores}}}"#
    );
    fs::write(d.join("eval.json"), line).unwrap();
    let write = [
        "out",
        TO[0],
        TO[1],
        "--write-card",
        "--evaluation",
        "eval.json",
    ];
    let path = sends(d, &hub, &write)["card"].as_str().unwrap().to_owned();
    let card = fs::read_to_string(d.join(&path)).unwrap();
    assert!(
        card.contains("| answers that match exactly | 25.0 % | 25.0 % |"),
        "{card}"
    );
    says(
        &refuses(d, &hub, &write, 1),
        &["exists, and is sent as it is"],
    );
    fs::write(d.join(&path), "# Mine\n").unwrap();
    sends(d, &hub, &["out/adapter", TO[0], TO[1], "--yes"]);
    assert_eq!(hub.files("main")["README.md"], b"# Mine\n");
}

#[test]
fn what_cannot_be_sent_is_said_before_anything_is() {
    let (directory, hub) = (project(), FakeHub::new());
    let d = directory.path();
    hub.state.lock().unwrap().repository = Some(Repository::new(false));
    let public = refuses(d, &hub, &["out", TO[0], TO[1], "--yes"], 1);
    says(&public, &["org/name is public", "--public"]);
    assert!(hub.requests().iter().all(|request| request.method == "GET"));
    sends(d, &hub, &["out", TO[0], TO[1], "--yes", "--public"]);
    hub.requests();

    let empty = d.join("empty");
    fs::create_dir(&empty).unwrap();
    fs::write(empty.join("rows.jsonl"), "{}").unwrap();
    let nothing = refuses(d, &hub, &["empty", TO[0], TO[1], "--yes"], 1);
    says(&nothing, &["holds no model to send", "rows.jsonl (rows)"]);
    says(
        &refuses(d, &hub, &["nowhere", TO[0], TO[1]], 1),
        &["nowhere"],
    );
    says(
        &refuses(d, &hub, &["out", "--repo", "name", "--yes"], 1),
        &["is no hub id"],
    );
    let twice = ["out", "--repo", "org/name@a", "--revision", "b", "--yes"];
    says(&refuses(d, &hub, &twice, 2), &["names a branch already"]);
    assert!(hub.requests().is_empty());

    let mut command = Command::new(env!("CARGO_BIN_EXE_backdraft"));
    command
        .current_dir(d)
        .args(["push", "out", TO[0], TO[1], "--yes"]);
    command
        .env_remove("HF_TOKEN")
        .env("HF_ENDPOINT", &hub.endpoint)
        .env("HF_HOME", d);
    fs::write(d.join("token"), "hf_of-another-program").unwrap();
    let output = command.env_remove("HF_HUB_OFFLINE").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    says(&said(&output), &["HF_TOKEN is not set", "/settings/tokens"]);
    let output = command.env("HF_HUB_OFFLINE", "1").output().unwrap();
    says(&said(&output), &["HF_HUB_OFFLINE forbids sending anything"]);
    assert!(hub.requests().is_empty());
}
