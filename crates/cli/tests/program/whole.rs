//! Tensors of the base that are trained whole beside adapters: trained, resumed, gone on from, merged, exported.

use std::fs;
use std::path::Path;

use backdraft_arch::Family;
use backdraft_formats::{ModelSource, PeftDir, SafetensorsFile};
use serde_json::Value;

use super::families::project;
use super::{fails, says, succeeds};

const MODULES: [&str; 2] = [
    "--set",
    "lora.modules_to_save=[\"norm\", \"embed_tokens\", \"lm_head\"]",
];
const BIAS: [&str; 2] = ["--set", "lora.bias=\"all\""];

fn config(adapter: &Path) -> Value {
    let text = fs::read_to_string(adapter.join("adapter_config.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn factors(adapter: &Path) -> Vec<u8> {
    fs::read(adapter.join("adapter_model.safetensors")).unwrap()
}

/// Whether a whole tensor of the adapter is not what the base has.
fn has_moved(base: &ModelSource, adapter: &PeftDir, name: &str) -> bool {
    let tensor = adapter.tensors.whole_of(name);
    let tensor = tensor.unwrap_or_else(|| panic!("no {name}"));
    tensor.values != base.read_f32(name).unwrap()
}

#[test]
fn whole_tensors_are_trained_merged_and_exported() {
    for (family, more, names) in [
        (
            Family::Llama,
            &MODULES[..],
            &["model.norm.weight", "model.embed_tokens.weight"][..],
        ),
        (
            Family::Qwen2,
            &[&MODULES[..], &BIAS].concat(),
            &[
                "model.layers.0.self_attn.k_proj.bias",
                "model.layers.1.self_attn.q_proj.bias",
            ],
        ),
        (
            Family::Olmo2,
            &MODULES[..],
            &["model.layers.1.self_attn.k_norm.weight", "lm_head.weight"],
        ),
        (
            Family::Gemma2,
            &MODULES[..],
            &[
                "model.layers.0.pre_feedforward_layernorm.weight",
                "model.embed_tokens.weight",
            ],
        ),
    ] {
        let root = tempfile::tempdir().unwrap();
        let d = root.path();
        project(d, family);
        succeeds(d, &[&["plan", "recipe.toml"], more].concat());
        succeeds(d, &[&["train", "recipe.toml"], more].concat());
        let adapter = d.join("out/adapter");
        let written = config(&adapter);
        let base = ModelSource::open(d.join("model")).unwrap();
        assert_eq!(
            written["ensure_weight_tying"],
            base.ties_head(),
            "{family:?}"
        );
        assert_eq!(written["bias"], if more.len() > 2 { "all" } else { "none" });
        let read = PeftDir::read(&adapter).unwrap();
        let tables = ["model.embed_tokens.weight", "lm_head.weight"];
        let [embedding, head] = tables.map(|name| &read.tensors.whole_of(name).unwrap().values);
        assert_eq!(embedding == head, base.ties_head(), "{family:?}");
        for name in names {
            assert!(has_moved(&base, &read, name), "{family:?}: {name}");
        }
        let file = SafetensorsFile::open(adapter.join("adapter_model.safetensors")).unwrap();
        let in_file: Vec<_> = file.tensors().map(|info| info.name.as_str()).collect();
        assert!(
            in_file.contains(&"base_model.model.lm_head.weight"),
            "{in_file:?}"
        );
        if family == Family::Qwen2 {
            let wrapped = "base_model.model.model.layers.1.self_attn.q_proj.base_layer.bias";
            assert!(in_file.contains(&wrapped), "{in_file:?}");
        }
        let seen = succeeds(d, &["inspect", "out/adapter"]);
        let shapes = seen["trained_whole"].as_object().unwrap();
        assert_eq!(shapes.len(), read.tensors.whole().len(), "{family:?}");

        // Merged, every tensor is the adapter's.
        let merged = succeeds(d, &["merge", "--adapter", "out", "--out", "merged"]);
        let all = read.tensors.len() + shapes.len() - usize::from(base.ties_head());
        assert_eq!(merged["merged"], all, "{family:?}: {merged}");
        let model = ModelSource::open(d.join("merged")).unwrap();
        let of_model = read.tensors.whole();
        let of_model = of_model.filter(|it| !(base.ties_head() && it.name == "lm_head.weight"));
        for tensor in of_model {
            assert_eq!(
                model.read_f32(&tensor.name).unwrap(),
                tensor.values,
                "{}",
                tensor.name
            );
        }
        // The file computes what base and adapter do.
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
        let exported = succeeds(d, &export);
        let kl = exported["mean_kl"].as_f64().unwrap();
        assert!(kl < 1e-6, "{family:?}: {exported}");
        let alone = [
            "export",
            "--adapter",
            "out",
            "--to",
            "gguf",
            "--adapter-only",
            "--force",
        ];
        says(
            &fails(d, &alone, 1),
            &["the whole ", "without --adapter-only"],
        );
    }
}

#[test]
fn a_run_with_whole_tensors_is_resumed_to_the_same_bits_with_every_optimizer() {
    let root = tempfile::tempdir().unwrap();
    let d = root.path();
    project(d, Family::Qwen2);
    let steps = [
        "--set",
        "train.save_steps=2",
        "--set",
        "train.ema_decay=0.5",
    ];
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
        let rule = match *optimizer {
            "schedule_free_adamw" => vec![
                "--set",
                &set,
                "--set",
                "train.lr_scheduler=\"constant_with_warmup\"",
                "--set",
                "train.save_steps=2",
            ],
            _ => [&["--set", &set][..], &steps].concat(),
        };
        let more = [&MODULES[..], &BIAS, &rule].concat();
        succeeds(
            d,
            &[&["train", "recipe.toml", "--output-dir", &out], &more[..]].concat(),
        );
        let adapter = d.join(&out).join("adapter");
        let expected = factors(&adapter);
        fs::remove_dir_all(&adapter).unwrap();
        succeeds(
            d,
            &[
                "train",
                "--resume",
                &format!("{out}/checkpoints/step-000002"),
            ],
        );
        assert!(factors(&adapter) == expected, "{optimizer}");
    }
    // At a rate of nothing an adapter that is gone on from stays what it was.
    let further = [
        "train",
        "recipe.toml",
        "--adapter",
        "out0",
        "--output-dir",
        "still",
    ];
    let still = [
        "--set",
        "train.learning_rate=1e-30",
        "--set",
        "train.weight_decay=0.0",
    ];
    succeeds(d, &[&further[..], &still, &MODULES, &BIAS].concat());
    let [first, still] = ["out0/adapter", "still/adapter"].map(|path| d.join(path));
    assert!(factors(&first) == factors(&still));
    assert_eq!(config(&first), config(&still));
    let other = [
        &further[..5],
        &["other", "--set", "lora.bias=\"lora_only\""],
    ]
    .concat();
    says(
        &fails(d, &other, 1),
        &["lora.bias", "lora_only", "bias = all"],
    );
}

#[test]
fn what_is_not_trained_whole_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let d = root.path();
    project(d, Family::Llama);
    let train = |set: &str| fails(d, &["train", "recipe.toml", "--set", set], 1);
    says(
        &train("lora.bias=\"all\""),
        &["no projection of the model has a bias"],
    );
    says(
        &train("lora.modules_to_save=[\"q_proj\"]"),
        &[
            "`model.layers.0.self_attn.q_proj`",
            "embed_tokens and lm_head",
        ],
    );
    says(
        &train("lora.modules_to_save=[\"lm_haed\"]"),
        &["near it are lm_head"],
    );
    let muon = [
        "train",
        "recipe.toml",
        "--set",
        "train.optimizer=\"muon\"",
        "--set",
        "lora.modules_to_save=[\"norm\"]",
    ];
    says(
        &fails(d, &muon, 1),
        &["lora.modules_to_save", "optimizer = \"muon\""],
    );
    // Codes are not trained.
    let export = [
        "export", "--model", "model", "--to", "gguf", "--type", "q8_0", "--device", "cpu",
    ];
    let exported = succeeds(d, &export);
    let file = format!("model={}", exported["files"][0]);
    let in_blocks = [
        "train",
        "recipe.toml",
        "--set",
        &file,
        "--set",
        "quantization.keep_blocks=true",
        "--set",
        "lora.modules_to_save=[\"embed_tokens\"]",
    ];
    says(
        &fails(d, &in_blocks, 1),
        &[
            "`model.embed_tokens.weight` is kept in",
            "cannot be trained",
        ],
    );
    assert!(!d.join("out").exists());
}
