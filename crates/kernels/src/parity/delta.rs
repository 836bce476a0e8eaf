//! The gated delta rule, the convolution before it, and the gate on attention's heads.

use burn::tensor::{DType, Tensor};

use super::places::{Place, compare, compare_at, places, random};
use crate::gated_delta::{self, DeltaLayout, Operands, gates};
use crate::{Segments, causal_conv, head_gate};

/// Shorter than the taps, one more than a chunk, one token, and two chunks with a bit.
const DOCUMENTS: [u32; 5] = [0, 3, 68, 69, 200];

fn layouts() -> [DeltaLayout; 2] {
    let layout = |key_heads, value_heads, key_dim, value_dim| DeltaLayout {
        key_heads,
        value_heads,
        key_dim,
        value_dim,
    };
    [layout(2, 4, 8, 6), layout(1, 1, 16, 20)]
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
        let inputs = [
            random([t, layout.width()]),
            random([t, heads]),
            random([t, heads]),
        ];
        compare_at(
            &cpu,
            &inputs,
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

/// No state, decay or convolved input goes from one document into another, forwards or backwards: the same bits as alone.
#[test]
fn a_document_of_a_pack_is_what_it_is_alone() {
    let (cpu, layout) = (Place::cpu(), layouts()[0]);
    let packed = Segments::from_cumulative(&DOCUMENTS);
    let (t, heads) = (packed.queries(), layout.value_heads);
    let inputs = [
        random([t, layout.width()]),
        random([t, heads]),
        random([t, heads]),
    ];
    let weight = random([layout.width() * 4]);
    let d_conv = random([t, layout.width()]);
    let d_out = random([t, layout.value_width()]);
    let bits = |x: &Tensor<2>| -> Vec<u32> {
        let data = x.clone().into_data();
        data.iter::<f32>().map(f32::to_bits).collect()
    };
    let run = |rows: std::ops::Range<usize>, segments: &Segments| {
        let cut = |x: &Tensor<2>| x.clone().narrow(0, rows.start, rows.len());
        let x = operands(&cpu, inputs.each_ref().map(cut), heads);
        let out = gated_delta::forward(&x, segments, layout);
        let d = gated_delta::backward(&cut(&d_out), &x, segments, layout);
        let convolved = causal_conv::forward(&x.qkv, &weight, segments);
        let d_conv = causal_conv::backward(cut(&d_conv), &x.qkv, &weight, segments);
        [out, d.qkv, d.beta, d.decay, convolved, d_conv]
    };
    let together = run(0..t, &packed);
    for (rows, _) in packed.iter() {
        let alone = run(rows.clone(), &Segments::rectangular(1, rows.len()));
        for (together, alone) in together.iter().zip(&alone) {
            let part = together.clone().narrow(0, rows.start, rows.len());
            assert_eq!(bits(&part), bits(alone), "{rows:?}");
        }
    }
}

/// A document in pieces, beside another: as if each were read at once, and alone.
#[test]
fn a_state_carries_on_where_it_was_left() {
    let cpu = Place::cpu();
    let layout = layouts()[0];
    let (lengths, heads) = ([70, 9], layout.value_heads);
    let [long, short] = lengths.map(|t| {
        let inputs = [
            random([t, layout.width()]),
            random([t, heads]),
            random([t, heads]),
        ];
        operands(&cpu, inputs, heads)
    });
    let alone =
        |x: &Operands, t| gated_delta::reference::forward(x, &Segments::rectangular(1, t), layout);
    let rows = |x: &Operands, start, count| {
        let [qkv, beta, decay] =
            [&x.qkv, &x.beta, &x.decay].map(|x| x.clone().narrow(0, start, count));
        Operands { qkv, beta, decay }
    };
    let together = |x: [Operands; 2]| {
        let cat = |side: fn(&Operands) -> &Tensor<2>| {
            Tensor::cat(x.iter().map(|x| side(x).clone()).collect(), 0)
        };
        Operands {
            qkv: cat(|x| &x.qkv),
            beta: cat(|x| &x.beta),
            decay: cat(|x| &x.decay),
        }
    };
    let zero = || {
        let shape = [heads * layout.key_dim, layout.value_dim];
        Tensor::zeros(shape, (&cpu.device, DType::F32))
    };
    let mut states = vec![zero(), zero()];
    let (mut of_long, mut of_short) = (Vec::new(), Vec::new());
    let (mut from_long, mut from_short) = (0, 0);
    for (a, b) in [(66, 3), (1, 1), (3, 5)] {
        let x = together([rows(&long, from_long, a), rows(&short, from_short, b)]);
        let segments = Segments::from_cumulative(&[0, a as u32, (a + b) as u32]);
        let (y, left) = gated_delta::forward_continuing(&x, &segments, layout, states);
        of_long.push(y.clone().narrow(0, 0, a));
        of_short.push(y.narrow(0, a, b));
        (from_long, from_short, states) = (from_long + a, from_short + b, left);
    }
    for (what, pieces, x, t) in [("long", of_long, &long, 70), ("short", of_short, &short, 9)] {
        cpu.assert_close(what, Tensor::cat(pieces, 0), alone(x, t));
    }
}

#[test]
fn causal_conv_and_both_gradients() {
    let segments = Segments::from_cumulative(&[0, 2, 9, 10, 31]);
    for (features, taps) in [(5, 4), (300, 4), (7, 2)] {
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
    let (cpu, weight) = (Place::cpu(), random([features * taps]));
    let x = random([9, features]);
    let expected = causal_conv::reference::forward(&x, &weight, &Segments::rectangular(1, 9));
    let mut past = vec![Tensor::zeros([taps - 1, features], &cpu.device)];
    let (mut pieces, mut start) = (Vec::new(), 0);
    for count in [2, 1, 6] {
        let part = x.clone().narrow(0, start, count);
        let segments = Segments::rectangular(1, count);
        let (y, left) = causal_conv::forward_continuing(&part, &weight, &segments, past);
        (past, start) = (left, start + count);
        pieces.push(y);
    }
    cpu.assert_close("in pieces", Tensor::cat(pieces, 0), expected);
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
