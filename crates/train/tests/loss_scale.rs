//! Runs with a scaled loss. In f32 a power of two changes no bit of a result, so scaled runs are compared with
//! runs that are not.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use backdraft_formats::ModelSource;
use backdraft_journal::report::Reporter;
use backdraft_recipe::Recipe;
use backdraft_testkit::tiny;
use backdraft_train::TrainError;
use backdraft_train::checkpoint::{self, Saved};
use backdraft_train::control::Control;
use backdraft_train::data;
use backdraft_train::loss_scale::LossScale;
use backdraft_train::resume::Resume;
use backdraft_train::run::{Start, Watch, prepare};
use burn::tensor::Device;
use burn::train::Interrupter;
use burn::train::renderer::CliMetricsRenderer;

const MORE: &str = "max_steps = 6\nsave_steps = 2\nsave_total_limit = 9\nwarmup_steps = 2\n";

/// What a run warned of.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Reporter for Warnings {
    fn warn(&mut self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

/// Trains, and tells what was warned of.
fn train(
    recipe: Recipe,
    start: Start,
    scale: Option<LossScale>,
) -> Result<Vec<String>, TrainError> {
    let source = ModelSource::open(&recipe.model).unwrap();
    let data = data::read(&recipe, &source, &mut |_| ()).unwrap();
    let mut run = prepare(recipe, source, data, &Device::flex()).unwrap();
    if let Some(scale) = scale {
        run.scale_loss(scale);
    }
    let warnings = Warnings::default();
    let watch = Watch {
        reporter: Box::new(warnings.clone()),
        renderer: Box::new(CliMetricsRenderer::new()),
        interrupter: Interrupter::default(),
        control: Control::default(),
        start,
        memory: None,
    };
    run.train(watch)?;
    let warnings = warnings.0.lock().unwrap().clone();
    Ok(warnings)
}

/// A new run in a directory of its own.
fn new(directory: &Path, scale: Option<LossScale>) -> Vec<String> {
    let recipe = Recipe::load(&tiny::project(directory, MORE), &[]).unwrap();
    train(recipe, Start::New { force: false }, scale).unwrap()
}

/// Factors and moments of the checkpoint after a step, and its loss scale.
fn state(directory: &Path, step: usize) -> ([Vec<u8>; 2], Option<LossScale>) {
    let path = checkpoint::path(&directory.join("out"), step);
    let files = ["adapter/adapter_model.safetensors", "optimizer.safetensors"];
    let files = files.map(|file| fs::read(path.join(file)).unwrap());
    (files, Saved::open(&path).unwrap().state.loss_scale)
}

#[test]
fn a_scaled_run_has_the_same_bits_in_f32() {
    let root = tempfile::tempdir().unwrap();
    let [plain, scaled, too_large] =
        ["plain", "scaled", "too-large"].map(|name| root.path().join(name));
    assert!(new(&plain, None).is_empty());
    assert!(new(&scaled, Some(LossScale::default())).is_empty());
    // The norm's squares overflow until the scale is about 2^60.
    let warnings = new(&too_large, Some(LossScale::new(80)));
    assert!((5..60).contains(&warnings.len()), "{warnings:?}");
    for (i, warning) in warnings.iter().enumerate() {
        let [from, to] = [80 - i as i32, 79 - i as i32].map(|exponent| 2f32.powi(exponent));
        assert_eq!(
            *warning,
            format!(
                "a gradient of step 1 overflows under a loss scale of {from}; it is repeated under {to}"
            )
        );
    }
    for step in [2, 4, 6] {
        let (files, scale) = state(&plain, step);
        assert_eq!(scale, None);
        let same = |directory| {
            let (others, scale) = state(directory, step);
            assert!(others == files, "{} after {step}", directory.display());
            scale.unwrap()
        };
        assert_eq!(same(&scaled).factor(), 65536.0);
        let halved = 80 - warnings.len() as i32;
        assert_eq!(same(&too_large).factor(), 2f32.powi(halved));
    }
    let text = fs::read_to_string(checkpoint::path(&plain.join("out"), 2).join("state.json"));
    assert!(!text.unwrap().contains("loss_scale"));
}

#[test]
fn a_resumed_run_goes_on_with_its_scale() {
    let root = tempfile::tempdir().unwrap();
    new(root.path(), Some(LossScale::new(63)));
    let uninterrupted = state(root.path(), 6);
    let at = checkpoint::path(&root.path().join("out"), 2);
    let (_, early) = state(root.path(), 2);
    assert_ne!(early, uninterrupted.1, "steps are counted");
    let resume = Resume::find(&at, &[]).unwrap();
    let recipe = resume.recipe(None, &[]).unwrap();
    // The scale that a run begins with is of no matter any more.
    train(
        recipe,
        Start::Resume(Box::new(resume)),
        Some(LossScale::new(1)),
    )
    .unwrap();
    assert!(state(root.path(), 6) == uninterrupted);
}

#[test]
fn what_overflows_without_a_scale_ends_the_run() {
    let root = tempfile::tempdir().unwrap();
    let recipe = tiny::project(root.path(), MORE);
    // The adapters' outputs are numbers, the square of their gradients is none.
    let set = |key: &str| vec![key.to_owned()];
    let recipe = Recipe::load(&recipe, &set("lora.alpha=1e30")).unwrap();
    let start = Start::New { force: false };
    let error = train(recipe, start, Some(LossScale::new(3))).unwrap_err();
    assert!(
        matches!(
            error,
            TrainError::NotFinite {
                step: 1,
                what: "gradient norm",
                ..
            }
        ),
        "{error}"
    );
}
