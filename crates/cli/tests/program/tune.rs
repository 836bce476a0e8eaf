//! Sweeps and range tests, as a user makes them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use backdraft_testkit::tiny;
use serde_json::Value;

use super::{backdraft, fails, says, succeeds};

const RUN: &str = "max_steps = 12\neval_steps = 2\nsave_steps = 3\nsave_total_limit = 2\n";

fn project(more: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    tiny::project(directory.path(), &format!("{RUN}{more}"));
    directory
}

fn state(directory: &Path) -> Value {
    let text = fs::read_to_string(directory.join("out/tune/tune.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn standings(state: &Value) -> Vec<&str> {
    let trials = state["trials"].as_array().unwrap().iter();
    trials
        .map(|trial| trial["standing"].as_str().unwrap())
        .collect()
}

/// What a run leaves that does not depend on the clock.
fn result(directory: &Path) -> (Vec<u8>, Vec<Value>) {
    let records = fs::read_to_string(directory.join("metrics.jsonl")).unwrap();
    let records = records.lines().map(|line| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        let object = record.as_object_mut().unwrap();
        object.remove("seconds");
        object.remove("elapsed");
        record
    });
    let adapter = directory.join("adapter/adapter_model.safetensors");
    (fs::read(adapter).unwrap(), records.collect())
}

/// Trains with the settings of each finished trial and compares.
#[track_caller]
fn trials_are_runs(directory: &Path, sweep: &str) -> usize {
    let state = state(&directory.join(sweep).join("../.."));
    let mut compared = 0;
    for trial in state["trials"].as_array().unwrap() {
        if trial["standing"] != "finished" {
            continue;
        }
        let settings = trial["settings"].as_object().unwrap();
        let mut arguments = vec![
            "train".to_owned(),
            "recipe.toml".to_owned(),
            "--force".to_owned(),
        ];
        arguments.extend(["--output-dir".to_owned(), "alone".to_owned()]);
        for (key, value) in settings {
            arguments.extend([
                "--set".to_owned(),
                format!("{key}={}", value.as_str().unwrap()),
            ]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = backdraft(directory, &arguments);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let of_trial = Path::new(trial["output_dir"].as_str().unwrap());
        assert!(
            result(of_trial) == result(&directory.join("alone")),
            "trial {} is another run",
            trial["trial"]
        );
        compared += 1;
    }
    compared
}

#[test]
fn trials_have_the_bits_of_train_over_a_base_that_is_read_once() {
    let directory = project(
        "[sweep]\n\"train.learning_rate\" = [1e-3, 5e-3]\n\"train.optimizer\" = [\"adamw\", \"lion\"]\nseed = { min = 1, max = 2, steps = 2 }\n",
    );
    let d = directory.path();
    let told = succeeds(d, &["tune", "recipe.toml"]);
    assert_eq!(told["event"], "tune");
    assert_eq!(told["base_loads"], 1);
    assert_eq!(told["trials"].as_array().unwrap().len(), 8);
    assert_eq!(told["settings"].as_array().unwrap().len(), 4);
    let scores: Vec<f64> = (told["trials"].as_array().unwrap().iter())
        .map(|trial| trial["score"]["value"].as_f64().unwrap())
        .collect();
    assert!(scores.is_sorted(), "{scores:?}");
    let best = &told["recommendation"];
    assert!(
        best["confidence"]["noise"].as_f64().unwrap() > 0.0,
        "{best}"
    );
    assert_eq!(trials_are_runs(d, "out/tune"), 8);

    let page = fs::read_to_string(d.join("out/tune/tune.html")).unwrap();
    says(
        &page,
        &[
            "Recommended",
            "Eval loss by train.learning_rate",
            "Settings over their seeds",
        ],
    );
    // Nothing is done twice, or replaced unasked.
    let said = fails(d, &["tune", "recipe.toml"], 1);
    says(&said, &["already holds a sweep", "--resume", "--force"]);
    let again = succeeds(d, &["tune", "recipe.toml", "--resume"]);
    assert_eq!(again["trials"], told["trials"]);
    // A run of the same recipe has its own values.
    let output = backdraft(d, &["train", "recipe.toml", "--output-dir", "own"]);
    says(
        &String::from_utf8(output.stderr).unwrap(),
        &["[sweep] is for `backdraft tune`"],
    );
    // Another value is one more trial.
    let fourth = "sweep.train.optimizer=[\"adamw\", \"lion\", \"sgd\"]";
    let more = succeeds(d, &["tune", "recipe.toml", "--resume", "--set", fourth]);
    assert_eq!(more["trials"].as_array().unwrap().len(), 12);
    let said = fails(
        d,
        &["tune", "recipe.toml", "--resume", "--set", "lora.alpha=8"],
        1,
    );
    says(
        &said,
        &[
            "differ from the sweep's",
            "lora.alpha: 64.0 → 8.0",
            "--force",
        ],
    );
    tiny::rows(&d.join("train.jsonl"), 24, 9);
    let forced = ["--set", "sweep.seed=[1, 2, 3]"];
    let said = fails(
        d,
        &[&["tune", "recipe.toml", "--resume"][..], &forced].concat(),
        1,
    );
    says(&said, &["data.train: content"]);
}

#[test]
fn a_trial_that_fails_is_a_row_and_the_sweep_goes_on() {
    let directory = project(
        "[sweep]\n\"train.learning_rate\" = [1e30, 5e-3]\n\"lora.layers_to_transform\" = [[1], [99]]\n\
         load_in_8bit = [false, true]\n",
    );
    let d = directory.path();
    let output = backdraft(d, &["tune", "recipe.toml"]);
    let (said, told) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    assert!(output.status.success(), "{told}");
    says(&told, &["the next trial needs another base"]);
    says(
        &said,
        &[
            "is NaN",
            "99",
            "6 of 8 trials failed",
            "Take it: `backdraft train recipe.toml --set",
        ],
    );
    let state = state(d);
    assert_eq!(state["base_loads"], 2);
    // Those over one base come one after the other.
    let bases: Vec<&str> = (state["trials"].as_array().unwrap().iter())
        .map(|trial| trial["settings"]["load_in_8bit"].as_str().unwrap())
        .collect();
    assert!(bases.is_sorted(), "{bases:?}");
    assert_eq!(
        standings(&state)
            .iter()
            .filter(|it| **it == "finished")
            .count(),
        2
    );
    assert_eq!(trials_are_runs(d, "out/tune"), 2);
    // Where none comes to its end, neither does the sweep.
    let all = [
        "--output-dir",
        "none",
        "--set",
        "sweep.train.learning_rate=[1e30]",
    ];
    let said = fails(d, &[&["tune", "recipe.toml"][..], &all].concat(), 1);
    says(&said, &["no trial came to its end"]);
}

#[test]
fn halving_stops_and_resumes_trials_that_end_as_if_it_had_not() {
    let directory = project(
        "[sweep]\nmethod = \"halving\"\nreduction_factor = 2\n\"train.learning_rate\" = { min = 1e-5, max = 1e-2, scale = \"log\", steps = 4 }\n",
    );
    let d = directory.path();
    let told = succeeds(d, &["tune", "recipe.toml"]);
    let trials = told["trials"].as_array().unwrap();
    let came = |standing: &str| -> Vec<u64> {
        let those = trials.iter().filter(|trial| trial["standing"] == standing);
        those
            .map(|trial| trial["steps"].as_u64().unwrap())
            .collect()
    };
    // After 3 steps, at the evaluation of step 4, two of four go on; after 6 one of those.
    assert_eq!(came("finished"), [12]);
    assert_eq!(came("dropped"), [6, 4, 4]);
    assert_eq!(trials_are_runs(d, "out/tune"), 1);
    let again = succeeds(d, &["tune", "recipe.toml", "--resume"]);
    assert_eq!(again["trials"], told["trials"]);
}

/// Waits until the sweep has begun a trial and that trial has so many lines in its records.
#[cfg(unix)]
fn wait(directory: &Path, trial: &str, lines: usize) {
    let path = directory
        .join("out/tune/trials")
        .join(trial)
        .join("metrics.jsonl");
    let began = Instant::now();
    while fs::read_to_string(&path).map_or(0, |text| text.lines().count()) < lines {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "trial {trial} has no {lines} lines"
        );
        sleep(Duration::from_millis(2));
    }
}

#[cfg(unix)]
#[test]
fn a_sweep_that_is_killed_and_stopped_goes_on_where_it_stood() {
    let sweep = "[sweep]\n\"train.learning_rate\" = [1e-3, 5e-3, 2e-3]\n";
    let long = [
        "--set",
        "train.max_steps=400",
        "--set",
        "train.eval_steps=50",
        "--set",
        "train.save_steps=20",
    ];
    let tune = |more: &[&str]| {
        [&["tune", "recipe.toml"][..], &long, more]
            .concat()
            .iter()
            .map(|&word| word.to_owned())
            .collect::<Vec<_>>()
    };
    let whole = project(sweep);
    let words = tune(&[]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let expected = succeeds(whole.path(), &words);

    let directory = project(sweep);
    let d = directory.path();
    let start = |more: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_backdraft"))
            .current_dir(d)
            .args(tune(more))
            .env("HF_HUB_OFFLINE", "1")
            .env("XDG_CACHE_HOME", d.join("cache"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    // SIGKILL in the second trial.
    let mut child = start(&[]);
    wait(d, "002", 60);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(standings(&state(d)), ["finished", "begun", "waiting"]);
    // Ctrl-C in the third.
    let child = start(&["--resume"]);
    wait(d, "003", 60);
    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &id])
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    says(
        &said,
        &[
            "resumed at step",
            "interrupted: resume with `backdraft tune recipe.toml --resume`",
        ],
    );
    assert_eq!(standings(&state(d)), ["finished", "finished", "begun"]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("begun"));
    // The first two are not touched again.
    let first = fs::metadata(d.join("out/tune/trials/001/metrics.jsonl"))
        .unwrap()
        .modified()
        .unwrap();
    let words = tune(&["--resume"]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let found = succeeds(d, &words);
    let now = fs::metadata(d.join("out/tune/trials/001/metrics.jsonl"))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(first, now);
    for trial in ["001", "002", "003"] {
        let of = |root: &Path| result(&root.join("out/tune/trials").join(trial));
        assert!(of(d) == of(whole.path()), "trial {trial} is another run");
    }
    let scores = |told: &Value| -> Vec<Value> {
        let trials = told["trials"].as_array().unwrap().iter();
        trials.map(|trial| trial["scores"].clone()).collect()
    };
    assert_eq!(scores(&found), scores(&expected));
    assert_eq!(found["recommendation"], expected["recommendation"]);
}

#[test]
fn a_range_test_recommends_a_rate_and_leaves_nothing_but_its_page() {
    let directory = project("");
    let d = directory.path();
    let range = ["--range-steps", "60", "--min-lr", "1e-5", "--max-lr", "1e6"];
    let found = succeeds(d, &[&["tune", "recipe.toml"][..], &range].concat());
    assert_eq!(found["event"], "range_test");
    let rates: Vec<f64> = (found["points"].as_array().unwrap().iter())
        .map(|point| point["learning_rate"].as_f64().unwrap())
        .collect();
    assert!(
        (rates[0] / 1e-5 - 1.0).abs() < 1e-9 && rates.is_sorted(),
        "{rates:?}"
    );
    let (recommended, diverges) = (&found["recommended"], &found["diverges"]);
    let recommended = recommended
        .as_f64()
        .unwrap_or_else(|| panic!("{}", found["evidence"]));
    assert!(
        recommended > 1e-5 && recommended < diverges.as_f64().unwrap(),
        "{}",
        found["evidence"]
    );
    let left: Vec<String> = fs::read_dir(d.join("out/tune"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name != ".lock")
        .collect();
    assert_eq!(left, ["range_test.html"]);
    // The rates and losses are those of a run of that schedule.
    let schedule = "train.lr_scheduler={ kind = \"range_test\", lr_start = 1e-5 }";
    let run = [
        "--set",
        schedule,
        "--set",
        "train.learning_rate=1e6",
        "--max-steps",
        "60",
        "--output-dir",
        "ramp",
    ];
    let _ = backdraft(d, &[&["train", "recipe.toml"][..], &run].concat());
    let records = fs::read_to_string(d.join("ramp/metrics.jsonl")).unwrap();
    let losses = records
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64());
    let losses: Vec<f64> = losses.collect();
    let points = found["points"].as_array().unwrap().iter();
    let of_test: Vec<f64> = points
        .map(|point| point["loss"].as_f64().unwrap())
        .collect();
    assert_eq!(losses[..of_test.len()], of_test);
    let said = fails(d, &["tune", "recipe.toml", "--resume"], 2);
    says(&said, &["has no [sweep]"]);
    let said = fails(
        d,
        &["tune", "recipe.toml", "--min-lr", "1", "--max-lr", "0.1"],
        2,
    );
    says(&said, &["below --max-lr"]);
}
