//! Matrix products and the projections made of them.

use burn::tensor::{DType, Tensor};

use super::places::{Place, compare, places, random};
use crate::dropout::Dropout;
use crate::flat::Flat;
use crate::gemm::{Op, Slot};
use crate::lora_linear::{Factors, Wanted, WantedFactors};
use crate::{gemm, lora_linear};

#[test]
fn gemm_in_all_orientations_scales_and_accumulates() {
    for (m, n, k) in [(1, 1, 1), (3, 5, 7), (64, 33, 129), (200, 130, 90)] {
        for (op_a, op_b) in [
            (Op::N, Op::N),
            (Op::N, Op::T),
            (Op::T, Op::N),
            (Op::T, Op::T),
        ] {
            let a = random(if op_a == Op::N { [m, k] } else { [k, m] });
            let b = random(if op_b == Op::N { [k, n] } else { [n, k] });
            let c = random([m, n]);
            for place in places() {
                let (exact_a, exact_b) = (place.round(&a), place.round(&b));
                let (a, b) = (place.put(&a), place.put(&b));
                for c in [None, Some(&c)] {
                    let expected = gemm::reference::gemm(
                        (op_a, &exact_a),
                        (op_b, &exact_b),
                        0.5,
                        c.map(|c| place.round(c)),
                    );
                    let c = c.map(|c| place.put(c));
                    let y = gemm::gemm((op_a, &a), (op_b, &b), 0.5, c);
                    assert_eq!(y.dtype(), place.dtype);
                    place.assert_close("gemm", y, expected);
                }
            }
        }
    }
}

#[test]
fn gemm_adds_to_an_f32_sum_whatever_the_factors() {
    let (a, b, c) = (random([70, 9]), random([70, 20]), random([9, 20]));
    for place in places() {
        let (exact_a, exact_b) = (place.round(&a), place.round(&b));
        let expected =
            gemm::reference::gemm((Op::T, &exact_a), (Op::N, &exact_b), 0.25, Some(c.clone()));
        let (a, b) = (place.put(&a), place.put(&b));
        let y = gemm::gemm((Op::T, &a), (Op::N, &b), 0.25, Some(place.put_f32(&c)));
        assert_eq!(y.dtype(), DType::F32);
        place.assert_close("sum", y, expected);
        let y = gemm::gemm_f32((Op::T, &a), (Op::N, &b), 0.25);
        assert_eq!(y.dtype(), DType::F32);
        let expected = gemm::reference::gemm((Op::T, &exact_a), (Op::N, &exact_b), 0.25, None);
        place.assert_close("product", y, expected);
    }
}

#[test]
fn a_product_on_the_tape() {
    compare(
        [random([65, 40]), random([33, 40])],
        |_, [x, w]| gemm::linear(x, w),
        |_, [x, w]| x.matmul(w.transpose()),
    );
}

#[test]
fn gemm_leaves_a_shared_accumulator_alone_and_rounds_as_over_one_of_its_own() {
    for (m, n, k) in [
        (4, 4, 4),
        (300, 128, 64),
        (2048, 128, 384),
        (512, 1024, 256),
        (24_576, 128, 64),
    ] {
        let small = (k as f32).powf(-0.5);
        let (a, b, c) = (random([m, k]), random([k, n]) * small, random([m, n]));
        for place in places() {
            let what = format!("{place:?}, [{m}, {n}, {k}]");
            let (exact_a, exact_b, exact_c) = (place.round(&a), place.round(&b), place.round(&c));
            let sum = (Op::N, &exact_a);
            let expected = gemm::reference::gemm(sum, (Op::N, &exact_b), 1.0, Some(exact_c));
            let (a, b) = (place.put(&a), place.put(&b));
            let over = |c| gemm::gemm((Op::N, &a), (Op::N, &b), 1.0, Some(c));
            let own = over(place.put(&c));
            place.assert_close("over its own", own.clone(), expected.clone());
            let kept = place.put(&c);
            let before = kept.clone().into_data();
            let shared = over(kept.clone()).into_data();
            assert!(shared == own.into_data(), "{what}: bits");
            let beside = gemm::gemm_beside((Op::N, &a), (Op::N, &b), 1.0, &kept);
            assert_eq!(beside.dtype(), place.dtype);
            place.assert_close("beside", beside, expected);
            assert!(kept.into_data() == before, "{what}: what was added to");
        }
    }
}

#[test]
fn gemm_of_nothing() {
    for place in places() {
        let empty = |shape| Tensor::<2>::empty(shape, (&place.device, place.dtype));
        let y = gemm::nn(&empty([0, 4]), &place.put(&random([4, 3])));
        assert_eq!(y.dims(), [0, 3]);
        // Flex and Burn's kernels are not asked: a product over nothing is zero on CUDA.
        #[cfg(feature = "cuda")]
        if place.device == burn::tensor::Device::cuda(0) {
            let y = gemm::nn(&empty([2, 0]), &empty([0, 3]));
            place.assert_close("nothing", y, Tensor::zeros([2, 3], &place.device));
        }
    }
}

#[test]
fn gemm_reads_views() {
    let (wide, b) = (random([6, 20]), random([8, 3]));
    for place in places() {
        let cut = |x: Tensor<2>| x.slice([2..5, 4..12]);
        let expected = gemm::reference::gemm(
            (Op::N, &cut(place.round(&wide))),
            (Op::N, &place.round(&b)),
            1.0,
            None,
        );
        let there = place.put(&b);
        let y = gemm::nn(&cut(place.put(&wide)), &there);
        place.assert_close("a slice", y, expected.clone());
        let turned = place.put(&wide.clone().transpose()).transpose();
        place.assert_close(
            "a transposed view",
            gemm::nn(&cut(turned), &there),
            expected,
        );
    }
}

#[test]
fn lora_linear_and_its_three_gradients() {
    for (dropout, alpha) in [(None, 1.0), (Some(Dropout { p: 0.3, seed: 11 }), 0.6)] {
        for (t, input, output, r) in [(1, 3, 2, 1), (17, 64, 48, 4), (130, 96, 200, 16)] {
            // Of the size that weights have, so that outputs stay of order 1.
            let weight = random([output, input]).mul_scalar((input as f32).powf(-0.5));
            let factors = |a, b| Factors {
                a,
                b,
                scaling: 0.7,
                dropout,
            };
            compare(
                [
                    random([t, input]),
                    random([r, input]).mul_scalar((input as f32).powf(-0.5)),
                    random([output, r]).mul_scalar((r as f32).powf(-0.5)),
                ],
                |place, [x, a, b]| {
                    lora_linear::lora_linear(x, (place.put(&weight), alpha), Some(factors(a, b)))
                },
                |place, [x, a, b]| {
                    let weight = place.round(&weight);
                    lora_linear::reference::forward(x, (weight, alpha), Some(&factors(a, b)))
                },
            );
        }
    }
}

#[test]
fn a_frozen_weight_without_adapter_passes_its_gradient_on() {
    let weight = random([5, 8]);
    compare(
        [random([3, 8])],
        |place, [x]| lora_linear::lora_linear(x, (place.put(&weight), 0.6), None),
        |place, [x]| lora_linear::reference::forward(x, (place.round(&weight), 0.6), None),
    );
}

/// A backward pass whose input comes after its gradient gives the bits of one that has it.
#[test]
fn a_gradient_ahead_of_its_input_is_what_it_is_with_it() {
    const T: usize = 130;
    let [weight, a, b] = [[40, 64], [16, 64], [40, 16]].map(random);
    let (x, dy, before) = (
        random([T, 64]),
        random([T, 40]),
        [random([16, 64]), random([40, 16])],
    );
    let same = |what: &str, place: &Place, found: Tensor<2>, expected: Tensor<2>| {
        assert_eq!(found.dims(), expected.dims(), "{what}, {place:?}");
        found.into_data().assert_eq(&expected.into_data(), true);
    };
    for place in places() {
        let (x, dy, weight) = (place.put(&x), place.put(&dy), place.put(&weight));
        let dropped = Some(Dropout { p: 0.3, seed: 7 });
        for (dropout, flat) in [(None, false), (dropped, false), (None, true)] {
            let slots = || {
                let flat = Flat::of(&before.each_ref().map(|g| place.put_f32(g)), DType::F32);
                flat.filter(|_| dropout.is_none() && place.is_gpu())
            };
            let (ahead_slots, slots) = (slots(), slots());
            if flat && slots.is_none() {
                continue;
            }
            let factors = Factors {
                a: place.put(&a),
                b: place.put(&b),
                scaling: 0.7,
                dropout,
            };
            let xa = factors.down(&x);
            let into = |slots: &Option<Flat>| match slots {
                Some(grads) if flat => WantedFactors::Into([0, 1].map(|i| Slot {
                    view: grads.view(i),
                    accumulate: true,
                })),
                _ => WantedFactors::New,
            };
            let branch = |slots| lora_linear::Branch {
                dy: dy.clone(),
                weight: (&weight, 0.6),
                adapter: Some((&factors, &xa)),
                factors: into(slots),
            };
            let (dx, ahead) = lora_linear::backward_ahead(branch(&ahead_slots));
            let found = ahead.and_then(|ahead| ahead.finish(&x));
            let (expected_dx, [expected]) =
                lora_linear::backward_together([branch(&slots)], Some(&x), true);
            same("dx", place, dx.complete(), expected_dx.unwrap().complete());
            match (found, expected) {
                (Some(found), Some(expected)) => {
                    same("dA", place, found.a, expected.a);
                    same("dB", place, found.b, expected.b);
                }
                (found, expected) => {
                    assert!(found.is_none() && expected.is_none(), "{place:?}");
                    let (found, expected) = (ahead_slots.unwrap(), slots.unwrap());
                    for i in 0..2 {
                        same("a slot", place, found.view(i), expected.view(i));
                    }
                }
            }
        }
    }
}

/// Forward and backward of projections that share their input, one by one and together.
#[test]
fn adapters_together_are_what_they_are_apart() {
    const T: usize = 130;
    const INPUT: usize = 64;
    let outputs = [96, 40, 200];
    let small = |shape: [usize; 2]| random(shape).mul_scalar((shape[1] as f32).powf(-0.5));
    let x = random([T, INPUT]);
    let weights = outputs.map(|output| small([output, INPUT]));
    // 16·64 values are whole blocks of a flat buffer: nothing lies between.
    let downs = outputs.map(|_| small([16, INPUT]));
    let ups = outputs.map(|output| small([output, 16]));
    let dys = outputs.map(|output| random([T, output]));
    let sums = outputs.map(|_| random([16, INPUT]));
    for place in places() {
        let put = |x: &[Tensor<2>; 3]| x.each_ref().map(|x| place.put(x));
        let (input, weights, dys) = (place.put(&x), put(&weights), put(&dys));
        let factors_of = |downs: &[Tensor<2>]| {
            let mut ups = put(&ups).into_iter();
            let factors = downs.iter().zip(&mut ups).map(|(a, b)| Factors {
                a: a.clone(),
                b,
                scaling: 0.7,
                dropout: None,
            });
            factors.collect::<Vec<_>>()
        };
        let flat = Flat::of(&put(&downs), place.dtype);
        assert_eq!(flat.is_some(), place.is_gpu(), "{place:?}");
        let Some(flat) = flat else {
            let apart = factors_of(&put(&downs));
            let apart: Vec<_> = apart.iter().map(Some).collect();
            assert!(lora_linear::down_together(&input, &apart).is_none());
            continue;
        };
        let factors = factors_of(&flat.views());
        let given: Vec<_> = factors.iter().map(Some).collect();
        let downs = lora_linear::down_together(&input, &given).unwrap();
        for (down, f) in downs.iter().zip(&factors) {
            place.assert_close("x·Aᵀ", down.clone(), f.down(&input).cast(DType::F32));
        }
        for accumulate in [false, true] {
            let grads = Flat::of(&sums.each_ref().map(|s| place.put_f32(s)), DType::F32).unwrap();
            let apart = Flat::of(&sums.each_ref().map(|s| place.put_f32(s)), DType::F32).unwrap();
            let ups = outputs.map(|output| Tensor::zeros([output, 16], &place.device));
            let branch = |grads: &Flat, i: usize| lora_linear::Branch {
                dy: dys[i].clone(),
                weight: (&weights[i], [1.0, 0.6, 1.0][i]),
                adapter: Some((&factors[i], &downs[i])),
                factors: WantedFactors::Into([
                    Slot {
                        view: grads.view(i),
                        accumulate,
                    },
                    Slot {
                        view: ups[i].clone(),
                        accumulate: false,
                    },
                ]),
            };
            let together = [0, 1, 2].map(|i| branch(&grads, i));
            let (dx, _) = lora_linear::backward_together(together, Some(&input), true);
            let mut sum = None;
            for i in 0..3 {
                let expected = gemm::gemm_f32((Op::T, &dys[i]), (Op::N, &downs[i]), 0.7);
                place.assert_close("dB", ups[i].clone(), expected);
                let b = branch(&apart, i);
                let wanted = Wanted {
                    input: true,
                    factors: b.factors,
                };
                (sum, _) = lora_linear::backward(&b.dy, &input, b.weight, b.adapter, wanted, sum);
                place.assert_close("dA", grads.view(i), apart.view(i));
            }
            place.assert_close("dx", dx.unwrap().complete(), sum.unwrap().cast(DType::F32));
            let (none, _) = lora_linear::backward_together(
                [0, 1, 2].map(|i| branch(&grads, i)),
                Some(&input),
                false,
            );
            assert!(none.is_none());
        }
    }
}
