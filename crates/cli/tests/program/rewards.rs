//! Reward models from rows to rewards, as people and programs see them.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::preferences::project;
use super::schema::Schema;
use super::{backdraft, fails, says, succeeds};

/// What a command says as JSON lines that fit the page.
fn lines(d: &Path, arguments: &[&str]) -> Vec<Value> {
    let output = backdraft(d, &[arguments, &["--json"]].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    Schema::of_the_page().check(&said);
    let lines = said.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn of<'a>(lines: &'a [Value], event: &str) -> Vec<&'a Value> {
    let found = lines.iter().filter(|line| line["event"] == event);
    found.collect()
}

fn mean(value: &Value) -> f64 {
    value["mean"].as_f64().unwrap_or_else(|| panic!("{value}"))
}

#[test]
fn a_reward_model_is_trained_evaluated_and_trained_further() {
    let directory = project("kind = \"reward\"\n");
    let d = directory.path();
    let said = lines(d, &["train", "recipe.toml"]);
    let steps = of(&said, "step");
    let answers = &steps[0]["answers"];
    assert_eq!(answers["chosen"], 4);
    let margin = mean(&answers["reward_chosen"]) - mean(&answers["reward_rejected"]);
    assert!((margin - mean(&answers["margin"])).abs() < 1e-6);
    assert!(answers["logp_chosen"].is_null() && answers["nll"].is_null());
    // One token of each text counts.
    assert_eq!(steps[0]["supervised_tokens"], 8);
    let last = of(&said, "eval")[1];
    assert!(last["answers"]["accuracy"]["error"].is_number() && last["perplexity"].is_null());

    let config = fs::read(d.join("out/adapter/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["task_type"], "SEQ_CLS");
    assert_eq!(config["modules_to_save"], serde_json::json!(["score"]));
    let weights = fs::read(d.join("out/adapter/adapter_model.safetensors")).unwrap();
    let header = String::from_utf8_lossy(&weights[..2048]).into_owned();
    says(
        &header,
        &["\"base_model.model.score.weight\":{\"dtype\":\"F32\",\"shape\":[1,64]"],
    );

    // The same numbers as the run's last evaluation, which was the best or not.
    let eval = ["eval", "recipe.toml", "--answers", "rewards.jsonl"];
    let said = lines(d, &eval);
    let found = &of(&said, "evaluation")[0]["adapter"];
    let best = of(&lines(d, &["train", "recipe.toml", "--force"]), "eval")
        .into_iter()
        .filter(|eval| eval["best"] == true)
        .map(|eval| eval["eval_loss"].as_f64().unwrap())
        .next_back()
        .unwrap();
    assert!(
        (found["loss"].as_f64().unwrap() - best).abs() < 1e-6,
        "{found} {best}"
    );
    assert!(found["nll"].is_null() && found["tokens"] == 12, "{found}");
    let rewards = fs::read_to_string(d.join("rewards.jsonl")).unwrap();
    let rewards: Vec<Value> = rewards
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let chosen = rewards
        .iter()
        .map(|line| line["adapter"]["chosen"].as_f64().unwrap());
    let chosen: f64 = chosen.sum::<f64>() / rewards.len() as f64;
    assert_eq!((rewards.len(), &rewards[2]["line"]), (6, &3.into()));
    assert!((chosen - mean(&found["answers"]["reward_chosen"])).abs() < 1e-6);

    // Rows of one answer have a reward each.
    let one = "{\"prompt\": \"w3 w9 w4\", \"completion\": \" w9\", \"label\": false}\n";
    fs::write(d.join("one.jsonl"), one).unwrap();
    let single = [
        "eval",
        "--adapter",
        "out",
        "--data",
        "one.jsonl",
        "--format",
        "unpaired",
        "--answers",
        "one.out",
    ];
    let said = succeeds(d, &single);
    let found = &said["adapter"]["answers"];
    assert_eq!(
        (&found["chosen"], &found["rejected"]),
        (&0.into(), &1.into())
    );
    assert!(said["adapter"]["loss"].is_null() && found["reward_rejected"]["mean"].is_number());
    let line: Value =
        serde_json::from_str(&fs::read_to_string(d.join("one.out")).unwrap()).unwrap();
    assert!(
        line["adapter"]["reward"].is_number() && line["label"] == false,
        "{line}"
    );

    // It goes on from where it was.
    let further = [
        "train",
        "recipe.toml",
        "--adapter",
        "out",
        "--output-dir",
        "further",
    ];
    let said = lines(d, &further);
    let first = mean(&of(&said, "step")[0]["answers"]["margin"]);
    assert!(first > mean(&answers["margin"]), "{first} {answers}");
}

#[test]
fn what_a_reward_model_cannot_do_is_said() {
    let directory = project("kind = \"reward\"\n");
    let d = directory.path();
    says(
        &fails(d, &["eval", "recipe.toml"], 1),
        &["there is no reward model", "train one"],
    );
    succeeds(d, &["train", "recipe.toml"]);
    let reward_model = "is a reward model: its head (score.weight) scores answers";
    for command in [
        &["generate", "--adapter", "out", "w3"][..],
        &[
            "serve",
            "--model",
            "model",
            "--adapter",
            "out",
            "--port",
            "0",
        ],
        &["merge", "--adapter", "out", "--out", "merged"],
        &[
            "export",
            "--adapter",
            "out",
            "--to",
            "gguf",
            "--type",
            "f16",
        ],
    ] {
        says(&fails(d, command, 1), &[reward_model, "`backdraft eval`"]);
    }
    says(
        &fails(d, &["eval", "recipe.toml", "--generate"], 2),
        &["this one scores answers"],
    );
    let as_dpo = ["--set", "objective.kind=\"dpo\"", "--output-dir", "dpo"];
    let as_dpo = [&["train", "recipe.toml", "--adapter", "out"][..], &as_dpo].concat();
    says(&fails(d, &as_dpo, 1), &["the adapter is of a reward model"]);
    let unpaired = "{\"prompt\": \"w3\", \"completion\": \" w4\", \"label\": true}\n";
    fs::write(d.join("train.jsonl"), unpaired.repeat(4)).unwrap();
    says(
        &fails(d, &["train", "recipe.toml", "--force"], 1),
        &["objective.kind = \"reward\" learns from rows of format \"preference\""],
    );
}
