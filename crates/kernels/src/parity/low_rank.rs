//! Terms of low rank, by themselves and in passing.

use backdraft_arch::Activation;
use burn::tensor::Tensor;

use super::places::{Place, places, random};
use crate::gemm::{Op, reference};
use crate::low_rank::{Adapted, LowRank};
use crate::swiglu;

/// Rows, columns and rank: tiles that are full, cut, and such that no kernel takes.
const SHAPES: [[usize; 3]; 6] = [
    [1, 32, 16],
    [70, 96, 16],
    [130, 352, 48],
    [64, 256, 128],
    [65, 40, 16],
    [9, 64, 8],
];

/// A term in f32 on the processor.
struct Exact {
    left: Tensor<2>,
    right: Tensor<2>,
}

impl Exact {
    fn random([rows, columns, rank]: [usize; 3]) -> Self {
        let small = (rank as f32).powf(-0.5);
        Self {
            left: random([rows, rank]),
            right: random([columns, rank]).mul_scalar(small),
        }
    }

    /// At a place, either factor by rows or as the transpose of a matrix by rows.
    fn put(&self, place: &Place, [left_turned, right_turned]: [bool; 2]) -> LowRank {
        let put = |x: &Tensor<2>, turned| match turned {
            false => place.put(x),
            true => place.put(&x.clone().transpose()).transpose(),
        };
        LowRank {
            left: put(&self.left, left_turned),
            right: put(&self.right, right_turned),
            scaling: 0.7,
        }
    }

    /// `y` and the term, of what they are at a place.
    fn added(&self, place: &Place, y: &Tensor<2>) -> Tensor<2> {
        let [left, right, y] = [&self.left, &self.right, y].map(|x| place.round(x));
        reference::gemm((Op::N, &left), (Op::T, &right), 0.7, Some(y))
    }
}

/// Which factors are transposed: each of four for the least rank, since every form is a kernel to be compiled.
fn layouts([.., rank]: [usize; 3]) -> &'static [[bool; 2]] {
    match rank {
        16 => &[[false, false], [true, false], [false, true], [true, true]],
        _ => &[[true, true]],
    }
}

#[test]
fn a_term_is_added() {
    for shape in SHAPES {
        let (term, y) = (Exact::random(shape), random([shape[0], shape[1]]));
        for place in places() {
            for &layout in layouts(shape) {
                let on_device = term.put(place, layout);
                let sum = on_device.add_to(place.put(&y));
                assert_eq!(sum.dtype(), place.dtype);
                place.assert_close("sum", sum, term.added(place, &y));
                // What others hold stays.
                let held = place.put(&y);
                let again = on_device.add_to(held.clone());
                place.assert_close("sum beside", again, term.added(place, &y));
                place.assert_close("what was there", held, place.round(&y));
            }
        }
    }
}

#[test]
fn swiglu_takes_terms_with_it() {
    for shape in SHAPES {
        let dims = [shape[0], shape[1]];
        let terms = [Exact::random(shape), Exact::random(shape)];
        let (bases, dy) = ([random(dims), random(dims)], random(dims));
        for place in places() {
            let both = [Activation::Silu, Activation::GeluTanh].into_iter();
            let cases = both.flat_map(|it| layouts(shape).iter().map(move |&layout| (it, layout)));
            for (activation, layout) in cases {
                let adapted = |i: usize| Adapted {
                    base: place.put(&bases[i]),
                    term: Some(terms[i].put(place, layout)),
                };
                let [gate, up, product] =
                    swiglu::forward_adapted(adapted(0), adapted(1), activation);
                for (i, actual) in [&gate, &up].into_iter().enumerate() {
                    let expected = terms[i].added(place, &bases[i]);
                    place.assert_close("gate or up", actual.clone(), expected);
                    // As if it had been added alone: a plan may do that too.
                    let alone = adapted(i).complete();
                    actual
                        .clone()
                        .into_data()
                        .assert_eq(&alone.into_data(), true);
                }
                let after = swiglu::forward(&gate, &up, activation);
                product.into_data().assert_eq(&after.into_data(), true);

                let (gate, up) = (place.put(&bases[0]), place.put(&bases[1]));
                let given = Adapted {
                    base: place.put(&dy),
                    term: Some(terms[0].put(place, layout)),
                };
                let expected = swiglu::reference::backward(
                    &terms[0].added(place, &dy),
                    &place.round(&bases[0]),
                    &place.round(&bases[1]),
                    activation,
                    false,
                );
                let product = swiglu::forward(&gate, &up, activation);
                // Held by others, then in their places.
                let held = [given.base.clone(), gate.clone(), up.clone()];
                let beside = swiglu::backward_adapted(
                    given.clone(),
                    gate.clone(),
                    up.clone(),
                    activation,
                    true,
                );
                let untouched = [&dy, &bases[0], &bases[1]];
                for (held, expected) in held.into_iter().zip(untouched) {
                    place.assert_close("what was there", held, place.round(expected));
                }
                let alone = swiglu::backward_adapted(given, gate, up, activation, true);
                for d in [beside, alone] {
                    place.assert_close("dgate", d.gate, expected.gate.clone());
                    place.assert_close("dup", d.up, expected.up.clone());
                    let again = d.product.unwrap().into_data();
                    again.assert_eq(&product.clone().into_data(), true);
                }
            }
        }
    }
}
