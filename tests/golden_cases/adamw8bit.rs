//! Ten steps of 8-bit AdamW as bitsandbytes takes them.

use std::collections::BTreeMap;

use backdraft::burn::tensor::{Tensor, TensorData};
use backdraft::kernels::adamw::{self, AdamWParams, Moments};
use backdraft::kernels::adamw8bit::{Guard, Moment8Bit, Moments8Bit, step};
use backdraft_testkit::golden::{self, Tensors};
use serde::Deserialize;

use super::compare::values;
use super::place;

#[derive(Deserialize)]
struct Cases {
    hyperparameters: Hyperparameters,
    steps: u64,
    params: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Hyperparameters {
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
}

#[derive(Deserialize)]
struct Case {
    shape: Vec<usize>,
}

#[test]
fn golden_adamw8bit() {
    let Some(path) = golden::part("bitsandbytes/adamw8bit.json") else {
        return;
    };
    let cases: Cases = golden::json(&path);
    let tensors = Tensors::open(path.with_extension("safetensors"));
    let params = AdamWParams {
        beta1: cases.hyperparameters.betas[0],
        beta2: cases.hyperparameters.betas[1],
        epsilon: cases.hyperparameters.eps,
        weight_decay: cases.hyperparameters.weight_decay,
    };
    assert!(!cases.params.is_empty());
    for (name, case) in &cases.params {
        let n: usize = case.shape.iter().product();
        let grads = tensors.f32(&format!("{name}.grads"));
        let tensor = |values: &[f32]| {
            let data = TensorData::new(values.to_vec(), [n]);
            Tensor::<1>::from_data(data, &place::device())
        };
        let mut param = tensor(&tensors.f32(&format!("{name}.initial")));
        let mut moments = Moments8Bit::zeros(&param);
        // Beside it the same steps with moments in 32 bits.
        let mut exact = (param.clone(), Moments::zeros(&param));
        let mut compared = 0;
        for t in 1..=cases.steps {
            let grad = tensor(&grads[(t as usize - 1) * n..t as usize * n]);
            let rate = (cases.hyperparameters.lr, t);
            (param, moments) = step(param, &grad, moments, rate, &params, Guard::Off);
            exact = adamw::step(exact.0, &grad, exact.1, rate, &params);
            let at = format!("{name}.step{t}");
            let plain = format!("{at}.torch_adamw_f32_param");
            if tensors.has(&plain) {
                check_param(&plain, &values(&exact.0), &tensors.f32(&plain));
                compared += 1;
            }
            if tensors.has(&format!("{at}.param")) {
                check_param(&at, &values(&param), &tensors.f32(&format!("{at}.param")));
                compared += 1;
            }
            if tensors.has(&format!("{at}.m_codes")) {
                check_moment(&format!("{at}.m"), &moments.m, &tensors);
                check_moment(&format!("{at}.v"), &moments.v, &tensors);
                compared += 1;
            }
        }
        assert!(compared >= 3, "{name}: {compared} states compared");
    }
}

fn check_param(what: &str, actual: &[f32], expected: &[f32]) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    // A GPU fuses products and sums: a moment on an edge may get the code beside.
    let allowed = if place::on_gpu() { 1e-4 } else { 5e-7 };
    for (i, (a, b)) in actual.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= allowed * b.abs().max(1.0),
            "{what} {i}: {a}, not {b}"
        );
    }
}

/// Scales within rounding; a code may differ by one where its value lies on an edge.
fn check_moment(what: &str, moment: &Moment8Bit, tensors: &Tensors) {
    let absmax = tensors.f32(&format!("{what}_absmax"));
    for (a, b) in values(&moment.absmax).iter().zip(&absmax) {
        assert!(
            (a - b).abs() <= 1e-6 * b.abs(),
            "{what}: scale {a}, not {b}"
        );
    }
    let expected = tensors.bytes(&format!("{what}_codes"));
    let codes: Vec<u8> = moment.codes.clone().into_data().try_into_vec().unwrap();
    assert_eq!(codes.len(), expected.len(), "{what}");
    let differing = codes.iter().zip(&expected).filter(|(a, b)| {
        assert!(a.abs_diff(**b) <= 1, "{what}: code {a}, not {b}");
        a != b
    });
    let differing = differing.count();
    println!("{what}: {differing} of {} codes differ by one", codes.len());
    assert!(
        differing * 1000 <= codes.len(),
        "{what}: {differing} codes differ"
    );
}
