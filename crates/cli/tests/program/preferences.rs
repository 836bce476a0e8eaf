//! Preferences from rows to reports, as people and programs see them.

use std::fs;
use std::path::Path;

use backdraft_testkit::tiny;
use serde_json::Value;

use super::schema::Schema;
use super::{backdraft, fails, says};

const MORE: &str = "max_steps = 4\neval_steps = 2\nsave_steps = 2\nwarmup_steps = 0\n";

/// A project whose rows are pairs.
pub(crate) fn project(objective: &str) -> tempfile::TempDir {
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
fn each_of_several_losses_is_told_of() {
    let losses = "loss = [\"sigmoid\", \"sft\", \"apo_zero\"]\nloss_weights = [1.0, 0.1, 0.5]\n";
    let directory = project(&format!("kind = \"dpo\"\n{losses}"));
    let d = directory.path();
    let output = backdraft(d, &["train", "recipe.toml", "--json"]);
    let said = String::from_utf8(output.stdout).unwrap();
    Schema::of_the_page().check(&said);
    let mut seen = 0;
    for line in said.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let answers = &line["answers"];
        let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{line}"));
        let loss = match line["event"].as_str().unwrap() {
            "step" => number(&line["loss"]),
            "eval" => number(&line["eval_loss"]),
            _ => continue,
        };
        seen += 1;
        let of = |name: &str| number(&answers["losses"][name]["mean"]);
        let sum = of("sigmoid") + 0.5 * of("apo_zero") + 0.1 * number(&answers["nll"]);
        assert!((loss - sum).abs() < 1e-5 * loss, "{loss} {sum}");
    }
    assert_eq!(seen, 6);
    let output = backdraft(d, &["eval", "recipe.toml"]);
    let said = String::from_utf8(output.stdout).unwrap();
    says(&said, &["sigmoid 0.6", "apo_zero 0.9"]);
}

/// What `train` says with these arguments, by line.
fn trained(d: &Path, more: &[&str]) -> Vec<Value> {
    let output = backdraft(d, &[&["train", "--json"], more].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    said.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn first_step(lines: &[Value]) -> &Value {
    lines.iter().find(|line| line["event"] == "step").unwrap()
}

#[test]
fn an_adapter_that_is_trained_further_is_its_own_reference() {
    let directory = project("kind = \"dpo\"\n");
    let d = directory.path();
    let still = ["--set", "lora.dropout=0.0"];
    trained(d, &[&["recipe.toml"], &still[..]].concat());
    let further = |out: &str, more: &[&str]| {
        let from = ["recipe.toml", "--adapter", "out", "--output-dir", out];
        trained(d, &[&from[..], &still, more].concat())
    };
    // The copy is the policy to the bit, and another model than the base.
    let second = further("second", &[]);
    assert_eq!(
        first_step(&second)["loss"],
        f64::from(std::f32::consts::LN_2)
    );
    let third = further("third", &["--set", "objective.reference=\"base\""]);
    let margin = first_step(&third)["answers"]["margin"]["mean"].as_f64();
    assert!(margin.unwrap().abs() > 1e-4, "{margin:?}");
    let bytes = |run: &str| {
        let path = d.join(run).join("adapter/adapter_model.safetensors");
        fs::read(path).unwrap()
    };
    // It is read again from its directory, and has to be what it was.
    let expected = bytes("second");
    fs::remove_dir_all(d.join("second/adapter")).unwrap();
    let at = ["train", "--resume", "second/checkpoints/step-000002"];
    super::succeeds(d, &at);
    assert_eq!(bytes("second"), expected);
    fs::remove_dir_all(d.join("second/adapter")).unwrap();
    fs::write(
        d.join("out/adapter/adapter_model.safetensors"),
        bytes("third"),
    )
    .unwrap();
    says(
        &fails(d, &at, 1),
        &[
            "out/adapter has changed since the run began",
            "begin a new run",
        ],
    );
    fs::remove_dir_all(d.join("out")).unwrap();
    says(
        &fails(d, &at, 1),
        &["out/adapter is not there as it was when the run began"],
    );
}

/// Every number of steps and evaluations, in order.
fn losses(lines: &[Value]) -> Vec<f64> {
    let of = |line: &Value| line["loss"].as_f64().or_else(|| line["eval_loss"].as_f64());
    let told = lines.iter();
    let told = told.filter(|line| line["event"] == "step" || line["event"] == "eval");
    told.filter_map(of).collect()
}

#[test]
fn a_reference_is_asked_once() {
    let directory = project("kind = \"dpo\"\n");
    let d = directory.path();
    let run = |out: &str, precompute: bool| {
        let set = format!("objective.precompute_reference={precompute}");
        trained(
            d,
            &[
                "recipe.toml",
                "--output-dir",
                out,
                "--set",
                &set,
                "--set",
                "data.cache=\"cache\"",
            ],
        )
    };
    let without = losses(&run("without", false));
    assert_eq!(without.len(), 6);
    let close = |found: &[f64]| {
        assert_eq!(found.len(), without.len());
        for (found, expected) in found.iter().zip(&without) {
            assert!(
                (found - expected).abs() < 1e-5 * expected.abs(),
                "{found} {expected}"
            );
        }
    };
    let first = losses(&run("first", true));
    close(&first);
    let cached = || -> Vec<std::path::PathBuf> {
        let entries = fs::read_dir(d.join("cache")).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let is_one =
            |path: &std::path::PathBuf| path.extension().is_some_and(|it| it == "reference");
        let mut paths: Vec<_> = paths.filter(is_one).collect();
        paths.sort();
        paths
    };
    // Training rows and held-out ones, two numbers a pair.
    let files = cached();
    let sizes: Vec<u64> = files
        .iter()
        .map(|path| path.metadata().unwrap().len())
        .collect();
    let mut sorted = sizes.clone();
    sorted.sort_unstable();
    assert_eq!(
        sorted,
        [22 + 32 + 8 + 32 + 6 * 8, 22 + 32 + 8 + 32 + 24 * 8]
    );
    assert_eq!(losses(&run("second", true)), first);
    // One that is not what was written is named, and made again.
    let plain = |out: &str| {
        let output = backdraft(
            d,
            &[
                "train",
                "recipe.toml",
                "--plain",
                "--output-dir",
                out,
                "--set",
                "objective.precompute_reference=true",
                "--set",
                "data.cache=\"cache\"",
            ],
        );
        assert!(output.status.success());
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let said = plain("third");
    assert!(!said.contains("the reference's log-likelihoods"), "{said}");
    let good = fs::read(&files[0]).unwrap();
    let mut bytes = good.clone();
    bytes[70] ^= 1;
    fs::write(&files[0], &bytes).unwrap();
    let said = plain("fourth");
    says(
        &said,
        &[
            "its SHA-256 is not that of what was written",
            "is computed again",
        ],
    );
    assert_eq!(fs::read(&files[0]).unwrap(), good);
    // The file of other rows, under this name.
    fs::copy(&files[1], &files[0]).unwrap();
    says(&plain("fifth"), &["bytes, and", "belong there"]);
    assert_eq!((fs::read(&files[0]).unwrap(), cached().len()), (good, 2));
}

#[test]
fn evaluations_judge_answers() {
    let directory = project("kind = \"dpo\"\nbeta = 0.5\n");
    let d = directory.path();
    let lines = trained(
        d,
        &[
            "recipe.toml",
            "--set",
            "train.early_stopping_metric=\"margin\"",
        ],
    );
    let evals: Vec<&Value> = lines
        .iter()
        .filter(|line| line["event"] == "eval")
        .collect();
    let last = evals[evals.len() - 1];
    // The kept adapter is that of the largest margin.
    let margin = |eval: &Value| eval["answers"]["margin"]["mean"].as_f64().unwrap();
    let best = evals
        .iter()
        .copied()
        .max_by(|a, b| margin(a).total_cmp(&margin(b)));
    let best = best.unwrap();
    let found = super::succeeds(d, &["eval", "recipe.toml"]);
    Schema::of_the_page().check(&found.to_string());
    let adapter = &found["adapter"];
    let near = |found: &Value, expected: &Value| {
        let [found, expected] = [found, expected].map(|one| one.as_f64().unwrap());
        assert!(
            (found - expected).abs() < 1e-4 * expected.abs().max(1.0),
            "{found} {expected}"
        );
    };
    near(&adapter["loss"], &best["eval_loss"]);
    for number in [
        "reward_chosen",
        "reward_rejected",
        "margin",
        "logp_chosen",
        "logp_rejected",
        "entropy",
    ] {
        let [found, expected] = [&adapter["answers"][number], &best["answers"][number]];
        near(&found["mean"], &expected["mean"]);
        near(&found["error"], &expected["error"]);
    }
    assert_eq!(last["answers"]["chosen"], 6);
    assert_eq!(found["base"]["answers"]["margin"]["mean"], 0.0);
    // Without a recipe pairs are judged as dpo does, and thumbs as kto does.
    let rows = ["eval", "--adapter", "out", "--model", "model", "--data"];
    let output = backdraft(d, &[&rows[..], &["eval.jsonl"]].concat());
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let parts = [
        "judged as dpo does, beta = 0.1",
        "base log-likelihoods -",
        "rejected, entropy",
        "with adapter loss 0.",
        "accuracy ",
    ];
    says(&said, &parts);
    let thumbs = (0..4).map(|i| {
        format!(
            "{{\"prompt\": \"w3 w{} w4\", \"completion\": \" w{}\", \"label\": {}}}\n",
            5 + i,
            6 + i,
            i % 2 == 1
        )
    });
    fs::write(d.join("thumbs.jsonl"), thumbs.collect::<String>()).unwrap();
    let found = super::succeeds(d, &[&rows[..], &["thumbs.jsonl"]].concat());
    assert_eq!(found["adapter"]["answers"]["rejected"], 2);
    assert!(
        found["adapter"]["answers"]["kl"].is_number()
            && found["adapter"]["answers"]["accuracy"].is_null()
    );
    let ipo = [
        "eval.jsonl",
        "--set",
        "objective.kind=\"dpo\"",
        "--set",
        "objective.loss=\"ipo\"",
    ];
    let found = super::succeeds(d, &[&rows[..], &ipo].concat());
    assert!(found["adapter"]["loss"].as_f64().unwrap() > 1.0, "{found}");
    let said = fails(
        d,
        &[
            &rows[..],
            &["thumbs.jsonl", "--set", "objective.kind=\"simpo\""],
        ]
        .concat(),
        1,
    );
    says(
        &said,
        &["compares pairs, and these rows are judged one by one"],
    );
    let said = fails(d, &[&rows[..], &["eval.jsonl", "--generate"]].concat(), 2);
    says(&said, &["answers to compare with each other"]);
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

#[test]
fn margins_are_shown_and_are_for_reward_models_alone() {
    let directory = project("kind = \"reward\"\n");
    let d = directory.path();
    let rows = fs::read_to_string(d.join("train.jsonl")).unwrap();
    let rows = rows.lines().enumerate().map(|(i, row)| {
        let mut row: Value = serde_json::from_str(row).unwrap();
        row["margin"] = (0.25 * (i % 4) as f64).into();
        format!("{row}\n")
    });
    fs::write(d.join("train.jsonl"), rows.collect::<String>()).unwrap();
    let shown = "24 pairs with a margin, from 0 to 0.75, 0.38 on average";
    let rows_alone = ["data", "check", "train.jsonl", "--model", "model"];
    for command in [&["data", "check", "recipe.toml"][..], &rows_alone] {
        let output = backdraft(d, command);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}");
        says(&said, &[shown, "no problems"]);
    }
    let lines = trained(d, &["recipe.toml"]);
    let data = lines.iter().find(|line| line["event"] == "data").unwrap();
    let margins = &data["train"]["report"]["comparisons"]["margins"];
    assert_eq!(
        (&margins["pairs"], &margins["sum"]),
        (&24.into(), &9.0.into())
    );
    let other = [
        "train",
        "recipe.toml",
        "--force",
        "--set",
        "objective.kind=\"dpo\"",
    ];
    let parts = [
        "24 of the rows have a `margin`, which objective.kind = \"dpo\" does not use",
        "set objective.kind = \"reward\"",
    ];
    says(&fails(d, &other, 1), &parts);
}

/// A run whose pairs one word tells apart says so, once, while it goes on and at its end.
#[test]
fn pairs_that_are_easily_told_apart_are_a_finding() {
    let directory = project("kind = \"dpo\"\n");
    let d = directory.path();
    let rows: String = (0..24)
        .map(|i| {
            let (a, b) = (5 + i % 6, 11 + i % 4);
            format!("{{\"prompt\": \"w{a} w{b}\", \"chosen\": \" w20 w{b}\", \"rejected\": \" w21 w{b}\"}}\n")
        })
        .collect();
    fs::write(d.join("train.jsonl"), rows).unwrap();
    let settings = "train recipe.toml --json --set train.max_steps=30 --set train.eval_steps=15 --set train.save_steps=30 \
                    --set train.learning_rate=0.02 --set lora.dropout=0";
    let output = backdraft(d, &settings.split_whitespace().collect::<Vec<_>>());
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    let mut schema = Schema::of_the_page();
    schema.check(&said);
    let lines = said
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let found: Vec<Value> = lines.filter(|line| line["event"] == "finding").collect();
    let separable = found
        .iter()
        .filter(|line| line["finding"]["kind"] == "separable");
    assert_eq!(separable.count(), 1, "{found:?}");
}
