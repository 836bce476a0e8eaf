//! Adapters that are trained further, patterns of modules, and several adapters made one.

use std::fs;
use std::path::Path;

use backdraft_arch::Family;
use backdraft_testkit::golden;
use backdraft_testkit::tiny;
use serde_json::{Value, json};

use super::families::project;
use super::{backdraft, fails, says, succeeds};

const STEPS: &str = "max_steps = 4\nsave_steps = 2\n";

fn factors(adapter: &Path) -> Vec<u8> {
    fs::read(adapter.join("adapter_model.safetensors")).unwrap()
}

fn config(adapter: &Path) -> Value {
    let text = fs::read_to_string(adapter.join("adapter_config.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Mean loss per token of a file under an adapter.
fn nll(d: &Path, adapter: &str) -> f64 {
    let eval = ["eval", "--adapter", adapter, "--model", "model"];
    let rows = ["--data", "eval.jsonl"];
    let found = succeeds(d, &[&eval[..], &rows].concat());
    found["adapter"]["nll"]
        .as_f64()
        .unwrap_or_else(|| panic!("{found}"))
}

#[test]
fn an_adapter_is_trained_further() {
    let root = tempfile::tempdir().unwrap();
    let d = root.path();
    tiny::project(d, STEPS);
    // Nothing of the adapter but where it lies.
    let recipe = fs::read_to_string(d.join("recipe.toml")).unwrap();
    let lines = recipe.lines().filter(|line| {
        let taken = [
            "rank",
            "alpha",
            "dropout",
            "target_modules",
            "layers_to_transform",
        ];
        !taken.iter().any(|key| line.starts_with(key))
    });
    let bare: Vec<&str> = lines.collect();
    fs::write(d.join("bare.toml"), bare.join("\n")).unwrap();
    succeeds(d, &["train", "recipe.toml", "--output-dir", "first"]);
    // At a rate of nothing it stays what it was, bit for bit.
    let further = ["train", "bare.toml", "--adapter", "first", "--output-dir"];
    let still = ["--set", "train.learning_rate=1e-30"];
    succeeds(d, &[&further[..], &["still"], &still].concat());
    let [first, still] = ["first/adapter", "still/adapter"].map(|path| d.join(path));
    assert_eq!(factors(&first), factors(&still));
    assert_eq!(config(&first), config(&still));
    // It learns on, from where it was.
    succeeds(d, &[&further[..], &["second"]].concat());
    let second = d.join("second");
    assert_ne!(factors(&first), factors(&second.join("adapter")));
    let written = fs::read_to_string(second.join("recipe.toml")).unwrap();
    for line in ["rank = 64", "alpha = 64.0", "dropout = 0.1", "adapter = "] {
        assert!(written.contains(line), "{line}: {written}");
    }
    // A run is resumed without the adapter that it began with, and ends the same.
    let expected = factors(&second.join("adapter"));
    fs::remove_dir_all(d.join("first")).unwrap();
    fs::remove_dir_all(second.join("adapter")).unwrap();
    let at = "second/checkpoints/step-000002";
    succeeds(d, &["train", "--resume", at]);
    assert_eq!(factors(&second.join("adapter")), expected);
    let said = fails(d, &[&further[..], &["third"]].concat(), 1);
    says(&said, &["`lora.adapter`: ", "first", "does not exist"]);
    // Nobody loses what is to be trained further.
    let over = ["train", "bare.toml", "--adapter", "second", "--force"];
    let said = fails(d, &[&over[..], &["--output-dir", "second"]].concat(), 1);
    says(&said, &["lies in output_dir", "name another output_dir"]);
    assert_eq!(factors(&second.join("adapter")), expected);
    // Whoever says otherwise is told both values and the line; another base is told of.
    let other = ["train", "recipe.toml", "--adapter", "second"];
    let set = ["--set", "lora.rank=8", "--set", "output_dir=third"];
    let said = fails(d, &[&other[..], &set].concat(), 1);
    says(
        &said,
        &[
            "lora.rank = 8",
            "second/adapter has r = 64",
            "take the key out",
        ],
    );
    let set = ["--set", "load_in_8bit=true", "--set", "output_dir=third"];
    let output = backdraft(d, &[&other[..], &set].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let said = said + &String::from_utf8_lossy(&output.stdout);
    says(&said, &["trained over weights that are not quantized"]);
}

#[test]
fn an_adapter_of_peft_is_trained_further() {
    let root = tempfile::tempdir().unwrap();
    let d = root.path();
    tiny::project(d, STEPS);
    let cases = golden::folders("adapters", "adapter_config.json").into_iter();
    for case in
        cases.filter(|case| ["rank-pattern", "target-regex", "dora"].contains(&&*case.name()))
    {
        let name = case.name();
        fs::create_dir(d.join(&name)).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(case.join(file), d.join(&name).join(file)).unwrap();
        }
        let text = format!(
            "model = \"model\"\noutput_dir = \"out-{name}\"\nmax_seq_length = 32\n[lora]\nadapter = \"{name}\"\n[data]\n\
             train = \"train.jsonl\"\ncache = \"off\"\nprompt_template = \"w3 {{instruction}} w4 {{output}}\"\n[train]\nmax_steps = 2\nlearning_rate = 1e-30\nsample_rows = 0\n"
        );
        fs::write(d.join("further.toml"), text).unwrap();
        succeeds(d, &["train", "further.toml"]);
        let ours = d.join(format!("out-{name}/adapter"));
        let read = |path: &Path| backdraft_formats::PeftDir::read(path).unwrap();
        let (ours, theirs) = (read(&ours), read(&d.join(&name)));
        assert_eq!(ours.tensors, theirs.tensors, "{name}");
        for pair in ours.tensors.iter() {
            let [a, b] = [&ours, &theirs].map(|it| it.config.scaling_of(&pair.module));
            assert_eq!(a, b, "{name}, {}", pair.module);
        }
    }
}

#[test]
fn patterns_say_who_gets_which_adapter() {
    let root = tempfile::tempdir().unwrap();
    let d = root.path();
    tiny::project(d, STEPS);
    let recipe = |lora: &str| {
        let text = format!(
            "model = \"model\"\noutput_dir = \"out\"\nmax_seq_length = 32\n[lora]\nrank = 4\n{lora}\n[data]\n\
             train = \"train.jsonl\"\ncache = \"off\"\nprompt_template = \"w3 {{instruction}} w4 {{output}}\"\n[train]\nmax_steps = 2\nsample_rows = 0\n"
        );
        fs::write(d.join("patterns.toml"), text).unwrap();
    };
    recipe(
        "target_modules = \"all-linear\"\nexclude_modules = ['layers.0.mlp.up_proj', 'o_proj']\n\
         rank_pattern = { 'layers\\.1\\..*' = 2, q_proj = 8 }\nalpha_pattern = { q_proj = 3 }",
    );
    let plan = succeeds(d, &["plan", "patterns.toml"]);
    succeeds(d, &["train", "patterns.toml"]);
    let adapter = d.join("out/adapter");
    let found = backdraft_formats::PeftDir::read(&adapter).unwrap();
    assert_eq!(found.tensors.len(), 11);
    let rank = |module: &str| found.tensors.get(module).map(|pair| pair.rank());
    assert_eq!(rank("model.layers.0.self_attn.q_proj"), Some(8));
    assert_eq!(rank("model.layers.1.self_attn.q_proj"), Some(2));
    assert_eq!(rank("model.layers.0.mlp.down_proj"), Some(4));
    assert_eq!(rank("model.layers.0.mlp.up_proj"), None);
    let scaling = |module: &str| found.config.scaling_of(module);
    assert_eq!(scaling("model.layers.0.self_attn.q_proj"), 3.0 / 8.0);
    assert_eq!(scaling("model.layers.1.mlp.up_proj"), 16.0);
    // Planned as it is.
    let values: usize = found
        .tensors
        .iter()
        .map(|pair| pair.lora_a.len() + pair.lora_b.len())
        .sum();
    let text = plan.to_string();
    assert!(
        text.contains(&format!("{}", 4 * values)),
        "{values}: {text}"
    );
    recipe("target_modules = ['q_proj']\nrank_pattern = { qproj = 2 }");
    let said = fails(d, &["train", "patterns.toml", "--force"], 1);
    says(
        &said,
        &[
            "lora.rank_pattern: `qproj` matches none of the adapted modules",
            "q_proj",
        ],
    );
    recipe("target_modules = '.*(q_proj|norm)'");
    let said = fails(d, &["plan", "patterns.toml"], 1);
    says(
        &said,
        &[
            "takes `model.layers.0.input_layernorm` too",
            "exclude_modules",
        ],
    );
}

#[test]
fn several_adapters_become_one() {
    let root = tempfile::tempdir().unwrap();
    let d = root.path();
    tiny::project(d, STEPS);
    for (name, seed) in [("a", "seed=1"), ("b", "seed=2")] {
        succeeds(
            d,
            &["train", "recipe.toml", "--output-dir", name, "--set", seed],
        );
    }
    let combine = |more: &[&str], out: &str| {
        succeeds(d, &[&["combine", "a", "b", "--out", out], more].concat())
    };
    // Each alone is itself.
    let line = combine(&["--combination-type", "cat", "--weights", "1,0"], "only-a");
    assert_eq!(
        [&line["rank"], &line["modules"], &line["combination_type"]],
        [&json!(128), &json!(2), &json!("cat")]
    );
    let a = nll(d, "a");
    assert!((nll(d, "only-a") - a).abs() < 1e-5);
    assert_eq!(config(&d.join("only-a"))["lora_alpha"], 128);
    // The sum is the same however it is made, and differs from either.
    combine(&["--combination-type", "cat"], "cat");
    combine(&["--svd-rank", "128"], "svd");
    let cat = nll(d, "cat");
    assert!((nll(d, "svd") - cat).abs() < 1e-5);
    assert!((cat - a).abs() > 1e-6);
    // Chance with a seed is none.
    let dare = ["--combination-type", "dare_ties", "--density", "0.3"];
    combine(&dare, "dare");
    combine(&dare, "again");
    let [dare, again] = ["dare", "again"].map(|out| factors(&d.join(out)));
    assert_eq!(dare, again);
    // The result is an adapter like any other.
    succeeds(d, &["merge", "--adapter", "cat", "--out", "merged"]);
    let further = ["--adapter", "cat", "--output-dir", "further"];
    let without = ["--set", "lora.rank=128", "--set", "lora.alpha=128"];
    succeeds(
        d,
        &[&["train", "recipe.toml"], &further[..], &without].concat(),
    );
    let said = fails(d, &["combine", "a", "b", "--out", "cat"], 1);
    says(&said, &["cat", "--force"]);
    let ties = [
        "combine",
        "a",
        "b",
        "--out",
        "c",
        "--combination-type",
        "ties",
    ];
    says(&fails(d, &ties, 1), &["ties takes a density"]);
}

/// Over a dense base and over codes: trained, gone on from, merged, exported, and refused where lengths have no place.
#[test]
fn lengths_of_rows_go_wherever_the_adapter_goes() {
    let root = tempfile::tempdir().unwrap();
    let d = root.path();
    // A tokenizer that GGUF files can hold.
    project(d, Family::Llama);
    let set = ["--set", "lora.use_dora=true", "--output-dir"];
    let train = |more: &[&str]| succeeds(d, &[&["train", "recipe.toml"], &set[..], more].concat());
    train(&["a"]);
    train(&["b", "--set", "load_in_4bit=true"]);
    train(&["c", "--adapter", "a"]);
    assert_eq!(config(&d.join("c/adapter"))["use_dora"], true);
    let seen = succeeds(d, &["inspect", "a/adapter"]);
    assert_eq!(seen["use_dora"], true);
    let read = backdraft_formats::PeftDir::read(d.join("a/adapter")).unwrap();
    let pairs = read.tensors.iter();
    let values: usize = pairs.map(|pair| pair.values().count()).sum();
    assert_eq!(seen["parameters"], json!(values));

    let merge = |adapter: &str, more: &[&str]| {
        let out = format!("merged-{adapter}");
        let merge = ["merge", "--adapter", adapter, "--out", &out];
        let rows = ["--kl-data", "eval.jsonl"];
        let line = succeeds(d, &[&merge[..], &rows, more].concat());
        let kl = line["mean_kl"].as_f64().unwrap();
        assert!(kl < 1e-6, "{adapter}: {line}");
    };
    merge("a", &[]);
    merge("b", &["--base", "dequantized"]);
    let export = ["export", "--adapter", "a", "--to", "gguf", "--type", "f32"];
    let exported = succeeds(d, &[&export[..], &["--device", "cpu"]].concat());
    assert!(exported["mean_kl"].as_f64().unwrap() < 1e-6, "{exported}");
    let alone = [
        "export",
        "--adapter",
        "a",
        "--to",
        "gguf",
        "--adapter-only",
        "--force",
    ];
    says(&fails(d, &alone, 1), &["lengths of rows"]);
    let said = fails(d, &["combine", "a", "c", "--out", "both"], 1);
    says(&said, &["a/adapter", "use_dora", "merge it"]);
    let plain = [
        "train",
        "recipe.toml",
        "--adapter",
        "a",
        "--output-dir",
        "d",
    ];
    let said = fails(
        d,
        &[&plain[..], &["--set", "lora.use_dora=false"]].concat(),
        1,
    );
    says(&said, &["lora.use_dora = false", "use_dora = true"]);
}
