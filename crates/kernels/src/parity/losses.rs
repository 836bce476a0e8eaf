//! The loss over the vocabulary, and the optimiser.

use burn::tensor::DType;

use super::places::{compare, places, random};
use crate::{adamw, cross_entropy};

#[test]
fn cross_entropy_and_the_gradient_of_the_hidden_states() {
    for (n, h, v) in [
        (1, 2, 3),
        (40, 16, 257),
        (cross_entropy::CHUNK + 3, 8, 1000),
        (1030, 4, 16),
    ] {
        // Of the size that heads have: logits of order 1.
        let head = random([v, h]).mul_scalar((h as f32).powf(-0.5));
        let targets: Vec<u32> = (0..n).map(|i| (i * 31 % v) as u32).collect();
        compare(
            [random([n, h])],
            |place, [x]| cross_entropy::cross_entropy(x, &place.put(&head), &targets).unsqueeze(),
            |place, [x]| {
                let head = place.round(&head);
                cross_entropy::reference::cross_entropy(x, head, &targets).unsqueeze()
            },
        );
    }
}

#[test]
fn softmax_nll_over_logits_of_any_size() {
    for (n, v) in [(1, 1), (3, 5), (9, 4096), (5, 50_257), (2, 128_256)] {
        let logits = random([n, v]).mul_scalar(20.0);
        let targets: Vec<u32> = (0..n).map(|i| ((i * 31 + v - 1) % v) as u32).collect();
        for place in places() {
            let exact = place.round(&logits);
            let (expected_nll, expected_d) =
                cross_entropy::reference::softmax_nll(exact, &targets, Some(0.5));
            let (nll, d) = cross_entropy::softmax_nll(place.put(&logits), &targets, Some(0.5));
            assert_eq!(nll.dtype(), DType::F32);
            place.assert_close("nll", nll, expected_nll.clone());
            place.assert_close("d logits", d.unwrap(), expected_d.unwrap());
            let (nll, d) = cross_entropy::softmax_nll(place.put(&logits), &targets, None);
            assert!(d.is_none());
            place.assert_close("nll alone", nll, expected_nll);
        }
    }
}

#[test]
fn adamw_against_its_reference_over_steps() {
    let params = adamw::AdamWParams {
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
    };
    for shape in [[33, 5], [64, 128]] {
        let start = random(shape);
        let grads: Vec<_> = (0..5).map(|_| random(shape)).collect();
        for place in places().iter().filter(|place| place.dtype == DType::F32) {
            let there = place.put(&start);
            let (mut ours, mut ours_m) = (there.clone(), adamw::Moments::zeros(&there));
            let (mut theirs, mut theirs_m) = (start.clone(), adamw::Moments::zeros(&start));
            for (t, grad) in (1..).zip(&grads) {
                let step = (0.01, t);
                (ours, ours_m) = adamw::step(ours, &place.put(grad), ours_m, step, &params);
                (theirs, theirs_m) = adamw::reference::step(theirs, grad, theirs_m, step, &params);
                place.assert_close("parameter", ours.clone(), theirs.clone());
                place.assert_close("m", ours_m.m.clone(), theirs_m.m.clone());
                place.assert_close("v", ours_m.v.clone(), theirs_m.v.clone());
            }
            // The first holder of the parameter sees no change.
            place.assert_close("start", there, start.clone());
        }
    }
}
