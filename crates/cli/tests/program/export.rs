//! `export`: files that answer as the trained model does.

use std::fs;
use std::path::Path;

use backdraft_testkit::{byte_level, tiny};
use serde_json::Value;

use super::{backdraft, fails, says, succeeds};

/// A tiny project whose model splits text into bytes, as llama.cpp can.
fn project() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    tiny::project(directory.path(), "max_steps = 4\n");
    let path = directory.path().join("model/tokenizer.json");
    fs::write(path, byte_level::tokenizer().to_string()).unwrap();
    let train = ["train", "recipe.toml", "--set", "max_seq_length=128"];
    succeeds(directory.path(), &train);
    directory
}

fn events(directory: &Path, arguments: &[&str]) -> Vec<Value> {
    let output = backdraft(directory, &[&["--json"], arguments].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let values = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    values.collect()
}

#[test]
fn an_exported_model_answers_as_the_trained_one() {
    let directory = project();
    let d = directory.path();
    let export = [
        "export",
        "--adapter",
        "out",
        "--to",
        "gguf",
        "--device",
        "cpu",
    ];
    let types = [&export[..], &["--type", "f32,q8_0,q4_k_m"]].concat();
    let lines = events(d, &types);
    let kinds: Vec<&str> = lines
        .iter()
        .map(|line| line["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["f32", "q8_0", "q4_k_m"]);
    let kl = |line: &Value| line["mean_kl"].as_f64().unwrap();
    assert!(kl(&lines[0]) < 1e-6, "{}", lines[0]);
    assert!(kl(&lines[1]) < 1e-2, "{}", lines[1]);
    assert!(kl(&lines[0]) < kl(&lines[1]) && kl(&lines[1]) < kl(&lines[2]));
    for line in &lines {
        // The recipe adapts q and down of the second layer.
        assert_eq!(
            (&line["merged"], &line["unchanged"]),
            (&2.into(), &0.into())
        );
        assert_eq!(line["texts"], 9);
        let file = d.join(line["files"][0].as_str().unwrap());
        assert_eq!(
            fs::metadata(file).unwrap().len(),
            line["bytes"].as_u64().unwrap()
        );
    }
    fs::write(d.join("ids.json"), "[1, 20, 30, 40, 50, 60, 70, 80]").unwrap();
    let score = |arguments: &[&str]| {
        let fixed = [
            "score", "--ids", "ids.json", "--out", "s", "--force", "--device", "cpu",
        ];
        let scores = succeeds(d, &[&fixed[..], arguments].concat());
        scores["mean_nll"].as_f64().unwrap()
    };
    let trained = score(&["--adapter", "out"]);
    let exported = score(&["--model", "gguf/model-f32.gguf"]);
    let base = score(&["--model", "model"]);
    assert!(
        (trained - exported).abs() < 1e-5,
        "{trained} and {exported}"
    );
    assert!((trained - base).abs() > 1e-3, "{trained} and {base}");
    let modelfile = fs::read_to_string(d.join("gguf/Modelfile")).unwrap();
    says(
        &modelfile,
        &[
            "FROM ./model-f32.gguf",
            "TEMPLATE",
            "PARAMETER stop \"</s>\"",
        ],
    );
    says(&fails(d, &types, 1), &["already exists", "--force"]);
    succeeds(d, &[&types[..], &["--force", "--no-check"]].concat());
    // A file is a base like any other.
    let again = [
        "export",
        "--model",
        "gguf/model-f32.gguf",
        "--to",
        "again",
        "--type",
        "q8_0",
    ];
    assert!(kl(&succeeds(d, &again)) < 1e-2);
    let (first, second) = (
        d.join("gguf/model-q8_0.gguf"),
        d.join("again/model-f32-q8_0.gguf"),
    );
    let inspect = |path: &Path| succeeds(d, &["inspect", path.to_str().unwrap()]);
    assert_eq!(
        inspect(&first)["parameters"],
        inspect(&second)["parameters"]
    );
}

#[test]
fn an_adapter_alone_and_what_cannot_be_exported() {
    let directory = project();
    let d = directory.path();
    let export = ["export", "--to", "gguf"];
    let alone = [
        &export[..],
        &["--adapter", "out", "--adapter-only", "--name", "mine"],
    ]
    .concat();
    let line = succeeds(d, &alone);
    assert_eq!(
        (&line["type"], &line["merged"]),
        (&"lora".into(), &2.into())
    );
    let bytes = fs::read(d.join("gguf/mine-lora.gguf")).unwrap();
    assert_eq!(bytes[..4], *b"GGUF");
    let modelfile = fs::read_to_string(d.join("gguf/Modelfile")).unwrap();
    says(&modelfile, &["FROM ", "ADAPTER ./mine-lora.gguf"]);

    let usage = |more: &[&str]| fails(d, &[&export[..], more].concat(), 2);
    says(&usage(&["--model", "model"]), &["--type"]);
    says(
        &usage(&["--model", "model", "--type", "q9"]),
        &["q9", "q4_k_m"],
    );
    says(
        &usage(&["--model", "model", "--adapter-only"]),
        &["--adapter"],
    );
    let small = ["--model", "model", "--type", "f16", "--split-size", "1KiB"];
    says(&usage(&small), &["--split-size", "1MiB"]);
    let tokenizer = d.join("model/tokenizer.json");
    let text = fs::read_to_string(&tokenizer).unwrap();
    fs::write(
        &tokenizer,
        text.replace("\"use_regex\":true", "\"use_regex\":false"),
    )
    .unwrap();
    let said = fails(
        d,
        &[&export[..], &["--model", "model", "--type", "f16"]].concat(),
        1,
    );
    says(
        &said,
        &["cannot be written as GGUF", "llama.cpp has no name for"],
    );
    assert!(!d.join("gguf/model-f16.gguf").exists());
}

/// A run over the blocks of a file: told, noted, resumed to the same bytes, and understood by what comes after it.
#[test]
fn a_base_that_stays_in_its_blocks() {
    let directory = project();
    let d = directory.path();
    let export = ["export", "--model", "model", "--to", "gguf", "--no-check"];
    succeeds(d, &[&export[..], &["--type", "q8_0,q4_k_m,f16"]].concat());
    let train = |out: &str, more: &[&str]| {
        let out = format!("output_dir={out}");
        let set = [
            "train",
            "recipe.toml",
            "--set",
            "max_seq_length=128",
            "--set",
            &out,
            "--set",
            "model=gguf/model-q4_k_m.gguf",
            "--set",
            "train.save_steps=2",
        ];
        events(d, &[&set[..], more].concat())
    };
    let losses = |events: &[Value]| -> Vec<f64> {
        let steps = events.iter().filter(|event| event["event"] == "step");
        steps.filter_map(|step| step["loss"].as_f64()).collect()
    };
    let keep = ["--set", "quantization.keep_blocks=true"];
    let kept = train("kept", &keep);
    let dense = train("dense", &[]);
    let (kept_losses, dense_losses) = (losses(&kept), losses(&dense));
    assert_eq!(kept_losses.len(), 4);
    for (kept, dense) in kept_losses.iter().zip(&dense_losses) {
        assert!((kept - dense).abs() < 1e-4, "{kept} and {dense}");
    }
    let noted: Value =
        serde_json::from_slice(&fs::read(d.join("kept/adapter/trained_with.json")).unwrap())
            .unwrap();
    let blocks = &noted["quantization"];
    // 64 features are no block of 256: llama.cpp falls back to these.
    assert_eq!(blocks["format"], "q5_0", "{blocks}");
    assert_eq!(
        blocks["schemes"]["model.embed_tokens"]["format"], "q5_0",
        "{blocks}"
    );

    // The same bytes after an interruption.
    let file = |run: &str| fs::read(d.join(run).join("adapter/adapter_model.safetensors")).unwrap();
    train("halves", &keep);
    fs::remove_dir_all(d.join("halves/checkpoints/step-000004")).unwrap();
    fs::remove_dir_all(d.join("halves/adapter")).unwrap();
    events(d, &["train", "--resume", "halves"]);
    assert!(file("halves") == file("kept"), "other bytes");
    // Another file in the same place is another base.
    let swap = |from: &str| fs::copy(d.join(from), d.join("gguf/model-q4_k_m.gguf")).unwrap();
    fs::copy(d.join("gguf/model-q4_k_m.gguf"), d.join("own.gguf")).unwrap();
    swap("gguf/model-q8_0.gguf");
    fs::remove_dir_all(d.join("halves/checkpoints/step-000004")).unwrap();
    says(
        &fails(d, &["train", "--resume", "halves"], 1),
        &["model", "q5_0", "q8_0"],
    );
    let eval = [
        "eval",
        "--adapter",
        "kept",
        "--data",
        "eval.jsonl",
        "--device",
        "cpu",
    ];
    let said = fails(d, &eval, 1);
    says(&said, &["is in Q8_0, not in the file's own blocks of q5_0"]);
    swap("own.gguf");

    // What comes after it keeps the blocks too, unless it is told otherwise.
    let nll = |more: &[&str]| {
        let found = succeeds(d, &[&eval[..], more].concat());
        found["adapter"]["nll"].as_f64().unwrap()
    };
    let (as_trained, dense) = (nll(&[]), nll(&["--quantization", "none"]));
    assert!(
        (as_trained - dense).abs() < 1e-5,
        "{as_trained} and {dense}"
    );
    assert_eq!(nll(&["--quantization", "blocks"]), as_trained);
    for base in ["original", "dequantized"] {
        let merge = ["merge", "--adapter", "kept", "--out", base, "--base", base];
        let merged = succeeds(d, &[&merge[..], &["--kl-data", "eval.jsonl"]].concat());
        assert!(merged["mean_kl"].as_f64().unwrap() < 1e-6, "{merged}");
    }
    let again = [
        "export",
        "--adapter",
        "kept",
        "--to",
        "again",
        "--type",
        "f32",
        "--device",
        "cpu",
    ];
    assert!(succeeds(d, &again)["mean_kl"].as_f64().unwrap() < 1e-6);
    let inspect = [
        "inspect",
        "gguf/model-q4_k_m.gguf",
        "--quantization",
        "blocks",
    ];
    let found = succeeds(d, &inspect);
    assert_eq!(found["quantized_as"], "q5_0 (as in the file)");
    let bits = found["quantized_bits_per_weight"].as_f64().unwrap();
    assert!((5.4..8.6).contains(&bits), "{bits}");

    // What has no blocks cannot keep any.
    for (model, files) in [
        ("model", "model"),
        ("gguf/model-f16.gguf", "model-f16.gguf"),
    ] {
        let model = format!("model={model}");
        let train = [
            "train",
            "recipe.toml",
            "--set",
            "output_dir=no",
            "--set",
            &model,
        ];
        let said = fails(d, &[&train[..], &keep].concat(), 1);
        says(&said, &[files, "holds no blocks to keep"]);
        assert!(!d.join("no").exists());
    }
}
