//! Rows in every shape, caches that cannot be written, and folders that hold more than results.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use backdraft_testkit::tiny;

use super::{backdraft, fails, says, succeeds};

const STEPS: &str = "max_steps = 2\nsave_steps = 1\n";
const TEMPLATE: &str = "data.prompt_template=\"w3 {instruction} w4 {output}\"";

fn project() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    tiny::project(directory.path(), STEPS);
    directory
}

/// Runs with `input` on standard input, and with `home` as the only place for caches.
fn with_input(directory: &Path, home: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_backdraft"))
        .current_dir(directory)
        .args(arguments)
        .env("HF_HUB_OFFLINE", "1")
        .env_remove("XDG_CACHE_HOME")
        .env("HOME", home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    match stdin.write_all(input.as_bytes()) {
        // It had refused before it was told anything; what it said is looked at.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written.unwrap(),
    }
    drop(stdin);
    child.wait_with_output().unwrap()
}

#[track_caller]
fn said(output: &Output, code: i32) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let said = format!("{}\n{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

#[test]
fn a_check_names_every_kind_of_bad_row() {
    let directory = project();
    let d = directory.path();
    let good = "{\"instruction\":\"w5\",\"output\":\"w6\"}\n";
    let rows = format!(
        "{good}{{\"instruction\":\n{good}{{\"instruction\":\"w5\",\"output\":7}}\n{{\"question\":\"w5\"}}\n\
         {good}{{\"instruction\":\"w5\",\"output\":8}}\n"
    );
    fs::write(d.join("rows.jsonl"), rows).unwrap();
    let check = [
        "data",
        "check",
        "rows.jsonl",
        "--model",
        "model",
        "--set",
        TEMPLATE,
    ];
    let output = backdraft(d, &check);
    says(
        &said(&output, 1).replace(&format!("{}/", d.display()), ""),
        &[
            "7 rows read, 3 usable",
            "problem: 4 rows cannot be used",
            "1 row: broken JSON rows.jsonl, line 2:",
            "2 rows: field `output`: expected a string rows.jsonl, line 4, field `output`: expected a string, found the number 7 rows.jsonl, line 7,",
            "1 row: field `instruction`: expected a string rows.jsonl, line 5,",
            "--skip-bad-rows 4",
        ],
    );
    let json = backdraft(d, &[check.as_slice(), &["--json"]].concat());
    says(
        &said(&json, 1),
        &[
            "\"problems\":[\"1 row: broken JSON; first: ",
            "\"2 rows: field `output`: expected a string; first: ",
        ],
    );
    let skipping = [
        check.as_slice(),
        &["--skip-bad-rows", "4", "--skipped", "list"],
    ]
    .concat();
    says(
        &said(&backdraft(d, &skipping), 1),
        &["4 skipped as broken", "list"],
    );
    assert_eq!(
        fs::read_to_string(d.join("list")).unwrap().lines().count(),
        4
    );
    assert!(!d.join("skipped_rows.jsonl").exists());
    // A row of another format ends no check, and neither does a first row that is broken.
    let stray =
        format!("nope\n{good}{{\"messages\":[{{\"role\":\"user\",\"content\":\"w5\"}}]}}\n{good}");
    fs::write(d.join("stray.jsonl"), stray).unwrap();
    let mut strays = check;
    strays[2] = "stray.jsonl";
    says(
        &said(&backdraft(d, &strays), 1),
        &[
            "4 rows read, 2 usable",
            "1 row: broken JSON",
            "1 row: field `instruction`: expected a string",
            "(the keys are `messages`)",
        ],
    );
    fs::write(d.join("none.jsonl"), "{'a': 1}\n{'a': 2}\n").unwrap();
    let none = ["data", "check", "none.jsonl", "--model", "model"];
    says(
        &said(&backdraft(d, &none), 1),
        &["2 rows: broken JSON", "--skip-bad-rows 2"],
    );
    let preview = [&["data", "preview"], &check[2..]].concat();
    says(
        &said(&backdraft(d, &preview), 1),
        &["⟦ w6", "4 rows cannot be used"],
    );
}

#[test]
fn names_of_columns_are_suggested() {
    let directory = project();
    let d = directory.path();
    fs::write(d.join("rows.csv"), "id,Question,Answer\r\n1,w5,w6\r\n").unwrap();
    let line = "fields = { instruction = \"Question\", output = \"Answer\" }";
    let check = [
        "data", "check", "rows.csv", "--model", "model", "--set", TEMPLATE,
    ];
    says(&fails(d, &check, 1), &["rows.csv, line 2", line]);
    let named = [check.as_slice(), &["--format", "alpaca"]].concat();
    says(&said(&backdraft(d, &named), 1), &[line]);
    let set = "data.fields={ instruction = \"Question\", output = \"Answer\" }";
    let set = [check.as_slice(), &["--set", set]].concat();
    says(&said(&backdraft(d, &set), 0), &["no problems"]);
}

#[cfg(unix)]
#[test]
fn rows_come_through_a_pipe() {
    let directory = project();
    let d = directory.path();
    let rows = fs::read_to_string(d.join("train.jsonl")).unwrap();
    for command in ["check", "preview"] {
        let arguments = [
            "data",
            command,
            "/dev/stdin",
            "--model",
            "model",
            "--set",
            TEMPLATE,
        ];
        says(&said(&with_input(d, d, &arguments, &rows), 0), &["24 rows"]);
    }
    let bad = format!("{rows}nope\n");
    let arguments = [
        "data",
        "check",
        "/dev/stdin",
        "--model",
        "model",
        "--set",
        TEMPLATE,
    ];
    says(
        &said(&with_input(d, d, &arguments, &bad), 1),
        &["25 rows read, 24 usable", "/dev/stdin, line 25"],
    );
    let train = ["train", "recipe.toml", "--set", "data.train=\"/dev/stdin\""];
    says(&said(&with_input(d, d, &train, &rows), 0), &["24 rows"]);
    let eval = [
        "eval",
        "--model",
        "model",
        "--adapter",
        "out/adapter",
        "--data",
        "/dev/stdin",
        "--generate",
        "--max-new-tokens",
        "2",
    ];
    let text = "{\"instruction\":\"w5\",\"output\":\"w6\"}\n".repeat(3);
    said(&with_input(d, d, &eval, &text), 0);

    // The same answers, kept.
    let kept = [&eval[..], &["--answers", "answers.jsonl"]].concat();
    said(&with_input(d, d, &kept, &text), 0);
    let answers = fs::read_to_string(d.join("answers.jsonl")).unwrap();
    let answers: Vec<serde_json::Value> = answers
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), 3);
    for (at, answer) in answers.iter().enumerate() {
        assert_eq!(answer["line"], at + 1);
        assert_eq!(answer["expected"], "w6");
        assert!(answer["prompt"].as_str().unwrap().contains("w5"));
        assert!(answer["base"].is_string() && answer["adapter"].is_string());
    }
    says(
        &said(&with_input(d, d, &kept, &text), 1),
        &["answers.jsonl", "--force"],
    );
    let over = [
        "eval",
        "--model",
        "model",
        "--data",
        "train.jsonl",
        "--generate",
    ];
    let over = [&over[..], &["--answers", "train.jsonl", "--force"]].concat();
    says(
        &said(&with_input(d, d, &over, ""), 1),
        &["train.jsonl is read by this command and is not replaced"],
    );
}

/// A home that is a file, as of a user that a container does not know.
#[test]
fn no_place_for_a_cache_is_a_warning() {
    let directory = project();
    let d = directory.path();
    let home = d.join("home");
    fs::write(&home, "mine").unwrap();
    let check = [
        "data",
        "check",
        "train.jsonl",
        "--model",
        "model",
        "--set",
        TEMPLATE,
    ];
    says(
        &said(&with_input(d, &home, &check, ""), 0),
        &["warning: tokenised rows are not kept", "no problems"],
    );
    let train = ["train", "recipe.toml", "--set", "data.cache=\"auto\""];
    let output = with_input(d, &home, &train, "");
    says(&said(&output, 0), &["warning: tokenised rows are not kept"]);
    assert!(d.join("out/adapter/adapter_model.safetensors").is_file());
    assert_eq!(fs::read_to_string(home).unwrap(), "mine");
}

#[test]
fn force_takes_away_only_what_the_command_writes() {
    let directory = project();
    let d = directory.path();
    succeeds(d, &["train", "recipe.toml"]);
    let merge = [
        "merge",
        "--model",
        "model",
        "--adapter",
        "out/adapter",
        "--out",
        "merged",
    ];
    let quantize = ["quantize", "--model", "model", "--out", "quantized"];
    let mine = [
        ".git/HEAD",
        "data/train.jsonl",
        "notes.md",
        "adapter_notes/x",
    ];
    for (arguments, out) in [(&merge[..], "merged"), (&quantize[..], "quantized")] {
        for name in mine {
            let path = d.join(out).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "mine").unwrap();
        }
        // Of another model, in two files.
        for name in [
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "vocab.json",
        ] {
            fs::write(d.join(out).join(name), "stale").unwrap();
        }
        says(&fails(d, arguments, 1), &[out, "--force"]);
        succeeds(d, &[arguments, &["--force"]].concat());
        for name in mine {
            assert_eq!(fs::read_to_string(d.join(out).join(name)).unwrap(), "mine");
        }
        let names: Vec<String> = fs::read_dir(d.join(out))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| {
                name.starts_with("model") || name.starts_with('.') || name == "vocab.json"
            })
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        // The model that was written is the one that is read.
        succeeds(d, &["inspect", out]);
    }
    fs::write(d.join("file"), "mine").unwrap();
    let file = ["quantize", "--model", "model", "--out", "file", "--force"];
    says(&fails(d, &file, 1), &["file is a file"]);
    for name in [
        "out/notes.md",
        "out/adapter/notes.md",
        "out/checkpoints/step-000001/notes.md",
        "out/data/x",
    ] {
        let path = d.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "mine").unwrap();
    }
    succeeds(d, &["train", "recipe.toml", "--force"]);
    for name in [
        "out/notes.md",
        "out/adapter/notes.md",
        "out/checkpoints/step-000001.set-aside/notes.md",
        "out/data/x",
    ] {
        assert_eq!(fs::read_to_string(d.join(name)).unwrap(), "mine", "{name}");
    }
    assert!(d.join("out/adapter/adapter_model.safetensors").is_file());
}

/// What is written must not take the place of what it is made of.
#[test]
fn a_result_does_not_replace_its_own_input() {
    let directory = project();
    let d = directory.path();
    succeeds(d, &["train", "recipe.toml"]);
    let weights = fs::read(d.join("model/model-00001-of-00002.safetensors")).unwrap();
    let quantize = [
        "quantize", "--model", "model", "--out", "./model", "--force",
    ];
    says(&fails(d, &quantize, 1), &["--out"]);
    let merge = [
        "merge",
        "--model",
        "model",
        "--adapter",
        "out/adapter",
        "--out",
        "out/adapter",
        "--force",
    ];
    says(&fails(d, &merge, 1), &["--out"]);
    assert_eq!(
        fs::read(d.join("model/model-00001-of-00002.safetensors")).unwrap(),
        weights
    );
    assert!(d.join("out/adapter/adapter_config.json").is_file());
}
