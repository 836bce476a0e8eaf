//! Full fine-tuning, and tricks of the training step, on tiny models: eight steps each, as transformers' Trainer and PEFT's
//! optimizer do them.

use std::collections::{BTreeMap, BTreeSet};

use backdraft::arch::Trainable;
use backdraft::burn::tensor::{Tensor, TensorData};
use backdraft::data::{Batch, IGNORE_INDEX};
use backdraft::kernels::adamw::AdamWParams;
use backdraft::kernels::cross_entropy::Penalty;
use backdraft::lora::{self, AdapterGrads, AdapterWeights, LoraAdapter, LoraConfig};
use backdraft::model::CausalLm;
use backdraft::plan::ActivationPlan;
use backdraft::train::neftune::Neftune;
use backdraft::train::objective::Goal;
use backdraft::train::optimizer::{Optimizer, Rates, StatePrecision};
use backdraft::train::step::{MicroBatch, Trunk, guarded};
use backdraft_testkit::golden::{self, Tensors};
use backdraft_testkit::tolerance::{TINY_LOSS, TINY_NORM, Tolerance};
use serde::Deserialize;

use super::compare::{norm, scalar, values};
use super::place;
use super::tiny_case::TinyCase;

#[derive(Deserialize)]
struct Golden {
    model: String,
    settings: Settings,
    #[serde(rename = "input_ids[step][row]")]
    input_ids: Vec<Vec<Vec<u32>>>,
    #[serde(rename = "unlabelled_prefix[step][row]")]
    unlabelled_prefix: Vec<Vec<usize>>,
    lr: Vec<f64>,
    losses: Vec<f64>,
    grad_norms_before_clipping: Vec<f64>,
    lora: Option<Adapter>,
    parameters: BTreeMap<String, BTreeMap<String, Summary>>,
}

#[derive(Deserialize)]
struct Settings {
    mode: String,
    lr: f64,
    weight_decay: f64,
    clip: f64,
    betas: [f64; 2],
    eps: f64,
    #[serde(default)]
    label_smoothing: f64,
    neftune_alpha: Option<f64>,
    lora_plus_ratio: Option<f64>,
}

#[derive(Deserialize)]
struct Adapter {
    r: usize,
    lora_alpha: f64,
}

/// What is said of a tensor after a step.
#[derive(Deserialize)]
struct Summary {
    l2: f64,
    first4: Vec<f32>,
}

#[test]
fn golden_training_steps_of_adapters() {
    let bases = TinyCase::all();
    let mut found = 0;
    for folder in golden::folders("training", "training.json") {
        let golden: Golden = golden::json(&folder.join("training.json"));
        if golden.settings.mode == "lora" {
            let tensors = Tensors::open(folder.join("training.safetensors"));
            let adapter = start(&tensors, golden.lora.as_ref().unwrap());
            let model = base_of(&golden, &bases).with_adapter(&adapter).unwrap();
            check(&folder.name(), &golden, Some(&tensors), model);
            found += 1;
        }
    }
    println!("{found} cases train adapters");
}

#[test]
fn golden_training_steps_of_everything() {
    let bases = TinyCase::all();
    let mut found = 0;
    for folder in golden::folders("training", "training.json") {
        let golden: Golden = golden::json(&folder.join("training.json"));
        if golden.settings.mode == "full" {
            let tensors = folder.join("training.safetensors");
            let tensors = tensors.is_file().then(|| Tensors::open(tensors));
            let base = base_of(&golden, &bases);
            let config = LoraConfig::full(Trainable::All, base.spec()).unwrap();
            let model = base.with_lora(&config, 1).unwrap();
            let names = model.trained_params();
            let names = names.map(|(path, param)| format!("{path}.{}", param.file_name));
            let names: BTreeSet<String> = names.collect();
            assert_eq!(names, golden.parameters.keys().cloned().collect());
            check(&folder.name(), &golden, tensors.as_ref(), model);
            found += 1;
        }
    }
    println!("{found} cases train everything");
}

fn base_of(golden: &Golden, bases: &[TinyCase]) -> CausalLm {
    let base = golden.model.rsplit('/').next().unwrap();
    let base = bases.iter().find(|case| case.name == base).unwrap();
    base.model.clone()
}

fn check(name: &str, golden: &Golden, tensors: Option<&Tensors>, mut model: CausalLm) {
    let settings = &golden.settings;
    let params = AdamWParams {
        beta1: settings.betas[0],
        beta2: settings.betas[1],
        epsilon: settings.eps,
        weight_decay: settings.weight_decay,
    };
    let mut optimizer = Optimizer::adamw(params, StatePrecision::F32).with_rates(Rates {
        b_over_a: settings.lora_plus_ratio.unwrap_or(1.0),
        ..Rates::default()
    });
    let device = place::device();
    for (step, lr) in golden.lr.iter().enumerate() {
        let batch = micro_batch(&golden.input_ids[step], &golden.unlabelled_prefix[step]);
        let tokens = batch.targets.len() as f64;
        let mut h = model.embed(&batch.tokens.input_ids).inner();
        if let (Some(alpha), Some(tensors)) = (settings.neftune_alpha, tensors) {
            let draws = format!("noise.step{}", step + 1);
            let [rows, length, hidden] = tensors.shape(&draws);
            let draws = TensorData::new(tensors.f32(&draws), [rows * length, hidden]);
            let noise = Tensor::<2>::from_data(draws, &device);
            h = h + noise.mul_scalar(Neftune::scale(alpha, length, hidden));
        }
        let smoothed = settings.label_smoothing > 0.0;
        let goal = Goal {
            penalty: smoothed.then_some(Penalty {
                label_smoothing: settings.label_smoothing as f32,
                z_loss: 0.0,
            }),
            ..Goal::next_token(1.0 / tokens as f32)
        };
        let plan = ActivationPlan::keep_all(model.num_backward_layers());
        let mut grads = AdapterGrads::new();
        let plan = (&plan, None);
        let trunk = Trunk::from_embeddings(&model, &batch, h);
        let told = guarded(&model, (&batch, trunk), &goal, None, plan, &mut grads).unwrap();
        let what = format!("{name}, step {step}");
        assert_eq!(told.penalized.is_some(), smoothed, "{what}");
        let loss = scalar(&told.penalized.unwrap_or(told.nll)) / tokens;
        TINY_LOSS.check_one(format!("{what}, loss"), loss, golden.losses[step]);
        let (grads, norm) = optimizer.clip(&model, grads, settings.clip);
        let expected = golden.grad_norms_before_clipping[step];
        TINY_NORM.check_one(format!("{what}, norm"), scalar(&norm), expected);
        optimizer.step(&mut model, &grads, *lr);
        check_parameters(&what, golden, &format!("step{}", step + 1), &model);
    }
    let Some(tensors) = tensors else {
        return;
    };
    for (path, param) in model.trained_params() {
        let factor = format!("{path}.{}", param.file_name);
        let (found, expected) = (
            values(&param.values),
            tensors.f32(&format!("final.{factor}")),
        );
        let apart: Vec<f32> = found.iter().zip(&expected).map(|(a, b)| a - b).collect();
        let (apart, whole) = (norm(&apart), norm(&expected));
        assert!(
            apart <= 5e-4 * whole,
            "{name}, {factor}: {apart} of {whole}"
        );
    }
}

/// Norms and first entries after a step that the file tells of.
fn check_parameters(what: &str, golden: &Golden, step: &str, model: &CausalLm) {
    for (path, param) in model.trained_params() {
        let factor = format!("{path}.{}", param.file_name);
        let Some(expected) = golden.parameters[&factor].get(step) else {
            return;
        };
        let found = values(&param.values);
        let l2 = norm(&found);
        Tolerance::Relative(5e-4).check_one(format!("{what}, {factor}"), l2, expected.l2);
        let single = Tolerance::Absolute(golden.settings.lr / 2.0);
        single.check(format!("{what}, {factor}"), &found[..4], &expected.first4);
    }
}

fn micro_batch(rows: &[Vec<u32>], prefixes: &[usize]) -> MicroBatch {
    let ids: Vec<i64> = rows.iter().flatten().map(|&id| i64::from(id)).collect();
    let mut labels = ids.clone();
    for (row, &prefix) in labels.chunks_mut(rows[0].len()).zip(prefixes) {
        row[..prefix].fill(IGNORE_INDEX);
    }
    let batch = Batch::from_rectangular(rows.len(), &ids, &vec![1; ids.len()], &labels);
    batch.unwrap().into()
}

fn start(tensors: &Tensors, lora: &Adapter) -> AdapterWeights {
    let device = place::device();
    let config = LoraConfig {
        rank: lora.r,
        alpha: lora.lora_alpha,
        ..LoraConfig::default()
    };
    let tensor = |name: &str| -> Tensor<2> {
        let data = TensorData::new(tensors.f32(name), tensors.shape::<2>(name));
        Tensor::from_data(data, &device)
    };
    let mut adapters = BTreeMap::new();
    for name in tensors.names() {
        let module = name.strip_prefix("start.");
        if let Some(module) = module.and_then(|name| name.strip_suffix(".lora_A.weight")) {
            let b = format!("final.{module}.lora_B.weight");
            let factors = LoraAdapter::from_factors(&config, tensor(name), tensor(&b).zeros_like());
            adapters.insert(module.to_owned(), lora::Adapter::Lora(factors));
        }
    }
    AdapterWeights {
        config,
        adapters,
        tokens: Vec::new(),
        whole: Default::default(),
    }
}
