//! A run that is killed anywhere, and resumed, is the run that was never killed.
//!
//! The tests start this program again as a child that trains a tiny model. The child stops before a given
//! file operation and says so; then it gets SIGKILL, or the operation fails as on a full disk.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use backdraft_formats::{ModelSource, fault};
use backdraft_journal::report::{Reporter, RunSummary};
use backdraft_testkit::tiny;
use backdraft_train::checkpoint::{self, Saved};
use backdraft_train::control::Control;
use backdraft_train::data;
use backdraft_train::resume::Resume;
use backdraft_train::run::{Start, Watch, prepare};
use burn::tensor::Device;
use burn::train::Interrupter;
use burn::train::renderer::CliMetricsRenderer;
use serde_json::Value;

/// What makes a process the child: `new` or `resume`.
const ROLE: &str = "BACKDRAFT_KILL_TEST_ROLE";
/// The recipe.
const RECIPE: &str = "BACKDRAFT_KILL_TEST_RECIPE";
/// The file operation to stop before, or to let fail.
const AT: &str = "BACKDRAFT_KILL_TEST_AT";
/// How many operations fail from there on; without it the child waits to be killed.
const FAILING: &str = "BACKDRAFT_KILL_TEST_FAILING";

static DONE: AtomicUsize = AtomicUsize::new(0);

fn number(name: &str) -> Option<usize> {
    env::var(name).ok()?.parse().ok()
}

/// Everything the child says stands on lines of its own, among those of the test harness.
fn say(text: &str) {
    println!("\n@{text}");
    std::io::stdout().flush().unwrap();
}

fn hook(operation: &'static str, path: &Path) -> std::io::Result<()> {
    let at = number(AT).unwrap_or(usize::MAX);
    let n = DONE.fetch_add(1, Ordering::Relaxed);
    match number(FAILING) {
        // As the system says it: no space left on device.
        Some(count) if (at..at + count).contains(&n) => {
            Err(std::io::Error::from(std::io::ErrorKind::StorageFull))
        }
        None if n == at => {
            say(&format!("at {operation} {}", path.display()));
            loop {
                std::thread::park();
            }
        }
        _ => Ok(()),
    }
}

struct Speaker;

impl Reporter for Speaker {
    fn warn(&mut self, text: &str) {
        say(&format!("warning {text}"));
    }
}

/// The child's part; as one of the tests it has nothing to do.
#[test]
fn child() {
    let Ok(role) = env::var(ROLE) else {
        return;
    };
    assert!(fault::install(hook));
    let recipe = PathBuf::from(env::var(RECIPE).unwrap());
    let summary = go(&recipe, (role == "resume").then_some(&[]), &[]);
    let operations = DONE.load(Ordering::Relaxed);
    say(&format!("done {} {operations}", summary.steps));
}

/// Trains as `recipe` with `set` says, or goes on with the run of its output directory, where `allow` may have changed.
fn go(recipe: &Path, allow: Option<&[&str]>, set: &[&str]) -> RunSummary {
    let set: Vec<String> = set.iter().map(|&key| key.to_owned()).collect();
    let (recipe, start) = if let Some(allow) = allow {
        let allow: Vec<String> = allow.iter().map(|&key| key.to_owned()).collect();
        let resume = Resume::find(&recipe.with_file_name("out"), &allow).unwrap();
        let recipe = resume.recipe(Some(recipe), &set).unwrap();
        (recipe, Start::Resume(Box::new(resume)))
    } else {
        let recipe = backdraft_recipe::Recipe::load(recipe, &set).unwrap();
        (recipe, Start::New { force: false })
    };
    let model = PathBuf::from(&recipe.model);
    let source = ModelSource::open(&model).unwrap();
    let data = data::read(&recipe, &source, &mut |_| ()).unwrap();
    let run = prepare(recipe, source, data, &Device::flex()).unwrap();
    let watch = Watch {
        reporter: Box::new(Speaker),
        renderer: Box::new(CliMetricsRenderer::new()),
        interrupter: Interrupter::default(),
        control: Control::default(),
        start,
        memory: None,
    };
    run.train(watch).unwrap().0
}

fn start(role: &str, recipe: &Path, more: &[(&str, usize)]) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(RECIPE, recipe)
        .env("RAYON_NUM_THREADS", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for (name, value) in more {
        command.env(name, value.to_string());
    }
    command.spawn().unwrap()
}

/// What a child said, and whether it came to its end.
struct Said {
    lines: Vec<String>,
    finished: bool,
}

/// Waits for a child; one that stops before a file operation is killed.
fn attend(mut child: Child) -> Said {
    let mut lines = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some(said) = line.strip_prefix('@') else {
            continue;
        };
        lines.push(said.to_owned());
        if said.starts_with("at ") {
            child.kill().unwrap();
            break;
        }
    }
    let output = child.wait_with_output().unwrap();
    let killed = lines.last().is_some_and(|line| line.starts_with("at "));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(killed != output.status.success(), "{lines:?}\n{stderr}");
    Said {
        lines,
        finished: !killed,
    }
}

fn train(role: &str, recipe: &Path, more: &[(&str, usize)]) -> Said {
    attend(start(role, recipe, more))
}

/// The last line that begins with `word`, without it.
fn told<'a>(said: &'a Said, word: &str) -> Option<&'a str> {
    let mut lines = said.lines.iter().rev();
    lines.find_map(|line| line.strip_prefix(word)?.strip_prefix(' '))
}

/// What has to be the same: the files of the adapter and of the optimiser, and the records without time.
#[derive(Debug, PartialEq)]
struct Result {
    files: BTreeMap<PathBuf, Vec<u8>>,
    records: Vec<Value>,
    checkpoints: Vec<usize>,
}

fn result(recipe: &Path) -> Result {
    let out = recipe.with_file_name("out");
    let mut files = BTreeMap::new();
    let mut add = |directory: &Path| {
        for entry in fs::read_dir(out.join(directory)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = directory.join(path.file_name().unwrap());
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    };
    for part in ["adapter", "model"] {
        if out.join(part).is_dir() {
            add(Path::new(part));
        }
    }
    let checkpoints = checkpoint::list(&out).unwrap();
    for &step in &checkpoints {
        let name = PathBuf::from(format!("checkpoints/step-{step:06}"));
        for part in ["adapter", "model"] {
            if out.join(name.join(part)).is_dir() {
                add(&name.join(part));
            }
        }
        Saved::open(&out.join(&name)).unwrap();
    }
    for step in &checkpoints {
        let moments = PathBuf::from(format!("checkpoints/step-{step:06}/optimizer.safetensors"));
        files.insert(moments.clone(), fs::read(out.join(moments)).unwrap());
    }
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let records = text.lines().map(|line| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        let object = record.as_object_mut().unwrap();
        object.remove("seconds");
        object.remove("elapsed");
        record
    });
    Result {
        records: records.collect(),
        files,
        checkpoints,
    }
}

const MORE: &str = "max_steps = 8\neval_steps = 4\nsave_steps = 3\nsave_total_limit = 2\nwarmup_steps = 2\n\
                    optimizer = \"adamw_8bit\"\nlr_scheduler = \"cosine\"\n";

/// A project, and the result of its uninterrupted run with the number of file operations it took.
fn reference(directory: &Path) -> (Result, usize) {
    let recipe = tiny::project(directory, MORE);
    let said = train("new", &recipe, &[]);
    let done = told(&said, "done").unwrap();
    let (steps, operations) = done.split_once(' ').unwrap();
    assert_eq!(steps, "8");
    let result = result(&recipe);
    // Eight steps, two evaluations; perhaps a diagnosis.
    assert!(result.records.len() >= 10, "{:?}", result.records);
    assert!(fs::read_dir(directory.join("out")).unwrap().count() > 3);
    (result, operations.parse().unwrap())
}

/// The same project elsewhere; paths are part of what is written.
fn again(directory: &Path, number: usize) -> PathBuf {
    // A directory of its own, but reached by the same name from inside.
    let root = directory.join(format!("run-{number}"));
    tiny::project(&root, MORE)
}

/// As `again`'s directory is another one, so is the base's name in `adapter_config.json`.
fn same(mut found: Result, root: &Path, expected: &Result, first: &Path) {
    let names = |path: &Path| path.display().to_string();
    for bytes in found.files.values_mut() {
        if let Ok(text) = std::str::from_utf8(bytes) {
            *bytes = text.replace(&names(root), &names(first)).into_bytes();
        }
    }
    assert_eq!(found.checkpoints, expected.checkpoints);
    assert_eq!(found.records, expected.records);
    let (found, expected) = (&found.files, &expected.files);
    assert!(found.keys().eq(expected.keys()), "{:?}", found.keys());
    for (name, bytes) in found {
        assert!(bytes == &expected[name], "{} differs", name.display());
    }
}

#[test]
fn killed_before_any_file_operation_it_goes_on_as_if_never_killed() {
    let root = tempfile::tempdir().unwrap();
    let first = root.path().join("first");
    let (expected, operations) = reference(&first);
    // All of them would take minutes; this many are spread over the whole run.
    let stride = (operations / 150).max(1);
    let points: Vec<usize> = (0..operations).step_by(stride).collect();
    assert!(points.len() >= 100, "{} of {operations}", points.len());
    let next = AtomicUsize::new(0);
    let resumed_twice = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(&at) = points.get(next.fetch_add(1, Ordering::Relaxed)) else {
                        return;
                    };
                    let recipe = again(root.path(), at);
                    let killed = train("new", &recipe, &[(AT, at)]);
                    assert!(!killed.finished, "{at}: {:?}", killed.lines);
                    // Every third one is killed again while it goes on.
                    if at % 3 == 0 {
                        let more = train("resume", &recipe, &[(AT, 1 + at * 7 % 60)]);
                        resumed_twice.fetch_add(usize::from(!more.finished), Ordering::Relaxed);
                    }
                    let last = train("resume", &recipe, &[]);
                    assert!(told(&last, "done").unwrap().starts_with("8 "), "{at}");
                    let place = recipe.parent().unwrap();
                    same(result(&recipe), place, &expected, &first);
                    fs::remove_dir_all(place).unwrap();
                }
            });
        }
    });
    let twice = resumed_twice.load(Ordering::Relaxed);
    assert!(twice >= 20, "only {twice} were killed twice");
    println!(
        "killed at {} of {operations} operations, {twice} of them twice",
        points.len()
    );
}

/// A project whose rows come in packs, from a cache: two steps an epoch.
fn packed(directory: &Path) -> PathBuf {
    let recipe = tiny::project(directory, MORE);
    let text = fs::read_to_string(&recipe).unwrap();
    let text = text.replace(
        "cache = \"off\"",
        "cache = \"tokens\"\nbatching = \"packed\"",
    );
    fs::write(&recipe, text).unwrap();
    recipe
}

#[test]
fn packed_rows_go_on_as_if_never_killed() {
    let expected = killed_here_and_there(packed);
    let root = tempfile::tempdir().unwrap();
    let unpacked = tiny::project(&root.path().join("unpacked"), MORE);
    train("new", &unpacked, &[]);
    let (ours, theirs) = (&expected.records, &result(&unpacked).records);
    assert_ne!(ours, theirs, "packs are no packs");
}

/// A project whose precision is dealt out before the first step, after the third and after the fifth.
fn adaptive(directory: &Path) -> PathBuf {
    let recipe = tiny::project(directory, MORE);
    let text = fs::read_to_string(&recipe).unwrap();
    let text = text.replace(
        "[lora]\n",
        "load_in_4bit = true\n[quantization]\nbits = 4.6\nadapt_at = [0.0, 0.3, 0.6]\n\
         calibration_tokens = 64\n[lora]\ninit = \"qera\"\n",
    );
    fs::write(&recipe, text).unwrap();
    recipe
}

#[test]
fn adaptive_precision_goes_on_as_if_never_killed() {
    let expected = killed_here_and_there(adaptive);
    let points: Vec<&Value> = (expected.records.iter())
        .filter(|record| record["event"] == "adaptation")
        .collect();
    // Of the later ones those that found something worth a move.
    assert!(!points.is_empty(), "no precision was dealt out");
    let first = points[0];
    assert_eq!(
        (&first["step"], &first["precision"]["accepted"]),
        (&0.into(), &true.into())
    );
    let bits = first["precision"]["bits"].as_f64().unwrap();
    assert!((4.0..=4.6).contains(&bits), "{bits}");
    assert!(first["kl"][1].as_f64() < first["kl"][0].as_f64());
    let noted = Path::new("adapter/trained_with.json");
    let noted: Value = serde_json::from_slice(&expected.files[noted]).unwrap();
    let schemes = noted["quantization"]["schemes"].as_object().unwrap();
    assert!(!schemes.is_empty(), "{noted}");
}

/// A project whose rows are pairs; `objective` is what is minimised.
fn compared(directory: &Path, objective: &str) -> PathBuf {
    let recipe = tiny::project(directory, MORE);
    tiny::pairs(&directory.join("train.jsonl"), 24, 1);
    tiny::pairs(&directory.join("eval.jsonl"), 6, 2);
    let text = fs::read_to_string(&recipe).unwrap();
    let text = text.replace(
        "format = \"alpaca\"\ncache = \"off\"\nprompt_template = \"w3 {instruction} w4 {output}\"\n",
        "cache = \"tokens\"\n",
    );
    let text = text.replace("[data]\n", &format!("[objective]\n{objective}[data]\n"));
    fs::write(&recipe, text).unwrap();
    recipe
}

/// Beside the rows held out two further sets, one of which decides.
fn with_sets(directory: &Path) -> PathBuf {
    let recipe = tiny::project(directory, MORE);
    for (name, seed) in [("other", 3), ("more", 4)] {
        tiny::rows(&directory.join(format!("{name}.jsonl")), 5, seed);
    }
    let text = fs::read_to_string(&recipe).unwrap()
        + "early_stopping_eval = \"other-1\"\nearly_stopping_patience = 9\n\
           [data.eval_sets]\nother-1 = \"other.jsonl\"\nmore = [\"more.jsonl\", \"other.jsonl\"]\n";
    fs::write(&recipe, text).unwrap();
    recipe
}

#[test]
fn further_sets_held_out_go_on_as_if_never_killed_and_change_nothing_else() {
    let expected = killed_here_and_there(with_sets);
    let root = tempfile::tempdir().unwrap();
    let recipe = tiny::project(root.path(), MORE);
    assert!(train("new", &recipe, &[]).finished);
    let alone = result(&recipe);
    let moments = |result: &Result| {
        let files = result.files.iter();
        let files = files.filter(|(name, _)| name.ends_with("optimizer.safetensors"));
        files.map(|(_, bytes)| bytes.clone()).collect::<Vec<_>>()
    };
    assert_eq!(moments(&expected), moments(&alone));
    assert_eq!(expected.records.len(), alone.records.len());
    let mut best = (f64::INFINITY, 0);
    for (found, alone) in expected.records.iter().zip(&alone.records) {
        let mut rest = found.clone();
        let sets = rest.as_object_mut().unwrap().remove("sets");
        let Some(sets) = sets else {
            assert_eq!(rest, *alone);
            continue;
        };
        assert_eq!(alone["event"], "eval");
        assert!(alone.get("sets").is_none());
        assert_eq!(rest["eval_loss"], alone["eval_loss"]);
        let names: Vec<_> = sets
            .as_array()
            .unwrap()
            .iter()
            .map(|it| &it["name"])
            .collect();
        assert_eq!(names, ["more", "other-1"]);
        let decides = sets[1]["eval_loss"].as_f64().unwrap();
        assert_eq!(rest["best"], decides < best.0);
        if decides < best.0 {
            best = (decides, rest["step"].as_u64().unwrap());
        }
        // What it was before the first step stays, also where the run was killed on its way.
        assert!(sets[0]["start_loss"].as_f64().unwrap() > 3.0, "{sets}");
        assert_ne!(sets[0]["start_loss"], sets[0]["eval_loss"]);
        let tokens = |set: usize| sets[set]["tokens"].as_u64().unwrap();
        assert!(tokens(0) > tokens(1), "{sets}");
    }
    assert!(best.1 > 0);
}

#[test]
fn further_sets_of_another_run_are_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let recipe = with_sets(root.path());
    assert!(train("new", &recipe, &[]).finished);
    let resume = |allow: &[&str]| {
        let allow: Vec<String> = allow.iter().map(|&key| key.to_owned()).collect();
        Resume::find(&root.path().join("out"), &allow).unwrap()
    };
    let prints = {
        let saved = resume(&[]);
        let prints = saved.state().unwrap().set_fingerprints.clone();
        saved.check_sets(&prints).unwrap();
        let mut fewer = prints.clone();
        fewer.remove("more");
        let refused = saved.check_sets(&fewer).unwrap_err().to_string();
        assert!(
            refused.contains("data.eval_sets.more: content"),
            "{refused}"
        );
        assert!(!refused.contains("other-1"), "{refused}");
        fewer
    };
    resume(&["data.eval_sets"]).check_sets(&prints).unwrap();
    let decides = ["train.early_stopping_eval='more'".to_owned()];
    let fixed = resume(&["train.early_stopping_eval"]).recipe(None, &decides);
    assert!(fixed.is_err());
}

fn dpo(directory: &Path) -> PathBuf {
    compared(directory, "kind = \"dpo\"\nsft_weight = 0.1\n")
}

/// A sum of losses, one of them the nll of chosen answers.
fn summed(directory: &Path) -> PathBuf {
    let losses = "loss = [\"apo_zero\", \"sft\", \"sigmoid\"]\nloss_weights = [0.5, 0.1, 1.0]\n";
    compared(directory, &format!("kind = \"dpo\"\n{losses}"))
}

/// A reward model.
fn reward(directory: &Path) -> PathBuf {
    compared(
        directory,
        "kind = \"reward\"\ncenter_rewards_coefficient = 0.01\n",
    )
}

fn kto(directory: &Path) -> PathBuf {
    compared(directory, "kind = \"kto\"\nundesirable_weight = 1.5\n")
}

/// A project that goes on from an adapter, which is what its answers are compared with.
fn further(directory: &Path) -> PathBuf {
    let recipe = dpo(directory);
    let start = directory.join("start").display().to_string();
    let start = format!("output_dir={start:?}");
    go(
        &recipe,
        None,
        &[&start, "train.max_steps=1", "train.warmup_steps=0"],
    );
    let text = fs::read_to_string(&recipe).unwrap();
    let text = text.replace("[lora]\n", "[lora]\nadapter = \"start\"\n");
    fs::write(&recipe, text).unwrap();
    recipe
}

/// The same, which asks the reference before the first step.
fn known(directory: &Path) -> PathBuf {
    let recipe = further(directory);
    let text = fs::read_to_string(&recipe).unwrap();
    let text = text.replace("[data]\n", "precompute_reference = true\n[data]\n");
    fs::write(&recipe, text).unwrap();
    recipe
}

#[test]
fn a_reference_that_is_known_goes_on_as_if_never_killed() {
    let expected = killed_here_and_there(known);
    let steps = expected.records.iter();
    let steps = steps.filter(|record| record["event"] == "step");
    assert_eq!(steps.count(), 8);
}

#[test]
fn a_reference_that_is_an_adapter_goes_on_as_if_never_killed() {
    let expected = killed_here_and_there(further);
    let steps = expected.records.iter();
    let steps = steps.filter(|record| record["event"] == "step");
    assert_eq!(steps.count(), 8);
}

#[test]
fn preferences_go_on_as_if_never_killed() {
    for project in [dpo as fn(&Path) -> PathBuf, kto, summed] {
        let expected = killed_here_and_there(project);
        let of = |event: &str| {
            let records = expected.records.iter();
            let records = records.filter(|record| record["event"] == event);
            records.map(|record| &record["answers"]).collect::<Vec<_>>()
        };
        let (steps, evals) = (of("step"), of("eval"));
        assert_eq!((steps.len(), evals.len()), (8, 2));
        assert_eq!(
            steps[0]["reward_chosen"]["mean"], 0.0,
            "the policy is the reference"
        );
        assert_eq!(steps[0]["chosen"], 4, "pairs of a step");
        assert_ne!(steps[7]["margin"]["mean"], 0.0);
        assert_eq!(evals[0]["rejected"], 6);
        for number in ["margin", "reward_chosen", "logp_rejected", "entropy"] {
            assert!(evals[0][number]["error"].is_number(), "{number}");
        }
    }
}

#[test]
fn a_reward_model_goes_on_as_if_never_killed() {
    let expected = killed_here_and_there(reward);
    let of = |event: &str| {
        let records = expected.records.iter();
        let records = records.filter(|record| record["event"] == event);
        records.map(|record| &record["answers"]).collect::<Vec<_>>()
    };
    let (steps, evals) = (of("step"), of("eval"));
    assert_eq!((steps.len(), evals.len()), (8, 2));
    assert_ne!(steps[7]["margin"]["mean"], steps[0]["margin"]["mean"]);
    for number in ["margin", "accuracy", "reward_chosen", "reward_rejected"] {
        assert!(evals[1][number]["error"].is_number(), "{number}");
    }
    assert!(evals[1].get("logp_chosen").is_none() && evals[1].get("entropy").is_none());
    let config = Path::new("adapter/adapter_config.json");
    let config: Value = serde_json::from_slice(&expected.files[config]).unwrap();
    assert_eq!(config["task_type"], "SEQ_CLS");
    assert_eq!(config["modules_to_save"], serde_json::json!(["score"]));
}

/// A project whose adapters begin as a part of the weights.
fn pissa(directory: &Path) -> PathBuf {
    let recipe = tiny::project(directory, MORE);
    let text = fs::read_to_string(&recipe).unwrap();
    let text = text.replace("rank = 64\n", "rank = 4\ninit = \"pissa\"\n");
    fs::write(&recipe, text).unwrap();
    recipe
}

#[test]
fn a_start_in_the_weights_goes_on_as_if_never_killed() {
    let expected = killed_here_and_there(pissa);
    let config = Path::new("adapter/adapter_config.json");
    let config: Value = serde_json::from_slice(&expected.files[config]).unwrap();
    // What was trained, and what it began with.
    assert_eq!(config["r"], 8);
}

/// A project that trains every tensor of the base.
fn full(directory: &Path) -> PathBuf {
    let recipe = tiny::project(directory, MORE);
    let text = fs::read_to_string(&recipe).unwrap();
    let (before, rest) = text.split_once("[lora]\n").unwrap();
    let (_, data) = rest.split_once("[data]\n").unwrap();
    let text = format!("{before}trainable = \"all\"\n[data]\n{data}");
    fs::write(&recipe, text).unwrap();
    recipe
}

#[test]
fn full_fine_tuning_goes_on_as_if_never_killed() {
    let expected = killed_here_and_there(full);
    let files: Vec<_> = expected.files.keys().collect();
    for file in [
        "model/config.json",
        "checkpoints/step-000008/model/config.json",
    ] {
        assert!(files.contains(&&PathBuf::from(file)), "{files:?}");
    }
}

/// The points that the records of a run tell of.
fn points(recipe: &Path) -> Vec<Value> {
    let mut records = result(recipe).records;
    records.retain(|record| record["event"] == "adaptation");
    records
}

#[test]
fn a_run_goes_on_with_other_bits() {
    let root = tempfile::tempdir().unwrap();
    let recipe = adaptive(root.path());
    go(
        &recipe,
        None,
        &["train.max_steps=4", "quantization.adapt_at=[0.0]"],
    );
    let changes = ["train", "quantization"];
    let more = [
        "train.max_steps=8",
        "quantization.adapt_at=[0.0]",
        "quantization.bits=5.6",
    ];
    let resume = Resume::find(&recipe.with_file_name("out"), &["train".to_owned()]).unwrap();
    let more_set = more.map(str::to_owned);
    let refused = resume
        .recipe(Some(&recipe), &more_set)
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("quantization.bits: 4.6 → 5.6"),
        "{refused}"
    );
    drop(resume);
    // More room: what is stored stays where it is and gets better.
    let summary = go(&recipe, Some(&changes), &more);
    assert_eq!(summary.steps, 8);
    let found = points(&recipe);
    let last = found.last().unwrap();
    assert_eq!((found.len(), &last["step"]), (2, &4.into()));
    let bits = |point: &Value| point["precision"]["bits"].as_f64().unwrap();
    let accepted = last["precision"]["accepted"] == true;
    assert!(
        bits(last) <= 5.6 && (!accepted || bits(last) > bits(&found[0])),
        "{last}"
    );
    assert_eq!(summary.precision.unwrap().points, 2);
    // Less room than what is stored takes: everything is dealt out within it, whatever the loss says of single moves.
    let less = [
        "train.max_steps=10",
        "quantization.adapt_at=[0.0]",
        "quantization.bits=4.3",
    ];
    let summary = go(&recipe, Some(&changes), &less);
    assert_eq!(summary.steps, 10);
    let noted = fs::read(
        recipe
            .with_file_name("out")
            .join("adapter/trained_with.json"),
    )
    .unwrap();
    let noted: Value = serde_json::from_slice(&noted).unwrap();
    let plan: backdraft_arch::QuantizationPlan =
        serde_json::from_value(noted["quantization"].clone()).unwrap();
    let source = ModelSource::open(recipe.with_file_name("model")).unwrap();
    let (values, bytes) = plan.quantized(&backdraft_model::spec(&source).unwrap());
    assert!(8.0 * bytes as f64 / values as f64 <= 4.3, "{plan}");
}

#[test]
fn a_plan_that_was_measured_is_given_to_another_run() {
    let root = tempfile::tempdir().unwrap();
    let first = adaptive(&root.path().join("first"));
    go(
        &first,
        None,
        &["train.max_steps=2", "quantization.adapt_at=[0.0]"],
    );
    let note = |recipe: &Path| -> Value {
        let path = recipe
            .with_file_name("out")
            .join("adapter/trained_with.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    let adapter = first.with_file_name("out").join("adapter");
    let second = tiny::project(&root.path().join("second"), MORE);
    let plan = format!("quantization.plan='{}'", adapter.display());
    let summary = go(
        &second,
        None,
        &["train.max_steps=4", "load_in_4bit=true", &plan],
    );
    assert_eq!(note(&second)["quantization"], note(&first)["quantization"]);
    assert_eq!((points(&second).len(), summary.precision), (0, None));
    // It goes on as any other.
    let summary = go(
        &second,
        Some(&["train"]),
        &["train.max_steps=6", "load_in_4bit=true", &plan],
    );
    assert_eq!(summary.steps, 6);
    assert_eq!(note(&second)["quantization"], note(&first)["quantization"]);
}

/// Points are looked for whose every try raises the loss of the rows that decide: what follows one is what follows none.
#[test]
fn a_point_that_is_vetoed_leaves_no_trace() {
    let root = tempfile::tempdir().unwrap();
    let vetoed = |record: &Value| record["precision"]["accepted"] == false;
    for seed in 1..=40 {
        let seed_key = format!("seed={seed}");
        let run = |name: &str, keys: &[&str]| {
            let place = root.path().join(format!("{name}-{seed}"));
            let recipe = tiny::project(&place, MORE);
            let mut set = vec![&*seed_key, "load_in_4bit=true"];
            set.extend(keys);
            go(&recipe, None, &set);
            (result(&recipe), place)
        };
        let point = [
            "quantization.bits=4.6",
            "quantization.adapt_at=[0.3]",
            "quantization.calibration_tokens=64",
        ];
        let (mut tried, first) = run("tried", &point);
        if tried.records.iter().any(vetoed) {
            tried.records.retain(|record| !vetoed(record));
            let (never, place) = run("never", &[]);
            same(never, &place, &tried, &first);
            return;
        }
    }
    panic!("forty runs, and no point was vetoed");
}

/// Kills runs of a project at eight places, and compares what they come to with one that was not killed.
fn killed_here_and_there(project: fn(&Path) -> PathBuf) -> Result {
    let root = tempfile::tempdir().unwrap();
    let first = root.path().join("first");
    let recipe = project(&first);
    let said = train("new", &recipe, &[]);
    let (steps, operations) = told(&said, "done").unwrap().split_once(' ').unwrap();
    assert_eq!(steps, "8");
    let operations: usize = operations.parse().unwrap();
    let expected = result(&recipe);
    for at in (0..operations).step_by(operations / 8) {
        let place = root.path().join(format!("run-{at}"));
        let recipe = project(&place);
        assert!(!train("new", &recipe, &[(AT, at)]).finished, "{at}");
        // Before its output directory is there, a run has nothing to go on from.
        let role = match recipe.with_file_name("out").exists() {
            true => "resume",
            false => "new",
        };
        let last = train(role, &recipe, &[]);
        assert!(told(&last, "done").unwrap().starts_with("8 "), "{at}");
        same(result(&recipe), &place, &expected, &first);
    }
    expected
}

#[test]
fn a_full_disk_costs_no_run_and_no_earlier_checkpoint() {
    let root = tempfile::tempdir().unwrap();
    let first = root.path().join("first");
    let (expected, operations) = reference(&first);
    // Somewhere in each checkpoint, for the length of one operation and of a whole checkpoint.
    let begins = operations / 4;
    for (i, at) in (begins..operations / 2)
        .step_by(operations / 30)
        .enumerate()
    {
        let recipe = again(root.path(), at);
        let length = [1, 6][i % 2];
        let said = train("new", &recipe, &[(AT, at), (FAILING, length)]);
        let warnings: Vec<_> = said
            .lines
            .iter()
            .filter(|l| l.starts_with("warning"))
            .collect();
        assert!(!warnings.is_empty(), "{at} {length}: nothing was said");
        assert!(told(&said, "done").unwrap().starts_with("8 "));
        // What was not written is missing; what is there is good, and the end is the same.
        let place = recipe.parent().unwrap();
        let found = result(&recipe);
        assert_eq!(found.records, expected.records, "{at} {length}");
        assert!(found.checkpoints.contains(&8));
        let weights = "adapter/adapter_model.safetensors";
        let same = |name: &str| found.files[Path::new(name)] == expected.files[Path::new(name)];
        assert!(same(weights) && same("checkpoints/step-000008/optimizer.safetensors"));
        let leftovers = |directory: &Path| {
            let entries = fs::read_dir(directory).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name());
            names
                .filter(|name| name.to_string_lossy().contains(".partial-"))
                .count()
        };
        // A removal that failed may leave its own; nothing else.
        assert!(leftovers(&place.join("out/checkpoints")) <= 1);
        fs::remove_dir_all(place).unwrap();
    }
}

/// A run of which checkpoints 3, 4, 6 and 8 are there.
fn with_four_checkpoints(directory: &Path) -> PathBuf {
    let more = MORE.replace("save_total_limit = 2", "save_total_limit = 9");
    let recipe = tiny::project(directory, &more);
    train("new", &recipe, &[]);
    let out = recipe.with_file_name("out");
    assert_eq!(checkpoint::list(&out).unwrap(), [3, 4, 6, 8]);
    recipe
}

/// What becomes of a file.
type Damage = fn(&mut Vec<u8>);

#[test]
fn damaged_checkpoints_are_passed_over_and_named() {
    let root = tempfile::tempdir().unwrap();
    let recipe = with_four_checkpoints(&root.path().join("first"));
    let out = recipe.with_file_name("out");
    let expected = result(&recipe);
    let saved = checkpoint::path(&out, 8);
    let mut files = Vec::new();
    walk(&saved, &mut files);
    assert!(files.len() >= 7, "{files:?}");
    let damages: [(&str, Damage); 4] = [
        ("torn", |bytes| bytes.truncate(bytes.len() / 2)),
        ("empty", Vec::clear),
        ("longer", |bytes| bytes.push(b' ')),
        ("flipped", |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
        }),
    ];
    for file in &files {
        let whole = fs::read(file).unwrap();
        for (damage, change) in damages {
            // A space at the end of a manifest changes nothing.
            if damage == "longer" && file.ends_with("manifest.json") {
                continue;
            }
            let mut bytes = whole.clone();
            change(&mut bytes);
            fs::write(file, bytes).unwrap();
            assert_eq!(newest(&out), 6, "{damage} {}", file.display());
        }
        fs::remove_file(file).unwrap();
        assert_eq!(newest(&out), 6, "without {}", file.display());
        fs::write(file, whole).unwrap();
        assert_eq!(newest(&out), 8);
    }
    // Two bad ones, and the run goes on from the one before.
    fs::remove_file(saved.join("state.json")).unwrap();
    let torn = checkpoint::path(&out, 6).join("optimizer.safetensors");
    fs::write(&torn, b"half").unwrap();
    let said = train("resume", &recipe, &[]);
    let warnings = said.lines.join("\n");
    for part in [
        "state.json",
        "optimizer.safetensors",
        "has 4 bytes",
        "set-aside",
    ] {
        assert!(warnings.contains(part), "{part} is not in {warnings}");
    }
    let place = recipe.parent().unwrap();
    same(result(&recipe), place, &expected, place);
    // None is good.
    for step in [3, 4, 6, 8] {
        fs::write(checkpoint::path(&out, step).join("recipe.toml"), b"").unwrap();
    }
    let error = Resume::find(&out, &[]).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 5, "{error}");
}

fn newest(out: &Path) -> usize {
    Resume::find(out, &[]).unwrap().state().unwrap().step
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, files);
        } else {
            files.push(path);
        }
    }
}

#[test]
fn the_best_and_the_newest_good_checkpoint_are_never_removed() {
    let root = tempfile::tempdir().unwrap();
    let recipe = with_four_checkpoints(root.path());
    let out = recipe.with_file_name("out");
    fs::write(checkpoint::path(&out, 8).join("state.json"), b"torn").unwrap();
    checkpoint::prune(&out, 1, Some(3)).unwrap();
    assert_eq!(checkpoint::list(&out).unwrap(), [3, 6, 8]);
    checkpoint::prune(&out, 1, None).unwrap();
    assert_eq!(checkpoint::list(&out).unwrap(), [6, 8]);
    fs::write(checkpoint::path(&out, 6).join("state.json"), b"torn").unwrap();
    // With none that is good, nothing is removed.
    checkpoint::prune(&out, 1, None).unwrap();
    assert_eq!(checkpoint::list(&out).unwrap(), [6, 8]);
}

#[test]
fn another_recipe_model_or_data_is_refused_with_the_difference() {
    let root = tempfile::tempdir().unwrap();
    let recipe = with_four_checkpoints(root.path());
    let out = recipe.with_file_name("out");
    let find = |allow: &[&str]| {
        let allow: Vec<String> = allow.iter().map(|&key| key.to_owned()).collect();
        Resume::find(&checkpoint::path(&out, 6), &allow).unwrap()
    };
    let set = ["train.learning_rate=1e-4".to_owned(), "seed=7".to_owned()];
    let refused = find(&[]).recipe(None, &set).unwrap_err().to_string();
    for part in ["seed: 42 → 7", "train.learning_rate: 0.005 → 0.0001"] {
        assert!(refused.contains(part), "{part} is not in {refused}");
    }
    let refused = find(&["seed"]).recipe(None, &set).unwrap_err().to_string();
    assert!(!refused.contains("seed"), "{refused}");
    find(&["seed", "train"]).recipe(None, &set).unwrap();
    let rank = ["lora.rank=8".to_owned()];
    let refused = find(&["lora"]).recipe(None, &rank).unwrap_err().to_string();
    assert!(
        refused.contains("cannot be resumed with another lora.rank"),
        "{refused}"
    );
    let unknown = Resume::find(&out, &["train.lerning_rate".to_owned()]).unwrap_err();
    assert!(
        unknown.to_string().contains("train.learning_rate"),
        "{unknown}"
    );

    // What alters no number may change without a word.
    let harmless = [
        "train.logging_steps=3",
        "train.save_steps=7",
        "train.save_total_limit=9",
        "train.sample_rows=1",
        "memory_budget='8GiB'",
        "activation_offloading=false",
    ]
    .map(str::to_owned);
    find(&[]).recipe(None, &harmless).unwrap();

    // Content counts, not names: a run may move, its rows may not change.
    let saved = find(&[]);
    let state = saved.state().unwrap();
    let (model, data) = (&state.model_fingerprint, &state.data_fingerprint);
    let eval = state.eval_fingerprint.as_deref();
    saved.check_content(model, data, eval).unwrap();
    let refused = saved
        .check_content("other", data, None)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("model: content"), "{refused}");
    assert!(
        refused.contains("data.eval: content") && refused.contains("→ nothing"),
        "{refused}"
    );
    saved.check_model(model).unwrap();
    saved.check_rows(data, eval).unwrap();
    let refused = saved.check_model("other").unwrap_err().to_string();
    assert!(
        refused.contains("model: content") && !refused.contains("data."),
        "{refused}"
    );
    assert!(saved.check_rows("other", eval).is_err());
    drop(saved);
    find(&["model", "data"])
        .check_content("other", "other", None)
        .unwrap();
}

#[test]
fn a_directory_that_cannot_be_written_is_named_before_the_run() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("file"), b"").unwrap();
    // A file in the place of a directory refuses everyone, root too.
    let error = Resume::find(&root.path().join("file/out"), &[]).unwrap_err();
    assert!(error.to_string().contains("file/out"), "{error}");
    let locked = root.path().join("locked");
    fs::create_dir(&locked).unwrap();
    let mut permissions = fs::metadata(&locked).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&locked, permissions).unwrap();
    if fs::write(locked.join("probe"), b"").is_ok() {
        println!("read-only permissions not checked: this user may write everywhere");
        return;
    }
    let error = Resume::find(&locked, &[]).unwrap_err();
    assert!(error.to_string().contains("locked"), "{error}");
}

/// A small disk of its own, for as long as this lives.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// None where this user may not mount.
    fn new(at: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let disk = Self(at.to_owned());
        disk.mount(&format!("size={size}")).then_some(disk)
    }

    fn mount(&self, options: &str) -> bool {
        let mut command = Command::new("mount");
        command
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&self.0);
        let output = command.stderr(Stdio::null()).status();
        output.is_ok_and(|status| status.success())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg(&self.0)
            .stderr(Stdio::null())
            .status();
    }
}

#[test]
fn a_disk_that_stays_full_costs_nothing_but_time() {
    let root = tempfile::tempdir().unwrap();
    let place = root.path().join("run");
    let Some(disk) = SmallDisk::new(&place.join("out"), "256k") else {
        println!("not checked: this user may not mount a small disk");
        return;
    };
    let first = root.path().join("first");
    let (expected, _) = reference(&first);
    let recipe = tiny::project(&place, MORE);
    // Not even the adapter has room at the end.
    let output = start("new", &recipe, &[]).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{said}");
    for part in [
        "@warning no checkpoint of step",
        "No space left on device",
        "stays the newest one",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    let held = newest(&place.join("out"));
    assert!((1..8).contains(&held), "{held}");
    // Room is made, and the run goes on.
    assert!(disk.mount("remount,size=8m"));
    let last = train("resume", &recipe, &[]);
    assert!(told(&last, "done").unwrap().starts_with("8 "));
    same(result(&recipe), &place, &expected, &first);
}
