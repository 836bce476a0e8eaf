//! Weights kept in codes.

use backdraft_arch::GgufBlock;
use burn::tensor::Device;

use super::places::{normal, places, random};
use crate::codebook::{FourBitFormat, NestedFormat};
use crate::dequantize::testing::blocks;
use crate::dequantize::{
    BlockFormat, Blocks, FourBit, GgufBlocks, HostAbsmax, Int8Rows, Nested, reference,
};
use crate::frozen_matrix::FrozenMatrix;
use crate::gemm::{self, Op};
use crate::quantize::{four_bit, int8_rows, nested, nested_codes, planes};

/// Each kind of scale.
fn scales(absmax: &[f32]) -> [HostAbsmax; 2] {
    [
        HostAbsmax::Single(absmax.to_vec()),
        HostAbsmax::Double(nested(absmax)),
    ]
}

/// Normal values in codes, with each kind of scale, to be put on a device.
fn matrices(
    dims: [usize; 2],
    format: FourBitFormat,
    block_size: usize,
) -> [impl Fn(&Device) -> FourBit; 2] {
    let blocks = four_bit(&normal(dims[0] * dims[1]), format, block_size);
    scales(&blocks.absmax).map(|absmax| {
        let packed = blocks.packed.clone();
        move |device: &Device| {
            let (packed, absmax) = (packed.clone(), absmax.clone());
            FourBit::from_parts(format, block_size, dims, packed, absmax, device).unwrap()
        }
    })
}

/// The same in nested codes.
fn nested_matrices(
    dims: [usize; 2],
    format: NestedFormat,
    block_size: usize,
) -> [impl Fn(&Device) -> Nested; 2] {
    let blocks = nested_codes(&normal(dims[0] * dims[1]), block_size);
    let planes = planes(&blocks.codes, format);
    scales(&blocks.absmax).map(|absmax| {
        let planes = planes.clone();
        move |device: &Device| {
            let (planes, absmax) = (planes.clone(), absmax.clone());
            Nested::from_parts(format, block_size, dims, planes, absmax, device).unwrap()
        }
    })
}

/// Values in the type of each place, and some rows in f32.
fn check_values<F: BlockFormat>(matrix: impl Fn(&Device) -> Blocks<F>) {
    let expected = reference::blocks(&matrix(&Device::flex()));
    let last = expected.dims()[0] as u32 - 1;
    let picked = [last, 0, last];
    let rows = matrix(&Device::flex()).rows(&picked);
    for place in places() {
        let there = matrix(&place.device);
        let y = there.dequantize_as(place.dtype);
        assert_eq!(y.dtype(), place.dtype);
        place.assert_close("values", y, expected.clone());
        place.assert_close("rows", there.rows(&picked), rows.clone());
        assert_eq!(there.rows(&[]).dims(), [0, expected.dims()[1]]);
    }
}

/// Odd widths, partial blocks and bytes, rows that begin inside a byte.
const DIMS: [([usize; 2], usize); 6] = [
    ([1, 1], 64),
    ([3, 5], 8),
    ([7, 64], 64),
    ([64, 576], 128),
    ([129, 777], 64),
    ([256, 520], 64),
];

#[test]
fn four_bit_codes_with_single_and_double_scales() {
    for (dims, block_size) in DIMS {
        for format in [FourBitFormat::Nf4, FourBitFormat::Fp4] {
            for matrix in matrices(dims, format, block_size) {
                check_values(matrix);
            }
        }
    }
}

#[test]
fn nested_codes_with_single_and_double_scales() {
    for (dims, block_size) in DIMS {
        for &format in NestedFormat::ALL {
            for matrix in nested_matrices(dims, format, block_size) {
                check_values(matrix);
            }
        }
    }
}

/// Widths of whole words, of half a vector, of neither, and more vectors than the units of a cube expand.
#[test]
fn whole_numbers_of_rows() {
    for dims in [[1, 1], [3, 5], [5, 12], [2, 40], [130, 776], [300, 64]] {
        let (codes, absmax) = int8_rows(&normal(dims[0] * dims[1]), dims[1]);
        let matrix = |device: &Device| {
            Int8Rows::from_parts(dims, codes.clone(), absmax.clone(), device).unwrap()
        };
        let expected = reference::int8(&matrix(&Device::flex()));
        let last = dims[0] as u32 - 1;
        let rows = matrix(&Device::flex()).rows(&[last, 0]);
        let x = random([9, dims[1]]).mul_scalar((dims[1] as f32).powf(-0.5));
        let dy = random([9, dims[0]]).mul_scalar((dims[0] as f32).powf(-0.5));
        let (sum_y, sum_x) = (random([9, dims[0]]) + 4.0, random([9, dims[1]]) + 4.0);
        for place in places() {
            let there = matrix(&place.device);
            let y = there.dequantize_as(place.dtype);
            assert_eq!(y.dtype(), place.dtype);
            place.assert_close("values", y, expected.clone());
            place.assert_close("rows", there.rows(&[last, 0]), rows.clone());
            let y = there.matmul_add(&place.put(&x), 0.6, Some(&place.put(&sum_y)));
            let product = gemm::nt(&place.round(&x), &expected).mul_scalar(0.6);
            place.assert_close("x·Wᵀ", y, product + place.round(&sum_y));
            let dx = there.matmul_transposed_add(&place.put(&dy), 0.6, Some(place.put(&sum_x)));
            let product = gemm::nn(&place.round(&dy), &expected).mul_scalar(0.6);
            place.assert_close("dy·W", dx, product + place.round(&sum_x));
        }
    }
}

/// Products of a few rows and of more than that, alone and added to something.
fn check_products<F: BlockFormat>(matrix: impl Fn(&Device) -> Blocks<F>, counts: &[usize]) {
    let values = reference::blocks(&matrix(&Device::flex()));
    let dims = values.dims();
    for &t in counts {
        // So that products are of order 1.
        let x = random([t, dims[1]]).mul_scalar((dims[1] as f32).powf(-0.5));
        // A result of one value must not cancel: differences are measured by the largest.
        let apart = if dims[0] == 1 { 4.0 } else { 0.0 };
        let sum = random([t, dims[0]]) + apart;
        for place in places() {
            let there = (matrix(&place.device), place.put(&x));
            let product = |alpha, c| {
                let x = place.round(&x);
                gemm::reference::gemm((Op::N, &x), (Op::T, &values), alpha, c)
            };
            let what = format!("{t} rows with {dims:?}");
            let y = there.0.matmul(&there.1);
            assert_eq!(y.dtype(), place.dtype);
            place.assert_close(&what, y, product(1.0, None));
            let shared = place.put(&sum);
            for alpha in [1.0, 0.6] {
                let expected = product(alpha, Some(place.round(&sum)));
                let y = there.0.matmul_add(&there.1, alpha, Some(&shared));
                place.assert_close(&format!("{what}, added"), y, expected);
            }
            place.assert_close("what was added to", shared, place.round(&sum));
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
            check_products(matrix, counts);
        }
    }
}

/// As above; rows may begin inside a word of a plane. (A product of one value may cancel, and then show what rounding
/// the weights did.)
#[test]
fn products_of_few_rows_with_nested_codes() {
    for (dims, block_size, counts) in [
        ([9usize, 8], 64usize, &[1usize][..]),
        ([5, 24], 8, &[8]),
        ([33, 200], 64, &[3, 9]),
        ([257, 576], 64, &[2]),
        ([3, 4104], 128, &[1]),
    ] {
        for &format in NestedFormat::ALL {
            for matrix in nested_matrices(dims, format, block_size) {
                check_products(matrix, counts);
            }
        }
    }
}

/// Each type of block: values, rows, and products of few rows and of many, alone and added to something. Some types begin
/// inside words; one matrix ends inside one, one has more vectors than the units of a cube unpack.
#[test]
fn blocks_of_gguf_files() {
    for &kind in GgufBlock::ALL {
        for (out, per_row) in [(1, 1), (3, 2), (5, 1), (130, 3)] {
            let dims = [out, per_row * kind.values()];
            let bytes = blocks(kind, out * per_row);
            let matrix = |device: &Device| {
                GgufBlocks::from_parts(kind, dims, bytes.clone(), device).unwrap()
            };
            let expected = reference::gguf(&matrix(&Device::flex()));
            let last = out as u32 - 1;
            let picked = [last, 0, last];
            let rows = matrix(&Device::flex()).rows(&picked);
            for place in places() {
                let there = matrix(&place.device);
                let y = there.dequantize_as(place.dtype);
                assert_eq!(y.dtype(), place.dtype);
                place.assert_close(&format!("values of {kind}"), y, expected.clone());
                place.assert_close("rows", there.rows(&picked), rows.clone());
                assert_eq!(there.rows(&[]).dims(), [0, dims[1]]);
            }
            for t in [1, 3, 8, 9] {
                let x = random([t, dims[1]]).mul_scalar((dims[1] as f32).powf(-0.5));
                let dy = random([t, dims[0]]).mul_scalar((dims[0] as f32).powf(-0.5));
                // So that a result of one value does not cancel.
                let (sum_y, sum_x) = (random([t, dims[0]]) + 8.0, random([t, dims[1]]) + 8.0);
                for place in places() {
                    let there = matrix(&place.device);
                    let what = format!("{t} rows with {dims:?} in {kind}");
                    let product = gemm::nt(&place.round(&x), &expected);
                    let y = there.matmul_add(&place.put(&x), 1.0, Some(&place.put(&sum_y)));
                    place.assert_close(&what, y, product.clone() + place.round(&sum_y));
                    if dims[0] > 1 {
                        place.assert_close(&what, there.matmul(&place.put(&x)), product);
                    }
                    let sum = Some(place.put(&sum_x));
                    let dx = there.matmul_transposed_add(&place.put(&dy), 1.0, sum);
                    let product = gemm::nn(&place.round(&dy), &expected);
                    place.assert_close(&what, dx, product + place.round(&sum_x));
                }
            }
        }
    }
}
