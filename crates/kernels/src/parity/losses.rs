//! The loss over the vocabulary, and the optimiser.

use burn::tensor::{DType, Device, Tensor};

use super::places::{compare, places, random};
use crate::adamw;
use crate::adamw8bit::{self, Guard, Moment8Bit, Moments8Bit};
use crate::cross_entropy::{self, Penalty};
use crate::flat::{self, Flat, FlatMoments, FlatParams};

/// No cap, one that matters, and one that hardly does.
const CAPS: [Option<f32>; 3] = [None, Some(0.7), Some(30.0)];

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
        for cap in CAPS {
            compare(
                [random([n, h])],
                |place, [x]| {
                    let head = place.put(&head);
                    cross_entropy::cross_entropy(x, &head, cap, &targets).unsqueeze()
                },
                |place, [x]| {
                    let head = place.round(&head);
                    cross_entropy::reference::cross_entropy(x, head, cap, &targets).unsqueeze()
                },
            );
        }
    }
}

/// Weights of either sign, and none at all: what preferred and rejected answers have.
fn signed_weights(n: usize) -> Tensor<1> {
    let weights: Vec<f32> = (0..n).map(|i| [0.5, -0.25, 0.0, 1.0][i % 4]).collect();
    Tensor::from_floats(weights.as_slice(), &Device::flex())
}

/// Over several chunks, in forward and gradient, against autodiff over whole logits.
#[test]
fn cross_entropy_with_a_weight_for_each_token() {
    for (n, h, v) in [(3, 2, 5), (cross_entropy::CHUNK + 3, 8, 100), (1030, 4, 16)] {
        let head = random([v, h]).mul_scalar((h as f32).powf(-0.5));
        let hidden = random([n, h]);
        let targets: Vec<u32> = (0..n).map(|i| (i * 31 % v) as u32).collect();
        let weights = signed_weights(n);
        for (place, cap) in places().iter().flat_map(|it| CAPS.map(|cap| (it, cap))) {
            let leaf = place.round(&hidden).autodiff().require_grad();
            let logits = leaf
                .clone()
                .matmul(place.round(&head).autodiff().transpose());
            let (nll, _) = cross_entropy::reference::softmax_nll(logits, cap, &targets, None);
            let sum = (nll.clone() * weights.clone().autodiff()).sum();
            let expected = leaf.grad(&sum.backward()).unwrap();

            let (hidden, head) = (place.put(&hidden), place.put(&head));
            let there = place.put_f32(&weights);
            let loss = cross_entropy::forward(&hidden, &head, cap, &targets, Some(&there));
            place.assert_close("nll", loss.nll, nll.inner());
            place.assert_close("d hidden", loss.d_hidden.unwrap(), expected);
        }
    }
}

/// dᵢ of a weight is the weight times dᵢ of 1, where that is exact: a power of two, of either sign.
#[test]
fn a_weight_enters_as_a_factor_bit_for_bit() {
    let (n, v) = (5, 4096);
    let logits = random([n, v]).mul_scalar(8.0);
    let targets: Vec<u32> = (0..n).map(|i| (i * 31) as u32).collect();
    for place in places().iter().filter(|place| place.dtype == DType::F32) {
        let bits = |weights: [f32; 5]| {
            let weights = place.put_f32(&Tensor::from_floats(weights, &Device::flex()));
            let loss =
                cross_entropy::softmax_nll(place.put(&logits), None, &targets, Some(&weights));
            let d: Vec<f32> = loss.1.unwrap().into_data().try_into_vec().unwrap();
            d
        };
        let (one, each) = (bits([1.0; 5]), [0.25, -2.0, 1.0, -0.5, 4.0]);
        let weighted = bits(each);
        for (i, (one, weighted)) in one.iter().zip(&weighted).enumerate() {
            let expected = one * each[i / v];
            assert_eq!(weighted.to_bits(), expected.to_bits(), "{i}: {weighted}");
        }
    }
}

#[test]
fn softmax_nll_over_logits_of_any_size() {
    for (n, v) in [(1, 1), (3, 5), (9, 4096), (5, 50_257), (2, 128_256)] {
        let logits = random([n, v]).mul_scalar(20.0);
        let targets: Vec<u32> = (0..n).map(|i| ((i * 31 + v - 1) % v) as u32).collect();
        let weights = signed_weights(n);
        for (place, cap) in places().iter().flat_map(|it| CAPS.map(|cap| (it, cap))) {
            let (exact, there) = (place.round(&logits), place.put_f32(&weights));
            let (expected_nll, expected_d) =
                cross_entropy::reference::softmax_nll(exact, cap, &targets, Some(&weights));
            let logits = || place.put(&logits);
            let (nll, d) = cross_entropy::softmax_nll(logits(), cap, &targets, Some(&there));
            assert_eq!(nll.dtype(), DType::F32);
            place.assert_close("nll", nll, expected_nll.clone());
            place.assert_close("d logits", d.unwrap(), expected_d.unwrap());
            let (nll, d) = cross_entropy::softmax_nll(logits(), cap, &targets, None);
            assert!(d.is_none());
            place.assert_close("nll alone", nll, expected_nll);
        }
    }
}

/// Each penalty alone, and both.
const PENALTIES: [Penalty; 3] = [
    Penalty {
        label_smoothing: 0.2,
        z_loss: 0.0,
    },
    Penalty {
        label_smoothing: 0.0,
        z_loss: 1e-2,
    },
    Penalty {
        label_smoothing: 0.1,
        z_loss: 1e-3,
    },
];

/// The gradient as the reference has it against autodiff through the loss as it is written.
#[test]
fn penalties_have_the_slope_of_what_they_are() {
    let (n, v) = (4, 33);
    let logits = random([n, v]).mul_scalar(3.0);
    let targets: Vec<u32> = (0..n).map(|i| (i * 31 % v) as u32).collect();
    let weights = signed_weights(n);
    let place = super::places::Place::cpu();
    for (penalty, cap) in PENALTIES.iter().flat_map(|it| CAPS.map(|cap| (*it, cap))) {
        let leaf = logits.clone().autodiff().require_grad();
        let seen = match cap {
            None => leaf.clone(),
            Some(cap) => leaf.clone().div_scalar(cap).tanh().mul_scalar(cap),
        };
        let logsumexp = seen.clone().exp().sum_dim(1).log();
        let uniform = (logsumexp.clone() - seen.clone().mean_dim(1)).squeeze_dim::<1>(1);
        let (nll, _) = cross_entropy::reference::softmax_nll(leaf.clone(), cap, &targets, None);
        let loss = nll.mul_scalar(1.0 - penalty.label_smoothing)
            + uniform.mul_scalar(penalty.label_smoothing)
            + logsumexp
                .square()
                .squeeze_dim::<1>(1)
                .mul_scalar(penalty.z_loss);
        let sum = (loss.clone() * weights.clone().autodiff()).sum();
        let expected = leaf.grad(&sum.backward()).unwrap();
        let (logits, weights) = (logits.clone(), Some(&weights));
        let penalty = Some(penalty);
        let found = cross_entropy::reference::row_losses(logits, cap, &targets, weights, penalty);
        place.assert_close("loss", found.penalized.unwrap(), loss.inner());
        place.assert_close("d logits", found.d_logits.unwrap(), expected);
    }
}

#[test]
fn penalties_over_logits_of_any_size() {
    for (n, v) in [(1, 1), (3, 5), (9, 4096), (5, 50_257), (2, 128_256)] {
        let logits = random([n, v]).mul_scalar(20.0);
        let targets: Vec<u32> = (0..n).map(|i| ((i * 31 + v - 1) % v) as u32).collect();
        let weights = signed_weights(n);
        for (place, cap) in places().iter().flat_map(|it| CAPS.map(|cap| (it, cap))) {
            let (exact, there) = (place.round(&logits), place.put_f32(&weights));
            for penalty in PENALTIES {
                let weights = Some(&weights);
                let penalty = Some(penalty);
                let expected = cross_entropy::reference::row_losses(
                    exact.clone(),
                    cap,
                    &targets,
                    weights,
                    penalty,
                );
                let logits = || place.put(&logits);
                let there = Some(&there);
                let found = cross_entropy::row_losses(logits(), cap, &targets, there, penalty);
                place.assert_close("nll", found.nll, expected.nll.clone());
                let loss = expected.penalized.unwrap();
                place.assert_close("loss", found.penalized.unwrap(), loss.clone());
                place.assert_close(
                    "d logits",
                    found.d_logits.unwrap(),
                    expected.d_logits.unwrap(),
                );
                let found = cross_entropy::row_losses(logits(), cap, &targets, None, penalty);
                assert!(found.d_logits.is_none());
                place.assert_close("loss alone", found.penalized.unwrap(), loss);
            }
        }
    }
}

/// Over several chunks, with the gradient of the hidden states.
#[test]
fn penalties_in_the_vocabulary_head() {
    for (n, h, v) in [(3, 2, 5), (cross_entropy::CHUNK + 3, 8, 100), (1030, 4, 16)] {
        let head = random([v, h]).mul_scalar((h as f32).powf(-0.5));
        let hidden = random([n, h]);
        let targets: Vec<u32> = (0..n).map(|i| (i * 31 % v) as u32).collect();
        let weights = signed_weights(n);
        let penalty = Some(PENALTIES[2]);
        for (place, cap) in places().iter().flat_map(|it| CAPS.map(|cap| (it, cap))) {
            let leaf = place.round(&hidden).autodiff().require_grad();
            let logits = leaf
                .clone()
                .matmul(place.round(&head).autodiff().transpose());
            let losses = cross_entropy::reference::row_losses(logits, cap, &targets, None, penalty);
            let loss = losses.penalized.unwrap();
            let sum = (loss.clone() * weights.clone().autodiff()).sum();
            let expected = leaf.grad(&sum.backward()).unwrap();

            let (hidden, head) = (place.put(&hidden), place.put(&head));
            let there = Some(place.put_f32(&weights));
            let found =
                cross_entropy::penalized(&hidden, &head, cap, &targets, there.as_ref(), penalty);
            place.assert_close("loss", found.penalized.unwrap(), loss.inner());
            place.assert_close("d hidden", found.d_hidden.unwrap(), expected);
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

#[test]
fn adamw8bit_on_every_device() {
    let params = adamw::AdamWParams {
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
    };
    for n in [1usize, 3, 255, 256, 1001, 4608] {
        let start = random([n]);
        let grads: Vec<_> = (0..4).map(|_| random([n])).collect();
        for (place, guard) in places()
            .iter()
            .filter(|place| place.dtype == DType::F32)
            .flat_map(|place| [(place, Guard::On), (place, Guard::Off)])
        {
            let there = place.put(&start);
            let (mut ours, mut ours_m) = (there.clone(), Moments8Bit::zeros(&there));
            let (mut theirs, mut theirs_m) = (start.clone(), Moments8Bit::zeros(&start));
            for (t, grad) in (1..).zip(&grads) {
                let step = (0.01, t);
                let there = place.put(grad);
                (ours, ours_m) = adamw8bit::step(ours, &there, ours_m, step, &params, guard);
                (theirs, theirs_m) =
                    adamw8bit::reference::step(theirs, grad, theirs_m, step, &params, guard);
                place.assert_close("parameter", ours.clone(), theirs.clone());
                for (ours, theirs) in [(&ours_m.m, &theirs_m.m), (&ours_m.v, &theirs_m.v)] {
                    place.assert_close("scales", ours.absmax.clone(), theirs.absmax.clone());
                    let codes = |moment: &Moment8Bit| {
                        let codes = moment.codes.clone().into_data();
                        codes.try_into_vec::<u8>().unwrap()
                    };
                    // A value on an edge may fall on either side.
                    let pairs = codes(ours).into_iter().zip(codes(theirs));
                    let differing = pairs.fold(0, |count, (a, b)| {
                        assert!(a.abs_diff(b) <= 1, "codes {a} and {b}");
                        count + usize::from(a != b)
                    });
                    assert!(differing * 50 <= n, "{differing} of {n} codes differ");
                }
                // A code on an edge moves all later steps, so each begins at the reference.
                ours = place.put(&theirs);
                let moment = |moment: &Moment8Bit| {
                    let codes = moment.codes.clone().into_data();
                    Moment8Bit {
                        codes: Tensor::from_data(codes, (&place.device, DType::U8)),
                        absmax: place.put(&moment.absmax),
                    }
                };
                ours_m = Moments8Bit {
                    m: moment(&theirs_m.m),
                    v: moment(&theirs_m.v),
                };
            }
            place.assert_close("start", there, start.clone());
        }
    }
}

/// Moments that somebody else holds are copied: what they hold stays what it was.
#[test]
fn adamw8bit_leaves_moments_that_are_held() {
    let params = adamw::AdamWParams {
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
    };
    for n in [1usize, 255, 1001] {
        let (start, grad) = (random([n]), random([n]));
        for place in places().iter().filter(|place| place.dtype == DType::F32) {
            let device = place.device.clone();
            let (param, grad) = (place.put(&start), place.put(&grad));
            let step = |moments| {
                let lr_and_t = (0.01, 1);
                adamw8bit::step(param.clone(), &grad, moments, lr_and_t, &params, Guard::On)
            };
            let (alone, expected) = step(Moments8Bit::zeros(&param));
            let moments = Moments8Bit::zeros(&param);
            let held = moments.clone();
            let (beside, actual) = step(moments);
            assert_eq!(beside.into_data(), alone.into_data(), "{device:?}: {n}");
            let zeros = Moments8Bit::zeros(&param);
            let codes = |moments: &Moments8Bit| {
                [&moments.m, &moments.v].map(|moment| moment.codes.clone().into_data())
            };
            assert_eq!(codes(&held), codes(&zeros), "{device:?}: {n}: what is held");
            assert_eq!(codes(&actual), codes(&expected), "{device:?}: {n}");
            assert_ne!(codes(&actual), codes(&zeros), "{device:?}: {n}");
        }
    }
}

/// Matrices in one buffer against the same, each on its own.
#[test]
fn flat_buffers_on_gpus() {
    let params = adamw::AdamWParams {
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
    };
    let shapes = [[3usize, 5], [16, 40], [1, 1], [64, 129]];
    let start: Vec<Tensor<2>> = shapes.map(random).to_vec();
    let all: Vec<Vec<Tensor<2>>> = (0..3).map(|_| shapes.map(random).to_vec()).collect();
    for place in places().iter().filter(|place| place.is_gpu()) {
        for eight_bit in [false, true] {
            let put = |x: &[Tensor<2>]| x.iter().map(|x| place.put_f32(x)).collect::<Vec<_>>();
            let values = Flat::of(&put(&start), DType::F32).unwrap();
            let rounded = Flat::of(&put(&start), place.dtype).unwrap();
            let zeros = || Flat::zeros(&shapes, &place.device, DType::F32).unwrap();
            let moments = if eight_bit {
                FlatMoments::Bits8(Moments8Bit::zeros(values.buffer()), Guard::On)
            } else {
                FlatMoments::F32 {
                    m: zeros(),
                    v: zeros(),
                }
            };
            let views = values.views();
            let mut theirs = start.clone();
            let mut f32s: Vec<_> = start.iter().map(adamw::Moments::zeros).collect();
            let mut bits8: Vec<_> = start.iter().map(Moments8Bit::zeros).collect();
            for (t, grads) in (1..).zip(&all) {
                let flat = Flat::of(&put(grads), DType::F32).unwrap();
                let squares = grads.iter().map(|grad| grad.clone().square().sum());
                let norm = Tensor::cat(squares.collect(), 0).sum().sqrt();
                let close = super::places::Place::cpu();
                let on_host = |x: Tensor<1>| Tensor::<1>::from_data(x.into_data(), &close.device);
                place.assert_close("norm", on_host(flat.norm()), norm);
                let factor = Tensor::<1>::from_data([0.5f32], (&place.device, DType::F32));
                flat::adamw(
                    FlatParams {
                        values: &values,
                        rounded: Some(&rounded),
                    },
                    &flat,
                    Some(&factor),
                    &moments,
                    (0.01, t),
                    &params,
                );
                for (i, grad) in grads.iter().enumerate() {
                    let (param, grad) = (theirs[i].clone(), grad.clone().mul_scalar(0.5));
                    let step = (0.01, t);
                    if eight_bit {
                        let moments = bits8[i].clone();
                        let guard = Guard::On;
                        (theirs[i], bits8[i]) =
                            adamw8bit::reference::step(param, &grad, moments, step, &params, guard);
                    } else {
                        let moments = f32s[i].clone();
                        (theirs[i], f32s[i]) =
                            adamw::reference::step(param, &grad, moments, step, &params);
                    }
                    place.assert_close("parameter", views[i].clone(), theirs[i].clone());
                    place.assert_close("its copy", rounded.view(i), theirs[i].clone());
                }
            }
        }
    }
}

/// Matrices of one shape taken out of their buffer together, and written back for whoever holds a view.
#[test]
fn stacked_matrices_of_flat_buffers_on_gpus() {
    for place in places().iter().filter(|place| place.is_gpu()) {
        // With and without a gap between them.
        for dims in [[3usize, 5], [16, 32]] {
            let start: Vec<Tensor<2>> = (0..3).map(|_| random(dims)).collect();
            let there: Vec<_> = start.iter().map(|x| place.put_f32(x)).collect();
            let values = Flat::of(&there, DType::F32).unwrap();
            let rounded = Flat::of(&there, place.dtype).unwrap();
            let stacked = values.stacked();
            let expected: Tensor<3> = Tensor::stack(start.clone(), 0);
            place.assert_close("stacked", stacked.clone(), expected);
            let doubled = stacked.mul_scalar(2.0);
            values.overwrite(&doubled);
            rounded.overwrite(&doubled);
            for (i, start) in start.into_iter().enumerate() {
                let expected = start.mul_scalar(2.0);
                place.assert_close("view", values.view(i), expected.clone());
                place.assert_close("its copy", rounded.view(i), expected);
            }
            let host = super::places::Place::cpu();
            let norm = Tensor::<1>::from_data(values.norm().into_data(), &host.device);
            let squares = doubled.square().sum().into_data();
            let expected = Tensor::<1>::from_data(squares, &host.device).sqrt();
            host.assert_close("nothing between them", norm, expected);
        }
    }
}
