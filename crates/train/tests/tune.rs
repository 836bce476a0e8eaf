//! Runs of several recipes over one base, each with the bits that it has alone, whatever the others did to their base.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use backdraft_formats::ModelSource;
use backdraft_journal::report::Silent;
use backdraft_recipe::Recipe;
use backdraft_testkit::tiny;
use backdraft_train::TrainError;
use backdraft_train::checkpoint;
use backdraft_train::control::Control;
use backdraft_train::data::{self, RunData, reads_the_same};
use backdraft_train::run::{Base, Run, Start, Watch, prepare};
use backdraft_train::tune::{RangeSettings, range_test};
use burn::tensor::Device;
use burn::train::Interrupter;
use burn::train::renderer::CliMetricsRenderer;

const MORE: &str = "max_steps = 4\nsave_steps = 2\neval_steps = 2\nwarmup_steps = 1\n";

fn recipe(path: &Path, output: &str, settings: &[&str]) -> Recipe {
    let mut overrides: Vec<String> = settings.iter().map(|&text| text.to_owned()).collect();
    let output = path.parent().unwrap().join(output);
    overrides.push(format!("output_dir={output:?}"));
    Recipe::load(path, &overrides).unwrap()
}

fn read(recipe: &Recipe) -> (ModelSource, RunData) {
    let source = ModelSource::open(&recipe.model).unwrap();
    let data = data::read(recipe, &source, &mut |_| ()).unwrap();
    (source, data)
}

fn train(run: Run, output: &Path) -> [Vec<u8>; 2] {
    let watch = Watch {
        reporter: Box::new(Silent),
        renderer: Box::new(CliMetricsRenderer::new()),
        interrupter: Interrupter::default(),
        control: Control::default(),
        start: Start::New { force: true },
        memory: None,
    };
    run.train(watch).unwrap();
    let last = checkpoint::path(output, 4);
    let files = ["adapter/adapter_model.safetensors", "optimizer.safetensors"];
    files.map(|file| fs::read(last.join(file)).unwrap())
}

/// Each setting over one base, and alone.
fn over_one_base(common: &[&str], settings: &[&[&str]]) {
    let root = tempfile::tempdir().unwrap();
    let path = tiny::project(root.path(), MORE);
    let of = |output: &str, more: &[&str]| recipe(&path, output, &[common, more].concat());
    let first = of("first", &[]);
    let (source, data) = read(&first);
    let base = Base::load(&first, source, &data, &Device::flex()).unwrap();
    for more in settings {
        let recipe = of("shared", more);
        assert!(reads_the_same(&first, &recipe));
        let dealt = data.dealt_as(&recipe).unwrap();
        let output = recipe.output_dir.clone();
        let shared = train(base.run(recipe, dealt).unwrap(), &output);
        let recipe = of("alone", more);
        let (source, data) = read(&recipe);
        let output = recipe.output_dir.clone();
        let alone = prepare(recipe, source, data, &Device::flex()).unwrap();
        assert!(shared == train(alone, &output), "{more:?}");
    }
}

#[test]
fn runs_over_one_base_have_the_bits_that_they_have_alone() {
    over_one_base(
        &[],
        &[
            &[],
            &["lora.init=pissa"],
            &[],
            &["lora.modules_to_save=[\"norm\", \"lm_head\"]"],
            &["lora.use_dora=true", "seed=7"],
            &[
                "train.micro_batch_size=3",
                "train.grad_accumulation_steps=1",
            ],
            &[],
        ],
    );
    over_one_base(
        &["load_in_4bit=true", "quantization.calibration_tokens=64"],
        &[
            &["lora.init=qera"],
            &["lora.init=loftq", "quantization.double_quant=true"],
            &[],
        ],
    );
}

#[test]
fn a_base_is_refused_to_recipes_that_need_another() {
    let root = tempfile::tempdir().unwrap();
    let path = tiny::project(root.path(), MORE);
    let first = recipe(&path, "first", &[]);
    let (source, data) = read(&first);
    let base = Base::load(&first, source, &data, &Device::flex()).unwrap();
    let other = recipe(&path, "other", &["load_in_8bit=true"]);
    assert!(!base.serves(&other, &data).unwrap());
    assert!(base.serves(&first, &data).unwrap());
    let refused = base.run(other, data).err().unwrap();
    assert!(matches!(refused, TrainError::OtherBase { .. }), "{refused}");
    // Other rows, or others held out.
    for more in [
        "data.prompt_template=\"{instruction} w4 {output}\"",
        "max_seq_length=16",
    ] {
        assert!(
            !reads_the_same(&first, &recipe(&path, "other", &[more])),
            "{more}"
        );
    }
    let share = |seed: &str| recipe(&path, "share", &["data.eval=0.2", seed]);
    assert!(reads_the_same(&share("seed=1"), &share("seed=1")));
    assert!(!reads_the_same(&share("seed=1"), &share("seed=2")));
    assert!(reads_the_same(&first, &recipe(&path, "other", &["seed=2"])));
}

#[test]
fn a_range_test_leaves_base_and_rows_as_they_were() {
    let root = tempfile::tempdir().unwrap();
    let path = tiny::project(root.path(), MORE);
    for more in [&[][..], &["lora.init=pissa"]] {
        let first = recipe(&path, "first", more);
        let (source, data) = read(&first);
        let base = Base::load(&first, source, &data, &Device::flex()).unwrap();
        let before = train(
            base.run(first.clone(), data.clone()).unwrap(),
            &first.output_dir,
        );
        let settings = RangeSettings {
            min: 1e-5,
            max: 1e6,
            steps: 60,
        };
        let scratch = root.path().join("range");
        let test = || {
            range_test(
                &base,
                (&first, data.clone()),
                (settings, scratch.clone()),
                Box::new(Silent),
                (&Control::default(), Box::new(CliMetricsRenderer::new())),
            )
        };
        let found = test().unwrap().unwrap();
        assert!(found.diverges.is_some(), "{:?}", found.evidence);
        // The same once more, from the same start.
        assert_eq!(test().unwrap().unwrap(), found);
        let left: Vec<_> = fs::read_dir(&scratch)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, [".lock"]);
        let after = train(base.run(first.clone(), data).unwrap(), &first.output_dir);
        assert!(before == after, "{more:?}");
    }
}
