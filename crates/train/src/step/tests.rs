use backdraft_arch::{BaseHome, TokenTable};
use backdraft_data::{Answer, IGNORE_INDEX};
use backdraft_formats::ModelSource;
use backdraft_lora::{Adapter, LoraConfig, TargetModule};
use backdraft_model::BaseTensor;
use burn::module::Module;
use burn::tensor::activation::log_sigmoid;
use burn::tensor::{DType, Device, Tensor};

use super::*;
use crate::compared::Compared;
use crate::objective::{Objective, Others, ScoreLoss};

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

/// The same trunk would begin with the trained embedding.
#[test]
fn a_reference_embeds_and_predicts_without_the_adapters_of_tables() {
    let (model, batch) = (model(), batch());
    let base = model.without_adapter();
    let config = LoraConfig {
        rank: 4,
        target_modules: Vec::new(),
        target_tables: TokenTable::ALL.to_vec(),
        ..LoraConfig::default()
    };
    let mut model = base.clone().with_lora(&config, 3).unwrap();
    let alone = |model: &CausalLm| values(nll(model, &batch, Trunk::new(model, &batch)));
    assert_eq!(alone(&model), alone(&base));
    for (_, adapter) in model.table_adapters_mut() {
        adapter.update(|param| param.values + 0.05);
    }
    let trunk = Trunk::of_both(&model, Some(&base), &batch);
    let below = |model: &CausalLm| values(nll(model, &batch, trunk.under(model, &batch)));
    assert_eq!(below(&base), alone(&base));
    assert_eq!(below(&model), alone(&model));
    assert_ne!(alone(&model), alone(&base));
}

/// Gradients of adapters of tables are those of autodiff, the head's with dropout too; tied and untied; of a head that is adapted alone no layer is gone through backwards.
#[test]
fn adapters_of_tables_learn_what_autodiff_says() {
    let beside = |tables: &[TokenTable]| (vec![TargetModule::QProj], tables.to_vec());
    let alone = (Vec::new(), vec![TokenTable::Head]);
    for (name, (target_modules, target_tables)) in [
        ("llama-tied", beside(&TokenTable::ALL)),
        ("llama-untied", beside(&TokenTable::ALL)),
        ("llama-untied", beside(&[TokenTable::Embedding])),
        ("llama-tied", alone),
    ] {
        let folders = backdraft_testkit::golden::folders("tiny", "config.json");
        let mut folders = folders.into_iter();
        let folder = folders.find(|folder| folder.name() == name).unwrap();
        let source = ModelSource::open(&*folder).unwrap();
        let model = CausalLm::load(&source, &Device::flex()).unwrap();
        let config = LoraConfig {
            rank: 4,
            alpha: 4.0,
            dropout: 0.3,
            target_modules,
            target_tables,
            ..LoraConfig::default()
        };
        let mut model = model.with_lora(&config, 3).unwrap();
        // All alike, the columns of B would see nothing of logits' gradients, whose sum is zero.
        model.update_trained(|param| {
            let wave = (0..param.len()).map(|n| 0.05 * (n as f32 * 0.7).sin());
            let wave: Vec<f32> = wave.collect();
            param.values.clone() + Tensor::from_floats(&wave[..], &param.values.device())
        });
        let layers = model.num_backward_layers();
        assert_eq!(layers == 0, config.target_modules.is_empty());
        let batch = batch();
        for seed in [None, Some(5)] {
            let mut grads = AdapterGrads::new();
            let plan = ActivationPlan::keep_all(layers);
            forward_backward(&model, &batch, 1.0, seed, &plan, &mut grads);
            let tracked = model.clone().train();
            let tape = tracked.loss(&batch.tokens, &batch.targets, seed);
            let tape = tape.backward();
            assert_eq!(tracked.table_adapters().count(), config.target_tables.len());
            for (table, Adapter::Lora(lora)) in tracked.table_adapters() {
                for factor in [&lora.lora_a, &lora.lora_b] {
                    let found = values(grads.get(factor.id).unwrap().clone());
                    let expected = factor.val().grad(&tape).unwrap();
                    let expected = values(expected.flatten(0, 1));
                    let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
                    assert!(largest > 0.0);
                    for (found, expected) in found.into_iter().zip(expected) {
                        let off = (found - expected).abs() / largest;
                        assert!(off < 1e-4, "{name}, {table:?}: {found} {expected}");
                    }
                }
            }
        }
    }
}

/// A tiny model with a head that scores, drawn, and adapters whose factors are not zero; `low` has one on its first layer too.
fn scoring(low: bool) -> CausalLm {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/tiny/llama-untied"
    );
    let source = ModelSource::open(path).unwrap();
    let place = (&Device::flex(), DType::F32);
    let model = CausalLm::load_to_score(&source, None, place, (BaseHome::Device, 5)).unwrap();
    let last = model.layers.len() - 1;
    let lora = LoraConfig {
        rank: 4,
        target_modules: vec![TargetModule::QProj, TargetModule::DownProj],
        layers_to_transform: Some(if low { vec![0, last] } else { vec![last] }),
        modules_to_save: vec!["score".to_owned()],
        ..LoraConfig::default()
    };
    let mut model = model.with_lora(&lora, 3).unwrap();
    for (_, _, adapter) in model.adapters_mut() {
        adapter.update(|param| param.values + 0.05);
    }
    model
}

/// The loss of a reward model and the gradients of its factors and of its head, against autodiff through the model as it is
/// written: no chunk, no divisor and no trunk of ours is in there.
#[test]
fn gradients_of_a_reward_model_are_those_of_autodiff() {
    const CENTER: f64 = 0.3;
    for low in [true, false] {
        let model = scoring(low);
        let texts = [
            &[5_u32, 6, 7, 8, 9][..],
            &[5, 6, 10, 11],
            &[12, 13, 14],
            &[12, 15],
        ];
        let tokens = Tokens::from_sequences(&texts);
        let targets = Targets::last_tokens(&tokens);
        assert_eq!(
            (&targets.rows[..], &targets.ids[..]),
            (&[4, 8, 11, 13][..], &[9, 11, 14, 15][..])
        );
        let answers = [Answer::Good, Answer::Bad, Answer::Good, Answer::Bad];
        let margin = if low { 0.75 } else { 0.0 };
        let compared = Compared::new((&targets, &tokens.segments), vec![true; 4], &answers)
            .with_margins(vec![margin, margin, 0.0, 0.0]);
        let batch = MicroBatch { tokens, targets };
        let goal = Goal {
            objective: Objective::Scores(ScoreLoss {
                gamma: 0.2,
                center: CENTER,
            }),
            answers: Some((&compared, Others::default())),
            ..Goal::next_token(0.5)
        };
        let mut grads = AdapterGrads::new();
        let plan = ActivationPlan::keep_all(model.num_backward_layers());
        let trunk = Trunk::new(&model, &batch);
        let alone = values(scores(&model, &batch, trunk.clone()));
        let told = guarded(
            &model,
            (&batch, trunk),
            &goal,
            None,
            (&plan, None),
            &mut grads,
        )
        .unwrap();
        let told = told.answers.unwrap();
        assert_eq!(values(told.rewards), alone);

        let tracked = model.clone().train();
        let hidden = tracked.forward_hidden(&batch.tokens, None);
        let rows = Tensor::from_ints([4, 8, 11, 13], &hidden.device());
        let pairs = tracked.logits(hidden.select(0, rows)).reshape([2, 2]);
        let [c, r] = [0, 1].map(|i| pairs.clone().narrow(1, i, 1).reshape([2]));
        let apart = Tensor::from_floats([margin, 0.0], &c.device());
        let loss = log_sigmoid(c.clone() - r.clone() - 0.2 - apart).neg()
            + (c + r).powi_scalar(2) * CENTER;
        close(&values(told.losses), &values(loss.clone().inner()));
        let tape = loss.mean().backward();
        let mut compared = 0;
        let mut check = |id, expected: Option<Vec<f32>>| {
            let expected = expected.unwrap();
            assert!(expected.iter().any(|x| *x != 0.0));
            close(&values(grads.get(id).unwrap().clone()), &expected);
            compared += 1;
        };
        for (_, _, Adapter::Lora(lora)) in tracked.adapters() {
            for factor in [&lora.lora_a, &lora.lora_b] {
                let grad = factor.val().grad(&tape);
                check(factor.id, grad.map(|grad| values(grad.flatten(0, 1))));
            }
        }
        for place in tracked.whole() {
            assert_eq!(
                (&*place.name, place.tensor.dims()),
                ("score.weight", &[1, 64][..])
            );
            check(
                place.tensor.id(),
                place.tensor.tracked().grad(&tape).map(values),
            );
        }
        assert_eq!(compared, if low { 9 } else { 5 });
    }
}

fn close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    for (found, expected) in found.iter().zip(expected) {
        let off = (found - expected).abs();
        assert!(
            off <= 1e-5 * largest.max(1e-3),
            "{found} instead of {expected}"
        );
    }
}
