//! Every op against its reference: forward, and each gradient against Burn's autodiff of the
//! reference's forward.

use burn::tensor::{Device, Distribution, Tensor};
use proptest::prelude::*;

use crate::attention::{HeadLayout, Qkv};
use crate::dropout::Dropout;
use crate::gemm::Op;
use crate::lora_linear::Factors;
use crate::rope::RotaryTables;
use crate::{Segments, adamw, attention, cross_entropy, gemm, lora_linear, rms_norm, rope, swiglu};

const TOLERANCE: f32 = 2e-5;

fn device() -> Device {
    Device::flex()
}

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device())
}

/// As a leaf whose gradient is recorded.
fn leaf<const D: usize>(x: &Tensor<D>) -> Tensor<D> {
    x.clone().autodiff().require_grad()
}

/// Every difference, relative to the largest expected value; inputs are of order 1, so values that
/// cancel to nothing are compared with 0.1.
#[track_caller]
fn assert_close<const D: usize>(what: &str, actual: Tensor<D>, expected: Tensor<D>) {
    let (actual, expected) = (actual.inner(), expected.inner());
    assert_eq!(actual.dims(), expected.dims(), "{what}: shape");
    let actual = actual.into_data().try_into_vec::<f32>().unwrap();
    let expected = expected.into_data().try_into_vec::<f32>().unwrap();
    let largest = expected.iter().fold(0.1f32, |m, x| m.max(x.abs()));
    for (i, (a, e)) in actual.iter().zip(&expected).enumerate() {
        let error = (a - e).abs() / largest;
        assert!(
            error <= TOLERANCE,
            "{what}[{i}]: {a} instead of {e} (largest {largest})"
        );
    }
}

/// Compares `op` and `reference` on the same leaves: output, and each leaf's gradient under one
/// random cotangent.
#[track_caller]
fn compare<const N: usize>(
    inputs: [Tensor<2>; N],
    op: impl Fn([Tensor<2>; N]) -> Tensor<2>,
    reference: impl Fn([Tensor<2>; N]) -> Tensor<2>,
) {
    let (ours, theirs) = (inputs.each_ref().map(leaf), inputs.each_ref().map(leaf));
    let (y, expected) = (op(ours.clone()), reference(theirs.clone()));
    assert_close("output", y.clone(), expected.clone());
    let dy = random(y.dims());
    let grads = (y * dy.clone()).sum().backward();
    let expected_grads = (expected * dy).sum().backward();
    for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        let what = format!("gradient of input {i}");
        assert_close(
            &what,
            a.grad(&grads).unwrap(),
            b.grad(&expected_grads).unwrap(),
        );
    }
}

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
            for c in [None, Some(c)] {
                let expected = gemm::reference::gemm((op_a, &a), (op_b, &b), 0.5, c.clone());
                assert_close("gemm", gemm::gemm((op_a, &a), (op_b, &b), 0.5, c), expected);
            }
        }
    }
}

#[test]
fn gemm_leaves_a_shared_accumulator_alone() {
    let (a, b, c) = (random([4, 4]), random([4, 4]), random([4, 4]));
    let kept = c.clone();
    let before = c.clone().into_data();
    let _ = gemm::gemm((Op::N, &a), (Op::N, &b), 1.0, Some(c));
    kept.into_data().assert_eq(&before, true);
}

#[test]
fn gemm_reads_views() {
    let wide = random([6, 20]);
    let view = wide.clone().slice([2..5, 4..12]);
    let copy = Tensor::<2>::from_data(view.clone().into_data(), &device());
    let b = random([8, 3]);
    assert_close("view", gemm::nn(&view, &b), gemm::nn(&copy, &b));
}

#[test]
fn rms_norm_and_both_gradients() {
    for (t, n) in [(1, 1), (5, 64), (37, 576), (3, 1500)] {
        compare(
            [random([t, n]), random([1, n])],
            |[x, w]| rms_norm::rms_norm(x, w.squeeze_dim(0), 1e-5),
            |[x, w]| rms_norm::reference::forward(&x, &w.squeeze_dim(0), 1e-5).0,
        );
        let (x, w, dy) = (random([t, n]), random([n]), random([t, n]));
        let (_, rstd) = rms_norm::forward(&x, &w, 1e-5);
        assert_close(
            "dx against the reference's backward",
            rms_norm::backward(&dy, &x, &w, &rstd),
            rms_norm::reference::backward(&dy, &x, &w, &rstd),
        );
    }
}

#[test]
fn rope_and_its_gradient() {
    for (t, heads, d) in [(1, 1, 2), (7, 3, 16), (20, 9, 64)] {
        let angles = random([t, d / 2]).mul_scalar(3.0);
        let tables = RotaryTables {
            cos: angles.clone().cos(),
            sin: angles.sin(),
        };
        compare(
            [random([t, heads * d])],
            |[x]| rope::rope(x, &tables),
            |[x]| rope::reference::rotate(x, &tables, 1.0),
        );
    }
}

#[test]
fn swiglu_and_both_gradients() {
    for (t, m) in [(1, 1), (5, 7), (33, 1536)] {
        let inputs = || [random([t, m]).mul_scalar(4.0), random([t, m])];
        compare(
            inputs(),
            |[gate, up]| swiglu::swiglu(gate, up),
            |[gate, up]| swiglu::reference::forward(&gate, &up),
        );
        let ([gate, up], dy) = (inputs(), random([t, m]));
        let (dgate, dup) = swiglu::backward(&dy, &gate, &up);
        let (expected_gate, expected_up) = swiglu::reference::backward(&dy, &gate, &up);
        assert_close("dgate", dgate, expected_gate);
        assert_close("dup", dup, expected_up);
    }
}

#[test]
fn lora_linear_and_its_three_gradients() {
    for dropout in [None, Some(Dropout { p: 0.3, seed: 11 })] {
        for (t, input, output, r) in [(1, 3, 2, 1), (17, 64, 48, 4), (130, 96, 200, 16)] {
            let weight = random([output, input]);
            let factors = |a, b| Factors {
                a,
                b,
                scaling: 0.7,
                dropout,
            };
            compare(
                [random([t, input]), random([r, input]), random([output, r])],
                |[x, a, b]| lora_linear::lora_linear(x, weight.clone(), Some(factors(a, b))),
                |[x, a, b]| {
                    lora_linear::reference::forward(x, weight.clone(), Some(&factors(a, b)))
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
        |[x]| lora_linear::lora_linear(x, weight.clone(), None),
        |[x]| lora_linear::reference::forward(x, weight.clone(), None),
    );
}

#[test]
fn dropout_keeps_the_expectation_and_is_a_function_of_the_seed() {
    let ones = Tensor::<2>::ones([100, 100], &device());
    let dropout = Dropout { p: 0.25, seed: 3 };
    let dropped = dropout.apply(ones.clone());
    let mean: f32 = dropped.clone().mean().into_scalar();
    assert!((mean - 1.0).abs() < 0.03, "mean {mean}");
    dropout
        .apply(ones.clone())
        .into_data()
        .assert_eq(&dropped.clone().into_data(), true);
    let other = Dropout { p: 0.25, seed: 4 }.apply(ones);
    let changed: f32 = (other - dropped).abs().sum().into_scalar();
    assert!(changed > 100.0);
}

fn check_attention(segments: &Segments, layout: HeadLayout) {
    let (tq, tk) = (segments.queries(), segments.keys());
    let (q_width, kv_width) = (
        layout.heads * layout.head_dim,
        layout.kv_heads * layout.head_dim,
    );
    let inputs = [
        random([tq, q_width]),
        random([tk, kv_width]),
        random([tk, kv_width]),
    ];
    let qkv = |[q, k, v]: [Tensor<2>; 3]| Qkv { q, k, v };
    compare(
        inputs.clone(),
        |x| attention::attention(qkv(x), segments, layout),
        |x| attention::reference::forward(&qkv(x), segments, layout).0,
    );
    let (qkv, d_out) = (qkv(inputs), random([tq, q_width]));
    let (out, lse) = attention::forward(&qkv, segments, layout);
    let (_, expected_lse) = attention::reference::forward(&qkv, segments, layout);
    assert_close("log-sum-exp", lse.clone(), expected_lse);
    let ours = attention::backward(&d_out, &qkv, (&out, &lse), segments, layout);
    let theirs = attention::reference::backward(&d_out, &qkv, (&out, &lse), segments, layout);
    assert_close("dq", ours.q, theirs.q);
    assert_close("dk", ours.k, theirs.k);
    assert_close("dv", ours.v, theirs.v);
}

#[test]
fn attention_and_its_three_gradients() {
    let layout = |heads, kv_heads, head_dim| HeadLayout {
        heads,
        kv_heads,
        head_dim,
        scale: (head_dim as f32).powf(-0.5),
    };
    for layout in [
        layout(1, 1, 2),
        layout(4, 2, 16),
        layout(9, 3, 64),
        layout(6, 1, 10),
    ] {
        check_attention(&Segments::from_cumulative(&[0, 1]), layout);
        check_attention(&Segments::from_cumulative(&[0, 5, 6, 90, 154, 300]), layout);
        check_attention(&Segments::continuing([(69, 1)]), layout);
        check_attention(&Segments::continuing([(100, 70), (3, 1), (0, 9)]), layout);
    }
}

#[test]
fn a_document_does_not_see_its_neighbour() {
    let layout = HeadLayout {
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        scale: 0.3,
    };
    let (q, k, v) = (random([12, 16]), random([12, 8]), random([12, 8]));
    let both = Qkv {
        q: q.clone(),
        k: k.clone(),
        v: v.clone(),
    };
    let (out, _) = attention::forward(&both, &Segments::from_cumulative(&[0, 5, 12]), layout);
    let alone = Qkv {
        q: q.slice([5..12, 0..16]),
        k: k.slice([5..12, 0..8]),
        v: v.slice([5..12, 0..8]),
    };
    let (second, _) = attention::forward(&alone, &Segments::rectangular(1, 7), layout);
    out.slice([5..12, 0..16])
        .into_data()
        .assert_eq(&second.into_data(), true);
}

#[test]
fn cross_entropy_and_the_gradient_of_the_hidden_states() {
    for (n, h, v) in [
        (1, 2, 3),
        (40, 16, 257),
        (cross_entropy::CHUNK + 3, 8, 1000),
    ] {
        let head = random([v, h]);
        let targets: Vec<u32> = (0..n).map(|i| (i * 31 % v) as u32).collect();
        compare(
            [random([n, h])],
            |[x]| cross_entropy::cross_entropy(x, &head, &targets).unsqueeze(),
            |[x]| cross_entropy::reference::cross_entropy(x, head.clone(), &targets).unsqueeze(),
        );
        let logits = random([n, v]).mul_scalar(20.0);
        let (nll, d) = cross_entropy::softmax_nll(logits.clone(), &targets, Some(0.5));
        let (expected_nll, expected_d) =
            cross_entropy::reference::softmax_nll(logits, &targets, Some(0.5));
        assert_close("nll", nll, expected_nll);
        assert_close("d logits", d.unwrap(), expected_d.unwrap());
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
    let start = random([33, 5]);
    let (mut ours, mut ours_m) = (start.clone(), adamw::Moments::zeros(&start));
    let (mut theirs, mut theirs_m) = (start.clone(), adamw::Moments::zeros(&start));
    for t in 1..=5 {
        let grad = random([33, 5]);
        (ours, ours_m) = adamw::step(ours, &grad, ours_m, (0.01, t), &params);
        (theirs, theirs_m) = adamw::reference::step(theirs, &grad, theirs_m, (0.01, t), &params);
        assert_close("parameter", ours.clone(), theirs.clone());
        assert_close("m", ours_m.m.clone(), theirs_m.m.clone());
        assert_close("v", ours_m.v.clone(), theirs_m.v.clone());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn attention_over_any_documents(
        lengths in prop::collection::vec(0u32..90, 1..5),
        (kv_heads, group, half) in (1usize..4, 1usize..4, 1usize..9),
    ) {
        let mut cumulative = vec![0];
        for length in lengths {
            cumulative.push(cumulative[cumulative.len() - 1] + length);
        }
        prop_assume!(cumulative[cumulative.len() - 1] > 0);
        let layout = HeadLayout {
            heads: kv_heads * group,
            kv_heads,
            head_dim: 2 * half,
            scale: 0.4,
        };
        check_attention(&Segments::from_cumulative(&cumulative), layout);
    }
}
