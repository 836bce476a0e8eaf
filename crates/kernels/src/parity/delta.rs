//! The gated delta rule, the convolution before it, and the gate on attention's heads.

use burn::tensor::{DType, Tensor};

use super::places::{Place, compare, places, random};
use crate::gated_delta::{self, DeltaLayout, Operands, gates};
use crate::{Segments, causal_conv, head_gate};

/// Shorter than the taps, one more than a chunk, one token, and two chunks with a bit.
const DOCUMENTS: [u32; 5] = [0, 3, 68, 69, 200];

/// Sizes below those that kernels work in, one head of a kind, and columns for two cubes.
fn layouts() -> [DeltaLayout; 3] {
    let layout = |key_heads, value_heads, key_dim, value_dim| DeltaLayout {
        key_heads,
        value_heads,
        key_dim,
        value_dim,
    };
    [
        layout(2, 4, 8, 6),
        layout(1, 1, 16, 20),
        layout(1, 2, 32, 40),
    ]
}

/// The operands from what projections give; the heads forget at rates from slow to nearly all at once.
fn operands(place: &Place, [x, b, a]: [Tensor<2>; 3], heads: usize) -> Operands {
    let ramp = |from: f32, step: f32| {
        let values: Vec<f32> = (0..heads).map(|h| from + step * h as f32).collect();
        place.put_f32(&Tensor::<1>::from_floats(
            values.as_slice(),
            &x.device().inner(),
        ))
    };
    let [beta, decay] = gates(b, a, ramp(-2.0, 1.7), ramp(0.5, -0.8));
    Operands {
        qkv: x,
        beta,
        decay,
    }
}

#[test]
fn gated_delta_and_every_gradient() {
    let segments = Segments::from_cumulative(&DOCUMENTS);
    let cpu = Place::cpu();
    for layout in layouts() {
        let (t, heads) = (segments.queries(), layout.value_heads);
        compare(
            [
                random([t, layout.width()]),
                random([t, heads]),
                random([t, heads]),
            ],
            |place, inputs| {
                let x = operands(place, inputs, heads);
                gated_delta::gated_delta(x, &segments, layout)
            },
            |_, inputs| {
                let x = operands(&cpu, inputs, heads);
                gated_delta::reference::forward(&x, &segments, layout)
            },
        );
    }
}

#[test]
fn gradients_of_the_gates() {
    let (t, heads) = (7, 3);
    let [a, b, d_beta, d_decay] = [(); 4].map(|()| random([t, heads]));
    let (a_log, dt) = (random([heads]), random([heads]));
    let [tracked_b, tracked_a] = [&b, &a].map(|x| x.clone().autodiff().require_grad());
    let [beta, decay] = gates(
        tracked_b.clone(),
        tracked_a.clone(),
        a_log.clone().autodiff(),
        dt.clone().autodiff(),
    );
    let [to_beta, to_decay] = [&d_beta, &d_decay].map(|d| d.clone().autodiff());
    let sum = (beta * to_beta + decay * to_decay).sum();
    let grads = sum.backward();
    let d = [d_beta, d_decay];
    let [db, da] = gated_delta::gates_backward(d, [&b, &a], [&a_log, &dt]);
    let cpu = Place::cpu();
    cpu.assert_close("db", db, tracked_b.grad(&grads).unwrap());
    cpu.assert_close("da", da, tracked_a.grad(&grads).unwrap());
}

/// No state, decay or convolved input goes from one document into another, forwards or backwards: the same bits as alone, and
/// whenever they are computed.
#[test]
fn a_document_of_a_pack_is_what_it_is_alone() {
    let packed = Segments::from_cumulative(&DOCUMENTS);
    // In half precision the processor has plain tensors.
    let kernels = |place: &&Place| place.is_gpu() || place.dtype == DType::F32;
    for (place, layout) in places()
        .iter()
        .filter(kernels)
        .flat_map(|place| layouts().map(|layout| (place, layout)))
    {
        let (t, heads) = (packed.queries(), layout.value_heads);
        let there = |shape| place.put(&random(shape));
        let inputs = [[t, layout.width()], [t, heads], [t, heads]].map(there);
        let weight = place.put(&random([layout.width() * 4]));
        let d_conv = there([t, layout.width()]);
        let d_out = there([t, layout.value_width()]);
        let bits = |x: &Tensor<2>| -> Vec<u32> {
            let data = x.clone().into_data().convert_dtype(DType::F32);
            data.iter::<f32>().map(f32::to_bits).collect()
        };
        let run = |rows: std::ops::Range<usize>, segments: &Segments| {
            let cut = |x: &Tensor<2>| x.clone().narrow(0, rows.start, rows.len());
            let x = operands(place, inputs.each_ref().map(cut), heads);
            let out = gated_delta::forward(&x, segments, layout);
            let d = gated_delta::backward(&cut(&d_out), &x, segments, layout);
            let convolved = causal_conv::forward(&x.qkv, &weight, segments);
            let d_conv = causal_conv::backward(cut(&d_conv), &x.qkv, &weight, segments);
            [out, d.qkv, d.beta, d.decay, convolved, d_conv]
        };
        let together = run(0..t, &packed);
        for (first, again) in together.iter().zip(&run(0..t, &packed)) {
            assert_eq!(bits(first), bits(again), "{place:?}");
        }
        for (rows, _) in packed.iter() {
            let alone = run(rows.clone(), &Segments::rectangular(1, rows.len()));
            for (together, alone) in together.iter().zip(&alone) {
                let part = together.clone().narrow(0, rows.start, rows.len());
                assert_eq!(bits(&part), bits(alone), "{rows:?} {place:?}");
            }
        }
    }
}

/// A document in pieces, beside another: as if each were read at once, and alone, and with the state that it leaves then.
#[test]
fn a_state_carries_on_where_it_was_left() {
    for (place, layout) in places()
        .iter()
        .flat_map(|place| layouts().map(|layout| (place, layout)))
    {
        check_states(place, layout);
    }
}

fn check_states(place: &Place, layout: DeltaLayout) {
    let cpu = Place::cpu();
    let (lengths, heads) = ([70, 9], layout.value_heads);
    let zero = |place: &Place| {
        let shape = [heads * layout.key_dim, layout.value_dim];
        Tensor::zeros(shape, (&place.device, DType::F32))
    };
    let [(long, all_of_long), (short, all_of_short)] = lengths.map(|t| {
        let inputs = [[t, layout.width()], [t, heads], [t, heads]].map(random);
        let x = operands(&cpu, inputs.each_ref().map(|x| place.round(x)), heads);
        let segments = Segments::rectangular(1, t);
        let all = gated_delta::reference::forward_from(&x, &segments, layout, vec![zero(&cpu)]);
        (inputs.map(|x| place.put(&x)), all)
    });
    let rows =
        |x: &[Tensor<2>; 3], start, count| x.each_ref().map(|x| x.clone().narrow(0, start, count));
    let mut states = vec![zero(place), zero(place)];
    let (mut of_long, mut of_short) = (Vec::new(), Vec::new());
    let (mut from_long, mut from_short) = (0, 0);
    for (a, b) in [(66, 1), (1, 1), (2, 6), (1, 1)] {
        let (x, y) = (rows(&long, from_long, a), rows(&short, from_short, b));
        let [qkv, beta, decay] =
            std::array::from_fn(|i| Tensor::cat(vec![x[i].clone(), y[i].clone()], 0));
        let x = operands(place, [qkv, beta, decay], heads);
        let segments = Segments::from_cumulative(&[0, a as u32, (a + b) as u32]);
        let (y, left) = gated_delta::forward_continuing(&x, &segments, layout, states);
        of_long.push(y.clone().narrow(0, 0, a));
        of_short.push(y.narrow(0, a, b));
        (from_long, from_short, states) = (from_long + a, from_short + b, left);
    }
    let pieces = [
        ("long", of_long, all_of_long),
        ("short", of_short, all_of_short),
    ];
    for ((what, pieces, (y, left)), state) in pieces.into_iter().zip(states) {
        place.assert_close(what, Tensor::cat(pieces, 0), y);
        place.assert_close(&format!("{what}: state"), state, left[0].clone());
    }
}

#[test]
fn causal_conv_and_both_gradients() {
    let segments = Segments::from_cumulative(&[0, 2, 9, 10, 31]);
    for (features, taps) in [(5, 4), (300, 4), (7, 2), (1040, 3)] {
        compare(
            [
                random([segments.queries(), features]),
                random([1, features * taps]),
            ],
            |_, [x, w]| causal_conv::causal_conv(x, w.squeeze_dim(0), &segments),
            |_, [x, w]| causal_conv::reference::forward(&x, &w.squeeze_dim(0), &segments),
        );
    }
}

#[test]
fn a_convolution_goes_on_after_what_it_has_seen() {
    let (features, taps) = (6, 4);
    for place in places() {
        let (x, weight) = (random([9, features]), random([features * taps]));
        let segments = Segments::rectangular(1, 9);
        let expected =
            causal_conv::reference::forward(&place.round(&x), &place.round(&weight), &segments);
        let (x, weight) = (place.put(&x), place.put(&weight));
        let none = Tensor::zeros([taps - 1, features], (&place.device, place.dtype));
        let mut past = vec![none];
        let (mut pieces, mut start) = (Vec::new(), 0);
        for count in [2, 1, 6] {
            let part = x.clone().narrow(0, start, count);
            let segments = Segments::rectangular(1, count);
            let (y, left) = causal_conv::forward_continuing(&part, &weight, &segments, past);
            (past, start) = (left, start + count);
            pieces.push(y);
        }
        place.assert_close("in pieces", Tensor::cat(pieces, 0), expected);
    }
}

#[test]
fn heads_and_their_gates() {
    for (t, heads, d) in [(1, 1, 2), (9, 3, 16)] {
        let x = random([t, 2 * heads * d]);
        let [out, dy] = [(); 2].map(|()| random([t, heads * d]));
        for place in places() {
            let there = place.put(&x);
            let [query, gate] = head_gate::split(&there, d);
            let [q, g] = head_gate::reference::split(&place.round(&x), d);
            place.assert_close("query", query.clone(), q.clone());
            place.assert_close("gate", gate.clone(), g.clone());
            place.assert_close(
                "joined",
                head_gate::join([&query, &gate], d),
                place.round(&x),
            );
            let joined = head_gate::reference::join([&q, &g], d);
            place.assert_close("joined by the reference", joined, place.round(&x));
            let (out, dy) = (&place.put(&out), &place.put(&dy));
            let tracked = |x: &Tensor<2>| place.round(x).autodiff().require_grad();
            let (o, g) = (tracked(out), tracked(&gate));
            let y = head_gate::reference::forward(&o, &g);
            place.assert_close("gated", head_gate::forward(out, &gate), y.clone());
            let grads = (y * place.round(dy).autodiff()).sum().backward();
            let [d_out, d_gate] = head_gate::backward(dy, out, &gate);
            place.assert_close("d_out", d_out, o.grad(&grads).unwrap());
            place.assert_close("d_gate", d_gate, g.grad(&grads).unwrap());
        }
    }
}
