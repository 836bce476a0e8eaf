use backdraft_data::IGNORE_INDEX;
use backdraft_formats::ModelSource;
use backdraft_lora::{LoraConfig, TargetModule};
use backdraft_model::BaseTensor;
use burn::tensor::{Device, Tensor};

use super::*;

/// A tiny model with adapters on its last layer, whose factors are not zero.
fn model() -> CausalLm {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/tiny/llama-untied"
    );
    let source = ModelSource::open(path).unwrap();
    let model = CausalLm::load(&source, &Device::flex()).unwrap();
    let lora = LoraConfig {
        rank: 4,
        target_modules: vec![TargetModule::QProj, TargetModule::DownProj],
        layers_to_transform: Some(vec![model.layers.len() - 1]),
        ..LoraConfig::default()
    };
    let mut model = model.with_lora(&lora, 3).unwrap();
    for (_, _, adapter) in model.adapters_mut() {
        adapter.update(|param| param.values + 0.05);
    }
    model
}

fn batch() -> MicroBatch {
    let tokens = Tokens::from_sequences(&[&[5_u32, 6, 7, 8, 9][..], &[10, 11, 12]]);
    let labels = [IGNORE_INDEX, 6, 7, 8, 9, IGNORE_INDEX, 11, 12];
    let targets = Targets::from_labels(&tokens.segments, &labels);
    MicroBatch { tokens, targets }
}

fn values(nll: Tensor<1>) -> Vec<f32> {
    nll.into_data().try_into_vec().unwrap()
}

#[test]
fn a_model_and_its_reference_share_what_is_below_the_lowest_adapter() {
    let (model, batch) = (model(), batch());
    let base = model.clone().without_adapter();
    let trunk = Trunk::new(&model, &batch);
    assert_eq!(trunk.depth, model.layers.len() - 1);
    let from_trunk = |model: &CausalLm| values(nll(model, &batch, trunk.clone()));
    // To the bit what the base computes alone, all of whose layers are below.
    let alone = |base: &CausalLm| values(nll(base, &batch, Trunk::new(base, &batch)));
    assert_eq!(Trunk::new(&base, &batch).depth, base.layers.len());
    assert_eq!(from_trunk(&base), alone(&base));
    assert_ne!(from_trunk(&model), from_trunk(&base));
    for model in [&model, &base] {
        let expected = values(model.nll(&batch.tokens, &batch.targets));
        for (found, expected) in from_trunk(model).into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
    }
    // A base without its lower layers gives the same: nothing below is computed again.
    let mut headless = base.clone();
    headless.visit_base_mut(|name, tensor| {
        if let (true, BaseTensor::Vector(weight)) = (name.starts_with("model.layers.0."), tensor) {
            *weight = weight.clone() * f32::NAN;
        }
    });
    assert!(alone(&headless).iter().all(|nll| nll.is_nan()));
    assert_eq!(from_trunk(&headless), from_trunk(&base));
}
