//! What the program says and when it stops, to people, programs, pipes and shells.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use backdraft_testkit::tiny;
use serde_json::Value;

use super::schema::Schema;
use super::serve::Serving;
use super::{backdraft, says, succeeds};

const STEPS: &str = "max_steps = 8\neval_steps = 4\nsave_steps = 4\n";

fn project() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    tiny::project(directory.path(), STEPS);
    directory
}

fn command(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backdraft"));
    command
        .current_dir(directory)
        .args(arguments)
        .env("HF_HUB_OFFLINE", "1")
        .env("XDG_CACHE_HOME", directory.join("cache"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Runs with `input` on standard input.
fn with_input(directory: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = command(directory, arguments)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

/// A chat template for the tiny model.
fn add_template(directory: &Path) {
    let template = "{% for m in messages %}{% if m.role == 'assistant' %}w4 {{ m.content }}{{ eos_token }}\
                    {% else %}w3 {{ m.content }} {% endif %}{% endfor %}{% if add_generation_prompt %}w4 {% endif %}";
    fs::write(directory.join("model/chat_template.jinja"), template).unwrap();
}

#[test]
fn every_json_line_is_as_the_page_says() {
    let directory = project();
    let d = directory.path();
    add_template(d);
    let mut schema = Schema::of_the_page();
    let mut run = |line: &str, code: i32| {
        let arguments: Vec<&str> = line.split(' ').chain(["--json"]).collect();
        let output = backdraft(d, &arguments);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{line}: {}",
            text(&output.stderr)
        );
        schema.check(text(&output.stdout));
        schema.check(text(&output.stderr));
    };
    fs::write(d.join("ids.json"), "[3, 4, 5]").unwrap();
    run("train recipe.toml", 0);
    run(
        "train --resume out --max-steps 9 --allow-change train.max_steps",
        0,
    );
    run("train --resume out", 0);
    run(
        "train recipe.toml --output-dir early --set train.eval_steps=1 --set train.max_steps=60 \
         --set train.learning_rate=0.05 --set train.early_stopping_patience=1",
        0,
    );
    run(
        "train recipe.toml --output-dir adaptive --set load_in_4bit=true --set quantization.bits=4.7 \
         --set lora.init=qera --set quantization.calibration_tokens=64 --max-steps 2",
        0,
    );
    run(
        "tune recipe.toml --set sweep.train.learning_rate=[1e-3,1e30] --max-lr 1",
        0,
    );
    run("tune recipe.toml --range-steps 12 --output-dir range", 0);
    run("watch out", 0);
    run("report out", 0);
    run("plan recipe.toml --sweep", 0);
    run(
        "plan recipe.toml --measure --write precision.json --set load_in_4bit=true --set quantization.bits=4.7",
        0,
    );
    run(
        "train recipe.toml --output-dir planned --set load_in_4bit=true --set quantization.plan=precision.json --max-steps 2",
        0,
    );
    run(
        "train recipe.toml --output-dir pissa --set lora.init=pissa --max-steps 2",
        0,
    );
    run("plan recipe.toml --set memory_budget=\"1KiB\"", 0);
    run("data check recipe.toml", 0);
    run("data preview recipe.toml --rows 2", 0);
    run("data preview recipe.toml --html page.html", 0);
    run("generate --model model --max-new-tokens 3 w5", 0);
    run(
        "eval --model model --adapter out/adapter --data train.jsonl --generate",
        0,
    );
    run(
        "score --model model --ids ids.json --out scores.safetensors",
        0,
    );
    run(
        "merge --model model --adapter out/adapter --out merged --kl-data train.jsonl",
        0,
    );
    run(
        "export --model model --adapter out/adapter --to gguf --adapter-only",
        0,
    );
    run("quantize --model model --out quantized", 0);
    run(
        "quantize --model model --out skipping --bits 8 --data train.jsonl",
        0,
    );
    for what in ["model", "out/adapter", "recipe.toml", "train.jsonl"] {
        run(&format!("inspect {what}"), 0);
    }
    run("init new.toml", 0);
    run("combine out/adapter early/adapter --out both", 0);
    run("init --templates", 0);
    run("doctor", 0);
    run("devices", 0);
    run("quickstart --model model --max-steps 2", 0);
    run("completions bash", 0);
    run("man --out man", 0);
    run("--version", 0);
    run("train --help", 0);
    run("train nowhere.toml", 1);
    run("train recipe.toml", 1);
    run("train recipe.toml --lr 1e-4", 2);
    run("push out --repo org/name --dry-run", 0);
    run("push out --repo org/name --write-card", 0);
    // The diagnosis of a short run may never change, its answers show nothing, and memory does not run out.
    let rare = ["diagnosis", "finding", "replanned", "warning"];
    let serving = Serving::start(d, &["--model", "model", "--adapter", "out"]);
    schema.check(&serving.line);
    serving.end();
    let unseen: Vec<&str> = schema
        .unseen()
        .into_iter()
        .filter(|event| !rare.contains(event))
        .collect();
    assert!(unseen.is_empty(), "never printed: {unseen:?}");
}

#[test]
fn usage_errors_are_json_wherever_the_flag_stands() {
    let directory = tempfile::tempdir().unwrap();
    for line in [
        "--json",
        "--json trian x",
        "train r.toml --lr 1e-4 --json",
        "--json train r.toml --max-steps nine",
        "train --json",
        "eval --json --model x",
        "generate --model m --json",
        "data --json",
        "--device cpu --json init",
        "init --device cpu --json",
        "--json merge --model",
        "completions --json tcsh",
        "watch a b --json",
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        let output = backdraft(directory.path(), &arguments);
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(output.stdout.is_empty(), "{line}");
        let error: Value =
            serde_json::from_slice(&output.stderr).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_eq!(
            (&error["event"], &error["exit_code"]),
            (&"error".into(), &2.into()),
            "{line}"
        );
        assert!(!error["error"].as_str().unwrap().is_empty(), "{line}");
        Schema::of_the_page().check(text(&output.stderr));
    }
}

#[test]
fn problems_of_a_recipe_are_a_list() {
    let directory = project();
    let wrong = [
        "--json",
        "train",
        "recipe.toml",
        "--set",
        "lora.rank=0",
        "--set",
        "sede=1",
    ];
    let output = backdraft(directory.path(), &wrong);
    assert_eq!(output.status.code(), Some(1));
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    let problems = error["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 2, "{error}");
    assert!(
        problems
            .iter()
            .any(|problem| problem.as_str().unwrap().contains("sede")),
        "{error}"
    );
    assert!(!error["error"].as_str().unwrap().contains('\n'), "{error}");
}

/// `… | head -1`: the run goes to its end, says no more and has its own exit code.
#[test]
fn a_reader_that_goes_away_changes_nothing() {
    let directory = project();
    let d = directory.path();
    for (json, out) in [("--plain", "a"), ("--json", "b")] {
        let mut child = command(d, &["train", "recipe.toml", json, "--output-dir", out])
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(
            !said.contains("error") && !said.contains("warning"),
            "{said}"
        );
        assert!(
            d.join(out)
                .join("adapter/adapter_model.safetensors")
                .is_file()
        );
    }
    // Results that are only printed: quietly, too.
    let mut child = command(d, &["init", "--templates", "--json"])
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_standard_output_does_not_fail_a_run() {
    let directory = project();
    let d = directory.path();
    let full = || {
        fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    let output = command(d, &["train", "recipe.toml"])
        .stdout(full())
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(
        said.matches("standard output cannot be written").count(),
        1,
        "{said}"
    );
    assert!(d.join("out/adapter/adapter_model.safetensors").is_file());
    // What was only to be printed is lost, and that is an error.
    let output = command(d, &["init", "--templates"])
        .stdout(full())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_recipe_that_lies_here_is_named() {
    let directory = project();
    let output = backdraft(directory.path(), &["train"]);
    assert_eq!(output.status.code(), Some(2));
    says(
        text(&output.stderr),
        &[
            "<RECIPE>",
            "tip: recipe.toml is in this directory: backdraft train recipe.toml",
        ],
    );
    let elsewhere = tempfile::tempdir().unwrap();
    assert!(!text(&backdraft(elsewhere.path(), &["train"]).stderr).contains("tip:"));
}

#[test]
fn the_version_is_short_or_tells_of_the_build() {
    let directory = tempfile::tempdir().unwrap();
    let said = |flag: &str| {
        let output = backdraft(directory.path(), &[flag]);
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let version = concat!("backdraft ", env!("CARGO_PKG_VERSION"));
    assert_eq!(said("-V"), format!("{version}\n"));
    let long = said("--version");
    assert!(long.starts_with(&format!("{version} (commit ")), "{long}");
    for part in ["backends", "cpu", "gpu", "threads", "cache"] {
        assert!(long.contains(part) || part == "threads", "{long}");
    }
}

#[test]
fn shells_and_man_have_every_command() {
    let directory = tempfile::tempdir().unwrap();
    let d = directory.path();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let output = backdraft(d, &["completions", shell]);
        assert!(output.status.success());
        let script = text(&output.stdout);
        for part in ["quickstart", "skip-bad-rows", "max-new-tokens"] {
            assert!(script.contains(part), "{shell}: {part}");
        }
    }
    let pages = succeeds(d, &["man", "--out", "pages"]);
    let pages: Vec<&str> = pages["pages"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for page in ["backdraft.1", "backdraft-train.1", "backdraft-data-check.1"] {
        assert!(pages.contains(&page), "{pages:?}");
    }
    let train = fs::read_to_string(d.join("pages/backdraft-train.1")).unwrap();
    assert!(
        train.contains(".SH EXAMPLES") || train.contains("backdraft train recipe.toml"),
        "{train}"
    );
}

#[test]
fn a_prompt_comes_from_the_line_a_pipe_or_a_file() {
    let directory = project();
    let d = directory.path();
    add_template(d);
    let model = [
        "--json",
        "generate",
        "--model",
        "model",
        "--max-new-tokens",
        "4",
    ];
    let ids = |output: Output| {
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["ids"].clone()
    };
    let expected = ids(backdraft(d, &[&model[..], &["w7 w8"]].concat()));
    assert_eq!(
        ids(with_input(d, &[&model[..], &["-"]].concat(), "w7 w8\n")),
        expected
    );
    fs::write(d.join("prompt.txt"), "w7 w8\r\n").unwrap();
    assert_eq!(
        ids(backdraft(
            d,
            &[&model[..], &["--prompt-file", "prompt.txt"]].concat()
        )),
        expected
    );
    assert_eq!(
        with_input(d, &[&model[..], &["-"]].concat(), " \n")
            .status
            .code(),
        Some(1)
    );
    let output = backdraft(d, &[&model[..], &["--prompt-file", "none.txt"]].concat());
    assert_eq!(output.status.code(), Some(1));
    says(text(&output.stderr), &["none.txt"]);
    let both = backdraft(
        d,
        &[&model[..], &["w7", "--prompt-file", "prompt.txt"]].concat(),
    );
    assert_eq!(both.status.code(), Some(2));
}

#[test]
fn a_chat_ends_by_word_or_with_its_input() {
    let directory = project();
    let d = directory.path();
    add_template(d);
    let chat = [
        "generate",
        "--model",
        "model",
        "--max-new-tokens",
        "3",
        "--chat",
        "--json",
    ];
    for (input, answers) in [
        ("w5\nw6\n/exit\nw7\n", 2),
        ("w5\n/quit\n", 1),
        ("w5\n\nw6\n", 1),
        ("w5\nw6", 2),
        ("", 0),
    ] {
        let output = with_input(d, &chat, input);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout).lines().count(), answers, "{input:?}");
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_at_the_prompt_of_a_chat_ends_it() {
    let directory = project();
    let d = directory.path();
    add_template(d);
    let chat = [
        "generate",
        "--model",
        "model",
        "--max-new-tokens",
        "3",
        "--chat",
    ];
    let mut child = command(d, &chat).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap());
    input.write_all(b"w5\n").unwrap();
    // The prompt, the answer, and the next prompt.
    let mut line = Vec::new();
    said.read_until(b'\n', &mut line).unwrap();
    said.read_until(b'>', &mut line).unwrap();
    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &id])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_quickstart_can_be_repeated() {
    let directory = project();
    let d = directory.path();
    add_template(d);
    let quickstart = ["quickstart", "--model", "model", "--max-steps", "2"];
    let place = |more: &[&str]| {
        let done = succeeds(d, &[&quickstart[..], more].concat());
        let place = done["output_dir"].as_str().unwrap().to_owned();
        let recipe = fs::read_to_string(Path::new(&place).join("recipe.toml")).unwrap();
        assert!(recipe.contains("max_steps = 2"), "{recipe}");
        Path::new(&place)
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(place(&[]), "backdraft-quickstart");
    // A finished one is left alone.
    assert_eq!(place(&[]), "backdraft-quickstart-2");
    // One that was stopped before its end is resumed.
    fs::remove_file(d.join("backdraft-quickstart-2/answers.jsonl")).unwrap();
    let output = backdraft(d, &quickstart);
    says(
        text(&output.stdout),
        &["resuming the quickstart in", "resumed at step 2"],
    );
    assert!(d.join("backdraft-quickstart-2/answers.jsonl").is_file());
    assert_eq!(place(&["--force"]), "backdraft-quickstart");
    let output = backdraft(
        d,
        &[&quickstart[..], &["--output-dir", "backdraft-quickstart"]].concat(),
    );
    assert_eq!(output.status.code(), Some(1));
    says(
        text(&output.stderr),
        &["has finished", "--output-dir", "--force"],
    );
}
