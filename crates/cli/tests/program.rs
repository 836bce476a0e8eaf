//! The program as a user runs it: exit codes, messages, files.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "program/settings.rs"]
mod settings;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

#[path = "program/adapters.rs"]
mod adapters;
#[path = "program/export.rs"]
mod export;
#[path = "program/families.rs"]
mod families;
#[path = "program/full.rs"]
mod full;
#[path = "program/notebook.rs"]
mod notebook;
#[path = "program/preferences.rs"]
mod preferences;
#[path = "program/push.rs"]
mod push;
#[path = "program/readers.rs"]
mod readers;
#[path = "program/rewards.rs"]
mod rewards;
#[path = "program/run.rs"]
mod run;
#[path = "program/schema.rs"]
mod schema;
#[path = "program/serve.rs"]
mod serve;
#[path = "program/tables.rs"]
mod tables;
#[path = "program/terminal.rs"]
mod terminal;
#[path = "program/tokens.rs"]
mod tokens;
#[path = "program/tune.rs"]
mod tune;
#[path = "program/whole.rs"]
mod whole;
#[path = "program/wrapped.rs"]
mod wrapped;

fn backdraft(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_backdraft"))
        .current_dir(directory)
        .args(arguments)
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HOME", directory)
        .env("XDG_CACHE_HOME", directory.join("cache"))
        .output()
        .unwrap()
}

/// Runs a command that must fail with `code`, and returns what it said.
#[track_caller]
fn fails(directory: &Path, arguments: &[&str], code: i32) -> String {
    let output = backdraft(directory, arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{said}");
    said.replace(&directory.display().to_string(), "DIR")
}

/// Runs a command that must succeed, and returns its last JSON line.
#[track_caller]
fn succeeds(directory: &Path, arguments: &[&str]) -> Value {
    let output = backdraft(directory, &[&["--json"], arguments].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let lines = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(lines.lines().last().unwrap()).unwrap()
}

#[track_caller]
fn says(said: &str, parts: &[&str]) {
    // Long lines are wrapped for the terminal.
    let flat = said.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in parts {
        assert!(flat.contains(part), "`{part}` is not in:\n{said}");
    }
}

/// SmolLM2's GGUF file, if this machine has it.
fn smollm2() -> Option<String> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let standard = cache.join("backdraft/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::var_os("BACKDRAFT_SMOLLM2").map_or(standard, PathBuf::from);
    if path.is_file() {
        return Some(path.display().to_string());
    }
    println!("nothing checked: there is no {}", path.display());
    None
}

const ROWS: &str = r#"{"messages":[{"role":"user","content":"One?"},{"role":"assistant","content":"Un."}]}
{"messages":[{"role":"user","content":"Two?"},{"role":"assistant","content":"Deux."}]}
{"messages":[{"role":"user","content":"Three?"},{"role":"assistant","content":"Trois."}]}
{"messages":[{"role":"user","content":"Four?"},{"role":"assistant","content":"Quatre."}]}
"#;

/// A directory with rows and a recipe for them.
fn project(model: &str, rows: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("rows.jsonl"), rows).unwrap();
    let recipe = format!(
        "model = {model:?}\noutput_dir = \"out\"\nmax_seq_length = 64\n[lora]\nrank = 4\nalpha = 8\n\
         dropout = 0.1\n[data]\ntrain = \"rows.jsonl\"\neval = \"rows.jsonl\"\n[train]\n\
         micro_batch_size = 1\ngrad_accumulation_steps = 2\nmax_steps = 4\nlearning_rate = 5e-3\n\
         lr_scheduler = \"linear\"\nwarmup_steps = 1\neval_steps = 2\nsave_steps = 2\n"
    );
    fs::write(directory.path().join("recipe.toml"), recipe).unwrap();
    directory
}

#[test]
fn a_wrong_recipe_is_one_error_with_every_problem() {
    let directory = project("m.gguf", ROWS);
    let path = directory.path().join("recipe.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        text.replace("rank = 4", "ranks = 4")
            .replace("alpha = 8", "alpha = -8"),
    )
    .unwrap();
    let said = fails(directory.path(), &["train", "recipe.toml"], 1);
    says(&said, &["ranks", "rank", "alpha", "hint:"]);
    assert!(!directory.path().join("out").exists());
}

#[test]
fn a_model_that_is_not_there_is_named() {
    let directory = project("nowhere/at-all", ROWS);
    let said = fails(directory.path(), &["train", "recipe.toml"], 1);
    says(&said, &["nowhere/at-all"]);
    let said = fails(
        directory.path(),
        &["generate", "--model", "m.gguf", "Hi"],
        1,
    );
    says(&said, &["m.gguf"]);
    let said = fails(directory.path(), &["generate", "Hi"], 2);
    says(&said, &["--model"]);
}

#[test]
fn a_file_that_only_claims_to_be_a_model_is_refused() {
    let directory = project("m.gguf", ROWS);
    for bytes in [
        &b"GGUF"[..],
        b"not a model",
        b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        fs::write(directory.path().join("m.gguf"), bytes).unwrap();
        let said = fails(directory.path(), &["train", "recipe.toml"], 1);
        says(&said, &["m.gguf"]);
    }
}

#[test]
fn broken_rows_are_named_by_line() {
    let Some(model) = smollm2() else { return };
    let broken = ROWS.replace("\"Deux.\"", "\"Deux.");
    let directory = project(&model, &broken);
    let said = fails(directory.path(), &["train", "recipe.toml"], 1);
    says(&said, &["rows.jsonl", "2"]);
    let silent = r#"{"messages":[{"role":"user","content":"Nobody answers"}]}"#;
    let directory = project(&model, silent);
    let said = fails(directory.path(), &["train", "recipe.toml"], 1);
    says(&said, &["rows.jsonl"]);
    assert!(!directory.path().join("out").exists());
}

#[test]
fn a_run_is_repeatable_and_what_it_leaves_can_be_used() {
    let Some(model) = smollm2() else { return };
    let directory = project(&model, ROWS);
    let d = directory.path();
    let first = succeeds(d, &["train", "recipe.toml"]);
    let last = fs::read_to_string(d.join("out/metrics.jsonl")).unwrap();
    let losses: Vec<f64> = last
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64())
        .collect();
    assert_eq!(losses.len(), 4);
    assert!(losses[3] < losses[0], "{losses:?}");
    assert!(first["best_eval_loss"].as_f64().unwrap() < losses[0]);
    assert!(d.join("out/checkpoints/step-000004/state.json").is_file());

    // An output directory that holds a run is not touched.
    let said = fails(d, &["train", "recipe.toml"], 1);
    says(&said, &["already holds a run", "--force"]);

    // The same seed gives the same bits.
    succeeds(d, &["train", "recipe.toml", "--output-dir", "again"]);
    let bytes =
        |run: &str| fs::read(d.join(run).join("adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(bytes("out"), bytes("again"));

    // Merged weights say what base and adapter say together.
    let merged = succeeds(
        d,
        &[
            "merge",
            "--model",
            &model,
            "--adapter",
            "out/adapter",
            "--out",
            "merged",
        ],
    );
    assert_eq!(merged["merged"], 210);
    fs::write(
        d.join("ids.json"),
        "[1, 4093, 198, 3198, 47, 2, 198, 1, 520, 9531, 198]",
    )
    .unwrap();
    let score = |model: &str, extra: &[&str], out: &str| {
        let arguments = [
            &["score", "--model", model, "--ids", "ids.json", "--out", out],
            extra,
        ]
        .concat();
        succeeds(d, &arguments)["mean_nll"].as_f64().unwrap()
    };
    let adapted = score(&model, &["--adapter", "out/adapter"], "a.safetensors");
    let together = score("merged", &[], "b.safetensors");
    let base = score(&model, &[], "c.safetensors");
    assert!(
        (adapted - together).abs() < 1e-4,
        "{adapted} and {together}"
    );
    assert!((adapted - base).abs() > 1e-3, "{adapted} and {base}");
    let said = fails(
        d,
        &[
            "score",
            "--model",
            &model,
            "--ids",
            "ids.json",
            "--out",
            "a.safetensors",
        ],
        1,
    );
    says(&said, &["a.safetensors", "--force"]);
}

#[test]
fn a_model_in_four_bits_is_written_trained_over_and_merged() {
    let Some(model) = smollm2() else { return };
    let directory = project(&model, ROWS);
    let d = directory.path();
    let wrong = [
        &["quantize", "--model", &model, "--out", "q"][..],
        &["--format", "int8", "--double-quant"],
    ];
    says(&fails(d, &wrong.concat(), 2), &["--double-quant", "4 bits"]);
    let written = succeeds(
        d,
        &[
            "quantize",
            "--model",
            &model,
            "--out",
            "q",
            "--double-quant",
        ],
    );
    assert_eq!(written["quantized"], 210);
    assert!((written["bits_per_weight"].as_f64().unwrap() - 4.127).abs() < 2e-3);
    let said = fails(d, &["quantize", "--model", &model, "--out", "q"], 1);
    says(&said, &["q", "--force"]);
    let seen = String::from_utf8(backdraft(d, &["inspect", "q"]).stdout).unwrap();
    says(&seen, &["nf4", "4.1"]);

    // Quantised while it is read, or read as it was quantised: the same codes, so the same bits.
    let train = |model: &str, more: &[&str], out: &str| {
        let model = format!("model={model:?}");
        let fixed = ["train", "recipe.toml", "--set", &model, "--output-dir", out];
        let done = succeeds(
            d,
            &[
                &fixed[..],
                &["--set", "train.optimizer=\"adamw_8bit\""],
                more,
            ]
            .concat(),
        );
        assert!(done["final_loss"].as_f64().unwrap().is_finite());
        fs::read(d.join(out).join("adapter/adapter_model.safetensors")).unwrap()
    };
    let loaded = train(&model, &["--set", "load_in_4bit=true"], "out");
    assert_eq!(loaded, train("q", &[], "stored"));

    let merge = |base: &str, out: &str| {
        let fixed = [
            "merge",
            "--model",
            &model,
            "--adapter",
            "out/adapter",
            "--kl-data",
            "rows.jsonl",
        ];
        succeeds(d, &[&fixed[..], &["--base", base, "--out", out]].concat())
    };
    // What was trained over the codes is itself again on the codes' values, and another on the file's.
    let exact = merge("dequantized", "on-codes");
    assert_eq!(exact["merged"], 210);
    let (near, far) = (&exact["mean_kl"], &merge("original", "on-file")["mean_kl"]);
    assert!(near.as_f64().unwrap() < 1e-6, "{near}");
    assert!(far.as_f64().unwrap() > 1e-2, "{far}");
    let said = fails(
        d,
        &[
            "merge",
            "--model",
            &model,
            "--adapter",
            "out/adapter",
            "--out",
            "on-file",
        ],
        1,
    );
    says(&said, &["on-file", "--force"]);
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_with_its_rows() {
    let Some(model) = smollm2() else { return };
    let directory = project(&model, ROWS);
    let wild = [
        "train",
        "recipe.toml",
        "--set",
        "train.learning_rate=1e30",
        "--set",
    ];
    let said = fails(
        directory.path(),
        &[&wild[..], &["train.max_grad_norm=0"]].concat(),
        1,
    );
    says(&said, &["step", "rows.jsonl", "lines ", "hint:"]);
    assert!(!directory.path().join("out/adapter").exists());
}

#[test]
fn rows_are_checked_and_shown_before_they_are_trained_on() {
    let Some(model) = smollm2() else { return };
    let directory = project(&model, ROWS);
    let d = directory.path();
    let run = |arguments: &[&str]| {
        let output = backdraft(d, arguments);
        let said = String::from_utf8(output.stdout).unwrap();
        (
            output.status.code(),
            said.replace(&d.display().to_string(), "DIR"),
        )
    };
    let (code, said) = run(&["data", "check", "recipe.toml"]);
    assert_eq!(code, Some(0), "{said}");
    says(
        &said,
        &[
            "the first 4 rows have messages",
            "padding-free",
            "no problems",
            "4 held-out rows are also",
        ],
    );
    let (code, said) = run(&[
        "data",
        "preview",
        "rows.jsonl",
        "--model",
        &model,
        "--rows",
        "1",
        "--ids",
    ]);
    assert_eq!(code, Some(0), "{said}");
    says(
        &said,
        &[
            "One?<|im_end|>",
            "⟦Un.<|im_end|>⟧",
            "ids: 1 ",
            "lengths in tokens",
            "cache made",
        ],
    );
    let page = ["data", "preview", "recipe.toml", "--html", "page.html"];
    assert_eq!(run(&page).0, Some(0));
    let text = fs::read_to_string(d.join("page.html")).unwrap();
    assert!(
        text.contains("<mark>Trois.&lt;|im_end|&gt;</mark>"),
        "{text}"
    );
    says(&fails(d, &page, 1), &["page.html", "--force"]);

    // Broken rows are all named, and listed where they are skipped; they stay problems.
    fs::write(d.join("rows.jsonl"), format!("{ROWS}nonsense\n")).unwrap();
    let (code, said) = run(&["data", "check", "recipe.toml"]);
    assert_eq!(code, Some(1), "{said}");
    says(&said, &["rows.jsonl, line 5", "broken JSON"]);
    let skipped = "skipped_rows.jsonl";
    assert!(!d.join(skipped).exists());
    let check = ["data", "check", "recipe.toml", "--skip-bad-rows", "3"];
    let (code, said) = run(&[check.as_slice(), &["--skipped", skipped]].concat());
    assert_eq!(code, Some(1), "{said}");
    says(
        &said,
        &[
            "1 skipped as broken",
            "rows.jsonl, line 5",
            "skipped_rows.jsonl",
        ],
    );
    let listed = fs::read_to_string(d.join("skipped_rows.jsonl")).unwrap();
    assert!(listed.contains("\"line\":5"), "{listed}");
    says(&fails(d, &["data", "check", "rows.jsonl"], 2), &["--model"]);
}

#[test]
fn sources_are_mixed_packed_and_trained_with_another_template() {
    let Some(model) = smollm2() else { return };
    let directory = project(&model, ROWS);
    let d = directory.path();
    fs::write(
        d.join("more.csv"),
        "question,answer\nFive?,Cinq.\nSix?,Six.\n",
    )
    .unwrap();
    fs::create_dir(d.join("texts")).unwrap();
    fs::write(d.join("texts/a.txt"), "Sept, huit, neuf.").unwrap();
    fs::write(d.join("bad.jsonl"), "{\"text\": \"dix\"}\n{\"txt\": 1}\n").unwrap();
    let path = d.join("recipe.toml");
    let recipe = fs::read_to_string(&path).unwrap();
    let sources = "train = [\"rows.jsonl\", { path = \"more.csv\", weight = 2, fields = { instruction = \"question\", \
                   output = \"answer\" } }, \"texts\", \"bad.jsonl\"]\nbatching = \"packed\"\nchat_template = \"alpaca\"\n\
                   skip_bad_rows = 1";
    let recipe = recipe
        .replace("train = \"rows.jsonl\"", sources)
        .replace("eval = \"rows.jsonl\"", "eval = 0.2");
    fs::write(&path, &recipe).unwrap();
    let train = |out: &str| {
        let arguments = ["--json", "train", "recipe.toml", "--output-dir", out];
        let output = backdraft(d, &arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        let lines = String::from_utf8(output.stdout).unwrap();
        let data: Value = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .find(|line: &Value| line["event"] == "data")
            .unwrap();
        data
    };
    let check = train("out");
    let formats: Vec<&str> = check["sources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|source| {
            source["format"]
                .as_str()
                .unwrap()
                .split(' ')
                .nth(1)
                .unwrap()
        })
        .collect();
    assert_eq!(
        formats,
        ["\"messages\"", "\"alpaca\"", "\"text\"", "\"text\""]
    );
    assert_eq!(check["eval_rows"]["rows"], 2);
    assert_eq!(check["train_rows"]["rows"], 6);
    let density = &check["density"];
    assert!(density["packs"].as_u64().unwrap() < density["rows"].as_u64().unwrap());
    assert_eq!(check["cache"][0]["hit"], false);
    let skipped = fs::read_to_string(d.join("out/skipped_rows.jsonl")).unwrap();
    assert!(skipped.contains("\"line\":2"), "{skipped}");
    // The same rows come from the cache, and make the same bits.
    assert_eq!(train("again")["cache"][0]["hit"], true);
    let bytes =
        |run: &str| fs::read(d.join(run).join("adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(bytes("out"), bytes("again"));
    // The template goes with the adapter, and with what is made of it.
    let template = fs::read_to_string(d.join("out/adapter/chat_template.jinja")).unwrap();
    assert!(template.contains("### Response:"), "{template}");
    let merge = [
        "merge",
        "--model",
        &model,
        "--adapter",
        "out/adapter",
        "--out",
        "merged",
    ];
    succeeds(d, &merge);
    assert_eq!(
        fs::read_to_string(d.join("merged/chat_template.jinja")).unwrap(),
        template
    );

    let foreign = [
        "train",
        "recipe.toml",
        "--set",
        "data.chat_template=llama3",
        "--output-dir",
        "no",
    ];
    says(
        &fails(d, &foreign, 1),
        &["<|eot_id|>", "another family", "hint:"],
    );
    assert!(!d.join("no").exists());
}
