//! Runs that are stopped, killed and resumed, as a user does it.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use backdraft_testkit::tiny;
use serde_json::Value;

const MORE: &str = "max_steps = 300\neval_steps = 40\nsave_steps = 25\nsave_total_limit = 2\n\
                    warmup_steps = 5\n";

fn command(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backdraft"));
    command
        .current_dir(directory)
        .args(arguments)
        .env("HF_HUB_OFFLINE", "1")
        .env("RAYON_NUM_THREADS", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(directory: &Path, arguments: &[&str]) -> Output {
    command(directory, arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    // Long lines are wrapped for the terminal.
    let text = String::from_utf8_lossy(bytes);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn says(bytes: &[u8], parts: &[&str]) {
    let said = text(bytes);
    for part in parts {
        assert!(said.contains(part), "`{part}` is not in:\n{said}");
    }
}

fn steps(directory: &Path) -> usize {
    let records = fs::read_to_string(directory.join("out/metrics.jsonl"));
    records.map_or(0, |text| text.lines().count())
}

/// Starts a run and waits until it has `count` lines in its records.
fn start(directory: &Path, arguments: &[&str], count: usize) -> Child {
    let mut child = command(directory, arguments).spawn().unwrap();
    let began = Instant::now();
    while steps(directory) < count {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "no {count} steps"
        );
        assert!(child.try_wait().unwrap().is_none(), "ended by itself");
        sleep(Duration::from_millis(5));
    }
    child
}

fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    let status = Command::new("kill").args([name, &id]).status().unwrap();
    assert!(status.success());
}

/// What does not depend on the clock.
fn result(directory: &Path) -> (Vec<u8>, Vec<Value>) {
    let out = directory.join("out");
    let records = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let records = records.lines().map(|line| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        let object = record.as_object_mut().unwrap();
        object.remove("seconds");
        object.remove("elapsed");
        record
    });
    let adapter = out.join("adapter/adapter_model.safetensors");
    (fs::read(adapter).unwrap(), records.collect())
}

#[cfg(unix)]
#[test]
fn a_run_that_is_stopped_and_killed_ends_as_one_that_was_not() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path();
    tiny::project(directory, MORE);
    assert!(run(directory, &["train", "recipe.toml"]).status.success());
    let expected = result(directory);
    fs::remove_dir_all(directory.join("out")).unwrap();

    // SIGKILL, wherever it is.
    let mut child = start(directory, &["train", "recipe.toml"], 60);
    child.kill().unwrap();
    child.wait().unwrap();
    // Ctrl-C: the step ends, a checkpoint is written.
    let child = start(directory, &["train", "--resume", "out"], 110);
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    says(
        &output.stdout,
        &["resumed at step 50", "ended", "train --resume"],
    );
    // The same from a service manager, with the recipe named.
    let child = start(directory, &["train", "recipe.toml", "--resume"], 180);
    signal(&child, "-TERM");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    // A terminal that is closed does not end it.
    let child = start(directory, &["train", "--resume", "out"], 240);
    signal(&child, "-HUP");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    says(&output.stdout, &["run time", "diagnosis", "adapter"]);
    assert!(result(directory) == expected, "it is another run");

    // What is complete stays as it is.
    let output = run(directory, &["train", "--resume", "out"]);
    says(
        &output.stderr,
        &["nothing to resume: the run has finished at step 300"],
    );
    says(&output.stdout, &["run time", "diagnosis", "adapter"]);
    assert!(result(directory) == expected);
    let output = run(directory, &["train", "--resume", "out", "--set", "seed=1"]);
    assert_eq!(output.status.code(), Some(1));
    says(&output.stderr, &["seed: 42 → 1", "--allow-change seed"]);
}

#[cfg(unix)]
#[test]
fn one_run_at_a_time_and_the_second_signal_ends_it_at_once() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path();
    tiny::project(directory, &MORE.replace("300", "100000"));
    let child = start(directory, &["train", "recipe.toml"], 30);
    for arguments in [
        &["train", "recipe.toml", "--force"][..],
        &["train", "--resume", "out"],
    ] {
        let output = run(directory, arguments);
        assert_eq!(output.status.code(), Some(1));
        let owner = format!("process {} on", child.id());
        says(
            &output.stderr,
            &["another run writes to this directory", &owner, "hint:"],
        );
    }
    // The second signal is to come before the checkpoint of the first is written, which takes a blink.
    let mut child = child;
    let mut at_once = false;
    for _ in 0..10 {
        let both = format!("kill -INT {0}; kill -TERM {0}", child.id());
        assert!(
            Command::new("sh")
                .args(["-c", &both])
                .status()
                .unwrap()
                .success()
        );
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130));
        at_once |= !text(&output.stdout).contains("run time");
        if at_once {
            break;
        }
        let further = steps(directory) + 60;
        child = start(directory, &["train", "--resume", "out"], further);
    }
    assert!(at_once, "it took its time");
    // The lock went with the process.
    let output = run(
        directory,
        &["train", "--resume", "out", "--max-steps", "60"],
    );
    assert_eq!(output.status.code(), Some(1));
    says(&output.stderr, &["train.max_steps: 100000 → 60"]);
}

#[test]
fn a_run_stops_early_and_keeps_its_best() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path();
    // Held-out rows are of another kind, and the rate is far too high: they get worse soon.
    tiny::project(
        directory,
        "max_steps = 200\neval_steps = 5\nsave_steps = 100\nlr_scheduler = \"constant\"\n\
         early_stopping_patience = 3\nearly_stopping_min_improvement = 0.001\n",
    );
    let output = run(
        directory,
        &[
            "--json",
            "train",
            "recipe.toml",
            "--set",
            "train.learning_rate=0.02",
        ],
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    let summary: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    let number = |key: &str| summary[key].as_u64().unwrap() as usize;
    assert_eq!(summary["stopped_early"], true);
    let (steps, best) = (number("steps"), number("best_step"));
    assert!(steps < 200 && best < steps, "{steps} and {best}");
    assert_eq!(number("adapter_step"), best);
    let weights = "adapter/adapter_model.safetensors";
    let out = directory.join("out");
    let best = fs::read(
        out.join(format!("checkpoints/step-{best:06}"))
            .join(weights),
    )
    .unwrap();
    assert!(fs::read(out.join(weights)).unwrap() == best);
    // It stays at its end.
    let output = run(directory, &["train", "--resume", "out"]);
    says(
        &output.stdout,
        &["stopped early at step", "has not improved since step"],
    );
    // More patience goes on.
    let more = [
        "--set",
        "train.early_stopping_patience=5",
        "--allow-change",
        "train",
    ];
    let output = run(
        directory,
        &[&["train", "--resume", "out"][..], &more].concat(),
    );
    let again = format!("for 0 steps (resumed at step {steps})");
    assert!(
        !text(&output.stdout).contains(&again),
        "{}",
        text(&output.stdout)
    );
}

#[test]
fn what_a_run_leaves_can_be_watched_and_reported() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path();
    tiny::project(
        directory,
        "max_steps = 12\neval_steps = 4\nsave_steps = 6\n",
    );
    let output = run(directory, &["watch", "out"]);
    assert_eq!(output.status.code(), Some(1));
    says(&output.stderr, &["out/metrics.jsonl", "hint:"]);
    let train = ["train", "recipe.toml", "--set", "train.sample_rows=2"];
    assert!(run(directory, &train).status.success());
    let output = run(directory, &["watch", "out"]);
    says(
        &output.stdout,
        &["out: finished, step 12 of 12, loss", "best eval loss"],
    );
    let output = run(directory, &["--json", "watch", "out"]);
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&seen["step"], &seen["phase"]),
        (&12.into(), &"finished".into())
    );

    let page = fs::read_to_string(directory.join("out/report.html")).unwrap();
    for part in [
        "12 of 12",
        "Answers before and after",
        "w3 ",
        "24 of 24 rows",
        "polyline",
    ] {
        assert!(page.contains(part), "{part} is not in the report");
    }
    fs::remove_file(directory.join("out/report.html")).unwrap();
    assert!(run(directory, &["report", "out"]).status.success());
    let again = fs::read_to_string(directory.join("out/report.html")).unwrap();
    let named = |page: &str| page.replace(&directory.join("out").display().to_string(), "out");
    assert!(named(&again) == named(&page));
    // Two side by side.
    let rate = ["--output-dir", "slow", "--set", "train.learning_rate=1e-5"];
    assert!(
        run(directory, &[&train[..], &rate].concat())
            .status
            .success()
    );
    let output = run(directory, &["report", "out", "slow"]);
    assert_eq!(output.status.code(), Some(2));
    says(&output.stderr, &["--out comparison.html"]);
    let compare = ["report", "out", "slow", "--out", "both.html"];
    assert!(run(directory, &compare).status.success());
    let page = fs::read_to_string(directory.join("both.html")).unwrap();
    assert!(page.contains("<th>train.learning_rate</th>"));
    let output = run(directory, &compare);
    assert_eq!(output.status.code(), Some(1));
    says(&output.stderr, &["both.html", "--force"]);
    // Each run has one event file, a resumed one another.
    let events = || {
        fs::read_dir(directory.join("out/tensorboard"))
            .unwrap()
            .count()
    };
    assert_eq!(events(), 1);
    let resume = ["train", "--resume", "out"];
    assert!(run(directory, &resume).status.success());
    assert_eq!(events(), 1);
    let more = ["--max-steps", "310", "--allow-change", "train.max_steps"];
    let output = run(directory, &[&resume[..], &more].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(events(), 2);
}

/// `script` gives the program a terminal; killing it closes that terminal.
#[cfg(target_os = "linux")]
#[test]
fn a_run_outlives_the_terminal_of_its_dashboard() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path();
    tiny::project(directory, &MORE.replace("300", "2000"));
    let program = env!("CARGO_BIN_EXE_backdraft");
    let spawned = Command::new("script")
        .current_dir(directory)
        .args([
            "-qfc",
            &format!("stty rows 24 cols 80; exec {program} train recipe.toml"),
            "screen",
        ])
        .env("RAYON_NUM_THREADS", "1")
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut terminal) = spawned else {
        println!("not checked: there is no `script` to give a terminal");
        return;
    };
    let wait = |what: &dyn Fn() -> bool, name: &str| {
        let began = Instant::now();
        while !what() {
            assert!(began.elapsed() < Duration::from_secs(60), "{name}");
            sleep(Duration::from_millis(5));
        }
    };
    wait(&|| steps(directory) >= 100, "no step");
    terminal.kill().unwrap();
    terminal.wait().unwrap();
    let before = steps(directory);
    assert!(before < 2000, "the run was over before its terminal");
    let screen = fs::read(directory.join("screen")).unwrap();
    assert!(
        String::from_utf8_lossy(&screen).contains("diagnosis"),
        "no dashboard: {}",
        String::from_utf8_lossy(&screen)
    );
    wait(
        &|| directory.join("out/report.html").exists(),
        "it ended with its terminal",
    );
    assert!(steps(directory) >= 2000);
    // It has ended, and given back the lock.
    let done = || {
        run(directory, &["train", "--resume", "out"])
            .status
            .success()
    };
    wait(&done, "it did not end");
}
