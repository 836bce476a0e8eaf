//! Tiny models with adapters: losses, logits, merged weights, and every gradient in both ways.

use backdraft::burn::module::Module;
use backdraft::burn::tensor::{Int, Tensor, TensorData};
use backdraft::lora::{Adapter, AdapterGrads};
use backdraft::model::{BaseTensor, CausalLm};
use backdraft::plan::ActivationPlan;
use backdraft::quant::Weight;
use backdraft::train::step::{MicroBatch, forward_backward};
use backdraft_testkit::tolerance::{TINY_GRADIENT, TINY_LOGITS, TINY_LOSS, TINY_NORM};

use super::compare::{by_name, norm, scalar, values};
use super::lora_entry::LoraCase;
use super::tiny_case::TinyCase;

#[test]
fn golden_tiny_lora_layer_by_layer() {
    check_all(|model, batch| {
        let mut grads = AdapterGrads::new();
        let scale = 1.0 / batch.targets.len() as f32;
        let plan = ActivationPlan::keep_all(model.num_backward_layers());
        let sum = forward_backward(model, batch, scale, None, &plan, &mut grads);
        (scalar(&sum) * f64::from(scale), by_name(model, &grads))
    });
}

#[test]
fn golden_tiny_lora_autodiff() {
    check_all(|model, batch| {
        let model = model.clone().train();
        let loss = model.loss(&batch.tokens, &batch.targets, None) / batch.targets.len() as f32;
        let tape = loss.backward();
        let mut grads = AdapterGrads::new();
        for (_, _, Adapter::Lora(adapter)) in model.adapters() {
            for factor in [&adapter.lora_a, &adapter.lora_b] {
                if let Some(grad) = factor.val().grad(&tape) {
                    grads.add(factor.id, grad);
                }
            }
        }
        (scalar(&loss), by_name(&model, &grads))
    });
}

/// Compares what `step` says: the mean loss, and every gradient by name.
fn check_all(step: impl Fn(&CausalLm, &MicroBatch) -> (f64, Vec<(String, Vec<f32>)>)) {
    for case in TinyCase::all() {
        for lora in LoraCase::all(&case) {
            let LoraCase {
                name,
                entry,
                tensors,
                model,
            } = &lora;
            let batches = [
                (
                    "plain",
                    case.plain(),
                    entry.plain_loss,
                    entry.plain_grad_norm,
                ),
                (
                    "padded",
                    case.padded(),
                    entry.padded_loss,
                    entry.padded_grad_norm,
                ),
            ];
            for (kind, batch, expected_loss, expected_norm) in batches {
                let (loss, grads) = step(model, &batch);
                TINY_LOSS.check_one(format!("{name}, {kind} loss"), loss, expected_loss);
                for (factor, grad) in &grads {
                    let expected = tensors.f32(&format!("{kind}.grad.{factor}"));
                    TINY_GRADIENT.check(format!("{name}, {kind}, {factor}"), grad, &expected);
                }
                let prefix = format!("{kind}.grad.");
                let given = tensors
                    .names()
                    .filter(|name| name.starts_with(&prefix))
                    .count();
                assert_eq!(grads.len(), given, "{name}, {kind}: how many gradients");
                let total = norm(grads.iter().flat_map(|(_, grad)| grad));
                TINY_NORM.check_one(format!("{name}, {kind} norm"), total, expected_norm);
            }
        }
    }
}

#[test]
fn golden_tiny_lora_logits() {
    for case in TinyCase::all() {
        for LoraCase {
            name,
            tensors,
            model,
            ..
        } in LoraCase::all(&case)
        {
            for (kind, batch) in [("plain", case.plain()), ("padded", case.padded())] {
                let ends: Vec<i64> = batch
                    .tokens
                    .segments
                    .iter()
                    .map(|(rows, _)| rows.end as i64 - 1)
                    .collect();
                let shape = [ends.len()];
                let ends = TensorData::new(ends, shape);
                let ends = Tensor::<1, Int>::from_data(ends, &model.device());
                let hidden = model.forward_hidden(&batch.tokens, None).select(0, ends);
                let expected = tensors.f32(&format!("{kind}.logits_last"));
                let logits = values(&model.logits(hidden));
                TINY_LOGITS.check(format!("{name}, {kind}"), &logits, &expected);
            }
        }
    }
}

#[test]
fn golden_tiny_lora_merged() {
    for case in TinyCase::all() {
        let batch = case.plain();
        for LoraCase {
            name, entry, model, ..
        } in LoraCase::all(&case)
        {
            let nll = merged(model).nll(&batch.tokens, &batch.targets);
            TINY_LOSS.check_one(name, scalar(&nll.mean()), entry.merged_weights_plain_loss);
        }
    }
}

/// The base model with its adapter added to the weights.
pub(super) fn merged(model: CausalLm) -> CausalLm {
    let deltas: Vec<_> = model
        .adapters()
        .map(|(layer, target, Adapter::Lora(adapter))| {
            (format!("{}.weight", target.path(layer)), adapter.delta())
        })
        .collect();
    let mut merged = model.without_adapter();
    merged.visit_base_mut(|name, tensor| {
        let delta = deltas.iter().find(|(adapted, _)| adapted == name);
        if let (BaseTensor::Matrix(Weight::Dense(weight)), Some((_, delta))) = (tensor, delta) {
            *weight = weight.clone() + delta.clone();
        }
    });
    merged
}
