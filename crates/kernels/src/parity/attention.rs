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
    HeadLayout::new(heads, kv_heads, head_dim)
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

/// One token, an odd number, documents that end within tiles and fill several, a cache.
fn documents() -> [Segments; 4] {
    [
        Segments::from_cumulative(&[0, 1]),
        Segments::from_cumulative(&[0, 3, 20, 21, 210]),
        Segments::from_cumulative(&[0, 300]),
        Segments::continuing([(130, 1), (0, 0), (9, 140), (5, 3)]),
    ]
}

#[test]
fn attention_on_every_device() {
    for place in places() {
        for segments in documents() {
            check(place, &segments, layout(4, 2, 16));
        }
    }
}

#[test]
fn attention_on_gpus_for_every_head_size() {
    let gpus = places().iter().filter(|place| place.is_gpu());
    for place in gpus {
        for head_dim in [64, 80, 96, 128, 256] {
            // Three heads of 256 over 300 rows are 100,000 turns.
            let group = if place.ends_loops && head_dim > 128 {
                1
            } else {
                3
            };
            for segments in documents() {
                check(place, &segments, layout(2 * group, 2, head_dim));
            }
        }
        // Gemma 4's largest: four heads of 512 over 37 rows are 76,000 turns.
        let heads = if place.ends_loops { 2 } else { 4 };
        let segments = Segments::from_cumulative(&[0, 3, 40]);
        check(place, &segments, layout(heads, 1, 512));
        // One head each, and one for all.
        check(place, &documents()[1], layout(3, 3, 64));
        check(place, &documents()[1], layout(5, 1, 128));
    }
}

#[test]
fn attention_with_windows_and_capped_scores() {
    for place in places() {
        for head_dim in [16, 64] {
            for window in [2, 7, 70, 1000] {
                let layout = HeadLayout {
                    window: Some(window),
                    ..layout(2, 1, head_dim)
                };
                for segments in documents() {
                    check(place, &segments, layout);
                }
            }
            let capped = layout(2, 1, head_dim).with_softcap(1.5);
            for segments in documents() {
                check(place, &segments, capped);
            }
            check(place, &documents()[1], capped.with_window(33));
        }
    }
}

/// Paths of the card that is there, each made to run: documents that end before, with and after tiles and blocks, a
/// cache, windows, caps and groups.
#[cfg(feature = "cuda")]
mod on_path {
    use std::ops::RangeBounds;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use burn::tensor::DType;

    use super::*;
    use crate::attention::Path;
    use crate::hopper::compute_capability;
    use crate::parity::places::say;

    fn check(place: &Place, path: Path, segments: &Segments, layout: HeadLayout) {
        let what = |of: &str| format!("{of} by {} of {layout:?}", path.name());
        let (q, kv) = (
            [segments.queries(), layout.heads * layout.head_dim],
            [segments.keys(), layout.kv_heads * layout.head_dim],
        );
        let inputs = [random(q), random(kv), random(kv)];
        let d_out = random(q);
        let qkv = |[q, k, v]: [Tensor<2>; 3]| Qkv { q, k, v };
        let exact = qkv(inputs.each_ref().map(|x| place.round(x)));
        let there = qkv(inputs.each_ref().map(|x| place.put(x)));
        let d_there = place.put(&d_out);
        let run = || {
            let (out, lse) = attention::forward_by(path, &there, segments, layout)
                .unwrap_or_else(|| panic!("no {}", what("attention")));
            let saved = (&out, &lse);
            let grads = attention::backward_by(path, &d_there, &there, saved, segments, layout)
                .unwrap_or_else(|| panic!("no {}", what("gradients")));
            [out, lse, grads.q, grads.k, grads.v]
        };
        let found = run();
        let (out, lse) = attention::reference::forward(&exact, segments, layout);
        let grads = attention::reference::backward(
            &place.round(&d_out),
            &exact,
            (&out, &lse),
            segments,
            layout,
        );
        let expected = [out, lse, grads.q, grads.k, grads.v];
        let names = ["out", "log-sum-exp", "dq", "dk", "dv"].map(what);
        for ((name, found), expected) in names.iter().zip(found.clone()).zip(expected) {
            place.assert_close(name, found, expected);
        }
        for (again, found) in run().into_iter().zip(found) {
            again.into_data().assert_eq(&found.into_data(), true);
        }
    }

    fn check_all(
        path: Path,
        cards: impl RangeBounds<(i32, i32)>,
        dtypes: &[DType],
        head_dims: &[usize],
    ) {
        // The card is opened by asking for places, and known from then on.
        let places: Vec<_> = places()
            .iter()
            .filter(|place| place.is_cuda() && dtypes.contains(&place.dtype))
            .collect();
        let card = if places.is_empty() {
            None
        } else {
            compute_capability(0)
        };
        if !card.is_some_and(|card| cards.contains(&card)) {
            say(&format!(
                "no attention on {}: the card is {card:?}",
                path.name()
            ));
            return;
        }
        let mut lengths = vec![0];
        for length in [1, 63, 64, 65, 127, 128, 129] {
            lengths.push(lengths[lengths.len() - 1] + length);
        }
        let every_length = Segments::from_cumulative(&lengths);
        let [.., continued] = documents();
        // All are tried, so that one run on a card tells everything that is wrong.
        let mut wrong = Vec::new();
        for place in places {
            for &head_dim in head_dims {
                let alone = layout(2, 2, head_dim);
                let capped = layout(4, 1, head_dim).with_softcap(1.5);
                let mut cases = vec![
                    (&every_length, layout(4, 2, head_dim)),
                    (&every_length, alone.with_window(37)),
                    (&continued, alone.with_window(37)),
                ];
                if path != Path::Hopper {
                    cases.extend([
                        (&every_length, capped),
                        (&continued, capped.with_window(70)),
                    ]);
                }
                for (segments, layout) in cases {
                    let checked = AssertUnwindSafe(|| check(place, path, segments, layout));
                    if catch_unwind(checked).is_err() {
                        wrong.push(format!("{} {layout:?}", place.dtype.name()));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{}: {}", path.name(), wrong.join("\n"));
    }

    const HALF: [DType; 2] = [DType::BF16, DType::F16];

    #[test]
    fn attention_on_hopper() {
        check_all(Path::Hopper, (9, 0)..=(9, 0), &HALF, &[16, 64, 112, 128]);
    }

    #[test]
    fn attention_on_sm80() {
        check_all(Path::Sm80, (8, 0).., &HALF, &[16, 64, 128, 192, 256]);
    }

    #[test]
    fn attention_on_sm80_of_odd_and_large_heads() {
        check_all(Path::Sm80, (8, 0).., &[DType::BF16], &[48, 80, 240, 512]);
    }

    #[test]
    fn attention_on_sm75() {
        let head_dims = [16, 64, 80, 128, 192, 256];
        check_all(Path::Sm75, (7, 5).., &[DType::F16], &head_dims);
    }
}

/// Gemma's heads: of 256 and 512, few, with a window and with caps.
#[test]
fn attention_of_large_heads() {
    let place = Place::cpu();
    for segments in documents() {
        check(&place, &segments, layout(2, 1, 256));
        check(&place, &segments, layout(2, 1, 256).with_window(40));
        let capped = layout(2, 1, 256).with_scale(0.1).with_softcap(5.0);
        check(&place, &segments, capped);
        check(&place, &segments, layout(4, 1, 512));
    }
}

#[test]
fn a_window_of_one_is_the_query_itself() {
    let layout = HeadLayout {
        window: Some(1),
        ..layout(2, 2, 16)
    };
    let [q, k, v] = [(); 3].map(|()| random([20, 32]));
    for place in places() {
        let [q, k, there] = [&q, &k, &v].map(|x| place.put(x));
        let qkv = Qkv { q, k, v: there };
        let (out, _) = attention::forward(&qkv, &Segments::from_cumulative(&[0, 3, 20]), layout);
        place.assert_close("values", out, place.round(&v));
    }
}

#[test]
fn a_document_does_not_see_its_neighbour() {
    let layout = HeadLayout {
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        scale: 0.3,
        ..layout(1, 1, 1)
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
            ..layout(1, 1, 1)
        };
        check(&Place::cpu(), &Segments::from_cumulative(&cumulative), layout);
    }
}
