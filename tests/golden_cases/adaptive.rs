//! Adaptive precision: what projections see of a loss, what formats would cost, and how bits are dealt out.

use std::collections::BTreeMap;

use backdraft::burn::tensor::{Device, Tensor, TensorData};
use backdraft::lora::{
    Adapter, AdapterGrads, AdapterWeights, LoraAdapter, LoraConfig, Sensitivity, StartFactors,
    principal_factors, start_factors,
};
use backdraft::model::{BaseTensor, CausalLm, Targets, Tokens};
use backdraft::plan::ActivationPlan;
use backdraft::plan::allocation::{Candidate, allocate};
use backdraft::quant::{Precision, Scheme, Weight, squared_errors};
use backdraft::train::step::{MicroBatch, forward_backward};
use backdraft_testkit::folder::folder_with;
use backdraft_testkit::golden::{self, Tensors};
use serde::Deserialize;

use super::compare::{scalar, values};
use super::tiny_case::TinyCase;

#[derive(Deserialize)]
struct Probe {
    models: BTreeMap<String, Model>,
}

#[derive(Deserialize)]
struct Model {
    modules: Vec<String>,
    runs: BTreeMap<String, Run>,
    supervised_positions: usize,
}

#[derive(Deserialize)]
struct Run {
    loss_sum: f64,
    prices: BTreeMap<String, BTreeMap<String, BTreeMap<String, f64>>>,
}

/// Largest distance, relative to the largest entry.
fn distance(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let pairs = found.iter().zip(expected);
    pairs.fold(0.0, |most: f32, (a, b)| most.max((a - b).abs() / largest))
}

/// Rows without their padding, and the targets at their positions.
fn batch(tensors: &Tensors, name: &str) -> MicroBatch {
    let of = |part: &str| tensors.i64(&format!("{name}.{part}"));
    let [rows, width] = tensors.shape(&format!("{name}.input_ids"));
    let (ids, mask, goals) = (of("input_ids"), of("attention_mask"), of("targets"));
    let (mut sequences, mut targets) = (Vec::new(), Targets::default());
    let mut at = 0;
    for row in 0..rows {
        let mut sequence = Vec::new();
        for i in (row * width..(row + 1) * width).filter(|&i| mask[i] == 1) {
            sequence.push(ids[i] as u32);
            if let Ok(goal) = u32::try_from(goals[i]) {
                targets.rows.push(at);
                targets.ids.push(goal);
            }
            at += 1;
        }
        sequences.push(sequence);
    }
    MicroBatch {
        tokens: Tokens::from_sequences(&sequences),
        targets,
    }
}

fn in_nf4(mut model: CausalLm) -> CausalLm {
    model.visit_base_mut(|name, tensor| {
        if let (true, BaseTensor::Matrix(weight)) = (name.ends_with("_proj.weight"), tensor) {
            let dense = values(&weight.dequantize());
            *weight = Weight::quantize(&dense, weight.dims(), Scheme::NF4, &weight_device(weight));
        }
    });
    model
}

fn weight_device(weight: &Weight) -> backdraft::burn::tensor::Device {
    weight.dequantize().device()
}

#[test]
fn golden_adaptive_statistics_and_prices() {
    let Some(folder) = folder_with("adaptive", "probe.json") else {
        return;
    };
    let probe: Probe = golden::json(&folder.join("probe.json"));
    let tensors = Tensors::open(folder.join("probe.safetensors"));
    let mut compared = 0;
    for case in TinyCase::all() {
        let Some(expected) = probe.models.get(&case.name) else {
            continue;
        };
        let batch = batch(&tensors, &case.name);
        assert_eq!(batch.targets.len(), expected.supervised_positions);
        let dense = &case.model;
        for (run, numbers) in &expected.runs {
            let model = match run.as_str() {
                "nf4" => in_nf4(dense.clone()),
                _ => dense.clone(),
            };
            let model = model.adapted_everywhere();
            let plan = ActivationPlan::recompute_all(model.num_backward_layers());
            let mut grads = AdapterGrads::observing();
            let loss = forward_backward(&model, &batch, 1.0, None, &plan, &mut grads);
            let loss = scalar(&loss);
            assert!(
                (loss - numbers.loss_sum).abs() < 1e-3,
                "{loss} {}",
                numbers.loss_sum
            );
            for (layer, target, adapter) in model.adapters() {
                let path = target.path(layer);
                assert!(expected.modules.contains(&path), "{path}");
                let found = grads
                    .statistics(adapter.first_id())
                    .unwrap()
                    .read(1.0)
                    .unwrap();
                let golden =
                    |part: &str| tensors.f32(&format!("{}.{run}.{path}.{part}", case.name));
                assert!(
                    distance(&found.outputs, &golden("gamma")) < 1e-4,
                    "{run} {path}"
                );
                assert!(
                    distance(&found.inputs, &golden("d2")) < 1e-4,
                    "{run} {path}"
                );
                let weight: f64 = golden("omega").iter().map(|&x| f64::from(x)).sum();
                assert!((found.weight / weight - 1.0).abs() < 1e-4, "{run} {path}");

                let original = dense.layers[layer].projection(target).weight().dequantize();
                let (block, n) = ((64, true), expected.supervised_positions as f64);
                let sensitivity = (&found.outputs[..], &found.inputs[..]);
                for errors in squared_errors(&values(&original), sensitivity, Precision::ALL, block)
                {
                    let name = errors.precision.name();
                    let price = |kind: &str| numbers.prices[&path][kind][name];
                    // Our tables of 3, 5 and 6 bits have pinned values, which the goldens' have not.
                    let allowed = match errors.precision {
                        Precision::Nf4 | Precision::Int8 => 1e-4,
                        Precision::Nf3 | Precision::Nf5 | Precision::Nf6 => 0.15,
                    };
                    let product = errors.weighed / (2.0 * n);
                    let ratio = product / price("product") - 1.0;
                    assert!(ratio.abs() < allowed, "{run} {path} {name}: {ratio}");
                    let sketch = errors.weighed_by(sensitivity.0, sensitivity.1) / (2.0 * n);
                    let ratio = sketch / price("sketch") - 1.0;
                    assert!(
                        ratio.abs() < allowed,
                        "{run} {path} {name}, sketch: {ratio}"
                    );
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 0 || probe.models.is_empty());
}

#[derive(Deserialize)]
struct Knapsacks {
    instances: Vec<Instance>,
}

#[derive(Deserialize)]
struct Instance {
    kind: String,
    sizes: Vec<Vec<u64>>,
    prices: Vec<Vec<f64>>,
    budget: u64,
    optimum: Option<f64>,
}

#[test]
fn golden_adaptive_knapsack() {
    let Some(folder) = folder_with("adaptive", "knapsack.json") else {
        return;
    };
    let Knapsacks { instances } = golden::json(&folder.join("knapsack.json"));
    for instance in instances {
        let matrices: Vec<Vec<Candidate>> = instance
            .sizes
            .iter()
            .zip(&instance.prices)
            .map(|(sizes, prices)| {
                let each = sizes.iter().zip(prices);
                each.map(|(&bytes, &price)| Candidate { bytes, price })
                    .collect()
            })
            .collect();
        let found = allocate(&matrices, instance.budget);
        match (found, instance.optimum) {
            (None, None) => {}
            (Some(found), Some(optimum)) => {
                let ratio = found.price / optimum - 1.0;
                assert!(ratio.abs() < 1e-9, "{}: {ratio}", instance.kind);
                assert!(found.bytes <= instance.budget, "{}", instance.kind);
            }
            (found, optimum) => panic!("{}: {found:?} instead of {optimum:?}", instance.kind),
        }
    }
}

#[derive(Deserialize)]
struct Errors {
    cases: BTreeMap<String, ErrorCase>,
}

#[derive(Deserialize)]
struct ErrorCase {
    shape: [usize; 2],
    ranks: BTreeMap<String, BTreeMap<String, MethodErrors>>,
}

#[derive(Deserialize)]
struct MethodErrors {
    weight_error: f64,
    output_error: f64,
}

/// Squared error of the weights, and of the outputs over inputs with those second moments, of what a start leaves.
fn left(error: &[f32], product: &[f32], moments: &[f32], width: usize) -> [f64; 2] {
    let left: Vec<f64> = error
        .iter()
        .zip(product)
        .map(|(&e, &c)| f64::from(e) - f64::from(c))
        .collect();
    let of_weights = left.iter().map(|x| x * x).sum();
    let rows = left.chunks(width).map(|row| {
        let moved = (0..width).map(|j| {
            let column = (0..width).map(|i| row[i] * f64::from(moments[i * width + j]));
            column.sum::<f64>()
        });
        moved.zip(row).map(|(m, x)| m * x).sum::<f64>()
    });
    [of_weights, rows.sum()]
}

#[test]
fn golden_adaptive_starts() {
    let Some(folder) = folder_with("adaptive", "quantisation_error.json") else {
        return;
    };
    let Errors { cases } = golden::json(&folder.join("quantisation_error.json"));
    let tensors = Tensors::open(folder.join("quantisation_error.safetensors"));
    let device = super::place::device();
    for (name, case) in cases {
        let [out, input] = case.shape;
        let of = |part: &str| tensors.f32(&format!("{name}.{part}"));
        let (weight, stored, moments) = (of("W"), of("Q"), of("R"));
        let error: Vec<f32> = weight.iter().zip(&stored).map(|(w, q)| w - q).collect();
        let tensor = Tensor::<2>::from_data(TensorData::new(error.clone(), case.shape), &device);
        let diagonal = Sensitivity {
            outputs: vec![1.0; out],
            inputs: (0..input).map(|i| moments[i * input + i]).collect(),
            weight: 1.0,
        };
        for (rank, methods) in &case.ranks {
            let rank: usize = rank.parse().unwrap();
            for (method, measured) in [("loftq_1", None), ("qera_approx", Some(&diagonal))] {
                // Whatever the adapter's scale, the product is the same.
                for scaling in [1.0, 2.0] {
                    let found = start_factors(&tensor, measured, (rank, scaling), 3);
                    let found = found.unwrap().unwrap();
                    let product = found.b.matmul(found.a).mul_scalar(scaling);
                    let left = left(&error, &values(&product), &moments, input);
                    let expected = &methods[method];
                    let expected = [expected.weight_error, expected.output_error];
                    for (left, expected) in left.into_iter().zip(expected) {
                        let ratio = left / expected - 1.0;
                        assert!(ratio.abs() < 1e-3, "{name} {rank} {method}: {ratio}");
                    }
                }
            }
        }
    }
}

/// Compares matrices by their largest entry.
fn close(found: Tensor<2>, expected: &[f32], allow: f32, what: &str) {
    let distance = distance(&values(&found), expected);
    assert!(distance <= allow, "{what}: {distance}");
}

#[test]
fn golden_adaptive_pissa() {
    let Some(folder) = folder_with("adaptive", "converted/adapter_model.safetensors") else {
        return;
    };
    let tensors = Tensors::open(folder.join("golden.safetensors"));
    let converted = Tensors::open(folder.join("converted/adapter_model.safetensors"));
    let device = super::place::device();
    // What is compared is multiplied on the processor: Burn's products round to TF32 on CUDA.
    let here = Device::flex();
    let matrix = |tensors: &Tensors, name: &str| {
        let values = TensorData::new(tensors.f32(name), tensors.shape::<2>(name));
        Tensor::<2>::from_data(values, &here)
    };
    let config = LoraConfig {
        rank: 4,
        alpha: 8.0,
        ..LoraConfig::default()
    };
    let modules: Vec<&str> = tensors
        .names()
        .filter_map(|name| name.strip_prefix("init.")?.strip_suffix(".base"))
        .collect();
    assert_eq!(modules.len(), 6);
    let factors = |of: &dyn Fn(&str, &str) -> String| AdapterWeights {
        config: config.clone(),
        adapters: (modules.iter())
            .map(|module| {
                let [a, b] = ["lora_A", "lora_B"].map(|part| matrix(&tensors, &of(module, part)));
                let lora = LoraAdapter::from_factors(&config, a, b);
                ((*module).to_owned(), Adapter::Lora(lora))
            })
            .collect(),
        tokens: Vec::new(),
        whole: Default::default(),
    };
    let start = factors(&|module, part| format!("init.{module}.{part}"));
    for module in &modules {
        let Adapter::Lora(expected) = &start.adapters[*module];
        let weight = matrix(&tensors, &format!("init.{module}.base")) + expected.delta();
        let found = principal_factors(&weight.to_device(&device), (4, 2.0), 5);
        let StartFactors { a, b } = found.unwrap().unwrap();
        let found = StartFactors {
            a: a.to_device(&here),
            b: b.to_device(&here),
        };
        let product = |a: &Tensor<2>, b: &Tensor<2>| b.clone().matmul(a.clone());
        let ba = tensors.f32(&format!("init.{module}.BA"));
        close(product(&found.a, &found.b), &ba, 1e-4, module);
        // Signs and turns of single directions are free, their lengths are not.
        let [a, b] = [&expected.lora_a, &expected.lora_b].map(|factor| factor.val().inner());
        let aat = |a: &Tensor<2>| a.clone().matmul(a.clone().transpose()).abs();
        let btb = |b: &Tensor<2>| b.clone().transpose().matmul(b.clone()).abs();
        close(aat(&found.a), &values(&aat(&a)), 1e-4, module);
        close(btb(&found.b), &values(&btb(&b)), 1e-4, module);
    }
    // What training moved, over the untouched base, as PEFT writes it.
    let moved = factors(&|module, part| format!("moved.{module}.{part}.weight"));
    let joined = moved.since(&start);
    assert_eq!((joined.config.rank, joined.config.alpha), (8, 16.0));
    for module in &modules {
        let Adapter::Lora(lora) = &joined.adapters[*module];
        for (factor, part) in [(&lora.lora_a, "lora_A"), (&lora.lora_b, "lora_B")] {
            let name = format!("base_model.model.{module}.{part}.weight");
            let found = values(&factor.val().inner());
            assert_eq!(found, converted.f32(&name), "{name}");
        }
    }
}
