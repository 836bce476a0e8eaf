//! What `train`, `watch` and `report` say of runs of a few steps: what is refused at once, what trains nothing, and
//! whether all say the same.

use std::fs;
use std::path::Path;

use backdraft_testkit::tiny;
use serde_json::Value;

use super::schema::Schema;
use super::{backdraft, fails, says, succeeds};

/// A tiny project whose recipe ends in `more`.
fn project(more: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    tiny::project(directory.path(), more);
    directory
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn records(directory: &Path) -> Vec<Value> {
    let text = fs::read_to_string(directory.join("out/metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What a command says on standard error, and whether it succeeded.
fn said(directory: &Path, arguments: &[&str]) -> (String, bool) {
    let output = backdraft(directory, arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    (text, output.status.success())
}

#[test]
fn what_is_known_at_once_is_said_before_rows_are_read() {
    let directory = project("max_steps = 2\n");
    let d = directory.path();
    fs::create_dir(d.join("held")).unwrap();
    fs::write(d.join("held/metrics.jsonl"), "").unwrap();
    fs::write(d.join("file"), "").unwrap();
    for (arguments, part) in [
        (vec!["--output-dir", "held"], "already holds a run"),
        (vec!["--output-dir", "file"], "it is a file"),
        (
            vec!["--output-dir", "file/below"],
            "is a file; name a directory",
        ),
        (vec!["--device", "cuda:7"], "cuda"),
        (
            vec!["--set", "memory_budget='100KiB'"],
            "memory_budget allows 0.1 MiB (the base alone takes",
        ),
        (vec!["--set", "lora.layers_to_transform=[9]"], "layer 9"),
        (vec!["--set", "data.eval=nowhere.jsonl"], "nowhere.jsonl"),
        (
            vec!["--set", "data.train=['train.jsonl', 'nowhere.jsonl']"],
            "nowhere.jsonl",
        ),
        (vec!["--set", "model=nothing"], "nothing"),
        (vec!["--set", "dtype=bf16"], "bf16"),
    ] {
        let (text, ok) = said(
            d,
            &[&["train", "recipe.toml", "--plain"], &arguments[..]].concat(),
        );
        assert!(!ok && !text.contains("reading"), "{arguments:?}: {text}");
        says(&text, &[part]);
        assert!(!d.join("out").exists(), "{arguments:?}");
    }
}

#[test]
fn a_warm_up_that_outlasts_the_run_is_a_warning() {
    let directory = project("max_steps = 3\nwarmup_steps = 5\nlr_scheduler = \"linear\"\n");
    let d = directory.path();
    let (text, ok) = said(d, &["train", "recipe.toml", "--plain"]);
    assert!(ok, "{text}");
    says(
        &text,
        &[
            "warning: the learning rate never reaches its peak: the warm-up of 5 steps outlasts the run of 3",
        ],
    );
    // As transformers warms up: as far as it gets.
    let rates: Vec<f64> = records(d)
        .iter()
        .filter_map(|record| record["learning_rate"].as_f64())
        .collect();
    assert_eq!(rates, [0.0, 5e-3 / 5.0, 2.0 * 5e-3 / 5.0]);
    let summary = json(&d.join("out/summary.json"));
    assert_eq!(summary["no_effect"][0]["kind"], "peak_not_reached");
    let (text, ok) = said(d, &["plan", "recipe.toml"]);
    assert!(ok && text.contains("never reaches its peak"), "{text}");
}

#[test]
fn bits_that_no_format_takes_are_refused_before_anything_is_planned() {
    let directory = project("max_steps = 1\n");
    let d = directory.path();
    for command in [
        &["plan", "recipe.toml"][..],
        &["train", "recipe.toml", "--plain"],
    ] {
        let set = [
            "--set",
            "load_in_4bit=true",
            "--set",
            "quantization.bits=2.9",
        ];
        let (text, ok) = said(d, &[command, &set].concat());
        assert!(!ok, "{text}");
        says(
            &text,
            &[
                "quantization.bits = 2.9",
                "raise bits, or add a smaller format",
            ],
        );
        assert!(!d.join("out").exists());
    }
}

#[test]
fn a_run_that_trains_nothing_says_so_before_and_at_the_end() {
    let directory = project("max_steps = 1\n");
    let d = directory.path();
    let output = backdraft(d, &["train", "recipe.toml", "--plain"]);
    assert!(output.status.success());
    let before = String::from_utf8(output.stderr).unwrap();
    says(
        &before,
        &["warning: nothing is trained: the learning rate is 0 in every step"],
    );
    let at_the_end = String::from_utf8(output.stdout).unwrap();
    says(
        &at_the_end,
        &["nothing was trained: every B of the adapter of step 1 is still zero"],
    );
    let summary = json(&d.join("out/summary.json"));
    let kinds: Vec<&str> = summary["no_effect"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|found| found["kind"].as_str())
        .collect();
    assert_eq!(kinds, ["no_learning_rate", "untrained"]);
    let report = fs::read_to_string(d.join("out/report.html")).unwrap();
    assert!(report.contains("nothing was trained"), "{report}");
}

#[test]
fn every_view_has_the_same_diagnosis() {
    for steps in [3, 4, 5, 6, 7, 9, 12] {
        let directory = project(&format!(
            "max_steps = {steps}\nwarmup_steps = 1\neval_steps = 3\n"
        ));
        let d = directory.path();
        let summary = succeeds(d, &["train", "recipe.toml"]);
        assert!(
            summary["no_effect"].as_array().unwrap().is_empty(),
            "{summary}"
        );
        let diagnosis = &summary["diagnosis"];
        assert_eq!(&succeeds(d, &["watch", "out"])["diagnosis"], diagnosis);
        assert_eq!(&json(&d.join("out/summary.json"))["diagnosis"], diagnosis);
        let last = records(d);
        let last = last
            .iter()
            .rev()
            .find(|record| record["event"] == "diagnosis");
        // None where it is still the one that every run begins with.
        let noted = last.map_or(&diagnosis["verdict"]["kind"], |record| {
            &record["diagnosis"]["verdict"]["kind"]
        });
        assert_eq!(noted, &diagnosis["verdict"]["kind"], "{steps}");
        // Without what the run concluded, the same rule comes to the same.
        fs::remove_file(d.join("out/summary.json")).unwrap();
        assert_eq!(&succeeds(d, &["watch", "out"])["diagnosis"], diagnosis);
        let line = String::from_utf8(backdraft(d, &["watch", "out"]).stdout).unwrap();
        says(&line, &["(smoothed "]);
    }
}

#[test]
fn early_stopping_is_never_healthy() {
    let directory = project(
        "max_steps = 60\neval_steps = 1\nearly_stopping_patience = 2\nearly_stopping_min_improvement = 0.5\n",
    );
    let summary = succeeds(directory.path(), &["train", "recipe.toml"]);
    assert_eq!(summary["stopped_early"], true, "{summary}");
    let kind = summary["diagnosis"]["verdict"]["kind"].as_str().unwrap();
    assert!(
        ["overfitting", "converged", "diverged", "unstable"].contains(&kind),
        "{summary}"
    );
}

#[test]
fn a_finished_run_is_left_as_it_is() {
    let directory = project("max_steps = 3\nwarmup_steps = 1\n");
    let d = directory.path();
    succeeds(d, &["train", "recipe.toml"]);
    let files = [
        "out/summary.json",
        "out/run.json",
        "out/metrics.jsonl",
        "out/report.html",
    ];
    let before = files.map(|file| fs::read(d.join(file)).unwrap());
    let again = succeeds(
        d,
        &["train", "--resume", "out", "--set", "train.logging_steps=2"],
    );
    assert_eq!(again["steps"], 3);
    let (text, ok) = said(d, &["train", "--resume", "out", "--plain"]);
    assert!(
        ok && text.contains("nothing to resume") && !text.contains("reading"),
        "{text}"
    );
    assert_eq!(files.map(|file| fs::read(d.join(file)).unwrap()), before);

    let refused = fails(d, &["train", "--resume", "out", "--set", "seed=7"], 1);
    says(&refused, &["seed: 42 → 7", "--allow-change seed"]);
    let more = [
        "train",
        "--resume",
        "out",
        "--max-steps",
        "5",
        "--allow-change",
        "train.max_steps",
    ];
    assert_eq!(succeeds(d, &more)["steps"], 5);
}

#[test]
fn lines_say_what_they_are_and_those_of_earlier_versions_are_read() {
    let directory = project("max_steps = 6\nwarmup_steps = 1\neval_steps = 3\n");
    let d = directory.path();
    succeeds(d, &["train", "recipe.toml"]);
    let before = records(d);
    for record in &before {
        let event = record["event"].as_str().unwrap();
        assert!(["step", "eval", "diagnosis"].contains(&event), "{record}");
        assert_eq!(record["schema_version"], 1);
    }
    let run = json(&d.join("out/run.json"));
    assert!(
        run["info"]["device"].as_str().unwrap().starts_with("cpu"),
        "{run}"
    );
    assert!(run["eval_data"]["longest"].as_u64().unwrap() > 0, "{run}");
    let share = [
        "train",
        "recipe.toml",
        "--set",
        "data.eval=0.25",
        "--output-dir",
        "share",
    ];
    succeeds(d, &share);
    let run = json(&d.join("share/run.json"));
    assert!(run["eval_data"]["longest"].as_u64().unwrap() > 0, "{run}");
    let watched = succeeds(d, &["watch", "out"]);

    let path = d.join("out/metrics.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let old: String = text
        .lines()
        .map(|line| {
            let mut record: Value = serde_json::from_str(line).unwrap();
            let object = record.as_object_mut().unwrap();
            object.shift_remove("event");
            object.shift_remove("schema_version");
            format!("{record}\n")
        })
        .collect();
    fs::write(&path, old).unwrap();
    assert_eq!(succeeds(d, &["watch", "out"]), watched);
    succeeds(d, &["report", "out"]);
}

#[test]
fn what_a_command_reads_is_never_replaced() {
    let directory = project("max_steps = 2\n");
    let d = directory.path();
    fs::write(d.join("ids.json"), "[[1, 2, 3]]").unwrap();
    fs::write(d.join("notes"), "mine").unwrap();
    let kept = ["recipe.toml", "train.jsonl", "ids.json", "notes"];
    let read = || kept.map(|name| fs::read(d.join(name)).unwrap());
    let before = read();
    let score = [
        "score", "--model", "model", "--ids", "ids.json", "--force", "--out",
    ];
    for (arguments, part) in [
        (
            vec!["train", "recipe.toml", "--force", "--output-dir", "."],
            "in place of this one, which you wrote",
        ),
        (
            vec!["train", "recipe.toml", "--output-dir", "."],
            "hint: choose another --output-dir, such as a directory beside the recipe",
        ),
        (
            vec![
                "quickstart",
                "--model",
                "model",
                "--force",
                "--output-dir",
                ".",
            ],
            "was not made by quickstart and is not replaced",
        ),
        (
            [&score[..], &["ids.json"]].concat(),
            "ids.json is read by this command",
        ),
        (
            [&score[..], &["model/config.json"]].concat(),
            "model/config.json, of ",
        ),
        (
            vec![
                "data",
                "preview",
                "recipe.toml",
                "--force",
                "--html",
                "train.jsonl",
            ],
            "train.jsonl is read by this command",
        ),
        (
            vec!["data", "check", "recipe.toml", "--skipped", "train.jsonl"],
            "train.jsonl is read by this command",
        ),
        (
            vec!["data", "check", "recipe.toml", "--skipped", "notes"],
            "notes already exists and is not replaced",
        ),
    ] {
        let (text, ok) = said(d, &arguments);
        assert!(!ok && !text.contains("reading"), "{arguments:?}: {text}");
        says(&text, &[part]);
        assert_eq!(read(), before, "{arguments:?}");
    }
}

#[test]
fn a_list_of_skipped_rows_is_replaced_by_the_next() {
    let directory = project("max_steps = 2\n");
    let d = directory.path();
    let rows = fs::read_to_string(d.join("train.jsonl")).unwrap();
    fs::write(d.join("train.jsonl"), format!("{rows}{{broken\n")).unwrap();
    let check = [
        "data",
        "check",
        "recipe.toml",
        "--skip-bad-rows",
        "1",
        "--skipped",
        "bad.jsonl",
    ];
    for _ in 0..2 {
        let output = backdraft(d, &check);
        let text =
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        // What was asked for is not advised again.
        says(
            &text,
            &[
                "training skips them, as skip_bad_rows allows",
                "skipped rows are listed in bad.jsonl",
            ],
        );
        assert_eq!(
            fs::read_to_string(d.join("bad.jsonl"))
                .unwrap()
                .lines()
                .count(),
            1
        );
    }
    let template = "w3 {instruction} w4 {output}";
    let eval = [
        "eval",
        "--model",
        "model",
        "--data",
        "train.jsonl",
        "--prompt-template",
        template,
    ];
    let (text, ok) = said(d, &eval);
    assert!(!ok, "{text}");
    says(&text, &["--skip-bad-rows N"]);
    succeeds(d, &[&eval[..], &["--skip-bad-rows", "1"]].concat());
}

#[test]
fn a_merge_that_changes_nothing_says_so() {
    // One step at a learning rate of zero leaves B zero.
    let directory = project("max_steps = 1\n");
    let d = directory.path();
    succeeds(d, &["train", "recipe.toml"]);
    let (text, ok) = said(d, &["merge", "--adapter", "out", "--out", "merged"]);
    assert!(ok, "{text}");
    says(&text, &["merged weights are as in the base"]);
    let merged = succeeds(d, &["merge", "--adapter", "out", "--out", "again"]);
    assert_eq!(merged["event"], "merged");
    assert_eq!(merged["unchanged"], merged["merged"]);
}

#[test]
fn modules_to_skip_that_are_not_there_are_told() {
    let directory = project("max_steps = 2\n");
    let d = directory.path();
    let quantize = ["quantize", "--model", "model", "--out", "q", "--skip"];
    let (text, ok) = said(d, &[&quantize[..], &["q_pro"]].concat());
    assert!(ok, "{text}");
    says(
        &text,
        &["warning: the model has no module q_pro to leave unquantized"],
    );
    let (text, _) = said(d, &[&quantize[..], &["q_proj", "--force"]].concat());
    assert!(!text.contains("warning"), "{text}");
}

#[test]
fn further_sets_held_out_are_told_by_name_everywhere() {
    let directory = project("max_steps = 4\nwarmup_steps = 1\neval_steps = 2\n");
    let d = directory.path();
    tiny::rows(&d.join("other.jsonl"), 5, 3);
    fs::copy(d.join("train.jsonl"), d.join("seen.jsonl")).unwrap();
    let recipe = fs::read_to_string(d.join("recipe.toml")).unwrap();
    let refused = |more: &str, parts: &[&str]| {
        fs::write(d.join("refused.toml"), format!("{recipe}{more}")).unwrap();
        let (text, ok) = said(d, &["train", "refused.toml", "--plain"]);
        assert!(!ok, "{text}");
        says(&text, parts);
    };
    refused(
        "[data.eval_sets]\ngeneral = \"nowhere.jsonl\"\n",
        &["nowhere.jsonl"],
    );
    refused(
        "early_stopping_eval = \"general\"\n[data.eval_sets]\nother = \"other.jsonl\"\n",
        &[
            "train.early_stopping_eval",
            "`data.eval_sets`, which has other",
        ],
    );
    refused(
        "[data.eval_sets]\neval = \"other.jsonl\"\n",
        &["data.eval_sets", "is not eval"],
    );
    let sets = "[data.eval_sets]\nother = \"other.jsonl\"\nseen = \"seen.jsonl\"\n";
    fs::write(d.join("recipe.toml"), recipe + sets).unwrap();
    let printed = |arguments: &[&str]| {
        let output = backdraft(d, arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{text}");
        (String::from_utf8(output.stdout).unwrap(), text)
    };
    let (checked, told) = printed(&["data", "check", "recipe.toml"]);
    says(
        &(checked + &told),
        &[
            "other: ",
            "seen: ",
            "24 rows of the held-out set seen are also learned from",
        ],
    );
    let (lines, _) = printed(&["train", "recipe.toml", "--json"]);
    Schema::of_the_page().check(&lines);
    assert!(lines.contains("\"sets\":[{\"name\":\"other\""), "{lines}");
    let (text, told) = printed(&["train", "recipe.toml", "--plain", "--force"]);
    says(
        &(text + &told),
        &["other: loss ", " since before the first step, "],
    );
    let html = fs::read_to_string(d.join("out/report.html")).unwrap();
    says(&html, &["Further held-out sets", "<th>other</th>"]);
    let events: Vec<u8> = fs::read_dir(d.join("out/tensorboard"))
        .unwrap()
        .flat_map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .collect();
    for tag in ["eval/loss", "eval_other/loss", "eval_seen/perplexity"] {
        let found = events.windows(tag.len()).any(|part| part == tag.as_bytes());
        assert!(found, "{tag} is in no event file");
    }
    let last = records(d).pop().unwrap();
    assert!(last["step"] == 4, "{last}");
    let (text, _) = printed(&["eval", "recipe.toml"]);
    let places = ["base ", "other:\nbase ", "seen:\nbase "].map(|part| text.find(part).unwrap());
    assert!(places.is_sorted(), "{text}");
    let (lines, _) = printed(&["eval", "recipe.toml", "--json"]);
    Schema::of_the_page().check(&lines);
    let told = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    let found = lines
        .lines()
        .map(told)
        .find(|line| line["event"] == "evaluation");
    let found = found.unwrap();
    let names = ["other", "seen"];
    for (set, name) in found["sets"].as_array().unwrap().iter().zip(names) {
        assert_eq!(set["name"], name);
        let file = format!("{name}.jsonl");
        let alone = printed(&["eval", "recipe.toml", "--data", &file, "--json"]).0;
        let alone = alone
            .lines()
            .map(told)
            .find(|line| line["event"] == "evaluation");
        let alone = alone.unwrap();
        assert_eq!(set["adapter"], alone["adapter"], "{name}");
        assert!(alone.get("sets").is_none());
    }
}
