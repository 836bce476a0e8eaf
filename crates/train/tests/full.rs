//! Full fine-tuning with gradients that are used layer by layer: runs have the bits of those that keep all gradients, stopped and
//! resumed or not.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use backdraft_formats::{ModelSource, SafetensorsFile};
use backdraft_journal::report::Reporter;
use backdraft_recipe::Recipe;
use backdraft_testkit::tiny;
use backdraft_train::TrainError;
use backdraft_train::checkpoint;
use backdraft_train::control::Control;
use backdraft_train::data;
use backdraft_train::resume::Resume;
use backdraft_train::run::{Start, Watch, prepare};
use burn::tensor::Device;
use burn::train::Interrupter;
use burn::train::renderer::CliMetricsRenderer;
use serde_json::Value;

const MORE: &str = "max_steps = 4\nsave_steps = 2\nsave_total_limit = 9\neval_steps = 2\nwarmup_steps = 1\n\
                    grad_accumulation_steps = 1\nmicro_batch_size = 4\n";

struct Silent;

impl Reporter for Silent {}

fn train(recipe: Recipe, start: Start) -> Result<(), TrainError> {
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
    run.train(watch).map(drop)
}

/// A recipe that trains `what` of the tiny model, whose head is its embedding where it is `tied`.
fn recipe(directory: &Path, what: (&str, bool), more: &str) -> Recipe {
    Recipe::load(&project(directory, what, more), &[]).unwrap()
}

fn project(directory: &Path, (what, tied): (&str, bool), more: &str) -> PathBuf {
    let path = tiny::project(directory, "");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once("[lora]\n").unwrap();
    let (_, data) = rest.split_once("[data]\n").unwrap();
    let (data, _) = data.split_once("[train]\n").unwrap();
    let text = format!("{before}trainable = {what}\n[data]\n{data}[train]\n{MORE}{more}");
    fs::write(&path, text).unwrap();
    if tied {
        let golden = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/golden/tiny/llama-tied"
        );
        for entry in fs::read_dir(directory.join("model")).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_string_lossy().starts_with("model") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        for file in ["config.json", "model.safetensors"] {
            fs::copy(
                Path::new(golden).join(file),
                directory.join("model").join(file),
            )
            .unwrap();
        }
    }
    path
}

/// Weights and what the optimiser keeps, after a step.
fn state(directory: &Path, step: usize) -> [Vec<u8>; 2] {
    let path = checkpoint::path(&directory.join("out"), step);
    let files = ["model/model.safetensors", "optimizer.safetensors"];
    files.map(|file| fs::read(path.join(file)).unwrap())
}

/// The lines of steps and evaluations, without what the clock says.
fn lines(directory: &Path) -> Vec<Value> {
    let text = fs::read_to_string(directory.join("out/metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        for key in ["seconds", "elapsed"] {
            line.as_object_mut().unwrap().remove(key);
        }
        line
    });
    let told = |line: &Value| line["event"] == "step" || line["event"] == "eval";
    lines.filter(told).collect()
}

/// A run of four steps, and the same from its second step on.
fn run_and_resume(directory: &Path, what: (&str, bool), more: &str) -> ([Vec<u8>; 2], Vec<Value>) {
    train(recipe(directory, what, more), Start::New { force: false }).unwrap();
    let (uninterrupted, told) = (state(directory, 4), lines(directory));
    let at = checkpoint::path(&directory.join("out"), 2);
    let resume = Resume::find(&at, &[]).unwrap();
    let recipe = resume.recipe(None, &[]).unwrap();
    train(recipe, Start::Resume(Box::new(resume))).unwrap();
    assert!(state(directory, 4) == uninterrupted, "{more}");
    assert_eq!(lines(directory), told, "{more}");
    (uninterrupted, told)
}

#[test]
fn released_gradients_give_the_bits_of_whole_ones() {
    let root = tempfile::tempdir().unwrap();
    let kinds = [
        (("\"all\"", false), ""),
        (("\"all\"", true), ""),
        (("[\"layers.1\", \"embed_tokens\"]", true), ""),
        (("[\"down_proj\"]", false), ""),
        (("\"all\"", true), "optimizer = \"adamw_8bit\"\n"),
        (("\"all\"", false), "optimizer = \"adafactor\"\n"),
        (
            ("\"all\"", false),
            "optimizer = \"lion\"\nema_decay = 0.5\n",
        ),
        (
            ("\"all\"", true),
            "layer_lr_decay = 0.5\nlabel_smoothing_factor = 0.1\nneftune_noise_alpha = 5\n",
        ),
    ];
    for (i, (what, more)) in kinds.into_iter().enumerate() {
        for (clip, kept) in [(0.0, "released"), (0.05, "two-passes")] {
            let named = |name: &str| root.path().join(format!("{i}-{kept}-{name}"));
            let of = |gradients: &str| {
                let more = format!("{more}max_grad_norm = {clip}\ngradients = \"{gradients}\"\n");
                run_and_resume(&named(gradients), what, &more)
            };
            let (whole, told) = of("whole");
            let (released, told_too) = of(kept);
            assert!(whole == released, "{what:?} {more} {kept}");
            assert_eq!(told, told_too, "{what:?} {more} {kept}");
            let norm = told[0]["grad_norm"].as_f64().unwrap();
            assert!(norm > 0.05, "{norm}: nothing would be clipped");
        }
    }
}

/// Every value of a checkpoint's weights.
fn values(directory: &Path, step: usize) -> Vec<f32> {
    let path = checkpoint::path(&directory.join("out"), step);
    let file = SafetensorsFile::open(path.join("model/model.safetensors")).unwrap();
    let names: Vec<String> = file.tensors().map(|info| info.name.clone()).collect();
    let read = names.iter().map(|name| file.read_f32(name).unwrap());
    read.flatten().collect()
}

#[test]
fn weights_in_bf16_alone_learn_as_those_in_f32_and_are_resumed_to_the_bit() {
    let root = tempfile::tempdir().unwrap();
    let what = ("\"all\"", true);
    let named = |name: &str| root.path().join(name);
    let bare = "master_weights = \"none\"\n";
    let (whole, told) =
        run_and_resume(&named("whole"), what, &format!("{bare}max_grad_norm = 0\n"));
    let more = format!("{bare}max_grad_norm = 0\ngradients = \"released\"\n");
    let (released, told_too) = run_and_resume(&named("released"), what, &more);
    assert!(whole == released);
    assert_eq!(told, told_too);
    for (optimizer, mean) in [("adamw_8bit", ""), ("adafactor", "ema_decay = 0.5\n")] {
        let more = format!("{bare}optimizer = \"{optimizer}\"\n{mean}");
        run_and_resume(&named(optimizer), what, &more);
    }
    let after = values(&named("whole"), 4);
    assert!(after.iter().all(|value| value.to_bits() & 0xFFFF == 0));

    // Updates far below a step of bf16, which is 1/256 of most values.
    let long = [
        "train.max_steps=60",
        "train.save_steps=60",
        "train.learning_rate=1e-4",
    ];
    let losses = |name: &str, more: &str| {
        let long = long.map(str::to_owned);
        let recipe = Recipe::load(&project(&named(name), what, more), &long).unwrap();
        train(recipe, Start::New { force: false }).unwrap();
        let steps = lines(&named(name))
            .into_iter()
            .filter(|line| line["event"] == "step");
        steps
            .map(|line| line["loss"].as_f64().unwrap())
            .collect::<Vec<f64>>()
    };
    let (f32s, bf16s) = (losses("f32", ""), losses("bf16", bare));
    let fall = f32s[0] - f32s[59];
    assert!(fall > 0.1, "{fall}");
    for (step, (expected, found)) in f32s.iter().zip(&bf16s).enumerate() {
        let off = (expected - found).abs() / fall;
        assert!(
            off < 0.1,
            "step {}: {found}, and {expected} in f32",
            step + 1
        );
    }
    let moved = values(&named("bf16"), 60);
    assert!(moved.iter().all(|value| value.to_bits() & 0xFFFF == 0));
}
