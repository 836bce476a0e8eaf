//! SmolLM2: ten steps of LoRA as PEFT does them.

use std::collections::BTreeMap;

use backdraft::burn::tensor::{Tensor, TensorData};
use backdraft::data::Batch;
use backdraft::formats::ModelSource;
use backdraft::kernels::adamw::AdamWParams;
use backdraft::lora::base::blocks_plan;
use backdraft::lora::{
    Adapter, AdapterGrads, AdapterWeights, LoraAdapter, LoraConfig, TargetModule,
};
use backdraft::model::CausalLm;
use backdraft::plan::ActivationPlan;
use backdraft::quant::Scheme;
use backdraft::train::optimizer::{Optimizer, StatePrecision, global_norm};
use backdraft::train::step::{MicroBatch, forward_backward};
use backdraft_testkit::golden::{self, Tensors};
use backdraft_testkit::smollm2::find;
use backdraft_testkit::tolerance::{
    SMOLLM2_LOGITS, SMOLLM2_LORA_FINAL_NORM, SMOLLM2_LORA_GRADIENT_NORM, SMOLLM2_LORA_LOSS,
    SMOLLM2_QLORA, Tolerance,
};
use serde::Deserialize;

use super::compare::{norm, scalar, values};
use super::lora::merged;
use super::place;
use super::smollm2::{at, first_prompt, last_logits, load, quantised, top};

/// `lora_train.json`.
#[derive(Deserialize)]
struct Training {
    config: Config,
    batches: Vec<Vec<Vec<i64>>>,
    lora_f32_base: Steps,
    after_training_prompt0: AfterTraining,
    qlora_nf4_double_quant_base: Steps,
}

#[derive(Deserialize)]
struct Config {
    r: usize,
    lora_alpha: f64,
    target_modules: Vec<String>,
    lr: f64,
    weight_decay: f64,
    betas: [f64; 2],
    eps: f64,
}

#[derive(Deserialize)]
struct Steps {
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
    loss_on_first_batch_afterwards: f64,
    #[serde(rename = "total_norm_A")]
    total_norm_a: f64,
    #[serde(rename = "total_norm_B")]
    total_norm_b: f64,
    final_norms: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct AfterTraining {
    top5_ids: Vec<u32>,
    top5_logits: Vec<f32>,
    merged_top5_ids: Vec<u32>,
    merged_top5_logits: Vec<f32>,
}

#[test]
fn golden_smollm2_lora() {
    let Some((smollm2, path)) = load("lora_train.json") else {
        return;
    };
    let training: Training = golden::json(&path);
    let init = Tensors::open(path.with_file_name("lora_A_init.safetensors"));
    let adapter = training.config.fresh_adapter(&smollm2.model, &init);
    let mut model = smollm2.model.clone().with_adapter(&adapter).unwrap();

    train(&mut model, &training, &training.lora_f32_base, &F32_BASE);

    let after = &training.after_training_prompt0;
    if let Some(prompt) = first_prompt() {
        let logits = last_logits(&model, &prompt);
        check_top("adapter", &logits, &after.top5_ids, &after.top5_logits);
        let logits = last_logits(&merged(model), &prompt);
        check_top(
            "merged",
            &logits,
            &after.merged_top5_ids,
            &after.merged_top5_logits,
        );
    }
}

/// The same ten steps over an NF4 base.
#[test]
fn golden_smollm2_qlora() {
    let Some((smollm2, path)) = load("lora_train.json") else {
        return;
    };
    let training: Training = golden::json(&path);
    let init = Tensors::open(path.with_file_name("lora_A_init.safetensors"));
    let adapter = training.config.fresh_adapter(&smollm2.model, &init);
    let mut model = quantised(&smollm2.model, Scheme::NF4)
        .with_adapter(&adapter)
        .unwrap();
    train(
        &mut model,
        &training,
        &training.qlora_nf4_double_quant_base,
        &NF4_BASE,
    );
}

/// The same ten steps over the blocks of the file, which stand for the values of the f32 base.
#[test]
fn golden_smollm2_lora_over_its_own_blocks() {
    let Some((smollm2, path)) = load("lora_train.json") else {
        return;
    };
    let training: Training = golden::json(&path);
    let init = Tensors::open(path.with_file_name("lora_A_init.safetensors"));
    let adapter = training.config.fresh_adapter(&smollm2.model, &init);
    let source = ModelSource::open(find().unwrap()).unwrap();
    let plan = blocks_plan(&source).unwrap();
    assert_eq!(plan.to_string(), "q4_1 (as in the file), 1 in q8_0");
    let base = CausalLm::load_quantized(&source, Some(&plan), &place::device()).unwrap();
    let mut model = base.with_adapter(&adapter).unwrap();
    train(&mut model, &training, &training.lora_f32_base, &F32_BASE);
}

/// How far losses, gradient norms and final norms may be off.
struct Tolerances {
    loss: Tolerance,
    gradient_norm: Tolerance,
    final_norm: Tolerance,
}

const F32_BASE: Tolerances = Tolerances {
    loss: SMOLLM2_LORA_LOSS,
    gradient_norm: SMOLLM2_LORA_GRADIENT_NORM,
    final_norm: SMOLLM2_LORA_FINAL_NORM,
};

const NF4_BASE: Tolerances = Tolerances {
    loss: SMOLLM2_QLORA,
    gradient_norm: SMOLLM2_QLORA,
    final_norm: SMOLLM2_QLORA,
};

/// Ten steps, their losses and norms, and what has become of the adapter.
fn train(model: &mut CausalLm, training: &Training, expected: &Steps, allowed: &Tolerances) {
    let config = &training.config;
    let mut optimizer = Optimizer::adamw(
        AdamWParams {
            beta1: config.betas[0],
            beta2: config.betas[1],
            epsilon: config.eps,
            weight_decay: config.weight_decay,
        },
        StatePrecision::F32,
    );
    for (step, rows) in training.batches.iter().enumerate() {
        let batch = micro_batch(rows);
        let mut grads = AdapterGrads::new();
        let scale = 1.0 / batch.targets.len() as f32;
        let plan = ActivationPlan::keep_all(model.num_backward_layers());
        let nll = forward_backward(model, &batch, scale, None, &plan, &mut grads);
        let loss = scalar(&nll) * f64::from(scale);
        allowed
            .loss
            .check_one(format!("loss {step}"), loss, expected.losses[step]);
        let norm = scalar(&global_norm(model, &grads));
        let expected = expected.grad_norms[step];
        allowed
            .gradient_norm
            .check_one(format!("norm {step}"), norm, expected);
        optimizer.step(model, &grads, config.lr);
    }
    let first = micro_batch(&training.batches[0]);
    let nll = model.nll(&first.tokens, &first.targets);
    let afterwards = expected.loss_on_first_batch_afterwards;
    allowed
        .loss
        .check_one("first batch afterwards", scalar(&nll.mean()), afterwards);
    check_factors(model, expected, allowed.final_norm);
}

fn check_factors(model: &CausalLm, expected: &Steps, allowed: Tolerance) {
    let (mut all_a, mut all_b, mut compared) = (Vec::new(), Vec::new(), 0);
    for (layer, target, adapter) in model.adapters() {
        let params = adapter.params();
        let [a, b] = [&params[0], &params[1]].map(|param| values(&param.values));
        for (param, values) in params.iter().zip([&a, &b]) {
            let name = format!("{}.{}", target.path(layer), param.file_name);
            let expected = expected.final_norms[&name];
            allowed.check_one(&name, norm(values), expected);
            compared += 1;
        }
        all_a.extend(a);
        all_b.extend(b);
    }
    assert_eq!(compared, expected.final_norms.len());
    allowed.check_one("all A", norm(&all_a), expected.total_norm_a);
    allowed.check_one("all B", norm(&all_b), expected.total_norm_b);
}

fn check_top(what: &str, logits: &[f32], ids: &[u32], expected: &[f32]) {
    assert_eq!(top(logits, ids.len()), ids, "{what}");
    SMOLLM2_LOGITS.check(what, &at(logits, ids), expected);
}

/// Rows of one length whose every token is a label.
fn micro_batch(rows: &[Vec<i64>]) -> MicroBatch {
    let ids = rows.concat();
    let batch = Batch::from_rectangular(rows.len(), &ids, &vec![1; ids.len()], &ids);
    batch.unwrap().into()
}

impl Config {
    /// A from the file, B zero.
    fn fresh_adapter(&self, model: &CausalLm, init: &Tensors) -> AdapterWeights {
        let device = place::device();
        let targets = self.target_modules.iter().map(|name| name.parse().unwrap());
        let config = LoraConfig {
            rank: self.r,
            alpha: self.lora_alpha,
            target_modules: targets.collect::<Vec<TargetModule>>(),
            ..LoraConfig::default()
        };
        let mut adapters = BTreeMap::new();
        for (i, layer) in model.layers.iter().enumerate() {
            for &target in &config.target_modules {
                let path = target.path(i);
                let name = format!("{path}.lora_A.weight");
                let a = TensorData::new(init.f32(&name), init.shape::<2>(&name));
                let [output, _] = layer.projection(target).weight().dims();
                let b = Tensor::zeros([output, self.r], &device);
                let lora = LoraAdapter::from_factors(&config, Tensor::from_data(a, &device), b);
                adapters.insert(path, Adapter::Lora(lora));
            }
        }
        AdapterWeights {
            config,
            adapters,
            tokens: Vec::new(),
            whole: Default::default(),
        }
    }
}
