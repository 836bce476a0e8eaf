//! Runs with tricks of the training step and other optimisers: resumed from a checkpoint they have the bits of runs that
//! were never stopped, and what is refused on resume is named.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use backdraft_formats::{ModelSource, SafetensorsFile};
use backdraft_journal::report::Reporter;
use backdraft_recipe::Recipe;
use backdraft_testkit::tiny;
use backdraft_train::checkpoint;
use backdraft_train::control::Control;
use backdraft_train::data;
use backdraft_train::resume::Resume;
use backdraft_train::run::{Start, Watch, prepare};
use burn::tensor::Device;
use burn::train::Interrupter;
use burn::train::renderer::CliMetricsRenderer;
use serde_json::Value;

const MORE: &str =
    "max_steps = 4\nsave_steps = 2\nsave_total_limit = 9\neval_steps = 2\nwarmup_steps = 1\n";

struct Silent;

impl Reporter for Silent {}

fn train(recipe: Recipe, start: Start) {
    let source = ModelSource::open(&recipe.model).unwrap();
    let data = data::read(&recipe, &source, &mut |_| ()).unwrap();
    let run = prepare(recipe, source, data, &Device::flex()).unwrap();
    let watch = Watch {
        reporter: Box::new(Silent),
        renderer: Box::new(CliMetricsRenderer::new()),
        interrupter: Interrupter::default(),
        control: Control::default(),
        start,
        memory: None,
    };
    run.train(watch).unwrap();
}

/// Factors and what the optimiser keeps, after a step.
fn state(directory: &Path, step: usize) -> [Vec<u8>; 2] {
    let path = checkpoint::path(&directory.join("out"), step);
    let files = ["adapter/adapter_model.safetensors", "optimizer.safetensors"];
    files.map(|file| fs::read(path.join(file)).unwrap())
}

/// The lines of an event, without what the clock says.
fn lines(directory: &Path, event: &str) -> Vec<Value> {
    let text = fs::read_to_string(directory.join("out/metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        for key in ["seconds", "elapsed"] {
            line.as_object_mut().unwrap().remove(key);
        }
        line
    });
    lines.filter(|line| line["event"] == event).collect()
}

/// A run in a directory of its own, then the same from its second step on; the lines of its steps, and of its evaluations.
fn run_and_resume(directory: &Path, more: &str) -> [Vec<Value>; 2] {
    resumed(
        directory,
        tiny::project(directory, &format!("{MORE}{more}")),
        more,
    )
}

fn resumed(directory: &Path, path: PathBuf, more: &str) -> [Vec<Value>; 2] {
    let recipe = Recipe::load(&path, &[]).unwrap();
    train(recipe, Start::New { force: false });
    let (uninterrupted, told) = (state(directory, 4), lines(directory, "step"));
    let evals = lines(directory, "eval");
    let at = checkpoint::path(&directory.join("out"), 2);
    let resume = Resume::find(&at, &[]).unwrap();
    let recipe = resume.recipe(None, &[]).unwrap();
    train(recipe, Start::Resume(Box::new(resume)));
    assert!(state(directory, 4) == uninterrupted, "{more}");
    assert_eq!(lines(directory, "step"), told, "{more}");
    assert_eq!(lines(directory, "eval"), evals, "{more}");
    [told, evals]
}

#[test]
fn a_resumed_run_has_the_bits_of_one_that_never_stopped() {
    let root = tempfile::tempdir().unwrap();
    let [plain, plain_evals] = run_and_resume(&root.path().join("plain"), "");
    let tricks = [
        "loraplus_lr_ratio = 16",
        "label_smoothing_factor = 0.1\nz_loss = 1e-3",
        "neftune_noise_alpha = 5",
        "layer_lr_decay = 0.5\n[[train.groups]]\nmatch = \"down_proj\"\nlearning_rate = 1e-3\nweight_decay = 0.1",
        "optimizer = \"lion\"",
        "optimizer = \"sgd\"",
        "optimizer = \"adafactor\"",
        "optimizer = \"muon\"",
        "optimizer = \"schedule_free_adamw\"\nlr_scheduler = \"constant_with_warmup\"",
    ];
    for (i, more) in tricks.iter().enumerate() {
        let [told, _] = run_and_resume(&root.path().join(i.to_string()), more);
        assert_ne!(told[3]["loss"], plain[3]["loss"], "{more} changes nothing");
        let smoothed = more.contains("label_smoothing");
        assert_eq!(told[0].get("penalized_loss").is_some(), smoothed, "{more}");
        // Nothing but noise alters the first step's loss: it is the mean nll, with penalties too.
        let noisy = more.contains("neftune");
        assert_eq!(told[0]["loss"] != plain[0]["loss"], noisy, "{more}");
    }
    // Training goes on as it would; what is evaluated is another adapter from the second step on.
    let [told, evals] = run_and_resume(&root.path().join("mean"), "ema_decay = 0.5");
    assert_eq!(told, plain);
    let losses = |evals: &[Value]| {
        evals
            .iter()
            .map(|eval| eval["eval_loss"].clone())
            .collect::<Vec<_>>()
    };
    assert_ne!(losses(&evals), losses(&plain_evals));
}

#[test]
fn lengths_of_rows_are_trained_and_resumed_with_every_optimizer() {
    let root = tempfile::tempdir().unwrap();
    let [plain, _] = run_and_resume(&root.path().join("plain"), "");
    for (i, (lora, more)) in [
        ("", ""),
        ("", "loraplus_lr_ratio = 16\n"),
        ("dropout = 0.0", ""),
        ("", "optimizer = \"adamw_8bit\"\n"),
        ("", "optimizer = \"lion\"\n"),
        ("", "optimizer = \"sgd\"\n"),
        ("", "optimizer = \"adafactor\"\n"),
        (
            "",
            "optimizer = \"schedule_free_adamw\"\nlr_scheduler = \"constant_with_warmup\"\n",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let directory = root.path().join(i.to_string());
        let path = tiny::project(&directory, &format!("{MORE}{more}"));
        let recipe = fs::read_to_string(&path).unwrap();
        let recipe = match lora {
            "" => recipe,
            lora => recipe.replace("dropout = 0.1", lora),
        };
        let recipe = recipe.replace("[lora]\n", "[lora]\nuse_dora = true\n");
        fs::write(&path, recipe).unwrap();
        let [told, _] = resumed(&directory, path, more);
        // Rows begin at their own lengths: the first step is that of the base.
        assert_eq!(told[0]["loss"], plain[0]["loss"], "{more}");
        assert_ne!(told[3]["loss"], plain[3]["loss"], "{more}");
        let file = SafetensorsFile::open(
            checkpoint::path(&directory.join("out"), 4).join("adapter/adapter_model.safetensors"),
        )
        .unwrap();
        let names = file
            .tensors()
            .filter(|it| it.name.ends_with("lora_magnitude_vector"));
        assert_eq!(names.count(), 2, "{more}");
    }
}

#[test]
fn another_optimizer_is_refused_on_resume() {
    let root = tempfile::tempdir().unwrap();
    let path = tiny::project(root.path(), MORE);
    train(
        Recipe::load(&path, &[]).unwrap(),
        Start::New { force: false },
    );
    let at = root.path().join("out");
    let set = ["train.optimizer=lion".to_owned()];
    let asked = |allow: &[String]| {
        let resume = Resume::find(&at, allow).unwrap();
        resume.recipe(None, &set).unwrap_err().to_string()
    };
    for allow in [vec![], vec!["train.optimizer".to_owned()]] {
        let message = asked(&allow);
        assert!(message.contains("train.optimizer"), "{message}");
    }
}
