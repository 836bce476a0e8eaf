use std::path::Path;

use backdraft_arch::KeptState;
use backdraft_formats::{Dtype, Existing, ModelSource, SafetensorsFile, SafetensorsWriter};
use backdraft_kernels::adamw8bit::Guard;
use backdraft_kernels::device;
use backdraft_kernels::optimizers::lion::LionParams;
use backdraft_kernels::optimizers::muon::MuonParams;
use backdraft_kernels::optimizers::sgd::SgdParams;
use backdraft_lora::{LoraConfig, TargetModule};
use backdraft_model::{Targets, Tokens};
use backdraft_plan::ActivationPlan;
use burn::tensor::{Device, Distribution};

use super::*;
use crate::step::{MicroBatch, forward_backward};

const PARAMS: AdamWParams = AdamWParams {
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.01,
};

/// A tiny model whose adapters are large enough for codes of 8 bits on some sides.
fn model() -> CausalLm {
    model_on(&Device::flex())
}

fn model_on(device: &Device) -> CausalLm {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/tiny/llama-tied"
    );
    let source = ModelSource::open(path).unwrap();
    let lora = LoraConfig {
        rank: 64,
        target_modules: vec![TargetModule::QProj, TargetModule::KProj],
        ..LoraConfig::default()
    };
    let model = CausalLm::load(&source, device).unwrap();
    model.with_lora(&lora, 3).unwrap()
}

fn grads(model: &CausalLm) -> AdapterGrads {
    let mut grads = AdapterGrads::new();
    for (_, param) in model.trained_params() {
        let normal = Distribution::Normal(0.0, 1.0);
        let grad: Tensor<2> = Tensor::random(param.matrix_dims(), normal, &Device::flex());
        grads.add(param.id, grad);
    }
    grads
}

fn write(path: &Path, tensors: &[StateTensor]) -> SafetensorsFile {
    let infos = tensors.iter().map(|tensor| tensor.info.clone());
    let mut writer = SafetensorsWriter::create(path, infos, Existing::Replace).unwrap();
    for tensor in tensors {
        writer.write(&tensor.info.name, &tensor.bytes).unwrap();
    }
    writer.finish().unwrap();
    SafetensorsFile::open(path).unwrap()
}

fn weights(model: &CausalLm) -> Vec<f32> {
    let factors = model
        .trained_params()
        .map(|(_, param)| param.values.inner().into_data());
    factors
        .flat_map(|data| data.iter::<f32>().collect::<Vec<_>>())
        .collect()
}

#[test]
fn a_restored_optimizer_goes_on_as_if_never_stopped() {
    let directory = tempfile::tempdir().unwrap();
    for precision in [StatePrecision::F32, StatePrecision::Bits8(Guard::On)] {
        let mut model = model();
        let mut optimizer = Optimizer::adamw(PARAMS, precision);
        for _ in 0..3 {
            let grads = grads(&model);
            optimizer.step(&mut model, &grads, 1e-2);
        }
        let state = optimizer.state(&model);
        let kinds = |dtype| {
            state
                .iter()
                .filter(|tensor| tensor.info.dtype == dtype)
                .count()
        };
        match precision {
            StatePrecision::F32 => assert_eq!(kinds(Dtype::U8), 0),
            // Of k_proj's B, [32, 64], the moments stay in f32.
            StatePrecision::Bits8(_) => assert_eq!((kinds(Dtype::U8), kinds(Dtype::F32)), (12, 16)),
        }
        let bytes: usize = state.iter().map(|tensor| tensor.bytes.len()).sum();
        let predicted = model.trained_params().map(|(_, param)| param.len());
        let predicted: usize = predicted.map(|n| precision.state_bytes(n)).sum();
        assert_eq!(bytes, predicted);
        assert_eq!(optimizer.num_bytes(), predicted);

        let file = write(&directory.path().join("optimizer.safetensors"), &state);
        let mut restored = Optimizer::adamw(PARAMS, precision);
        restored
            .restore(&mut model, &file, optimizer.steps())
            .unwrap();
        assert_eq!(restored.state(&model), state);
        let mut other = model.clone();
        for _ in 0..2 {
            let grads = grads(&model);
            optimizer.step(&mut model, &grads, 1e-2);
            restored.step(&mut other, &grads, 1e-2);
        }
        assert_eq!(weights(&model), weights(&other));
    }
}

/// Every rule that goes by stacked matrices, and what it keeps.
fn stacked() -> [(Rule, KeptState); 5] {
    let (momentum, weight_decay) = (0.9, 0.01);
    let lion = LionParams {
        beta1: 0.9,
        beta2: 0.99,
        weight_decay,
    };
    let sgd = SgdParams {
        momentum,
        weight_decay,
    };
    let muon = MuonParams {
        momentum,
        weight_decay,
    };
    [
        (StackedRule::Lion(lion), KeptState::Momentum),
        (StackedRule::Sgd(sgd), KeptState::Momentum),
        (StackedRule::Muon(muon), KeptState::Momentum),
        (StackedRule::Adafactor { weight_decay }, KeptState::Factored),
        (StackedRule::ScheduleFree(PARAMS), KeptState::ScheduleFree),
    ]
    .map(|(rule, kept)| (Rule::Stacked(rule), kept))
}

#[test]
fn every_rule_goes_on_as_if_never_stopped_and_keeps_what_is_planned() {
    let directory = tempfile::tempdir().unwrap();
    for (rule, kept) in stacked() {
        let mut model = model();
        let mut optimizer = Optimizer::new(rule);
        for _ in 0..3 {
            let grads = grads(&model);
            optimizer.step(&mut model, &grads, 1e-2);
        }
        let predicted = model.trained_params();
        let predicted = predicted.map(|(_, param)| kept.state_bytes(param.matrix_dims()));
        let predicted: usize = predicted.sum();
        assert_eq!(optimizer.num_bytes(), predicted, "{rule:?}");
        let state = optimizer.state(&model);
        // The factors themselves are there where others are saved as the adapter.
        let kept = state
            .iter()
            .filter(|tensor| !tensor.info.name.ends_with(".trained"));
        let bytes: usize = kept.map(|tensor| tensor.bytes.len()).sum();
        assert_eq!(bytes, predicted, "{rule:?}");

        let file = write(&directory.path().join("optimizer.safetensors"), &state);
        let mut restored = Optimizer::new(rule);
        restored
            .restore(&mut model, &file, optimizer.steps())
            .unwrap();
        assert_eq!(restored.state(&model), state);
        let mut other = model.clone();
        let before = weights(&model);
        for _ in 0..2 {
            let grads = grads(&model);
            optimizer.step(&mut model, &grads, 1e-2);
            restored.step(&mut other, &grads, 1e-2);
        }
        assert_eq!(weights(&model), weights(&other), "{rule:?}");
        assert_ne!(weights(&model), before, "{rule:?}");
        let others = Optimizer::adamw(PARAMS, StatePrecision::F32).restore(&mut model, &file, 1);
        let message = others.unwrap_err().to_string();
        assert!(
            message.contains("has no tensor") || message.contains("exp_avg"),
            "{message}"
        );
    }
}

/// An update of a factor that learns at another rate is one at that rate.
#[test]
fn rates_are_those_of_single_factors() {
    let rules = stacked().into_iter().map(|(rule, _)| rule);
    let adamw = [StatePrecision::F32, StatePrecision::Bits8(Guard::On)];
    let adamw = adamw.map(|precision| Rule::AdamW(PARAMS, precision));
    for rule in rules.chain(adamw) {
        let own = Rate {
            share: 0.5,
            weight_decay: Some(0.0),
        };
        let rates = Rates {
            b_over_a: 4.0,
            layer_decay: 0.5,
            groups: backdraft_arch::ModulePattern::new([("k_proj".to_owned(), own)]).unwrap(),
        };
        let mut together = model();
        let grads = grads(&together);
        let start = together.clone();
        let mut optimizer = Optimizer::new(rule).with_rates(rates.clone());
        optimizer.step(&mut together, &grads, 1e-2);
        let layers = start.layers.len();
        let each = start.adapters().flat_map(|(layer, target, adapter)| {
            let path = target.path(layer);
            let params = adapter.params().into_iter();
            params.map(move |param| (layer, path.clone(), param))
        });
        let mut shares = Vec::new();
        for ((layer, path, param), (_, now)) in each.zip(together.trained_params()) {
            let rate = rates.of(&path, layers - 1 - layer, &param);
            shares.push(rate.share);
            let alone = State::zeros(&param, rule);
            let at = (1e-2 * rate.share, 1);
            let grad = grads.get(param.id).unwrap();
            let of = (param.values.clone().inner(), param.matrix_dims());
            let (expected, _) = alone.step(of, grad, at, (rule, rate));
            let found = now.values.inner().into_data();
            assert_eq!(found, expected.into_data(), "{path}, {rule:?}");
        }
        // A and B of q and k, in two layers.
        assert_eq!(shares, [0.5, 2.0, 0.25, 1.0, 1.0, 4.0, 0.5, 2.0]);
    }
}

#[test]
fn a_state_of_another_model_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut model = model();
    let mut optimizer = Optimizer::adamw(PARAMS, StatePrecision::F32);
    let grads = grads(&model);
    optimizer.step(&mut model, &grads, 1e-2);
    let state = optimizer.state(&model);
    let file = write(&directory.path().join("a"), &state);
    let mut eight_bit = Optimizer::adamw(PARAMS, StatePrecision::Bits8(Guard::On));
    let error = eight_bit.restore(&mut model, &file, 1).unwrap_err();
    assert!(error.to_string().ends_with(
        "tensor model.layers.0.self_attn.q_proj.lora_A.weight.exp_avg is F32, expected U8"
    ));
    let file = write(&directory.path().join("b"), &state[..3]);
    let error = optimizer.restore(&mut model, &file, 1).unwrap_err();
    assert!(error.to_string().contains("has no tensor"), "{error}");
    assert_eq!(optimizer.steps(), 1);
}

/// Steps on a GPU, with everything in flat buffers, against the same steps on the processor; and from a restored
/// state against those that were never interrupted.
#[test]
#[expect(clippy::print_stderr, reason = "what a test leaves out is said")]
fn a_gpu_trains_as_the_processor_does() {
    let gpus = [device::cuda(0), device::wgpu()];
    for gpu in gpus {
        let gpu = match gpu {
            Ok(gpu) => gpu,
            Err(error) => {
                eprintln!("no training there: {error}");
                continue;
            }
        };
        let adamw = [StatePrecision::F32, StatePrecision::Bits8(Guard::On)];
        let adamw = adamw.map(|precision| Rule::AdamW(PARAMS, precision));
        let stacked = stacked().map(|(rule, _)| rule);
        let uneven = Rates {
            b_over_a: 4.0,
            layer_decay: 0.5,
            ..Rates::default()
        };
        let rules = adamw.into_iter().chain(stacked);
        for (rule, rates) in
            rules.flat_map(|rule| [(rule, Rates::default()), (rule, uneven.clone())])
        {
            let optimizer = || Optimizer::new(rule).with_rates(rates.clone());
            let (mut here, mut ours) = (model_on(&Device::flex()), optimizer());
            let (mut there, mut theirs) = (model_on(&gpu), optimizer());
            ours.adopt(&mut here);
            theirs.adopt(&mut there);
            train(&mut here, &mut ours, 3);
            train(&mut there, &mut theirs, 3);
            let start = weights(&model_on(&Device::flex()));
            let distance = |a: &[f32], b: &[f32]| -> f64 {
                let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
                squares.sum::<f64>().sqrt()
            };
            let (here, there_now) = (weights(&here), weights(&there));
            let (off, moved) = (distance(&here, &there_now), distance(&here, &start));
            // Where a gradient is nothing but rounding, Adam moves by its sign, and Lion always does.
            let allowed = match rule {
                Rule::Stacked(StackedRule::Lion(_)) => 0.1,
                _ => 2e-2,
            };
            assert!(
                off < allowed * moved,
                "{rule:?}: {off} apart after moving by {moved}"
            );

            let directory = tempfile::tempdir().unwrap();
            let file = write(&directory.path().join("state"), &theirs.state(&there));
            let mut copied = there.adapter().unwrap();
            for adapter in copied.adapters.values_mut() {
                adapter.update(|param| Tensor::from_data(param.values.into_data(), &gpu));
            }
            let mut again = model_on(&gpu).with_adapter(&copied).unwrap();
            let mut restored = optimizer();
            restored.restore(&mut again, &file, theirs.steps()).unwrap();
            restored.adopt(&mut again);
            train(&mut there, &mut theirs, 2);
            train(&mut again, &mut restored, 2);
            assert_eq!(weights(&there), weights(&again));
            assert_eq!(theirs.state(&there), restored.state(&again));
        }
    }
}

/// Held against sums in f64, on the processor and wherever factors share a buffer; and gone on with as if never stopped.
#[test]
fn a_mean_follows_the_factors_and_is_restored_from_what_is_saved() {
    const DECAY: f64 = 0.75;
    let devices = [Ok(Device::flex()), device::cuda(0), device::wgpu()];
    for device in devices.into_iter().flatten() {
        let adamw = Rule::AdamW(PARAMS, StatePrecision::F32);
        let lion = stacked()[0].0;
        for rule in [adamw, lion] {
            let optimizer = || Optimizer::new(rule).with_mean(Some(DECAY));
            let (mut model, mut ours) = (model_on(&device), optimizer());
            ours.adopt(&mut model);
            assert!(ours.averaged(&model).is_none(), "nothing is averaged yet");
            let mut expected: Vec<f64> = Vec::new();
            for _ in 0..4 {
                train(&mut model, &mut ours, 1);
                let now = weights(&model).into_iter().map(f64::from);
                expected = match expected.is_empty() {
                    true => now.collect(),
                    false => {
                        let mixed = expected.iter().zip(now);
                        mixed.map(|(m, w)| DECAY * m + (1.0 - DECAY) * w).collect()
                    }
                };
            }
            let saved = ours.averaged(&model).unwrap();
            let mean = weights(&model.clone().with_adapter(&saved).unwrap());
            let off = mean
                .iter()
                .zip(&expected)
                .map(|(a, b)| (f64::from(*a) - b).abs());
            assert!(off.fold(0.0, f64::max) < 1e-6);
            assert_ne!(mean, weights(&model));
            let kept = |param: AdapterParam| match rule {
                Rule::AdamW(..) => 12 * param.len(),
                Rule::Stacked(_) => 8 * param.len(),
            };
            let planned: usize = model.trained_params().map(|(_, param)| kept(param)).sum();
            assert!(ours.num_bytes() >= planned);

            let directory = tempfile::tempdir().unwrap();
            let file = write(&directory.path().join("state"), &ours.state(&model));
            let (mut again, mut restored) =
                (model.clone().with_adapter(&saved).unwrap(), optimizer());
            restored.restore(&mut again, &file, ours.steps()).unwrap();
            restored.adopt(&mut again);
            assert_eq!(weights(&again), weights(&model));
            train(&mut model, &mut ours, 2);
            train(&mut again, &mut restored, 2);
            let saved = [(&ours, &model), (&restored, &again)].map(|(optimizer, model)| {
                let mean = optimizer.averaged(model).unwrap();
                weights(&model.clone().with_adapter(&mean).unwrap())
            });
            assert_eq!(saved[0], saved[1]);
            assert_eq!(ours.state(&model), restored.state(&again));
        }
    }
}

fn train(model: &mut CausalLm, optimizer: &mut Optimizer, steps: usize) {
    train_clipped(model, optimizer, steps, 1.0);
}

fn train_clipped(model: &mut CausalLm, optimizer: &mut Optimizer, steps: usize, max_norm: f64) {
    let documents: [Vec<u32>; 2] = [(1..20).collect(), (40..47).collect()];
    let labels: Vec<i64> = documents.concat().into_iter().map(i64::from).collect();
    let tokens = Tokens::from_sequences(&documents);
    let targets = Targets::from_labels(&tokens.segments, &labels);
    let batch = MicroBatch { tokens, targets };
    let plan = ActivationPlan::keep_all(model.num_backward_layers());
    for _ in 0..steps {
        let mut grads = optimizer.grads();
        let scale = 0.02 * optimizer.loss_scale().map_or(1.0, LossScale::factor);
        // Two passes, whose gradients add up.
        for _ in 0..2 {
            forward_backward(model, &batch, scale, None, &plan, &mut grads);
        }
        let (grads, _) = optimizer.clip(model, grads, max_norm);
        optimizer.step(model, &grads, 1e-2);
    }
}

/// A power of two goes into the gradients and out again, wherever they lie.
#[test]
fn a_loss_scale_leaves_updates_as_they_are() {
    let devices = [Ok(Device::flex()), device::cuda(0), device::wgpu()];
    for device in devices.into_iter().flatten() {
        for max_norm in [0.0, 0.1] {
            let run = |scale: Option<LossScale>| {
                let mut model = model_on(&device);
                let mut optimizer = Optimizer::adamw(PARAMS, StatePrecision::F32);
                optimizer.adopt(&mut model);
                optimizer.scale_loss(scale);
                train_clipped(&mut model, &mut optimizer, 2, max_norm);
                weights(&model)
            };
            let (scaled, plain) = (run(Some(LossScale::new(10))), run(None));
            // A GPU may take what is too small for a normal number for zero.
            let allowed = if device == Device::flex() { 0.0 } else { 1e-6 };
            let off = scaled.iter().zip(&plain).map(|(a, b)| (a - b).abs());
            let off = off.fold(0f32, f32::max);
            assert!(off <= allowed, "{off}, clipped at {max_norm} on {device:?}");
        }
    }
}
