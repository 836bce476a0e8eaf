//! Projections whose rows are brought to a trained length.

use burn::tensor::{DType, Tensor};

use super::places::{Place, compare, places, random};
use crate::dora;
use crate::dropout::Dropout;
use crate::lora_linear::Factors;

const SIZES: [[usize; 4]; 3] = [[1, 3, 2, 1], [17, 64, 48, 4], [130, 96, 200, 16]];

/// W, A and B of sizes that keep outputs of order 1, and m near the rows' lengths.
fn drawn([_, input, output, r]: [usize; 4]) -> [Tensor<2>; 4] {
    let of = |dims: [usize; 2], over: usize| random(dims) * (over as f32).powf(-0.5);
    let [weight, a, b] = [
        ([output, input], input),
        ([r, input], input),
        ([output, r], r),
    ]
    .map(|(dims, over)| of(dims, over));
    let magnitude = random([1, output]) * 0.3 + 1.0;
    [weight, a, b, magnitude]
}

fn squares(weight: Tensor<2>) -> Tensor<1> {
    let [out, _] = weight.dims();
    weight.square().sum_dim(1).reshape([out])
}

#[test]
fn dora_linear_and_its_four_gradients() {
    for (dropout, alpha) in [(None, 1.0), (Some(Dropout { p: 0.3, seed: 11 }), 0.6)] {
        for size @ [t, input, output, _] in SIZES {
            let [weight, a, b, magnitude] = drawn(size);
            let factors = |a, b, scaling| Factors {
                a,
                b,
                scaling,
                dropout,
            };
            compare(
                [random([t, input]), a, b, magnitude],
                |place, [x, a, b, m]| {
                    let weight = place.put(&weight);
                    let plain = factors(a.clone().inner(), b.clone().inner(), 0.7);
                    let squares = squares(place.put_f32(&weight));
                    let norms = dora::row_norms(&weight, &squares, &plain);
                    let m = m.cast(DType::F32).reshape([output]);
                    let scaled = factors(a, b, 0.7 * alpha);
                    dora::dora_linear(x, (weight, alpha), scaled, &norms, m)
                },
                |place, [x, a, b, m]| {
                    let weight = place.round(&weight);
                    let m = m.reshape([output]);
                    dora::reference::forward(x, (weight, alpha), &factors(a, b, 0.7), m)
                },
            );
        }
    }
}

#[test]
fn lengths_of_rows_without_their_matrix() {
    for size in SIZES {
        let [weight, a, b, _] = drawn(size);
        for place in places() {
            let there = [&weight, &a, &b].map(|x| place.put(x));
            let [w, a, b] = there.each_ref().map(|x| place.round(x));
            let expected = (w + b.matmul(a).mul_scalar(0.7)).square().sum_dim(1).sqrt();
            let [weight, a, b] = there;
            let factors = Factors {
                a,
                b,
                scaling: 0.7,
                dropout: None,
            };
            let squares = squares(place.put_f32(&weight));
            let found = dora::row_norms(&weight, &squares, &factors);
            place.assert_close("lengths", found, expected.reshape([size[2]]));
        }
    }
}

#[test]
fn a_row_of_zeros_has_a_finite_gain() {
    let place = Place::cpu();
    let (weight, zeros) = (Tensor::<2>::zeros([3, 5], &place.device), [3, 2]);
    let factors = Factors {
        a: random([2, 5]),
        b: Tensor::zeros(zeros, &place.device),
        scaling: 1.0,
        dropout: None,
    };
    let norms = dora::row_norms(&weight, &squares(weight.clone()), &factors);
    let gain = squares(weight).sqrt() / norms;
    assert!(gain.into_data().iter::<f32>().all(|gain| gain == 0.0));
}

#[test]
fn columns_scaled_and_multiplied() {
    for (t, width) in [(1, 1), (7, 130), (300, 64)] {
        let [y, dy] = [(); 2].map(|()| random([t, width]));
        let gain: Tensor<1> = random([width]);
        for place in places() {
            let (y, dy) = (place.put(&y), place.put(&dy));
            let exact = place.round(&y);
            let expected = exact.clone() * gain.clone().unsqueeze();
            let gain = place.put_f32(&gain);
            let expected_sum = (exact * place.round(&dy)).sum_dim(0).reshape([width]);
            let scaled = dora::scale_columns(y.clone(), &gain);
            assert_eq!(scaled.dtype(), place.dtype);
            place.assert_close("scaled", scaled, expected);
            place.assert_close("summed", dora::column_products(&y, &dy), expected_sum);
        }
    }
}
