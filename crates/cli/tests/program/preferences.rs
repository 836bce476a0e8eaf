//! Preferences from rows to reports, as people and programs see them.

use std::fs;

use backdraft_testkit::tiny;

use super::schema::Schema;
use super::{backdraft, fails, says};

const MORE: &str = "max_steps = 4\neval_steps = 2\nsave_steps = 2\nwarmup_steps = 0\n";

/// A project whose rows are pairs.
fn project(objective: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let d = directory.path();
    let recipe = tiny::project(d, MORE);
    tiny::pairs(&d.join("train.jsonl"), 24, 1);
    tiny::pairs(&d.join("eval.jsonl"), 6, 2);
    let text = fs::read_to_string(&recipe).unwrap();
    let text = text.replace(
        "format = \"alpaca\"\ncache = \"off\"\nprompt_template = \"w3 {instruction} w4 {output}\"\n",
        "cache = \"off\"\n",
    );
    let text = text.replace("[data]\n", &format!("[objective]\n{objective}[data]\n"));
    fs::write(&recipe, text).unwrap();
    directory
}

#[test]
fn preferences_are_told_to_programs_and_people() {
    let directory = project("kind = \"dpo\"\n");
    let d = directory.path();
    let output = backdraft(d, &["train", "recipe.toml", "--json"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    Schema::of_the_page().check(&said);
    let lines: Vec<serde_json::Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |event: &str| {
        lines
            .iter()
            .filter(|line| line["event"] == event)
            .collect::<Vec<_>>()
    };
    let steps = of("step");
    // Nothing is trained yet, so nothing is preferred.
    assert_eq!(steps[0]["loss"], f64::from(std::f32::consts::LN_2));
    assert_eq!(steps[0]["answers"]["margin"]["mean"], 0.0);
    assert_eq!(steps[0]["answers"]["chosen"], 4);
    assert!(steps[3]["answers"]["margin"]["mean"].as_f64() != Some(0.0));
    let eval = of("eval")[1];
    assert!(eval["answers"]["accuracy"]["error"].is_number() && eval["perplexity"].is_null());
    assert!(of("summary")[0]["final_answers"]["accuracy"]["mean"].is_number());
    assert_eq!(of("data")[0]["train"]["report"]["comparisons"]["pairs"], 24);

    let output = backdraft(d, &["train", "recipe.toml", "--plain", "--force"]);
    let said = String::from_utf8(output.stdout).unwrap();
    let parts = [
        "format \"preference\" (the first 24 rows have chosen and rejected)",
        "24 pairs; tokens on average:",
        "margin 0.0000 accuracy 0.00 lr",
        "eval at step 2: loss",
        "± ",
        "answers accuracy",
    ];
    says(&said, &parts);
    assert!(!said.contains("perplexity"), "{said}");
}

#[test]
fn preferences_are_checked_without_a_recipe() {
    let directory = project("kind = \"kto\"\n");
    let d = directory.path();
    let output = backdraft(d, &["data", "check", "train.jsonl", "--model", "model"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    says(&said, &["24 pairs; tokens on average:", "no problems"]);
    let same = r#"{"prompt": "w3 w5", "chosen": " w6", "rejected": " w6 "}"#;
    fs::write(d.join("same.jsonl"), same).unwrap();
    let said = fails(d, &["data", "check", "same.jsonl", "--model", "model"], 1);
    says(&said, &["the data has problems"]);
}

#[test]
fn rows_that_the_objective_cannot_learn_from_are_refused() {
    let directory = project("kind = \"sft\"\n");
    let d = directory.path();
    let said = fails(d, &["train", "recipe.toml"], 1);
    let parts = [
        "objective.kind = \"sft\" learns from rows to imitate, and",
        "format \"preference\"",
        "set objective.kind = \"dpo\"",
    ];
    says(&said, &parts);
    fs::write(d.join("train.jsonl"), "{\"text\": \"w3 w4\"}\n").unwrap();
    let set = ["train", "recipe.toml", "--set", "objective.kind=\"simpo\""];
    says(
        &fails(d, &set, 1),
        &["learns from rows of format \"preference\""],
    );
}
