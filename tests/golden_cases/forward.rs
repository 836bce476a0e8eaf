//! Tiny models: logits, hidden states, losses, greedy tokens.

use backdraft::burn::tensor::{Device, Int, Tensor, TensorData};
use backdraft::formats::ModelSource;
use backdraft::model::generate::GenerateConfig;
use backdraft::model::{BaseTensor, CausalLm, Tokens};
use backdraft::quant::Weight;
use backdraft_testkit::tolerance::{TINY_LOGITS, TINY_LOSS, Tolerance};
use serde_json::{Value, from_value};

use super::compare::{scalar, values};
use super::smollm2::{quantised, scheme};
use super::tiny_case::TinyCase;

#[test]
fn golden_tiny_logits() {
    for case in TinyCase::all() {
        let (model, rows) = (&case.model, case.plain_rows());
        let expected = case.tensors.f32("plain.logits");
        let packed = model.logits(model.forward_hidden(&Tokens::from_sequences(&rows), None));
        TINY_LOGITS.check(&case.name, &values(&packed), &expected);

        let shape = [rows.len(), rows[0].len()];
        let ids: Vec<i64> = rows.concat().into_iter().map(i64::from).collect();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, shape), &model.device());
        TINY_LOGITS.check(&case.name, &values(&model.forward(ids)), &expected);

        let padded = model.logits(model.forward_hidden(&case.padded().tokens, None));
        let expected = case.tensors.f32("padded.logits_at_real_positions");
        TINY_LOGITS.check(
            format!("{}, padded", case.name),
            &values(&padded),
            &expected,
        );
    }
}

#[test]
fn golden_tiny_hidden_states() {
    for case in TinyCase::all() {
        let model = &case.model;
        let states = model.hidden_states(&Tokens::from_sequences(&case.plain_rows()[..1]));
        let last = states.len() - 1;
        let mut compared = 0;
        for (i, state) in states.into_iter().enumerate() {
            let (name, state) = match i {
                0 => ("embedding".to_owned(), state),
                i if i == last => ("final_norm".to_owned(), model.norm().forward(state)),
                i => (format!("layer{}", i - 1), state),
            };
            let expected = case.tensors.f32(&format!("plain.hidden.{name}"));
            TINY_LOGITS.check(format!("{}, {name}", case.name), &values(&state), &expected);
            compared += 1;
        }
        let names = case.tensors.names();
        let given = names
            .filter(|name| name.starts_with("plain.hidden."))
            .count();
        assert_eq!(compared, given, "{}", case.name);
    }
}

#[test]
fn golden_tiny_losses() {
    for case in TinyCase::all() {
        for (key, batch) in [("plain_loss", case.plain()), ("padded_loss", case.padded())] {
            let what = format!("{}, {key}", case.name);
            let (expected, count) = (case.number(key), batch.targets.len() as f64);
            let sum = case.model.loss(&batch.tokens, &batch.targets, None);
            TINY_LOSS.check_one(&what, scalar(&sum) / count, expected);
            let nll = case.model.nll(&batch.tokens, &batch.targets);
            TINY_LOSS.check_one(&what, scalar(&nll.mean()), expected);
        }
    }
}

#[test]
fn golden_tiny_greedy() {
    for case in TinyCase::all() {
        let ids = |key: &str| -> Vec<u32> { from_value(case.golden[key].clone()).unwrap() };
        let (prompt, expected) = (ids("greedy_prompt_ids"), ids("greedy_ids"));
        let config = GenerateConfig {
            max_new_tokens: expected.len(),
            ..GenerateConfig::default()
        };
        // A second sequence of another length must not disturb the first.
        let prompts = [prompt.clone(), prompt[1..].to_vec()];
        let outputs = case.model.generate(&prompts, &config, |_, _| true);
        assert_eq!(outputs[0], expected, "{}", case.name);
    }
}

/// Generation reads codes in a kernel of its own where a device has one; on the processor, the weights that the
/// codes stand for continue the prompts with the same tokens.
#[test]
fn golden_tiny_greedy_from_codes() {
    for case in TinyCase::all() {
        let source = ModelSource::open(&*case.path).unwrap();
        let on_cpu = CausalLm::load(&source, &Device::flex()).unwrap();
        let prompt: Vec<u32> = from_value(case.golden["greedy_prompt_ids"].clone()).unwrap();
        let prompts = [prompt.clone(), prompt[1..].to_vec(), prompt[..1].to_vec()];
        let config = GenerateConfig {
            max_new_tokens: 24,
            ..GenerateConfig::default()
        };
        for name in ["nf4_b64", "nf4_b64_double_quant", "fp4_b128"] {
            let mut dense = quantised(&on_cpu, scheme(name));
            dense.visit_base_mut(|_, tensor| {
                if let BaseTensor::Matrix(weight) = tensor {
                    *weight = Weight::Dense(weight.dequantize());
                }
            });
            let expected = dense.generate(&prompts, &config, |_, _| true);
            let in_codes = quantised(&case.model, scheme(name));
            let outputs = in_codes.generate(&prompts, &config, |_, _| true);
            assert_eq!(outputs, expected, "{}, {name}", case.name);
        }
    }
}

#[test]
fn golden_tiny_shapes() {
    for mut case in TinyCase::all() {
        assert_eq!(
            case.number("parameters"),
            case.model.num_base_params() as f64
        );
        let rope = &case.model.spec().rope;
        let expected: Vec<f32> = from_value(case.golden["rope_inv_freq"].clone()).unwrap();
        Tolerance::OfLargest(3e-7).check(&case.name, &rope.inv_freq(), &expected);
        let scaling = case
            .golden
            .get("rope_attention_scaling")
            .and_then(Value::as_f64);
        Tolerance::Relative(1e-6).check_one(&case.name, rope.attention_scaling(), scaling.unwrap());
    }
}
