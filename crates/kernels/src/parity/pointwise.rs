//! Ops that work token by token.

use backdraft_arch::{Activation, NormScale, RotaryPairs};
use burn::tensor::{DType, Device, Tensor};

use super::places::{Place, compare, places, random};
use crate::dropout::Dropout;
use crate::noise::{self, RowNoise};
use crate::rms_norm::Gain;
use crate::rope::RotaryTables;
use crate::{column_sums, embedding, norm_rope, rms_norm, rope, swiglu};

/// A weight as it is, and one more than it.
const SCALES: [NormScale; 2] = [NormScale::Weight, NormScale::OnePlusWeight];

#[test]
fn rms_norm_and_both_gradients() {
    for (t, n) in [(1, 2), (5, 64), (37, 576), (3, 1500), (2, 9001)] {
        for scale in SCALES {
            check_rms_norm(t, n, scale);
        }
    }
}

fn check_rms_norm(t: usize, n: usize, scale: NormScale) {
    compare(
        [random([t, n]), random([1, n])],
        |_, [x, w]| rms_norm::rms_norm(x, (w.squeeze_dim(0), scale), 1e-5),
        |_, [x, w]| {
            let weight = &w.squeeze_dim(0);
            rms_norm::reference::forward(&x, Gain { weight, scale }, 1e-5).0
        },
    );
    let (x, w, dy) = (random([t, n]), random([n]), random([t, n]));
    for place in places() {
        let (there, weight) = (place.put(&x), &place.put(&w));
        let (_, rstd) = rms_norm::forward(&there, Gain { weight, scale }, 1e-5);
        let dx = rms_norm::backward(&place.put(&dy), &there, Gain { weight, scale }, &rstd);
        let (exact, weight) = (place.round(&x), &place.round(&w));
        let (_, rstd) = rms_norm::reference::forward(&exact, Gain { weight, scale }, 1e-5);
        let dy = place.round(&dy);
        let expected = rms_norm::reference::backward(&dy, &exact, Gain { weight, scale }, &rstd);
        place.assert_close("dx against the reference's backward", dx, expected);
        let dw = rms_norm::backward_weight(&place.put(&dy), &there, &place.put_f32(&rstd));
        assert_eq!(dw.dtype(), DType::F32);
        let expected = rms_norm::reference::backward_weight(&dy, &exact, &rstd);
        place.assert_close("dw against the reference's backward", dw, expected);
        // A norm's weight may be kept in f32 whatever the activations are.
        let weight = &place.put_f32(&w);
        let (mixed, _) = rms_norm::forward(&there, Gain { weight, scale }, 1e-5);
        assert_eq!(mixed.dtype(), place.dtype);
        let weight = &w;
        let (expected, _) = rms_norm::reference::forward(&exact, Gain { weight, scale }, 1e-5);
        place.assert_close("an f32 weight", mixed, expected);
    }
}

#[test]
fn rms_norm_adds_to_what_goes_past_it() {
    for (t, n) in [(1, 1), (5, 64), (37, 576), (3, 1500)] {
        for scale in SCALES {
            check_adding(t, n, scale);
        }
    }
}

fn check_adding(t: usize, n: usize, scale: NormScale) {
    let [x, dy, past] = [(); 3].map(|()| random([t, n]));
    let w = random([n]);
    for place in places() {
        let there = |x: &Tensor<2>| place.put(x);
        let weight = &place.put(&w);
        let gain = Gain { weight, scale };
        let (_, rstd) = rms_norm::forward(&there(&x), gain, 1e-5);
        let (exact, weight) = (place.round(&x), &place.round(&w));
        let of = Gain { weight, scale };
        let (_, exact_rstd) = rms_norm::reference::forward(&exact, of, 1e-5);
        let expected = place.round(&past)
            + rms_norm::reference::backward(&place.round(&dy), &exact, of, &exact_rstd);
        let backward = |past| rms_norm::backward_add(&there(&dy), &there(&x), gain, &rstd, past);
        place.assert_close("in place", backward(there(&past)), expected.clone());
        let held = there(&past);
        place.assert_close("beside it", backward(held.clone()), expected);
        place.assert_close("held operand", held, place.round(&past));
    }
}

#[test]
fn sums_of_columns() {
    for (t, n) in [(1, 1), (5, 64), (37, 576), (2100, 70)] {
        let x = random([t, n]);
        for place in places() {
            let found = column_sums::column_sums(&place.put(&x));
            assert_eq!(found.dtype(), DType::F32);
            let expected = column_sums::reference::column_sums(&place.round(&x));
            place.assert_close("sums of columns", found, expected);
        }
    }
}

#[test]
fn gradients_of_tables() {
    let ids = [3u32, 0, 3, 3, 8, 1, 0, 8, 8, 8, 5];
    for h in [1, 64, 200] {
        let (sum, dh) = (random([9, h]), random([ids.len(), h]));
        for place in places() {
            let expected =
                embedding::reference::add_rows(sum.clone(), &place.round(&dh), &ids, 0.5);
            let there = place.put(&dh);
            let found = embedding::add_rows(place.put_f32(&sum), &there, &ids, 0.5);
            assert_eq!(found.dtype(), DType::F32);
            place.assert_close("in place", found, expected.clone());
            let held = place.put_f32(&sum);
            let found = embedding::add_rows(held.clone(), &there, &ids, 0.5);
            place.assert_close("beside it", found, expected);
            place.assert_close("held operand", held, sum.clone());
        }
        let none = Tensor::zeros([0, h], &Device::flex());
        let found = embedding::add_rows(sum.clone(), &none, &[], 0.5);
        assert_eq!(found.into_data(), sum.into_data());
    }
}

fn tables(t: usize, d: usize) -> RotaryTables {
    let angles = random([t, d / 2]).mul_scalar(3.0);
    RotaryTables::new(angles.clone().cos(), angles.sin())
}

/// The first `turning` of d features turn.
fn partial(t: usize, (d, turning): (usize, usize), pairs: RotaryPairs) -> RotaryTables {
    RotaryTables {
        head_dim: d,
        pairs,
        ..tables(t, turning)
    }
}

impl Place {
    fn put_tables(&self, tables: &RotaryTables) -> RotaryTables {
        RotaryTables {
            cos: self.put_f32(&tables.cos),
            sin: self.put_f32(&tables.sin),
            ..tables.clone()
        }
    }
}

/// Of heads that turn in part, or in pairs of neighbours.
const PARTS: [((usize, usize), RotaryPairs); 7] = [
    ((16, 12), RotaryPairs::Halves),
    ((128, 96), RotaryPairs::Halves),
    ((256, 64), RotaryPairs::Halves),
    ((10, 4), RotaryPairs::Halves),
    ((16, 8), RotaryPairs::Neighbours),
    ((128, 64), RotaryPairs::Neighbours),
    ((6, 6), RotaryPairs::Neighbours),
];

#[test]
fn rope_and_its_gradient() {
    let check = |t, heads, tables: RotaryTables| {
        compare(
            [random([t, heads * tables.head_dim])],
            |place, [x]| rope::rope(x, &place.put_tables(&tables)),
            |_, [x]| rope::reference::rotate(x, &tables, 1.0),
        );
    };
    for (t, heads, d) in [(1, 1, 2), (7, 3, 16), (20, 9, 64), (5, 2, 80), (3, 2, 6)] {
        check(t, heads, tables(t, d));
    }
    for (part, pairs) in PARTS {
        check(5, 3, partial(5, part, pairs));
    }
}

#[test]
fn rope_of_queries_and_keys_in_one_launch() {
    let shapes = [(1, 1, 1, 2), (7, 4, 2, 16), (33, 9, 3, 64), (3, 2, 5, 6)];
    let whole = shapes.map(|(t, heads, kv_heads, d)| (t, heads, kv_heads, tables(t, d)));
    let in_part = PARTS.map(|(part, pairs)| (5, 4, 2, partial(5, part, pairs)));
    for (t, heads, kv_heads, exact) in whole.into_iter().chain(in_part) {
        let d = exact.head_dim;
        let (q, k) = (random([t, heads * d]), random([t, kv_heads * d]));
        for place in places() {
            let tables = place.put_tables(&exact);
            let there = || (place.put(&q), place.put(&k));
            for (sign, both) in [
                (1.0, rope::forward_both as fn(_, _, &_) -> _),
                (-1.0, rope::backward_both),
            ] {
                let (q_there, k_there) = there();
                let kept = q_there.clone();
                let (y_q, y_k) = both(q_there, k_there, &tables);
                for (what, y, x) in [("queries", y_q, &q), ("keys", y_k, &k)] {
                    let expected = rope::reference::rotate(place.round(x), &exact, sign);
                    place.assert_close(what, y, expected);
                }
                place.assert_close("a shared input", kept, place.round(&q));
            }
            let (q_there, k_there) = there();
            let (y_q, y_k) = rope::forward_both(q_there, k_there, &tables);
            let (q_again, k_again) = rope::backward_both(y_q, y_k, &tables);
            place.assert_close("there and back", q_again, place.round(&q));
            place.assert_close("there and back", k_again, place.round(&k));
        }
    }
}

#[test]
fn rope_leaves_a_shared_input_alone() {
    let (x, tables) = (random([3, 8]), tables(3, 8));
    for place in places() {
        let x = place.put(&x);
        let before = x.clone().into_data();
        let tables = place.put_tables(&tables);
        let _ = rope::forward(x.clone(), &tables);
        x.into_data().assert_eq(&before, true);
    }
}

#[test]
fn norm_rope_and_both_gradients() {
    for (t, heads, d) in [
        (1, 1, 2),
        (7, 3, 16),
        (20, 9, 64),
        (5, 2, 80),
        (3, 2, 6),
        (9, 5, 128),
        (2, 3, 256),
        // More groups than are summed one after the other.
        (600, 4, 8),
    ] {
        for scale in SCALES {
            check_norm_rope((t, heads), tables(t, d), 1, scale);
        }
    }
    // All heads of a token together, some of them, and more features than a row's buffer holds.
    for (t, heads, d, together) in [(7, 3, 16, 3), (5, 4, 6, 2), (3, 16, 128, 16), (4, 5, 64, 5)] {
        for scale in SCALES {
            check_norm_rope((t, heads), tables(t, d), together, scale);
        }
    }
    for (part, pairs) in PARTS {
        for together in [1, 2, 4] {
            check_norm_rope(
                (5, 4),
                partial(5, part, pairs),
                together,
                SCALES[together % 2],
            );
        }
    }
}

fn check_norm_rope(
    (t, heads): (usize, usize),
    exact: RotaryTables,
    together: usize,
    scale: NormScale,
) {
    let d = exact.head_dim;
    let put = |place: &Place| place.put_tables(&exact);
    compare(
        [random([t, heads * d]), random([1, together * d])],
        |place, [x, w]| norm_rope::norm_rope(x, (w.squeeze_dim(0), scale), 1e-5, &put(place)),
        |_, [x, w]| {
            let weight = &w.squeeze_dim(0);
            norm_rope::reference::forward(&x, Gain { weight, scale }, 1e-5, &exact)
        },
    );
    let (x, dy, w) = (
        random([t, heads * d]),
        random([t, heads * d]),
        random([together * d]),
    );
    for place in places() {
        let (there, weight, tables) = (place.put(&x), &place.put(&w), put(place));
        let expected = norm_rope::reference::backward(
            &place.round(&dy),
            &place.round(&x),
            Gain {
                weight: &place.round(&w),
                scale,
            },
            1e-5,
            &exact,
        );
        let gain = Gain { weight, scale };
        let backward = |dy| norm_rope::backward(dy, &there, gain, 1e-5, &tables);
        place.assert_close("in place", backward(place.put(&dy)), expected.clone());
        let held = place.put(&dy);
        place.assert_close("beside it", backward(held.clone()), expected);
        place.assert_close("held gradient", held, place.round(&dy));
        // The weight may be kept in f32 whatever the activations are.
        let weight = &place.put_f32(&w);
        let mixed = norm_rope::forward(&there, Gain { weight, scale }, 1e-5, &tables);
        assert_eq!(mixed.dtype(), place.dtype);
        let gain = Gain { weight: &w, scale };
        let expected = norm_rope::reference::forward(&place.round(&x), gain, 1e-5, &exact);
        place.assert_close("an f32 weight", mixed, expected);
    }
}

const ACTIVATIONS: [Activation; 2] = [Activation::Silu, Activation::GeluTanh];

#[test]
fn swiglu_and_both_gradients() {
    for (t, m) in [(1, 1), (5, 7), (33, 1536), (70_001, 1)] {
        for activation in ACTIVATIONS {
            check_swiglu(t, m, activation);
        }
    }
}

fn check_swiglu(t: usize, m: usize, activation: Activation) {
    let inputs = || [random([t, m]).mul_scalar(4.0), random([t, m])];
    compare(
        inputs(),
        |_, [gate, up]| swiglu::swiglu(gate, up, activation),
        |_, [gate, up]| swiglu::reference::forward(&gate, &up, activation),
    );
    let ([gate, up], dy) = (inputs(), random([t, m]));
    for place in places() {
        let [d, g, u] = [&dy, &gate, &up].map(|x| place.put(x));
        let product = swiglu::forward(&g, &u, activation);
        let expected = {
            let [d, g, u] = [&dy, &gate, &up].map(|x| place.round(x));
            swiglu::reference::backward(&d, &g, &u, activation, true)
        };
        // Held by others, then in their places, with the product and without.
        let beside = swiglu::backward(d.clone(), g.clone(), u.clone(), activation, true);
        for (held, x) in [&d, &g, &u].into_iter().zip([&dy, &gate, &up]) {
            place.assert_close("what was there", held.clone(), place.round(x));
        }
        let without = swiglu::backward(d.clone(), g.clone(), u.clone(), activation, false);
        assert!(without.product.is_none());
        place.assert_close("dy", d.clone(), place.round(&dy));
        for found in [beside, without, swiglu::backward(d, g, u, activation, true)] {
            place.assert_close("dgate", found.gate, expected.gate.clone());
            place.assert_close("dup", found.up, expected.up.clone());
            if let Some(again) = found.product {
                place.assert_close("product", again.clone(), expected.product.clone().unwrap());
                again
                    .into_data()
                    .assert_eq(&product.clone().into_data(), true);
            }
        }
    }
}

#[test]
fn swiglu_saturates_without_overflow() {
    let gate = Tensor::<2>::from_data([[-300.0f32, 300.0, 0.0]], &Device::flex());
    for place in places() {
        for activation in ACTIVATIONS {
            let there = place.put(&gate);
            let ones = there.ones_like();
            let y = swiglu::forward(&there, &ones, activation);
            let expected = Tensor::from_data([[0.0f32, 300.0, 0.0]], &Device::flex());
            place.assert_close("far out", y, expected);
            let d = swiglu::backward(ones.clone(), there, ones.clone(), activation, false);
            let slopes = Tensor::from_data([[0.0f32, 1.0, 0.5]], &Device::flex());
            place.assert_close("slopes far out", d.gate, slopes);
            let expected = Tensor::from_data([[0.0f32, 300.0, 0.0]], &Device::flex());
            place.assert_close("the other's", d.up, expected);
        }
    }
}

#[test]
fn embedding_gathers_rows() {
    for (v, h) in [(1, 1), (9, 7), (300, 576)] {
        let table = random([v, h]);
        let ids: Vec<u32> = (0..2 * v).map(|i| (i * 7 % v) as u32).collect();
        for place in places() {
            let there = place.put(&table);
            let expected = embedding::reference::forward(&place.round(&table), &ids);
            place.assert_close("rows", embedding::forward(&there, &ids), expected);
            assert_eq!(embedding::forward(&there, &[]).dims(), [0, h]);
        }
    }
}

/// A device reads rows in the host's memory, or says that it cannot.
#[test]
fn embedding_gathers_rows_of_the_host() {
    for (v, h) in [(1, 8), (9, 16), (300, 576), (7, 3)] {
        let table = random([v, h]);
        let ids: Vec<u32> = (0..2 * v).map(|i| (i * 7 % v) as u32).collect();
        for place in places() {
            let data = place.put(&table).into_data();
            let pinned = embedding::HostTable::pinned(&data, &place.device);
            let whole_chunks = (h * place.dtype.size()).is_multiple_of(16);
            let expected = crate::offload::is_there(&place.device) && whole_chunks;
            assert_eq!(pinned.is_some(), expected, "{place:?}");
            let Some(pinned) = pinned else {
                continue;
            };
            assert_eq!((pinned.dims(), pinned.dtype()), ([v, h], place.dtype));
            let there = place.put(&table);
            let same = |found: Tensor<2>, expected: Tensor<2>| {
                found.into_data().assert_eq(&expected.into_data(), true);
            };
            same(pinned.rows(&ids), embedding::forward(&there, &ids));
            assert_eq!(pinned.rows(&[]).dims(), [0, h]);
            let copy = pinned.clone();
            drop(pinned);
            same(copy.whole(), there);
        }
    }
}

#[test]
fn embedding_puts_rows_back() {
    for (t, h, step) in [(1, 1, 1), (9, 7, 2), (300, 576, 3), (40, 16, 1), (5, 8, 9)] {
        let rows: Vec<u32> = (0..t as u32).step_by(step).skip(1).collect();
        let values = random([rows.len(), h]);
        for place in places() {
            let spread = embedding::spread(&place.put(&values), &rows, t);
            let expected = embedding::reference::spread(&place.round(&values), &rows, t);
            place.assert_close("rows in place", spread, expected);
        }
    }
}

#[test]
fn empty_tensors_stay_empty() {
    for place in places() {
        let x = Tensor::<2>::empty([0, 8], (&place.device, place.dtype));
        let w = place.put(&random([8]));
        assert_eq!(rms_norm::forward(&x, &w, 1e-5).0.dims(), [0, 8]);
        assert_eq!(swiglu::forward(&x, &x, Activation::Silu).dims(), [0, 8]);
        let tables = || Tensor::empty([0, 2], &place.device);
        let tables = RotaryTables::new(tables(), tables());
        let w = place.put(&random([4]));
        assert_eq!(norm_rope::forward(&x, &w, 1e-5, &tables).dims(), [0, 8]);
        assert_eq!(rope::forward(x, &tables).dims(), [0, 8]);
    }
}

#[test]
fn dropout_keeps_the_expectation_and_is_a_function_of_the_seed() {
    let ones = Tensor::<2>::ones([100, 100], &Device::flex());
    let dropout = Dropout { p: 0.25, seed: 3 };
    let dropped = dropout.apply(ones.clone());
    let mean: f32 = dropped.clone().mean().into_scalar();
    assert!((mean - 1.0).abs() < 0.03, "mean {mean}");
    for place in places() {
        let there = dropout.apply(place.put(&ones));
        place.assert_close("the same mask", there, dropped.clone());
    }
    let other = Dropout { p: 0.25, seed: 4 }.apply(ones);
    let changed: f32 = (other - dropped).abs().sum().into_scalar();
    assert!(changed > 100.0);
}

#[test]
fn dropout_of_any_shape_and_added() {
    for ([t, n], seed) in [
        ([1, 1], 0),
        ([37, 576], u64::MAX),
        ([300, 1001], 0x0123_4567_89AB_CDEF),
    ] {
        // Far from zero, so that no sum is small beside what it is made of.
        let (x, past) = (random([t, n]), random([t, n]) + 4.0);
        let dropout = Dropout { p: 0.1, seed };
        for place in places() {
            let expected = dropout.apply(place.round(&x));
            place.assert_close("in place", dropout.apply(place.put(&x)), expected.clone());
            let held = place.put(&x);
            place.assert_close("beside it", dropout.apply(held.clone()), expected.clone());
            let (there, sum) = (place.put(&past), place.round(&past) + expected);
            let added = dropout.add_to(&held, place.put(&past));
            place.assert_close("added in place", added, sum.clone());
            place.assert_close("added", dropout.add_to(&held, there.clone()), sum);
            place.assert_close("held operand", there, place.round(&past));
            place.assert_close("what is dropped out", held, place.round(&x));
        }
    }
}

#[test]
fn noise_on_rows() {
    for (t, n) in [(1, 1), (5, 64), (3, 577), (37, 1500)] {
        let x = random([t, n]);
        let key = |i: usize| crate::uniform::bits(7, i as u64);
        let rows: Vec<RowNoise> = (0..t)
            .map(|i| RowNoise {
                key: key(i),
                scale: 0.25 * i as f32,
            })
            .collect();
        for place in places() {
            let expected = noise::reference::add(place.round(&x), &rows);
            place.assert_close("noise", noise::add(place.put(&x), &rows), expected);
        }
    }
}

/// Uniform in [-1, 1): mean 0 and mean square 1/3, apart from one key to the next and from one column to the next.
#[test]
fn noise_is_uniform_and_independent() {
    let (t, n) = (64, 1024);
    let rows: Vec<RowNoise> = (0..t as u64)
        .map(|key| RowNoise { key, scale: 1.0 })
        .collect();
    let zeros = Tensor::<2>::zeros([t, n], &Device::flex());
    let draws = noise::add(zeros, &rows).into_data();
    let draws: Vec<f64> = draws.iter::<f64>().collect();
    assert!(draws.iter().all(|draw| (-1.0..1.0).contains(draw)));
    let mean = |products: &mut dyn Iterator<Item = f64>| {
        let (sum, count) = products.fold((0.0, 0), |(sum, count), x| (sum + x, count + 1));
        sum / f64::from(count)
    };
    // Deviations of a mean of 65,536: 0.0023, 0.0012 and 0.0013.
    assert!(mean(&mut draws.iter().copied()).abs() < 0.01);
    assert!((mean(&mut draws.iter().map(|x| x * x)) - 1.0 / 3.0).abs() < 0.006);
    let beside = |step: usize| draws.iter().zip(&draws[step..]).map(|(x, y)| x * y);
    assert!(mean(&mut beside(1)).abs() < 0.006);
    assert!(mean(&mut beside(n)).abs() < 0.006);
}
