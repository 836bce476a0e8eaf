//! A base whose layers stay in the host's memory: the bits of one on the device, and no more of that than planned.
//!
//! On the processor, where layers are copied for each use, and on CUDA where it is there.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::path::Path;

use backdraft::arch::{BaseHome, Family, KeepSet, ModelSpec, NestedFormat, OffloadSet};
use backdraft::burn::tensor::{DType, Device, Tensor};
use backdraft::formats::ModelSource;
use backdraft::kernels::adamw::AdamWParams;
use backdraft::kernels::{device, offload};
use backdraft::lora::{AdapterGrads, LoraConfig};
use backdraft::model::generate::GenerateConfig;
use backdraft::model::{BaseTensor, CausalLm, Targets, Tokens};
use backdraft::plan::tensors::MemoryModel;
use backdraft::plan::{ActivationPlan, Segment, Setup};
use backdraft::quant::{QuantizationPlan, Scheme};
use backdraft::train::optimizer::{Optimizer, StatePrecision};
use backdraft::train::step::{MicroBatch, Trunk, forward_backward, nll};
use backdraft_testkit::random_model::RandomModel;

const SMALL: RandomModel = RandomModel {
    family: Family::Llama,
    window: None,
    hidden: 64,
    intermediate: 160,
    layers: 5,
    heads: 4,
    kv_heads: 2,
    vocab: 128,
};

/// A CUDA device pads rows of dense matrices to multiples of 512 bytes where they lie alone, not in a slot, and cuBLASLt may sum
/// otherwise then: such widths that there is nothing to pad.
fn on_device(shape: RandomModel, device: &Device) -> RandomModel {
    if *device == Device::flex() {
        return shape;
    }
    RandomModel {
        hidden: 256,
        intermediate: 512,
        ..shape
    }
}

/// The devices at hand, each with the types to compute in.
fn places() -> Vec<(Device, DType)> {
    let mut places = vec![(Device::flex(), DType::F32)];
    match device::cuda(0) {
        Ok(device) => places.extend([(device.clone(), DType::F32), (device, DType::BF16)]),
        Err(error) => println!("on the processor alone: {error}"),
    }
    places
}

/// How bases are kept.
fn plans(spec: &ModelSpec) -> Vec<(&'static str, Option<QuantizationPlan>)> {
    let nf4 = QuantizationPlan::new(Scheme::NF4);
    // Layers of other sizes, one of them with a dense matrix.
    let mixed = spec.projections().step_by(3);
    let mixed = mixed.fold(nf4.clone(), |plan, (layer, target)| {
        let format = [NestedFormat::Nf3, NestedFormat::Nf5, NestedFormat::Nf6][layer % 3];
        plan.with_scheme(target.path(layer), Scheme::nested(format))
    });
    let mixed = QuantizationPlan {
        skip_modules: vec!["layers.1.mlp.down_proj".to_owned(), "lm_head".to_owned()],
        ..mixed
    };
    vec![
        ("dense", None),
        ("nf4", Some(nf4)),
        (
            "nf4 without double scales",
            Some(QuantizationPlan::new(Scheme::NF4.with_scales(64, false))),
        ),
        ("int8", Some(QuantizationPlan::new(Scheme::Int8))),
        ("mixed", Some(mixed)),
    ]
}

fn adapted(
    source: &ModelSource,
    plan: Option<&QuantizationPlan>,
    place: (&Device, DType),
    (home, lora): (BaseHome, &LoraConfig),
) -> CausalLm {
    let model = CausalLm::load_to_train(source, plan, place, home).unwrap();
    let mut model = model.with_lora(lora, 7).unwrap();
    for (i, (_, _, adapter)) in model.adapters_mut().enumerate() {
        adapter.update(|param| {
            let wave: Vec<f32> = (0..param.len())
                .map(|n| 0.03 * ((n * 7 + i * 13) as f32).sin())
                .collect();
            let wave = Tensor::<1>::from_floats(wave.as_slice(), &param.values.device());
            match param.name {
                "lora_magnitude_vector" => param.values * (wave + 1.0),
                _ => wave,
            }
        });
    }
    model
}

fn batch(lengths: &[usize], vocab: usize) -> MicroBatch {
    let mut state = 3u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocab as u32
    };
    let rows: Vec<Vec<u32>> = lengths
        .iter()
        .map(|&length| (0..length).map(|_| next()).collect())
        .collect();
    let labels: Vec<i64> = rows.concat().into_iter().map(i64::from).collect();
    let tokens = Tokens::from_sequences(&rows);
    let targets = Targets::from_labels(&tokens.segments, &labels);
    MicroBatch { tokens, targets }
}

/// Plans in which layers are visited in different orders.
fn courses(layers: usize) -> Vec<ActivationPlan> {
    let away = OffloadSet {
        input: true,
        tensors: KeepSet::COSTLY,
    };
    let mut courses = vec![
        ActivationPlan::keep_all(layers),
        ActivationPlan::recompute_all(layers),
        ActivationPlan {
            segments: vec![Segment::Stored(KeepSet::ALL, away); layers],
        },
    ];
    courses.extend((2..=layers).map(|run| ActivationPlan::rerun(layers, run, KeepSet::NONE)));
    courses
}

fn bits<const D: usize>(tensor: Tensor<D>) -> Vec<u32> {
    let data = tensor.into_data();
    data.iter::<f32>().map(f32::to_bits).collect()
}

/// Gradients and loss of a pass under each plan; losses and factors of some steps; nll and tokens of the trained model.
fn results(mut model: CausalLm, batch: &MicroBatch) -> Vec<Vec<u32>> {
    let layers = model.num_backward_layers();
    let scale = 1.0 / batch.targets.len() as f32;
    let mut found = Vec::new();
    for plan in courses(layers) {
        let mut grads = AdapterGrads::new();
        let loss = forward_backward(&model, batch, scale, Some(5), &plan, &mut grads);
        let params = model.trained_params();
        let grads = params.map(|(_, param)| bits(grads.get(param.id).unwrap().clone()));
        found.extend(grads);
        found.push(bits(loss));
    }
    let params = AdamWParams {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.01,
    };
    let mut optimizer = Optimizer::adamw(params, StatePrecision::F32);
    optimizer.adopt(&mut model);
    let plan = ActivationPlan::recompute_all(layers);
    for _ in 0..3 {
        let mut grads = optimizer.grads();
        let loss = forward_backward(&model, batch, scale, Some(5), &plan, &mut grads);
        let (grads, norm) = optimizer.clip(&model, grads, 1.0);
        optimizer.step(&mut model, &grads, 1e-2);
        found.extend([bits(loss), bits(norm)]);
    }
    let factors: Vec<_> = model.trained_params().collect();
    found.extend(factors.into_iter().map(|(_, param)| bits(param.values)));
    found.push(bits(nll(&model, batch, Trunk::new(&model, batch))));
    let config = GenerateConfig {
        max_new_tokens: 7,
        ..GenerateConfig::default()
    };
    found.extend(model.generate(&[vec![3, 5, 9], vec![11]], &config, |_, _| true));
    found
}

fn check(dir: &Path, shape: RandomModel, lora: &LoraConfig) {
    for (device, dtype) in places() {
        let shape = on_device(shape, &device);
        let path = dir.join(format!("{:?}-{}", shape.family, shape.hidden));
        if !path.exists() {
            shape.write(&path);
        }
        let source = ModelSource::open(&path).unwrap();
        let spec = backdraft::model::spec(&source).unwrap();
        let lora = LoraConfig {
            target_modules: spec.targets(),
            rank: 4,
            ..lora.clone()
        };
        let batch = batch(&[17, 9], spec.vocab_size);
        for (name, plan) in plans(&spec) {
            let what = format!("{:?}, {name}, {dtype:?} on {device:?}", shape.family);
            let load = |home| {
                let place = (&device, dtype);
                adapted(&source, plan.as_ref(), place, (home, &lora))
            };
            let expected = results(load(BaseHome::Device), &batch);
            let found = results(load(BaseHome::Host), &batch);
            assert_eq!(found.len(), expected.len(), "{what}");
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert!(found == expected, "{what}: result {i}");
            }
        }
    }
}

#[test]
fn every_family_has_the_bits_of_a_resident_base() {
    let dir = tempfile::tempdir().unwrap();
    for (family, window) in [
        (Family::Llama, None),
        (Family::Qwen2, Some(9)),
        (Family::Qwen3, None),
        (Family::Granite, None),
        (Family::SmolLm3, Some(9)),
        (Family::Olmo2, None),
        (Family::Olmo3, Some(9)),
        (Family::Gemma2, Some(9)),
        (Family::Gemma3, Some(9)),
        (Family::Phi3, None),
        (Family::Glm4, None),
        (Family::Ministral, Some(9)),
        (Family::Ministral3, None),
        (Family::Qwen35, None),
        (Family::Gemma4, Some(9)),
    ] {
        let shape = RandomModel {
            family,
            window,
            ..SMALL
        };
        let lora = LoraConfig {
            dropout: 0.1,
            ..LoraConfig::default()
        };
        check(dir.path(), shape, &lora);
    }
}

#[test]
fn adapters_of_upper_layers_and_lengths_of_rows_have_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let upper = LoraConfig {
        layers_to_transform: Some(vec![2, 4]),
        ..LoraConfig::default()
    };
    let dora = LoraConfig {
        use_dora: true,
        ..LoraConfig::default()
    };
    for family in [Family::Llama, Family::Phi3] {
        let shape = RandomModel { family, ..SMALL };
        for lora in [&upper, &dora] {
            check(dir.path(), shape, lora);
        }
    }
}

/// Two models over one base in turn, as those of answers that are compared.
#[test]
fn models_of_one_base_share_its_slots() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    SMALL.write(&path);
    let source = ModelSource::open(&path).unwrap();
    let spec = backdraft::model::spec(&source).unwrap();
    let lora = LoraConfig {
        target_modules: spec.targets(),
        ..LoraConfig::default()
    };
    let plan = QuantizationPlan::new(Scheme::NF4);
    let batch = batch(&[12], spec.vocab_size);
    for (device, dtype) in places() {
        let of = |home| {
            let place = (&device, dtype);
            let model = adapted(&source, Some(&plan), place, (home, &lora));
            let other = model.clone().with_lora(&lora, 8).unwrap();
            let mut found = Vec::new();
            for _ in 0..2 {
                for model in [&other, &model] {
                    found.push(bits(nll(model, &batch, Trunk::new(model, &batch))));
                }
                let mut grads = AdapterGrads::new();
                let all = ActivationPlan::keep_all(model.layers.len());
                let loss = forward_backward(&model, &batch, 1.0, None, &all, &mut grads);
                found.push(bits(loss));
            }
            found
        };
        assert!(of(BaseHome::Device) == of(BaseHome::Host), "{device:?}");
    }
}

/// What a base takes of device and host, by the plan and in truth.
#[test]
fn memory_is_what_the_plan_says() {
    let dir = tempfile::tempdir().unwrap();
    let shape = RandomModel {
        hidden: 512,
        intermediate: 1536,
        layers: 6,
        ..SMALL
    };
    let path = dir.path().join("model");
    shape.write(&path);
    let source = ModelSource::open(&path).unwrap();
    let spec = backdraft::model::spec(&source).unwrap();
    for (device, dtype) in places() {
        let element = dtype.size() as u64;
        let there = offload::is_there(&device);
        for (name, plan) in plans(&spec) {
            let before = device::held(&device);
            let place = (&device, dtype);
            let home = BaseHome::Host;
            let mut model = CausalLm::load_to_train(&source, plan.as_ref(), place, home).unwrap();
            let setup = Setup {
                spec: spec.clone(),
                lora: LoraConfig::default(),
                tokens: 0,
                quantization: plan.clone(),
                base: None,
                dense_element: element,
                memory: MemoryModel::cube(element),
                optimizer: StatePrecision::F32.into(),
                micro_batch_size: 1,
                max_seq_length: 16,
                texts_per_row: 1,
                grad_accumulation_steps: 1,
                releases: false,
                masters: true,
                host: 0,
                home,
            };
            let mut of_layers = 0;
            model.visit_base_mut(|name, tensor| {
                if let (true, BaseTensor::Matrix(weight)) = (name.contains("layers."), tensor) {
                    assert_eq!(weight.device_bytes(), 0);
                    of_layers += weight.num_bytes() as u64;
                }
            });
            assert_eq!(setup.host_bytes(), of_layers, "{name}");
            if !there {
                continue;
            }
            let (planned, found) = (setup.base_bytes(), model.device_bytes() as u64);
            // Parts of slots begin at multiples of 512 bytes.
            assert!(
                found >= planned && found - planned < 64 << 10,
                "{name}: {found} in place of {planned}"
            );
            let [Some(before), Some(after)] = [before, device::held(&device)] else {
                unreachable!("a GPU says what is held of it")
            };
            assert!(
                after - before.min(after) <= found + (1 << 20),
                "{name}: {} held for {found}",
                after - before
            );
        }
    }
}

/// What is asked of a base after training: its values, matrix by matrix.
#[test]
fn values_are_those_of_a_resident_base() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    SMALL.write(&path);
    let source = ModelSource::open(&path).unwrap();
    let spec = backdraft::model::spec(&source).unwrap();
    for (device, dtype) in places() {
        for (name, plan) in plans(&spec) {
            let of = |home| {
                let place = (&device, dtype);
                let model = CausalLm::load_to_train(&source, plan.as_ref(), place, home);
                let mut values = Vec::new();
                model.unwrap().visit_base_mut(|name, tensor| {
                    if let BaseTensor::Matrix(weight) = tensor {
                        values.push((name.to_owned(), bits(weight.dequantize())));
                    }
                });
                values
            };
            assert!(
                of(BaseHome::Device) == of(BaseHome::Host),
                "{name}, {dtype:?} on {device:?}"
            );
        }
    }
}
