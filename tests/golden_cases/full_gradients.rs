//! Tiny models: the gradient of every parameter.

use std::collections::{BTreeMap, BTreeSet};

use backdraft::arch::Trainable;
use backdraft::arch::full::trainable_in_full;
use backdraft::arch::spec::HEAD;
use backdraft::arch::whole::trainable;
use backdraft::burn::tensor::{Gradients, Tensor};
use backdraft::lora::{AdapterGrads, Bias, LoraConfig};
use backdraft::model::{BaseTensor, CausalLm};
use backdraft::plan::ActivationPlan;
use backdraft::quant::Weight;
use backdraft::train::step::forward_backward;
use backdraft_testkit::golden::Tensors;
use backdraft_testkit::tolerance::{TINY_GRADIENT, TINY_LOSS, TINY_NORM, Tolerance};
use serde::Deserialize;
use serde_json::Value;

use super::compare::{norm, scalar, values};
use super::place::leaves_out_full_training;
use super::tiny_case::TinyCase;

/// A gradient in `golden.json`.
#[derive(Deserialize)]
struct Summary {
    l2: f64,
    sum: f64,
    first4: Vec<f32>,
}

#[test]
fn golden_tiny_full_gradients() {
    if leaves_out_full_training() {
        return;
    }
    for mut case in TinyCase::all() {
        let batch = case.padded();
        track(&mut case.model);
        let loss =
            case.model.loss(&batch.tokens, &batch.targets, None) / batch.targets.len() as f32;
        TINY_LOSS.check_one(&case.name, scalar(&loss), case.number("padded_loss"));
        let grads = gradients(&mut case.model, &loss.backward());

        check_summaries(&case.name, &grads, &case.golden["padded_full_grads"]);
        let total = norm(grads.values().flatten());
        TINY_NORM.check_one(&case.name, total, case.number("padded_full_grad_norm"));

        let parts = ["padded_full_grads", "padded_grads_of_mixers_and_norms"];
        let parts = parts.map(|name| case.path.join(format!("{name}.safetensors")));
        for part in parts.into_iter().filter(|part| part.is_file()) {
            let expected = Tensors::open(part);
            for name in expected.names() {
                let what = format!("{}, {name}", case.name);
                TINY_GRADIENT.check(what, &grads[name], &expected.f32(name));
            }
        }
    }
}

/// The step's own gradients of everything that can be trained whole, beside adapters that change nothing yet.
#[test]
fn golden_tiny_gradients_of_whole_tensors() {
    let mut checked = 0;
    for case in TinyCase::all() {
        let (name, spec) = (&case.name, case.model.spec().clone());
        let can = trainable(&spec).into_iter();
        let modules = can.filter_map(|tensor| Some(tensor.strip_suffix(".weight")?.to_owned()));
        let config = LoraConfig {
            target_modules: spec.targets(),
            modules_to_save: modules.collect(),
            bias: match trainable(&spec)
                .iter()
                .any(|tensor| tensor.ends_with(".bias"))
            {
                true => Bias::All,
                false => Bias::None,
            },
            ..LoraConfig::default()
        };
        let model = case.model.clone().with_lora(&config, 1).unwrap();
        let plan = ActivationPlan::recompute_all(model.num_backward_layers());
        checked += check_whole(name, &case, &model, &plan);
    }
    assert!(checked > 100, "{checked}");
}

/// The step's own gradients of every tensor of the base, without adapters, whatever is kept and made again.
#[test]
fn golden_tiny_gradients_without_adapters() {
    let mut checked = 0;
    for case in TinyCase::all() {
        let spec = case.model.spec().clone();
        let trainable = match spec.has_delta_nets() {
            // Those that the backward pass gives no gradient.
            true => Trainable::modules(
                [
                    ".*_proj",
                    "in_proj_.*",
                    "embed_tokens",
                    ".*_layernorm",
                    "[qk]_norm",
                    "model\\.norm",
                ]
                .map(str::to_owned),
            ),
            false => Ok(Trainable::All),
        };
        let config = LoraConfig::full(trainable.unwrap(), &spec).unwrap();
        let model = case.model.clone().with_lora(&config, 1).unwrap();
        assert_eq!(model.adapters().count(), 0);
        let trained: BTreeSet<String> = model.whole().into_iter().map(|place| place.name).collect();
        let heads = spec.tie_word_embeddings.then(|| HEAD.to_owned());
        let can = trainable_in_full(&spec).into_iter();
        let can: BTreeSet<String> = can.filter(|name| Some(name) != heads.as_ref()).collect();
        assert_eq!(trained, can, "{}", case.name);
        let layers = model.num_backward_layers();
        for plan in [
            ActivationPlan::keep_all(layers),
            ActivationPlan::recompute_all(layers),
        ] {
            checked += check_whole(&case.name, &case, &model, &plan);
        }
    }
    assert!(checked > 500, "{checked}");
}

/// Checks the gradients of what is trained whole against those of the file, and says how many.
fn check_whole(name: &str, case: &TinyCase, model: &CausalLm, plan: &ActivationPlan) -> usize {
    let batch = case.padded();
    let scale = 1.0 / batch.targets.len() as f32;
    let mut grads = AdapterGrads::new();
    forward_backward(model, &batch, scale, None, plan, &mut grads);
    let summaries: BTreeMap<String, Summary> =
        serde_json::from_value(case.golden["padded_full_grads"].clone()).unwrap();
    let places = model.whole();
    for place in &places {
        let grad = values(grads.get(place.tensor.id()).unwrap());
        let what = format!("{name}, {}", place.name);
        check_summary(&what, &grad, &summaries[&place.name]);
    }
    places.len()
}

/// Every gradient against the summary of it, by name.
pub(super) fn check_summaries(case: &str, grads: &BTreeMap<String, Vec<f32>>, summaries: &Value) {
    let summaries: BTreeMap<String, Summary> = serde_json::from_value(summaries.clone()).unwrap();
    let names: Vec<_> = grads.keys().collect();
    assert_eq!(names, summaries.keys().collect::<Vec<_>>(), "{case}");
    for (name, expected) in &summaries {
        check_summary(&format!("{case}, {name}"), &grads[name], expected);
    }
}

fn check_summary(what: &str, grad: &[f32], expected: &Summary) {
    TINY_NORM.check_one(format!("{what}, l2"), norm(grad), expected.l2);
    let sum = grad.iter().copied().map(f64::from).sum();
    Tolerance::Absolute(1e-4 * expected.l2).check_one(format!("{what}, sum"), sum, expected.sum);
    let largest = grad
        .iter()
        .fold(0.0, |largest: f32, value| largest.max(value.abs()));
    Tolerance::Absolute(1e-4 * f64::from(largest)).check(
        format!("{what}, first 4"),
        &grad[..expected.first4.len()],
        &expected.first4,
    );
}

/// Makes every base tensor a leaf whose gradient is kept.
pub(super) fn track(model: &mut CausalLm) {
    model.visit_base_mut(|_, tensor| match tensor {
        BaseTensor::Matrix(Weight::Dense(weight)) => {
            *weight = weight.clone().inner().autodiff().require_grad();
        }
        BaseTensor::Vector(weight) => *weight = weight.clone().inner().autodiff().require_grad(),
        BaseTensor::Matrix(other) => panic!("a matrix in codes has no gradient: {other:?}"),
    });
}

/// The gradient of every base tensor, by its name in a checkpoint.
pub(super) fn gradients(model: &mut CausalLm, grads: &Gradients) -> BTreeMap<String, Vec<f32>> {
    fn grad<const D: usize>(name: &str, tensor: &Tensor<D>, grads: &Gradients) -> Vec<f32> {
        let grad = tensor.grad(grads);
        values(&grad.unwrap_or_else(|| panic!("no gradient for {name}")))
    }
    let mut named = BTreeMap::new();
    model.visit_base_mut(|name, tensor| {
        let grad = match tensor {
            BaseTensor::Matrix(Weight::Dense(weight)) => grad(name, weight, grads),
            BaseTensor::Vector(weight) => grad(name, weight, grads),
            BaseTensor::Matrix(other) => panic!("{name} is in codes: {other:?}"),
        };
        named.insert(name.to_owned(), grad);
    });
    named
}
