//! Tiny models: a training loop as transformers' Trainer runs it.

use std::collections::{BTreeMap, HashMap};

use backdraft::burn::tensor::{Tensor, TensorData};
use backdraft::data::Batch;
use backdraft::kernels::adamw::{self, AdamWParams, Moments};
use backdraft::lora::{self, AdapterGrads, AdapterWeights, LoraAdapter, LoraConfig};
use backdraft::model::{BaseTensor, CausalLm, IGNORE_INDEX};
use backdraft::plan::ActivationPlan;
use backdraft::quant::Weight;
use backdraft::recipe::schedule::{LrSchedule, ScheduleKind};
use backdraft::train::optimizer::{self, Optimizer, StatePrecision};
use backdraft::train::step::{MicroBatch, forward_backward};
use backdraft_testkit::golden::{self, Tensors};
use backdraft_testkit::tolerance::{TINY_LOSS, TINY_NORM, Tolerance};
use serde::Deserialize;
use serde_json::json;

use super::compare::{norm, scalar, values};
use super::full_gradients::{gradients, track};
use super::place;
use super::tiny_case::TinyCase;

/// `trainer.json`.
#[derive(Deserialize)]
struct Trainer {
    steps: usize,
    warmup_steps: usize,
    schedule: String,
    clip_norm: f64,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    lora: Adapter,
    #[serde(rename = "input_ids[step][micro][row]")]
    input_ids: Vec<Vec<Vec<Vec<i64>>>>,
    #[serde(rename = "ignored_prefix[step][micro][row]")]
    ignored_prefix: Vec<Vec<Vec<usize>>>,
    runs: BTreeMap<String, Run>,
}

#[derive(Deserialize)]
struct Adapter {
    r: usize,
    lora_alpha: f64,
}

/// What the reference loop recorded at each step.
#[derive(Deserialize)]
struct Run {
    peak_lr: f64,
    lr: Vec<f64>,
    loss: Vec<f64>,
    grad_norm_before_clipping: Vec<f64>,
    final_param_l2: f64,
}

/// A loop that trains something: adapters, or everything.
trait Trained {
    /// One optimiser step; mean loss, and the norm of the gradients before clipping.
    fn step(&mut self, batches: &[MicroBatch], lr: f64, clip_norm: f64) -> (f64, f64);

    /// The norm of all trained values.
    fn norm(&mut self) -> f64;
}

#[test]
fn golden_tiny_trainer_lora() {
    check_all("lora", |case, trainer| {
        let adapter = fresh_adapter(&Tensors::open(case.path.join("lora.safetensors")), trainer);
        let model = case.model.clone().with_adapter(&adapter).unwrap();
        Box::new(Lora {
            model,
            optimizer: Optimizer::adamw(trainer.adamw(), StatePrecision::F32),
        })
    });
}

#[test]
fn golden_tiny_trainer_full() {
    if place::leaves_out_full_training() {
        return;
    }
    check_all("full", |case, trainer| {
        let (model, params) = (case.model.clone(), trainer.adamw());
        Box::new(Full {
            model,
            params,
            moments: HashMap::new(),
            steps: 0,
        })
    });
}

fn check_all(run: &str, start: impl Fn(&TinyCase, &Trainer) -> Box<dyn Trained>) {
    let mut found = 0;
    for case in TinyCase::all() {
        let path = case.path.join("trainer.json");
        if path.is_file() {
            let trainer: Trainer = golden::json(&path);
            let expected = &trainer.runs[run];
            let trained = start(&case, &trainer);
            check(
                &format!("{}, {run}", case.name),
                &trainer,
                expected,
                trained,
            );
            found += 1;
        }
    }
    println!("{found} cases have a trainer.json");
}

fn check(name: &str, trainer: &Trainer, expected: &Run, mut trained: Box<dyn Trained>) {
    let schedule = trainer.schedule(expected.peak_lr);
    for step in 0..trainer.steps {
        let what = format!("{name}, step {step}");
        let lr = schedule.at(step);
        Tolerance::Relative(1e-12).check_one(format!("{what}, rate"), lr, expected.lr[step]);
        let batches = trainer.micro_batches(step);
        let (loss, norm) = trained.step(&batches, lr, trainer.clip_norm);
        TINY_LOSS.check_one(format!("{what}, loss"), loss, expected.loss[step]);
        let expected = expected.grad_norm_before_clipping[step];
        TINY_NORM.check_one(format!("{what}, norm"), norm, expected);
    }
    let what = format!("{name}, final norm");
    TINY_NORM.check_one(what, trained.norm(), expected.final_param_l2);
}

impl Trainer {
    fn adamw(&self) -> AdamWParams {
        AdamWParams {
            beta1: self.betas[0],
            beta2: self.betas[1],
            epsilon: self.eps,
            weight_decay: self.weight_decay,
        }
    }

    /// The first word of `schedule` is its kind.
    fn schedule(&self, peak_lr: f64) -> LrSchedule {
        let kind = self.schedule.split(' ').next().unwrap();
        let kind: ScheduleKind = serde_json::from_value(json!({"kind": kind})).unwrap();
        LrSchedule {
            kind,
            warmup_steps: self.warmup_steps,
            total_steps: self.steps,
            peak_lr,
        }
    }

    fn micro_batches(&self, step: usize) -> Vec<MicroBatch> {
        let batches = self.input_ids[step].iter().zip(&self.ignored_prefix[step]);
        let micro_batch = |(rows, prefixes): (&Vec<Vec<i64>>, &Vec<usize>)| {
            let mut labels = rows.clone();
            for (row, &prefix) in labels.iter_mut().zip(prefixes) {
                row[..prefix].fill(IGNORE_INDEX);
            }
            let (ids, labels) = (rows.concat(), labels.concat());
            let batch = Batch::from_rectangular(rows.len(), &ids, &vec![1; ids.len()], &labels);
            batch.unwrap().into()
        };
        batches.map(micro_batch).collect()
    }
}

/// One over the supervised tokens of a whole step.
fn scale(batches: &[MicroBatch]) -> f64 {
    let targets: usize = batches.iter().map(|batch| batch.targets.len()).sum();
    1.0 / targets as f64
}

/// A from the file, B zero.
fn fresh_adapter(tensors: &Tensors, trainer: &Trainer) -> AdapterWeights {
    let device = place::device();
    let config = LoraConfig {
        rank: trainer.lora.r,
        alpha: trainer.lora.lora_alpha,
        ..LoraConfig::default()
    };
    let mut adapters = BTreeMap::new();
    for name in tensors.names().filter(|name| !name.contains("grad.")) {
        if let Some(module) = name.strip_suffix(".lora_A.weight") {
            let a = TensorData::new(tensors.f32(name), tensors.shape::<2>(name));
            let [output, rank] = tensors.shape(&format!("{module}.lora_B.weight"));
            let b = Tensor::zeros([output, rank], &device);
            let factors = LoraAdapter::from_factors(&config, Tensor::from_data(a, &device), b);
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

/// Adapters, layer by layer.
struct Lora {
    model: CausalLm,
    optimizer: Optimizer,
}

impl Trained for Lora {
    fn step(&mut self, batches: &[MicroBatch], lr: f64, clip_norm: f64) -> (f64, f64) {
        let scale = scale(batches);
        let mut grads = AdapterGrads::new();
        let mut sum = 0.0;
        for batch in batches {
            let plan = ActivationPlan::keep_all(self.model.num_backward_layers());
            let nll = forward_backward(&self.model, batch, scale as f32, None, &plan, &mut grads);
            sum += scalar(&nll);
        }
        let norm = optimizer::global_norm(&self.model, &grads);
        let grads = optimizer::clip(grads, &norm, clip_norm);
        self.optimizer.step(&mut self.model, &grads, lr);
        (sum * scale, scalar(&norm))
    }

    fn norm(&mut self) -> f64 {
        let factors = self.model.trained_params();
        norm(
            &factors
                .flat_map(|(_, factor)| values(&factor.values))
                .collect::<Vec<_>>(),
        )
    }
}

/// Everything, under Burn's autodiff.
struct Full {
    model: CausalLm,
    params: AdamWParams,
    moments: HashMap<String, (Vec<f32>, Vec<f32>)>,
    steps: u64,
}

impl Trained for Full {
    fn step(&mut self, batches: &[MicroBatch], lr: f64, clip_norm: f64) -> (f64, f64) {
        let scale = scale(batches);
        let mut sum = 0.0;
        let mut total: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        track(&mut self.model);
        for batch in batches {
            let loss = self
                .model
                .loss(&batch.tokens, &batch.targets, None)
                .mul_scalar(scale);
            sum += scalar(&loss);
            for (name, grad) in gradients(&mut self.model, &loss.backward()) {
                let total = total.entry(name).or_insert_with(|| vec![0.0; grad.len()]);
                total
                    .iter_mut()
                    .zip(grad)
                    .for_each(|(total, grad)| *total += grad);
            }
        }
        let norm = norm(total.values().flatten());
        let factor = (clip_norm / (norm + 1e-6)).min(1.0) as f32;
        total
            .values_mut()
            .flatten()
            .for_each(|grad| *grad *= factor);
        self.update(&total, lr);
        (sum, norm)
    }

    fn norm(&mut self) -> f64 {
        let mut all = Vec::new();
        self.model.visit_base_mut(|_, tensor| match tensor {
            BaseTensor::Matrix(Weight::Dense(weight)) => all.extend(values(weight)),
            BaseTensor::Vector(weight) => all.extend(values(weight)),
            BaseTensor::Matrix(other) => panic!("a matrix in codes is not trained: {other:?}"),
        });
        norm(&all)
    }
}

impl Full {
    fn update(&mut self, grads: &BTreeMap<String, Vec<f32>>, lr: f64) {
        self.steps += 1;
        let Self {
            model,
            params,
            moments,
            steps,
        } = self;
        let mut moments_of = |name: &str, count| {
            moments
                .remove(name)
                .unwrap_or_else(|| (vec![0.0; count], vec![0.0; count]))
        };
        let mut next = HashMap::new();
        model.visit_base_mut(|name, tensor| {
            let grad = &grads[name];
            let state = moments_of(name, grad.len());
            let state = match tensor {
                BaseTensor::Matrix(Weight::Dense(w)) => {
                    updated(w, grad, state, (lr, *steps), params)
                }
                BaseTensor::Vector(w) => updated(w, grad, state, (lr, *steps), params),
                BaseTensor::Matrix(other) => panic!("{name} is in codes: {other:?}"),
            };
            next.insert(name.to_owned(), state);
        });
        self.moments = next;
    }
}

type State = (Vec<f32>, Vec<f32>);

fn updated<const D: usize>(
    weight: &mut Tensor<D>,
    grad: &[f32],
    (m, v): State,
    at: (f64, u64),
    params: &AdamWParams,
) -> State {
    let (shape, device) = (weight.dims(), weight.device().inner());
    let tensor = |values: Vec<f32>| Tensor::<D>::from_data(TensorData::new(values, shape), &device);
    let moments = Moments {
        m: tensor(m),
        v: tensor(v),
    };
    let grad = tensor(grad.to_vec());
    let (next, moments) = adamw::step(weight.clone().inner(), &grad, moments, at, params);
    *weight = next;
    (values(&moments.m), values(&moments.v))
}
