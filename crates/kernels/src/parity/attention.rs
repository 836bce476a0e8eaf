//! Attention.

use burn::tensor::Tensor;
use proptest::prelude::*;

use super::places::{Place, compare_at, places, random};
use crate::attention::{HeadLayout, Qkv};
use crate::{Segments, attention};

fn check(place: &Place, segments: &Segments, layout: HeadLayout) {
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
    compare_at(
        place,
        &inputs,
        |_, x| attention::attention(qkv(x), segments, layout),
        |_, x| attention::reference::forward(&qkv(x), segments, layout).0,
    );
    let d_out = random([tq, q_width]);
    let exact = qkv(inputs.each_ref().map(|x| place.round(x)));
    let there = qkv(inputs.each_ref().map(|x| place.put(x)));
    let (out, lse) = attention::forward(&there, segments, layout);
    let (expected_out, expected_lse) = attention::reference::forward(&exact, segments, layout);
    place.assert_close("log-sum-exp", lse.clone(), expected_lse.clone());
    let ours = attention::backward(&place.put(&d_out), &there, (&out, &lse), segments, layout);
    let theirs = attention::reference::backward(
        &place.round(&d_out),
        &exact,
        (&expected_out, &expected_lse),
        segments,
        layout,
    );
    place.assert_close("dq", ours.q, theirs.q);
    place.assert_close("dk", ours.k, theirs.k);
    place.assert_close("dv", ours.v, theirs.v);
}

fn layout(heads: usize, kv_heads: usize, head_dim: usize) -> HeadLayout {
    HeadLayout {
        heads,
        kv_heads,
        head_dim,
        scale: (head_dim as f32).powf(-0.5),
    }
}

#[test]
fn attention_and_its_three_gradients() {
    for layout in [
        layout(1, 1, 2),
        layout(4, 2, 16),
        layout(9, 3, 64),
        layout(6, 1, 10),
    ] {
        let place = Place::cpu();
        check(&place, &Segments::from_cumulative(&[0, 1]), layout);
        check(
            &place,
            &Segments::from_cumulative(&[0, 5, 6, 90, 154, 300]),
            layout,
        );
        check(&place, &Segments::continuing([(69, 1)]), layout);
        check(
            &place,
            &Segments::continuing([(100, 70), (3, 1), (0, 9)]),
            layout,
        );
    }
}

#[test]
fn attention_on_every_device() {
    for place in places() {
        check(
            &place.with_burns_products(),
            &Segments::from_cumulative(&[0, 3, 20]),
            layout(4, 2, 16),
        );
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
        check(&Place::cpu(), &Segments::from_cumulative(&cumulative), layout);
    }
}
