//! Adapters of the embedding and the head: trained, resumed, gone on from, merged, exported, served, refused.

use std::fs;
use std::path::Path;

use backdraft_arch::Family;
use backdraft_formats::{ModelSource, PeftDir};

use super::families::project;
use super::{fails, says, succeeds};

const TABLES: [&str; 2] = [
    "--set",
    "lora.target_modules=[\"q_proj\", \"model.embed_tokens\", \"lm_head\"]",
];

fn factors(adapter: &Path) -> Vec<u8> {
    fs::read(adapter.join("adapter_model.safetensors")).unwrap()
}

#[test]
fn adapters_of_tables_are_trained_merged_and_exported() {
    for family in [Family::Llama, Family::Olmo2, Family::Gemma2] {
        let root = tempfile::tempdir().unwrap();
        let d = root.path();
        project(d, family);
        let tied = ModelSource::open(d.join("model")).unwrap().ties_head();
        succeeds(d, &[&["plan", "recipe.toml"], &TABLES[..]].concat());
        succeeds(d, &[&["train", "recipe.toml"], &TABLES[..]].concat());
        let read = PeftDir::read(d.join("out/adapter")).unwrap();
        let pair = |module| read.tensors.get(module).unwrap();
        let embedding = pair("model.embed_tokens");
        assert!(
            embedding.lora_a.iter().any(|value| *value != 0.0),
            "{family:?}"
        );
        assert!(
            pair("lm_head").lora_b.iter().any(|value| *value != 0.0),
            "{family:?}"
        );
        succeeds(d, &["inspect", "out/adapter"]);
        let alone = [
            "export",
            "--adapter",
            "out",
            "--to",
            "gguf",
            "--adapter-only",
        ];
        says(&fails(d, &alone, 1), &["without --adapter-only"]);
        let merge = ["merge", "--adapter", "out", "--out", "merged"];
        let merged = succeeds(d, &merge);
        assert_eq!(merged["merged"], read.tensors.len(), "{family:?}");
        let base = ModelSource::open(d.join("model")).unwrap();
        let written = ModelSource::open(d.join("merged")).unwrap();
        assert!(!written.ties_head(), "{family:?}");
        assert_eq!(written.config()["tie_word_embeddings"], false, "{family:?}");
        let more = written.tensor_names().count() - base.tensor_names().count();
        assert_eq!(more, usize::from(tied), "{family:?}");
        let [embedding, head] = ["model.embed_tokens.weight", "lm_head.weight"]
            .map(|name| written.read_f32(name).unwrap());
        assert_ne!(embedding, head, "{family:?}");
        fs::write(d.join("ids.json"), "[1, 20, 30, 40, 50, 60, 70, 80]").unwrap();
        let score = |of: [&str; 2]| {
            let ids = ["score", "--ids", "ids.json", "--out", "s", "--force"];
            let scores = succeeds(d, &[&ids[..], &["--device", "cpu"], &of[..]].concat());
            scores["mean_nll"].as_f64().unwrap()
        };
        let trained = score(["--adapter", "out"]);
        let found = score(["--model", "merged"]);
        assert!(
            (trained - found).abs() < 1e-5,
            "{family:?}: {trained}, {found}"
        );
        assert!((trained - score(["--model", "model"])).abs() > 1e-4);
        let export = [
            "export",
            "--adapter",
            "out",
            "--to",
            "gguf",
            "--type",
            "f32",
            "--device",
            "cpu",
        ];
        if family == Family::Gemma2 {
            let part = "llama.cpp takes the embedding for that of a Gemma 2";
            says(&fails(d, &export, 1), &[part]);
            continue;
        }
        let exported = succeeds(d, &export);
        let kl = exported["mean_kl"].as_f64().unwrap();
        assert!(kl < 1e-6, "{family:?}: {exported}");
    }
}

#[test]
fn a_run_with_adapters_of_tables_is_resumed_to_the_same_bits_with_every_optimizer() {
    let root = tempfile::tempdir().unwrap();
    let d = root.path();
    project(d, Family::Llama);
    let steps = ["--set", "train.save_steps=2", "--set", "lora.dropout=0.2"];
    for (i, optimizer) in ["adamw", "adamw_8bit", "lion", "sgd", "adafactor"]
        .iter()
        .enumerate()
    {
        let out = format!("out{i}");
        let set = format!("train.optimizer=\"{optimizer}\"");
        let more = [&TABLES[..], &steps, &["--set", &set]].concat();
        succeeds(
            d,
            &[&["train", "recipe.toml", "--output-dir", &out], &more[..]].concat(),
        );
        let adapter = d.join(&out).join("adapter");
        let expected = factors(&adapter);
        fs::remove_dir_all(&adapter).unwrap();
        let checkpoint = format!("{out}/checkpoints/step-000002");
        succeeds(d, &["train", "--resume", &checkpoint]);
        assert!(factors(&adapter) == expected, "{optimizer}");
    }
    // At a rate of nothing an adapter that is gone on from stays what it was.
    // It brings its own settings.
    let recipe = fs::read_to_string(d.join("recipe.toml")).unwrap();
    let kept = |line: &&str| {
        let key = line.split(" =").next();
        ![
            "target_modules",
            "layers_to_transform",
            "rank",
            "alpha",
            "dropout",
        ]
        .iter()
        .any(|taken| key == Some(taken))
    };
    let rest: Vec<&str> = recipe.lines().filter(kept).collect();
    fs::write(d.join("recipe.toml"), rest.join("\n")).unwrap();
    let further = [
        "train",
        "recipe.toml",
        "--adapter",
        "out0",
        "--output-dir",
        "still",
        "--set",
        "train.learning_rate=1e-30",
        "--set",
        "train.weight_decay=0.0",
    ];
    succeeds(d, &further);
    let [first, still] = ["out0/adapter", "still/adapter"].map(|path| d.join(path));
    assert!(factors(&first) == factors(&still));
    assert_eq!(
        PeftDir::read(&first).unwrap().config,
        PeftDir::read(&still).unwrap().config
    );
}

#[test]
fn what_adapters_of_tables_do_not_go_with_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let d = root.path();
    project(d, Family::Llama);
    for (set, part) in [
        ("lora.use_dora=true", "lora.use_dora = true"),
        ("lora.init=\"orthogonal\"", "lora.init = \"orthogonal\""),
        ("train.optimizer=\"muon\"", "muon"),
        ("tokens.add=[\"<tool>\"]", "tokens.add trains too"),
        (
            "lora.modules_to_save=[\"lm_head\"]",
            "lora.modules_to_save trains too",
        ),
    ] {
        let more = [&["train", "recipe.toml"], &TABLES[..], &["--set", set]].concat();
        says(&fails(d, &more, 1), &[part]);
    }
}
