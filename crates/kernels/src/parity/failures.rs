//! What a failure leaves alone: an operand without memory spoils what is made of it, and nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};

use backdraft_arch::Activation;
use burn::tensor::{Device, Tensor};

use super::places::{Place, places, random};
use crate::attention::{self, HeadLayout, Qkv};
use crate::codebook::FourBitFormat;
use crate::dequantize::{FourBit, HostAbsmax};
use crate::device;
use crate::flat::Flat;
use crate::frozen_matrix::FrozenMatrix;
use crate::gemm::{self, Op, Slot};
use crate::low_rank::LowRank;
use crate::quantize::four_bit;
use crate::rope::{self, RotaryTables};
use crate::{Segments, cross_entropy, rms_norm, swiglu, views};

/// Rows of a matrix for which no device has the memory.
fn missing(place: &Place, [rows, columns]: [usize; 2]) -> Tensor<2> {
    let all = Tensor::<2>::empty([1 << 44, columns], (&place.device, place.dtype));
    views::rows(&all, 0, rows).unwrap()
}

fn can_be_read<const D: usize>(x: &Tensor<D>) -> bool {
    catch_unwind(AssertUnwindSafe(|| x.clone().into_data())).is_ok()
}

#[track_caller]
fn stays<const D: usize>(place: &Place, op: &str, x: &Tensor<D>) {
    assert!(can_be_read(x), "{place:?}: {op} spoiled what it only reads");
}

const T: usize = 32;
const WIDTH: usize = 64;

#[test]
fn operands_that_are_only_read_survive() {
    for place in places().iter().filter(|place| place.is_gpu()) {
        let good = || place.put(&random([T, WIDTH]));
        let gone = || missing(place, [T, WIDTH]);
        assert!(!can_be_read(&gone()), "{place:?}: a device of petabytes");

        let weight = place.put(&random([WIDTH]));
        let (_, rstd) = rms_norm::forward(&good(), &weight, 1e-5);
        rms_norm::forward(&gone(), &weight, 1e-5);
        stays(place, "rms_norm", &weight);
        rms_norm::backward(&gone(), &good(), &weight, &rstd);
        stays(place, "rms_norm backward", &weight);
        rms_norm::backward_add(&gone(), &good(), &weight, &rstd, good());
        stays(place, "rms_norm backward_add", &weight);
        stays(place, "rms_norm backward_add", &rstd);

        let up = good();
        swiglu::forward(&gone(), &up, Activation::Silu);
        stays(place, "swiglu", &up);
        swiglu::backward(gone(), good(), up.clone(), Activation::Silu, true);
        stays(place, "swiglu backward", &up);

        let table = || place.put_f32(&random([T, 8]));
        let tables = RotaryTables::new(table(), table());
        rope::forward(gone(), &tables);
        rope::forward_both(gone(), good(), &tables);
        stays(place, "rope", &tables.cos);
        stays(place, "rope", &tables.sin);

        let term = LowRank {
            left: place.put(&random([T, 16])),
            right: place.put(&random([WIDTH, 16])),
            scaling: 1.0,
        };
        term.add_to(gone());
        stays(place, "a term", &term.left);
        stays(place, "a term", &term.right);

        let matrix = place.put(&random([WIDTH, WIDTH]));
        gemm::nt(&gone(), &matrix);
        stays(place, "gemm", &matrix);
        let ones = place.put_f32(&Tensor::ones([T], &Device::flex()));
        cross_entropy::forward(&gone(), &matrix, None, &[0; T], Some(&ones));
        stays(place, "cross_entropy", &matrix);

        // Written over once it can be: a gradient's place outlives the step that failed.
        let flat = Flat::zeros(&[[WIDTH, WIDTH]; 2], &place.device, place.dtype).unwrap();
        let slot = |i| Slot {
            view: flat.view(i),
            accumulate: false,
        };
        gemm::gemm_into((Op::T, &gone()), (Op::N, &good()), 1.0, &slot(0));
        stays(place, "gemm_into", &flat.view(1));
        gemm::gemm_into((Op::T, &good()), (Op::N, &good()), 1.0, &slot(0));
        stays(place, "gemm_into, again", &flat.view(0));
        stays(place, "the norm of", &flat.norm());

        let values: Vec<f32> = random([WIDTH * WIDTH]).into_data().try_into_vec().unwrap();
        let blocks = four_bit(&values, FourBitFormat::Nf4, 64);
        let codes = FourBit::from_parts(
            FourBitFormat::Nf4,
            64,
            [WIDTH, WIDTH],
            blocks.packed,
            HostAbsmax::Single(blocks.absmax),
            &place.device,
        )
        .unwrap();
        codes.matmul(&gone());
        codes.matmul(&missing(place, [1, WIDTH]));
        codes.matmul_transposed(&gone());
        stays(place, "a product with codes", &codes.matmul(&good()));

        // Kernels that hand addresses to assembly count as writing all that they are given, tiles of documents too.
        let layout = HeadLayout::new(4, 2, 16);
        let segments = Segments::rectangular(1, T);
        let qkv = |q: Tensor<2>| Qkv {
            q,
            k: place.put(&random([T, WIDTH / 2])),
            v: place.put(&random([T, WIDTH / 2])),
        };
        attention::forward(&qkv(gone()), &segments, layout);
        let given = qkv(good());
        let (out, lse) = attention::forward(&given, &segments, layout);
        attention::backward(&gone(), &given, (&out, &lse), &segments, layout);
        device::recover(&place.device);
        let given = qkv(good());
        let (out, lse) = attention::forward(&given, &segments, layout);
        stays(place, "attention, afterwards", &out);
        let d = attention::backward(&good(), &given, (&out, &lse), &segments, layout);
        for x in [&d.q, &d.k, &d.v] {
            stays(place, "attention backward, afterwards", x);
        }
    }
}
