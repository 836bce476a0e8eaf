//! Every family through the program, as `docs/families.md` says that it goes.

use std::fs;
use std::path::Path;

use backdraft_arch::Family;
use backdraft_formats::SafetensorsFile;
use backdraft_testkit::random_model::RandomModel;
use backdraft_testkit::tiny;

use serde_json::Value;

use super::{fails, says, succeeds};

/// The columns of the page that say what goes.
const COLUMNS: [&str; 9] = [
    "Hugging Face in",
    "GGUF in",
    "bitsandbytes in",
    "train",
    "generate",
    "merge",
    "PEFT in",
    "PEFT out",
    "GGUF out",
];

/// A table of the page, by the name of its second column: its header, and a row for each family.
fn table(second: &str) -> Vec<Vec<String>> {
    let page = include_str!("../../../../docs/families.md");
    let begin = format!("| `model_type` | {second} |");
    let lines = page.lines().skip_while(|line| !line.starts_with(&begin));
    let lines = lines.take_while(|line| line.starts_with('|'));
    let cells = |line: &str| {
        let inner = line.trim_matches('|').split('|');
        inner.map(|cell| cell.trim().to_owned()).collect()
    };
    lines
        .map(cells)
        .filter(|row: &Vec<String>| row[0] != "---")
        .collect()
}

/// What the page says of a family, by column.
fn cell(family: Family, column: &str) -> String {
    let name = format!("`{}`", family.model_type());
    let rows = table(COLUMNS[0]);
    let row = rows.iter().find(|row| row[0] == name).unwrap();
    let place = COLUMNS.iter().position(|known| *known == column);
    row[1 + place.unwrap()].clone()
}

#[test]
fn the_page_has_every_family_in_both_tables() {
    let families = Family::ALL.map(|family| format!("`{}`", family.model_type()));
    for second in ["models", COLUMNS[0]] {
        let rows = table(second);
        let names: Vec<&String> = rows.iter().skip(1).map(|row| &row[0]).collect();
        assert!(names.iter().copied().eq(&families), "{second}: {names:?}");
    }
    assert_eq!(table(COLUMNS[0])[0][1..], COLUMNS);
}

/// How a family is refused in GGUF files that are written.
fn refusal(family: Family) -> &'static str {
    match family {
        Family::Ministral => "the sliding window is 9",
        _ => panic!("{family:?} is not refused"),
    }
}

/// What is peculiar about a model is what `inspect` says of it.
fn peculiar(family: Family) -> Vec<(&'static str, Value)> {
    match family {
        Family::Granite => vec![
            ("embedding_multiplier", 12.0.into()),
            ("attention_multiplier", 0.3.into()),
            ("residual_multiplier", 0.22.into()),
            ("logits_scaling", 0.4.into()),
        ],
        Family::Qwen35 => vec![
            ("layers_with_delta_net", 3.into()),
            ("linear_num_value_heads", 4.into()),
        ],
        Family::SmolLm3 => vec![("layers_without_rope", 1.into())],
        Family::Ministral => vec![
            ("sliding_window", 9.into()),
            ("layers_with_window", 2.into()),
        ],
        Family::Ministral3 => vec![("llama_4_scaling_beta", 0.1.into())],
        Family::Gemma2 => vec![
            ("sliding_window", 9.into()),
            ("layers_with_window", 2.into()),
            ("attn_logit_softcapping", 0.5.into()),
            ("final_logit_softcapping", 3.0.into()),
        ],
        Family::Gemma3 => vec![
            ("sliding_window", 9.into()),
            ("layers_with_window", 4.into()),
            ("rope_local_base_freq", 1e4.into()),
        ],
        Family::Gemma4 => vec![
            ("sliding_window", 9.into()),
            ("layers_with_window", 2.into()),
            ("head_dim", 16.into()),
            ("global_head_dim", 32.into()),
            ("num_global_key_value_heads", 1.into()),
            ("layers_without_v_proj", 2.into()),
            ("rotary_dim", 8.into()),
            ("final_logit_softcapping", 3.0.into()),
        ],
        Family::Phi3 => vec![("sliding_window", 9.into()), ("rotary_dim", 12.into())],
        Family::Glm4 => vec![
            ("rotary_dim", 8.into()),
            ("rotary_pairs", "neighbours".into()),
        ],
        Family::Olmo3 | Family::Mistral => vec![("sliding_window", 9.into())],
        _ => Vec::new(),
    }
}

/// Each command as often as the page has a cell for it; what the page calls refused is refused by its name.
#[test]
fn every_cell_of_the_page_is_what_happens() {
    for family in Family::ALL {
        for column in [
            "Hugging Face in",
            "bitsandbytes in",
            "train",
            "generate",
            "merge",
            "PEFT in",
            "PEFT out",
        ] {
            assert_eq!(cell(family, column), "yes", "{family:?}, {column}");
        }
        let directory = tempfile::tempdir().unwrap();
        let d = directory.path();
        let shape = project(d, family);
        let train = |changes: &[&str]| {
            let changes = changes.iter().flat_map(|change| ["--set", change]);
            succeeds(
                d,
                &["train", "recipe.toml"]
                    .into_iter()
                    .chain(changes)
                    .collect::<Vec<_>>(),
            )
        };
        let rest = ["--raw", "--max-new-tokens", "3", "w5 w6"];
        let ask = |arguments: &[&str]| succeeds(d, &[&["generate"], arguments, &rest[..]].concat());
        let seen = succeeds(d, &["inspect", "model"]);
        assert_eq!(seen["model_type"], family.model_type());
        for (key, value) in peculiar(family) {
            assert_eq!(seen[key], value, "{family:?}, {key}");
        }
        succeeds(d, &["plan", "recipe.toml"]);
        train(&[]);
        check_adapter(&d.join("out/adapter"), adapted(family));
        let trained = ask(&["--adapter", "out"]);
        train(&[
            "lora.adapter=\"out\"",
            "output_dir=\"further\"",
            "train.max_steps=1",
        ]);
        let merged = succeeds(d, &["merge", "--adapter", "out", "--out", "merged"]);
        assert_eq!(merged["merged"], adapted(family), "{family:?}");
        assert_eq!(
            ask(&["--model", "merged"])["text"],
            trained["text"],
            "{family:?}"
        );
        succeeds(d, &["quantize", "--model", "merged", "--out", "quantised"]);
        let seen = succeeds(d, &["inspect", "quantised"]);
        assert_eq!(seen["model_type"], family.model_type());
        ask(&["--model", "quantised"]);
        train(&[
            "model=\"quantised\"",
            "output_dir=\"over-codes\"",
            "train.max_steps=1",
        ]);

        let export = ["export", "--to", "gguf", "--type", "f32", "--device", "cpu"];
        let tuned = [&export[..], &["--adapter", "out", "--name", "tuned"]].concat();
        let alone = [
            "export",
            "--to",
            "alone",
            "--adapter",
            "out",
            "--adapter-only",
        ];
        match cell(family, "GGUF out").as_str() {
            "yes" => {
                succeeds(d, &tuned);
                succeeds(d, &alone);
            }
            "refused" => {
                says(&fails(d, &tuned, 1), &[refusal(family)]);
                says(&fails(d, &alone, 1), &[refusal(family)]);
            }
            other => panic!("{family:?}: GGUF out is {other:?}"),
        }
        let file = "gguf/tuned-f32.gguf";
        match cell(family, "GGUF in").as_str() {
            "yes" => {
                assert!((nll(d, file) - nll(d, "merged")).abs() < 1e-5, "{family:?}");
                ask(&["--model", file]);
                let model = format!("model=\"{file}\"");
                train(&[&model, "output_dir=\"over-gguf\"", "train.max_steps=1"]);
            }
            "as `llama`" => {
                let shape = RandomModel {
                    window: None,
                    ..shape
                };
                shape.write_in_bytes(&d.join("full"), 0.05);
                succeeds(
                    d,
                    &[&export[..], &["--model", "full", "--name", "full"]].concat(),
                );
                let seen = succeeds(d, &["inspect", "gguf/full-f32.gguf"]);
                assert_eq!(seen["model_type"], "llama", "{family:?}");
                assert!((nll(d, "gguf/full-f32.gguf") - nll(d, "full")).abs() < 1e-5);
            }
            other => panic!("{family:?}: GGUF in is {other:?}"),
        }
    }
}

/// A run of the family's random model, whose recipe adapts `q_proj` (a Phi's `qkv_proj`) and `down_proj` of a layer.
pub(super) fn project(d: &Path, family: Family) -> RandomModel {
    let recipe = tiny::project(d, "max_steps = 3\n");
    let mut text = fs::read_to_string(&recipe).unwrap();
    // A tokenizer of bytes makes more of the same words.
    text = text.replace("max_seq_length = 32", "max_seq_length = 64");
    if family == Family::Phi3 {
        text = text.replace("\"q_proj\"", "\"qkv_proj\"");
    }
    fs::write(&recipe, text).unwrap();
    fs::remove_dir_all(d.join("model")).unwrap();
    let windowed = matches!(
        family,
        Family::Mistral
            | Family::Ministral
            | Family::Olmo3
            | Family::Gemma2
            | Family::Gemma3
            | Family::Gemma4
            | Family::Phi3
    );
    let shape = RandomModel {
        family,
        window: windowed.then_some(9),
        hidden: 64,
        intermediate: 96,
        layers: 4,
        heads: 4,
        kv_heads: 2,
        vocab: 256,
    };
    shape.write_in_bytes(&d.join("model"), 0.05);
    shape
}

/// Of those two a DeltaNet has no `q_proj`.
fn adapted(family: Family) -> usize {
    if family == Family::Qwen35 { 1 } else { 2 }
}

/// A directory as PEFT has it.
fn check_adapter(directory: &Path, modules: usize) {
    let config = fs::read(directory.join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["peft_type"], "LORA");
    let file = SafetensorsFile::open(directory.join("adapter_model.safetensors")).unwrap();
    let names: Vec<&str> = file.tensors().map(|info| info.name.as_str()).collect();
    assert_eq!(names.len(), 2 * modules, "{names:?}");
    for name in names {
        let ends = name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight");
        assert!(
            name.starts_with("base_model.model.model.layers.1.") && ends,
            "{name}"
        );
    }
}

/// What a model thinks of some ids, more than a window has.
fn nll(d: &Path, model: &str) -> f64 {
    let ids: Vec<u32> = (0..24).map(|i| 3 + (7 * i * i + 5 * i) % 90).collect();
    fs::write(d.join("ids.json"), format!("{ids:?}")).unwrap();
    let fixed = [
        "--ids", "ids.json", "--out", "scores", "--force", "--device", "cpu",
    ];
    let score = succeeds(d, &[&["score", "--model", model], &fixed[..]].concat());
    score["mean_nll"].as_f64().unwrap()
}
