//! Full fine-tuning: the base's own tensors trained, saved as a model, resumed, and what the other commands make of it.

use std::fs;
use std::path::Path;

use backdraft_arch::Family;
use backdraft_formats::{ModelSource, SafetensorsFile};
use serde_json::Value;

use super::families::project;
use super::{fails, says, succeeds};

/// The family's project, whose recipe trains `what` of the base.
fn full(d: &Path, family: Family, what: &str) {
    project(d, family);
    let path = d.join("recipe.toml");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once("[lora]\n").unwrap();
    let (_, data) = rest.split_once("[data]\n").unwrap();
    let text = format!("{before}trainable = {what}\n[data]\n{data}");
    fs::write(&path, text).unwrap();
}

fn names(source: &ModelSource) -> Vec<String> {
    let mut names: Vec<String> = source.tensor_names().map(str::to_owned).collect();
    names.sort_unstable();
    names
}

/// The tensors that are not those of another model.
fn moved(base: &ModelSource, trained: &ModelSource) -> Vec<String> {
    assert_eq!(names(base), names(trained));
    let mut moved = names(base);
    moved.retain(|name| base.read_f32(name).unwrap() != trained.read_f32(name).unwrap());
    moved
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn every_tensor_is_trained_and_the_model_is_taken_like_any_other() {
    for family in [Family::Llama, Family::Qwen2, Family::Phi3, Family::Gemma2] {
        let root = tempfile::tempdir().unwrap();
        let d = root.path();
        full(d, family, "\"all\"");
        succeeds(d, &["plan", "recipe.toml"]);
        let summary = succeeds(
            d,
            &["train", "recipe.toml", "--set", "train.weight_decay=0.1"],
        );
        assert_eq!(summary["full"], true, "{family:?}: {summary}");
        assert!(!d.join("out/adapter").exists());
        let base = ModelSource::open(d.join("model")).unwrap();
        let trained = ModelSource::open(d.join("out/model")).unwrap();
        assert_eq!(moved(&base, &trained), names(&base), "{family:?}");
        assert_eq!(
            json(&d.join("out/model/config.json")),
            json(&d.join("model/config.json"))
        );
        // The types of the base's files, and f32 where training goes on.
        for name in base.tensor_names() {
            let [dtype, written] =
                [&base, &trained].map(|source| source.tensor_info(name).unwrap().dtype);
            assert_eq!(dtype, written, "{name}");
        }
        let state = ModelSource::open(d.join("out/checkpoints/step-000003/model")).unwrap();
        for name in state.tensor_names() {
            assert_eq!(
                state.tensor_info(name).unwrap().dtype.to_string(),
                "F32",
                "{name}"
            );
        }
        // What is evaluated is the model that is left, as it was when it was trained.
        let told = succeeds(d, &["eval", "recipe.toml"]);
        let loss = |value: &Value| value.as_f64().unwrap();
        let apart = loss(&told["base"]["nll"]) - loss(&summary["best_eval_loss"]);
        assert!(apart.abs() < 1e-6, "{family:?}: {told} {summary}");
        succeeds(d, &["generate", "--model", "out/model", "--raw", "w5 w6"]);
        let export = [
            "export",
            "--model",
            "out/model",
            "--to",
            "gguf",
            "--type",
            "f32",
            "--device",
            "cpu",
        ];
        let exported = succeeds(d, &export);
        assert!(
            exported["mean_kl"].as_f64().unwrap() < 1e-6,
            "{family:?}: {exported}"
        );
        let merge = fails(d, &["merge", "--adapter", "out", "--out", "merged"], 1);
        says(&merge, &["out/model", "no adapter", "nothing to merge"]);
    }
}

#[test]
fn parts_of_the_base_are_trained_and_the_rest_stays() {
    let root = tempfile::tempdir().unwrap();
    let d = root.path();
    full(d, Family::Qwen2, "[\"layers.1.self_attn\", \"norm\"]");
    succeeds(d, &["train", "recipe.toml"]);
    let [base, trained] =
        ["model", "out/model"].map(|path| ModelSource::open(d.join(path)).unwrap());
    let layer = "model.layers.1.self_attn";
    let mut expected: Vec<String> = ["q_proj", "k_proj", "v_proj"]
        .iter()
        .flat_map(|part| {
            [
                format!("{layer}.{part}.bias"),
                format!("{layer}.{part}.weight"),
            ]
        })
        .collect();
    expected.extend([
        format!("{layer}.o_proj.weight"),
        "model.norm.weight".to_owned(),
    ]);
    expected.sort_unstable();
    assert_eq!(moved(&base, &trained), expected);
}

#[test]
fn a_run_is_resumed_to_the_same_bits_with_every_optimizer() {
    let root = tempfile::tempdir().unwrap();
    let d = root.path();
    full(d, Family::Qwen2, "\"all\"");
    for (i, optimizer) in [
        "adamw",
        "adamw_8bit",
        "lion",
        "sgd",
        "adafactor",
        "schedule_free_adamw",
    ]
    .iter()
    .enumerate()
    {
        let out = format!("out{i}");
        let set = format!("train.optimizer=\"{optimizer}\"");
        let more = match *optimizer {
            "schedule_free_adamw" => "train.lr_scheduler=\"constant_with_warmup\"",
            "adamw" => "train.ema_decay=0.5",
            _ => "train.layer_lr_decay=0.9",
        };
        let train = ["train", "recipe.toml", "--output-dir", &out];
        let rule = ["--set", &set, "--set", more, "--set", "train.save_steps=2"];
        succeeds(d, &[&train[..], &rule].concat());
        let files = [
            "model/model.safetensors",
            "checkpoints/step-000003/model/model.safetensors",
            "checkpoints/step-000003/optimizer.safetensors",
        ];
        let read = || files.map(|file| fs::read(d.join(&out).join(file)).unwrap());
        let expected = read();
        fs::remove_dir_all(d.join(&out).join("model")).unwrap();
        let from = format!("{out}/checkpoints/step-000002");
        succeeds(d, &["train", "--resume", &from]);
        assert!(read() == expected, "{optimizer}");
    }
    // Norms and biases are not decayed, as by transformers' Trainer.
    let rates = [
        "--set",
        "train.learning_rate=1e-30",
        "--set",
        "train.weight_decay=1e29",
    ];
    let train = ["train", "recipe.toml", "--output-dir", "decayed"];
    succeeds(d, &[&train[..], &rates].concat());
    let [base, trained] =
        ["model", "decayed/model"].map(|path| ModelSource::open(d.join(path)).unwrap());
    let moved = moved(&base, &trained);
    assert!(
        moved
            .iter()
            .any(|name| name == "model.layers.0.mlp.up_proj.weight"),
        "{moved:?}"
    );
    let vectors = moved
        .iter()
        .filter(|name| name.ends_with(".bias") || name.contains("norm"));
    assert_eq!(vectors.count(), 0, "{moved:?}");
    // Another part of the base is another run.
    let changed = [
        "train",
        "--resume",
        "out0/checkpoints/step-000002",
        "--set",
        "trainable=[\"norm\"]",
    ];
    says(&fails(d, &changed, 1), &["trainable"]);
    let allowed = [&changed[..], &["--allow-change", "trainable"]].concat();
    says(&fails(d, &allowed, 1), &["trainable"]);
}

#[test]
fn a_model_of_half_precision_goes_on_from_its_master_weights() {
    let root = tempfile::tempdir().unwrap();
    let d = root.path();
    full(d, Family::Llama, "\"all\"");
    // Updates far below the last place of bf16.
    let train = [
        "train",
        "recipe.toml",
        "--set",
        "train.learning_rate=1e-7",
        "--set",
        "train.save_steps=1",
    ];
    succeeds(d, &train);
    let at = |step: usize| {
        let path = format!("out/checkpoints/step-{step:06}/model/model.safetensors");
        let file = SafetensorsFile::open(d.join(path)).unwrap();
        file.read_f32("model.layers.0.mlp.up_proj.weight").unwrap()
    };
    assert!(at(2) != at(1) && at(3) != at(2));
}

#[test]
fn what_cannot_be_trained_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let d = root.path();
    full(d, Family::Qwen35, "\"all\"");
    says(
        &fails(d, &["train", "recipe.toml"], 1),
        &[
            "trainable = \"all\" takes `model.layers.0.linear_attn.",
            "patterns",
        ],
    );
    let more = |set: &str| fails(d, &["train", "recipe.toml", "--set", set], 1);
    says(
        &more("trainable=[\"up_prj\"]"),
        &["`up_prj` matches none", "up_proj"],
    );
    says(
        &more("load_in_4bit=true"),
        &["load_in_4bit", "codes cannot be trained"],
    );
    says(&more("lora.rank=8"), &["lora.rank", "trainable = \"all\""]);
    assert!(!d.join("out").exists());
    succeeds(
        d,
        &[
            "train",
            "recipe.toml",
            "--set",
            "trainable=[\".*_proj\", \"in_proj_.*\"]",
        ],
    );
    // A model whose files hold codes.
    let root = tempfile::tempdir().unwrap();
    let d = root.path();
    full(d, Family::Llama, "\"all\"");
    succeeds(d, &["quantize", "--model", "model", "--out", "codes"]);
    let said = fails(d, &["train", "recipe.toml", "--set", "model=\"codes\""], 1);
    says(
        &said,
        &["_proj.weight` is kept in nf4", "trainable = \"adapter\""],
    );
    assert!(!d.join("out").exists());
}
