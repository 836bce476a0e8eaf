use std::path::Path;

use backdraft_formats::{Existing, ModelSource, SafetensorsFile, SafetensorsWriter};
use backdraft_kernels::adamw8bit::Guard;
use backdraft_lora::{LoraConfig, TargetModule};
use burn::tensor::Distribution;

use super::*;

const PARAMS: AdamWParams = AdamWParams {
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.01,
};

/// A tiny model whose adapters are large enough for codes of 8 bits on some sides.
fn model() -> Llama {
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
    let model = Llama::load(&source, &Device::flex()).unwrap();
    model.with_lora(&lora, 3).unwrap()
}

fn grads(model: &Llama) -> AdapterGrads {
    let mut grads = AdapterGrads::new();
    for (_, id, param) in factors(model) {
        let normal = Distribution::Normal(0.0, 1.0);
        grads.add(id, Tensor::random(param.dims(), normal, &Device::flex()));
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

fn weights(model: &Llama) -> Vec<f32> {
    let factors = factors(model).map(|(_, _, param)| param.inner().into_data());
    factors
        .flat_map(|data| data.iter::<f32>().collect::<Vec<_>>())
        .collect()
}

#[test]
fn a_restored_optimizer_goes_on_as_if_never_stopped() {
    let directory = tempfile::tempdir().unwrap();
    for precision in [StatePrecision::F32, StatePrecision::Bits8(Guard::On)] {
        let mut model = model();
        let mut optimizer = AdamW::new(PARAMS, precision);
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
        let predicted = factors(&model).map(|(_, _, param)| param.shape().num_elements());
        let predicted: usize = predicted.map(|n| AdamW::state_bytes(n, precision)).sum();
        assert_eq!(bytes, predicted);
        assert_eq!(optimizer.num_bytes(), predicted);

        let file = write(&directory.path().join("optimizer.safetensors"), &state);
        let mut restored = AdamW::new(PARAMS, precision);
        restored.restore(&model, &file, optimizer.steps()).unwrap();
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

#[test]
fn a_state_of_another_model_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut model = model();
    let mut optimizer = AdamW::new(PARAMS, StatePrecision::F32);
    let grads = grads(&model);
    optimizer.step(&mut model, &grads, 1e-2);
    let state = optimizer.state(&model);
    let file = write(&directory.path().join("a"), &state);
    let mut eight_bit = AdamW::new(PARAMS, StatePrecision::Bits8(Guard::On));
    let error = eight_bit.restore(&model, &file, 1).unwrap_err();
    assert!(error.to_string().ends_with(
        "tensor model.layers.0.self_attn.q_proj.lora_A.weight.exp_avg is F32, expected U8"
    ));
    let file = write(&directory.path().join("b"), &state[..3]);
    let error = optimizer.restore(&model, &file, 1).unwrap_err();
    assert!(error.to_string().contains("has no tensor"), "{error}");
    assert_eq!(optimizer.steps(), 1);
}
