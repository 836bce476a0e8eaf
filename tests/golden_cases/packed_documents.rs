//! Documents of one row, as transformers computes each alone: positions begin again, and nothing is seen across a border.

use backdraft::burn::tensor::{Int, Tensor, TensorData};
use backdraft::data::Batch;
use backdraft::lora::AdapterGrads;
use backdraft::plan::ActivationPlan;
use backdraft::train::step::{MicroBatch, forward_backward};
use backdraft_testkit::golden::Tensors;
use backdraft_testkit::tolerance::{TINY_GRADIENT, TINY_LOGITS, TINY_LOSS, TINY_NORM};
use serde_json::Value;

use super::compare::{by_name, norm, scalar, values};
use super::full_gradients::{check_summaries, gradients, track};
use super::lora_entry::LoraCase;
use super::place::leaves_out_full_training;
use super::tiny_case::TinyCase;

/// Every case with documents in one row, and what they give.
fn cases() -> Vec<(TinyCase, Tensors)> {
    let packed = |case: TinyCase| {
        let path = case.path.join("packed.safetensors");
        path.is_file().then(|| (case, Tensors::open(path)))
    };
    let cases: Vec<_> = TinyCase::all().into_iter().filter_map(packed).collect();
    assert!(!cases.is_empty(), "no case with documents in one row");
    cases
}

/// The documents, laid end to end.
fn batch(tensors: &Tensors) -> MicroBatch {
    let lengths = tensors.i64("document_lengths");
    let longest = lengths.iter().max().copied().unwrap() as usize;
    let (input_ids, given) = (tensors.i64("input_ids"), tensors.i64("labels"));
    let (mut ids, mut mask, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    let mut start = 0;
    for &length in &lengths {
        let rows = start..start + length as usize;
        let padding = longest - rows.len();
        let padded = |values: &[i64], fill| [values, &vec![fill; padding][..]].concat();
        ids.extend(padded(&input_ids[rows.clone()], 0));
        mask.extend(padded(&vec![1; rows.len()], 0));
        labels.extend(padded(&given[rows.clone()], -100));
        start = rows.end;
    }
    assert_eq!(start, input_ids.len());
    let batch = Batch::from_rectangular(lengths.len(), &ids, &mask, &labels).unwrap();
    let batch = MicroBatch::from(batch);
    let positions: Vec<i64> = batch
        .tokens
        .position_ids
        .iter()
        .map(|&p| p.into())
        .collect();
    assert_eq!(positions, tensors.i64("position_ids"));
    batch
}

fn entry<'a>(case: &'a TinyCase, key: &str) -> &'a Value {
    &case.golden["packed"][key]
}

#[test]
fn golden_tiny_packed_documents() {
    for (mut case, tensors) in cases() {
        let batch = batch(&tensors);
        let logits = case
            .model
            .logits(case.model.forward_hidden(&batch.tokens, None));
        TINY_LOGITS.check(&case.name, &values(&logits), &tensors.f32("logits"));
        let expected = entry(&case, "loss").as_f64().unwrap();
        let nll = case.model.nll(&batch.tokens, &batch.targets).mean();
        TINY_LOSS.check_one(&case.name, scalar(&nll), expected);
        if leaves_out_full_training() {
            continue;
        }
        track(&mut case.model);
        let loss =
            case.model.loss(&batch.tokens, &batch.targets, None) / batch.targets.len() as f32;
        let grads = gradients(&mut case.model, &loss.backward());
        check_summaries(&case.name, &grads, entry(&case, "full_grads"));
        let total = norm(grads.values().flatten());
        let expected = entry(&case, "full_grad_norm").as_f64().unwrap();
        TINY_NORM.check_one(&case.name, total, expected);
    }
}

#[test]
fn golden_tiny_packed_adapters() {
    for (case, tensors) in cases() {
        let batch = batch(&tensors);
        for LoraCase { name, model, .. } in LoraCase::all(&case) {
            let scale = 1.0 / batch.targets.len() as f32;
            let plan = ActivationPlan::keep_all(model.num_backward_layers());
            let mut grads = AdapterGrads::new();
            let sum = forward_backward(&model, &batch, scale, None, &plan, &mut grads);
            let expected = entry(&case, "lora_loss").as_f64().unwrap();
            TINY_LOSS.check_one(&name, scalar(&sum) * f64::from(scale), expected);
            let grads = by_name(&model, &grads);
            for (factor, grad) in &grads {
                let expected = tensors.f32(&format!("lora.grad.{factor}"));
                TINY_GRADIENT.check(format!("{name}, {factor}"), grad, &expected);
            }
            let given = tensors
                .names()
                .filter(|name| name.starts_with("lora.grad."));
            assert_eq!(grads.len(), given.count(), "{name}: how many gradients");
            let total = norm(grads.iter().flat_map(|(_, grad)| grad));
            let expected = entry(&case, "lora_grad_norm").as_f64().unwrap();
            TINY_NORM.check_one(&name, total, expected);

            let ends = batch
                .tokens
                .segments
                .iter()
                .map(|(rows, _)| rows.end as i64 - 1);
            let ends: Vec<i64> = ends.collect();
            let shape = [ends.len()];
            let ends = Tensor::<1, Int>::from_data(TensorData::new(ends, shape), &model.device());
            let hidden = model.forward_hidden(&batch.tokens, None).select(0, ends);
            let expected = tensors.f32("lora.logits_last_of_each_document");
            TINY_LOGITS.check(&name, &values(&model.logits(hidden)), &expected);
        }
    }
}
