//! Rotary tables and AdamW.

use std::collections::BTreeMap;

use backdraft::burn::tensor::{Tensor, TensorData};
use backdraft::kernels::adamw::{self, AdamWParams, Moments};
use backdraft::model::ModelSpec;
use backdraft_testkit::golden;
use backdraft_testkit::tolerance::Tolerance;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::compare::values;
use super::place;
use super::support;

/// An entry of `rope.json`.
#[derive(Deserialize)]
struct Rope {
    config: Map<String, Value>,
    attention_scaling: f64,
    inv_freq: Vec<f32>,
    positions: Vec<u32>,
    cos_first_half: Vec<Vec<f32>>,
    sin_first_half: Vec<Vec<f32>>,
}

#[test]
fn golden_rope() {
    let Some(path) = golden::part("misc/rope.json") else {
        return;
    };
    let cases: BTreeMap<String, Rope> = golden::json(&path);
    assert!(!cases.is_empty(), "{}: no case", path.display());
    for (name, case) in cases {
        let mut config = json!({
            "model_type": "llama", "vocab_size": 256, "hidden_size": 256, "intermediate_size": 256,
            "num_hidden_layers": 1, "num_attention_heads": 2,
        });
        for (key, value) in &case.config {
            config[key] = value.clone();
        }
        match ModelSpec::from_hf(&config) {
            Ok(loaded) => {
                let feature = support::unsupported_feature(&config);
                assert_eq!(feature, None, "{name}: should have been refused");
                check_rope(&name, &loaded, &case);
            }
            Err(error) => support::check_refusal(&name, &config, &error),
        }
    }
}

fn check_rope(name: &str, config: &ModelSpec, case: &Rope) {
    let rope = &config.rope;
    // Frequencies span orders of magnitude, and each is a rounded power.
    let inv_freq = rope.inv_freq();
    assert_eq!(inv_freq.len(), case.inv_freq.len(), "{name}");
    for (i, (actual, expected)) in inv_freq.iter().zip(&case.inv_freq).enumerate() {
        let (actual, expected) = (f64::from(*actual), f64::from(*expected));
        Tolerance::Relative(3e-7).check_one(format!("{name}, frequency {i}"), actual, expected);
    }
    let scaling = rope.attention_scaling();
    Tolerance::Relative(1e-6).check_one(name, scaling, case.attention_scaling);
    let tables = backdraft::model::rope::tables(rope, &case.positions, &place::device());
    let (cos, sin) = (values(&tables.cos), values(&tables.sin));
    let half = inv_freq.len();
    for (row, &position) in case.positions.iter().enumerate() {
        // A frequency off by its last bit moves the angle by that bit times the position.
        let allowed = Tolerance::Absolute(1e-6 + 3e-7 * f64::from(position));
        let range = row * half..(row + 1) * half;
        let what = |table| format!("{name}, {table} at {position}");
        allowed.check(what("cos"), &cos[range.clone()], &case.cos_first_half[row]);
        allowed.check(what("sin"), &sin[range], &case.sin_first_half[row]);
    }
}

/// An entry of `adamw.json`.
#[derive(Deserialize)]
struct AdamW {
    lr: f64,
    weight_decay: f64,
    betas: [f64; 2],
    eps: f64,
    initial: Vec<f32>,
    grads: Vec<Vec<f32>>,
    params_after: Vec<Vec<f32>>,
}

#[test]
fn golden_adamw() {
    let Some(path) = golden::part("misc/adamw.json") else {
        return;
    };
    let cases: Vec<AdamW> = golden::json(&path);
    assert!(!cases.is_empty(), "{}: no case", path.display());
    for (i, case) in cases.iter().enumerate() {
        let params = AdamWParams {
            beta1: case.betas[0],
            beta2: case.betas[1],
            epsilon: case.eps,
            weight_decay: case.weight_decay,
        };
        check_adamw(
            &format!("case {i}, kernel"),
            case,
            |param, grad, moments, t| adamw::step(param, &grad, moments, (case.lr, t), &params),
        );
        check_adamw(
            &format!("case {i}, reference"),
            case,
            |param, grad, moments, t| {
                adamw::reference::step(param, &grad, moments, (case.lr, t), &params)
            },
        );
    }
}

fn check_adamw(
    name: &str,
    case: &AdamW,
    step: impl Fn(Tensor<1>, Tensor<1>, Moments<1>, u64) -> (Tensor<1>, Moments<1>),
) {
    let tensor = |values: &[f32]| {
        let data = TensorData::new(values.to_vec(), [values.len()]);
        Tensor::<1>::from_data(data, &place::device())
    };
    let mut param = tensor(&case.initial);
    let mut moments = Moments::zeros(&param);
    for (t, (grad, expected)) in (1..).zip(case.grads.iter().zip(&case.params_after)) {
        (param, moments) = step(param, tensor(grad), moments, t);
        let what = format!("{name}, step {t}");
        Tolerance::Absolute(1e-6).check(what, &values(&param), expected);
    }
}
