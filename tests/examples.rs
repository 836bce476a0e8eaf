//! The examples, compiled into one program and run on tiny models.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use backdraft::burn::tensor::Device;
use backdraft::formats::ModelSource;
use backdraft_testkit::tiny;
use serde_json::{Value, json};

#[path = "../examples/custom_loop.rs"]
#[allow(dead_code, reason = "main is the example's")]
mod custom_loop;
#[path = "../examples/embed.rs"]
mod embed;
#[path = "../examples/finetune.rs"]
#[allow(dead_code, reason = "main is the example's")]
mod finetune;
#[path = "../examples/new_op.rs"]
#[allow(dead_code, reason = "main is the example's")]
mod new_op;

#[test]
fn a_loop_of_ones_own_learns() {
    let (losses, model) =
        custom_loop::train(&ModelSource::open(custom_loop::TINY).unwrap()).unwrap();
    assert_eq!(losses.len(), custom_loop::STEPS);
    assert!(losses[losses.len() - 1] < 0.6 * losses[0], "{losses:?}");
    assert!(model.adapter().is_some());
}

#[test]
fn a_new_op_agrees_with_its_reference() {
    let [y, dx] = new_op::compare(&Device::flex());
    assert!(y < 1e-4 && dx < 1e-3, "{y} {dx}");
}

#[test]
fn an_embedded_model_trains() {
    embed::main().unwrap();
}

/// A chat template of words that the tiny model's tokenizer knows.
fn chat_model(directory: &Path) {
    tiny::model(directory);
    let template = "{% for m in messages %}{{ 'w3 ' if m.role == 'user' else 'w4 ' }}{{ m.content }} </s> {% endfor %}\
                    {% if add_generation_prompt %}w4 {% endif %}";
    let config = json!({ "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": template });
    fs::write(directory.join("tokenizer_config.json"), config.to_string()).unwrap();
}

#[test]
fn a_run_learns_what_its_rows_say_and_leaves_an_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    chat_model(Path::new(&at("model")));
    let chat = json!({ "messages": [
        { "role": "user", "content": "w10 w11" },
        { "role": "assistant", "content": "w20 w21 w22" },
    ] });
    fs::write(at("rows.jsonl"), format!("{chat}\n").repeat(16)).unwrap();
    let answer =
        finetune::finetune(&at("model"), &at("rows.jsonl"), &at("out"), "w10 w11").unwrap();
    assert!(
        folder
            .path()
            .join("out/adapter/adapter_model.safetensors")
            .is_file()
    );
    assert!(!answer.is_empty());
    let metrics = fs::read_to_string(at("out/metrics.jsonl")).unwrap();
    let losses: Vec<f64> = metrics
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64())
        .collect();
    assert_eq!(losses.len(), 60, "{metrics}");
    assert!(losses[59] < losses[0], "{losses:?}");
}
