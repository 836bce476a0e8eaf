//! Weights kept in codes.

use burn::tensor::{Device, Distribution, Tensor};

use super::places::{places, random};
use crate::codebook::FourBitFormat;
use crate::dequantize::{FourBit, HostAbsmax, reference};
use crate::frozen_matrix::FrozenMatrix;
use crate::gemm::{self, Op};
use crate::quantize::{four_bit, nested};

/// Normal values in codes, with each kind of scale, to be put on a device.
fn matrices(
    dims: [usize; 2],
    format: FourBitFormat,
    block_size: usize,
) -> [impl Fn(&Device) -> FourBit; 2] {
    let source = Tensor::<2>::random(dims, Distribution::Normal(0.0, 1.0), &Device::flex());
    let source: Vec<f32> = source.into_data().try_into_vec().unwrap();
    let blocks = four_bit(&source, format, block_size);
    [false, true].map(|double| {
        let blocks = blocks.clone();
        move |device: &Device| {
            let absmax = if double {
                HostAbsmax::Double(nested(&blocks.absmax))
            } else {
                HostAbsmax::Single(blocks.absmax.clone())
            };
            let packed = blocks.packed.clone();
            FourBit::from_parts(format, block_size, dims, packed, absmax, device).unwrap()
        }
    })
}

#[test]
fn four_bit_codes_with_single_and_double_scales() {
    for (dims, block_size) in [
        ([1usize, 1], 64usize),
        ([3, 5], 8),
        ([7, 64], 64),
        ([64, 576], 128),
        ([129, 777], 64),
        ([256, 520], 64),
    ] {
        for format in [FourBitFormat::Nf4, FourBitFormat::Fp4] {
            for matrix in matrices(dims, format, block_size) {
                let expected = reference::four_bit(&matrix(&Device::flex()));
                for place in places() {
                    let y = matrix(&place.device).dequantize_as(place.dtype);
                    assert_eq!(y.dtype(), place.dtype);
                    place.assert_close("values", y, expected.clone());
                }
            }
        }
    }
}

/// One row to nine: the last has no kernel of its own. Rows of whole words, of half of them, of none; blocks that
/// rows share, a last one in part, and more than 256 of them.
#[test]
fn products_of_few_rows_with_four_bit_codes() {
    use FourBitFormat::{Fp4, Nf4};
    for (dims, block_size, format, counts) in [
        ([1usize, 8], 64usize, Fp4, &[1usize][..]),
        ([9, 8], 64, Fp4, &[1]),
        ([5, 24], 8, Nf4, &[8]),
        ([33, 200], 64, Fp4, &[3, 9]),
        ([257, 576], 64, Nf4, &[2, 5]),
        ([12, 1100], 64, Nf4, &[1]),
        ([3, 4104], 128, Nf4, &[1]),
    ] {
        for matrix in matrices(dims, format, block_size) {
            let values = reference::four_bit(&matrix(&Device::flex()));
            for &t in counts {
                // So that products are of order 1.
                let x = random([t, dims[1]]).mul_scalar((dims[1] as f32).powf(-0.5));
                // A result of one value must not cancel: differences are measured by the largest.
                let apart = if dims[0] == 1 { 4.0 } else { 0.0 };
                let sum = random([t, dims[0]]) + apart;
                for place in places() {
                    let there = (matrix(&place.device), place.put(&x));
                    let product = |c| {
                        let x = place.round(&x);
                        gemm::reference::gemm((Op::N, &x), (Op::T, &values), 1.0, c)
                    };
                    let what = format!("{t} rows with {dims:?}");
                    let y = there.0.matmul(&there.1);
                    assert_eq!(y.dtype(), place.dtype);
                    place.assert_close(&what, y, product(None));
                    let expected = product(Some(place.round(&sum)));
                    let shared = place.put(&sum);
                    let y = there.0.matmul_add(&there.1, Some(&shared));
                    place.assert_close(&format!("{what}, added"), y, expected);
                    place.assert_close("what was added to", shared, place.round(&sum));
                }
            }
        }
    }
}
