use backdraft_arch::GgufBlock;
use burn::tensor::{Device, Tensor};
use proptest::prelude::*;

use super::testing::blocks;
use super::*;
use crate::codebook::{FourBitFormat, NestedFormat};
use crate::frozen_matrix::FrozenMatrix;
use crate::parity::places::random;
use crate::quantize::{PackedBlocks, four_bit, int8_rows, nested, nested_codes, planes};

const FORMATS: [FourBitFormat; 2] = [FourBitFormat::Nf4, FourBitFormat::Fp4];

fn matrix(
    values: &[f32],
    dims: [usize; 2],
    format: FourBitFormat,
    block_size: usize,
    double: bool,
) -> FourBit {
    let PackedBlocks { packed, absmax } = four_bit(values, format, block_size);
    let absmax = scales(absmax, double);
    FourBit::from_parts(format, block_size, dims, packed, absmax, &Device::flex()).unwrap()
}

fn nested_matrix(
    values: &[f32],
    dims: [usize; 2],
    format: NestedFormat,
    block_size: usize,
    double: bool,
) -> Nested {
    let blocks = nested_codes(values, block_size);
    let planes = planes(&blocks.codes, format);
    let absmax = scales(blocks.absmax, double);
    Nested::from_parts(format, block_size, dims, planes, absmax, &Device::flex()).unwrap()
}

fn scales(absmax: Vec<f32>, double: bool) -> HostAbsmax {
    match double {
        true => HostAbsmax::Double(nested(&absmax)),
        false => HostAbsmax::Single(absmax),
    }
}

fn int8(values: &[f32], dims: [usize; 2]) -> Int8Rows {
    let (codes, absmax) = int8_rows(values, dims[1]);
    Int8Rows::from_parts(dims, codes, absmax, &Device::flex()).unwrap()
}

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.clone().into_data().try_into_vec().unwrap()
}

fn check_close(actual: &Tensor<2>, expected: &Tensor<2>) {
    assert_eq!(actual.dims(), expected.dims());
    let largest = values(expected).iter().fold(1e-6f32, |a, b| a.max(b.abs()));
    for (a, b) in values(actual).iter().zip(values(expected)) {
        assert!((a - b).abs() <= 1e-5 * largest, "{a} and {b}");
    }
}

/// Products and rows of any stored matrix agree with those of its dense values.
fn check_products<W: FrozenMatrix>(
    matrix: &W,
    dense: &Tensor<2>,
    rows: impl Fn(&[u32]) -> Tensor<2>,
) {
    let [out, input] = dense.dims();
    for t in [0, 1, 7, 40] {
        let x = random([t, input]);
        check_close(&matrix.matmul(&x), &x.matmul(dense.clone().transpose()));
        let dy = random([t, out]);
        check_close(&matrix.matmul_transposed(&dy), &dy.matmul(dense.clone()));
    }
    let picked: Vec<u32> = vec![0, out as u32 - 1, 0];
    assert_eq!(
        values(&rows(&picked)),
        values(&select(dense.clone(), &picked))
    );
}

/// Odd widths, partial blocks, one row, and more rows than one panel holds.
const DIMS: [[usize; 2]; 6] = [[1, 1], [3, 5], [7, 33], [10, 96], [40, 64], [700, 1000]];

#[test]
fn four_bit_agrees_with_the_reference() {
    for dims in DIMS {
        let source = values(&random(dims));
        for format in FORMATS {
            for (block_size, double) in [(64, false), (64, true), (128, false), (128, true)] {
                let matrix = matrix(&source, dims, format, block_size, double);
                let dense = matrix.dequantize();
                assert_eq!(values(&dense), values(&reference::blocks(&matrix)));
            }
        }
    }
}

#[test]
fn nested_codes_agree_with_the_reference() {
    for dims in DIMS {
        let source = values(&random(dims));
        for &format in NestedFormat::ALL {
            for (block_size, double) in [(8, false), (64, true), (128, true)] {
                let matrix = nested_matrix(&source, dims, format, block_size, double);
                let dense = matrix.dequantize();
                assert_eq!(values(&dense), values(&reference::blocks(&matrix)));
            }
        }
    }
}

#[test]
fn products_are_those_of_the_values() {
    for dims in DIMS {
        let source = values(&random(dims));
        for &format in NestedFormat::ALL {
            let matrix = nested_matrix(&source, dims, format, 64, true);
            let dense = reference::blocks(&matrix);
            check_products(&matrix, &dense, |rows| matrix.rows(rows));
        }
        let nf4 = matrix(&source, dims, FourBitFormat::Nf4, 64, true);
        check_products(&nf4, &reference::blocks(&nf4), |rows| nf4.rows(rows));
        let int8 = int8(&source, dims);
        assert_eq!(values(&int8.dequantize()), values(&reference::int8(&int8)));
        check_products(&int8, &reference::int8(&int8), |rows| int8.rows(rows));
    }
}

#[test]
fn wrong_parts_are_refused() {
    let make = |block_size, packed: usize, absmax: usize| {
        FourBit::from_parts(
            FourBitFormat::Nf4,
            block_size,
            [3, 5],
            vec![0; packed],
            HostAbsmax::Single(vec![0.0; absmax]),
            &Device::flex(),
        )
        .map(|_| ())
        .map_err(|error| error.to_string())
    };
    assert_eq!(make(64, 8, 1), Ok(()));
    assert_eq!(
        make(64, 7, 1),
        Err("bytes of codes: expected 8, found 7".into())
    );
    assert_eq!(make(64, 8, 2), Err("scales: expected 1, found 2".into()));
    assert_eq!(
        make(63, 8, 1),
        Err("values of a block: expected an even number of at least 2, found 63".into())
    );
}

#[test]
fn wrong_parts_of_nested_codes_are_refused() {
    let make = |format, block_size, planes: [usize; 2], absmax: usize| {
        Nested::from_parts(
            format,
            block_size,
            [3, 5],
            planes.map(|length| vec![0; length]),
            HostAbsmax::Single(vec![0.0; absmax]),
            &Device::flex(),
        )
        .map(|_| ())
        .map_err(|error| error.to_string())
    };
    assert_eq!(make(NestedFormat::Nf3, 64, [4, 2], 1), Ok(()));
    assert_eq!(make(NestedFormat::Nf5, 64, [8, 2], 1), Ok(()));
    assert_eq!(make(NestedFormat::Nf6, 64, [8, 4], 1), Ok(()));
    assert_eq!(
        make(NestedFormat::Nf6, 64, [8, 2], 1),
        Err("bytes of codes: expected 4, found 2".into())
    );
    assert_eq!(
        make(NestedFormat::Nf3, 64, [4, 2], 2),
        Err("scales: expected 1, found 2".into())
    );
    assert_eq!(
        make(NestedFormat::Nf5, 62, [8, 2], 1),
        Err("values of a block: expected a multiple of 8, found 62".into())
    );
}

fn gguf(kind: GgufBlock, dims: [usize; 2], bytes: Vec<u8>) -> GgufBlocks {
    GgufBlocks::from_parts(kind, dims, bytes, &Device::flex()).unwrap()
}

#[test]
fn blocks_of_files_are_multiplied_with_as_their_values() {
    for &kind in GgufBlock::ALL {
        // One block, and more rows than one panel holds.
        for [out, per_row] in [[1, 1], [7, 2], [700, 1024 / kind.values()]] {
            let dims = [out, per_row * kind.values()];
            let matrix = gguf(kind, dims, blocks(kind, out * per_row));
            let dense = reference::gguf(&matrix);
            assert_eq!(values(&matrix.dequantize()), values(&dense), "{kind}");
            let half = matrix.dequantize_as(DType::F16);
            assert_eq!(half.into_data(), dense.clone().cast(DType::F16).into_data());
            check_products(&matrix, &dense, |rows| matrix.rows(rows));
            assert_eq!(matrix.num_bytes(), out * per_row * kind.bytes());
        }
    }
}

#[test]
fn wrong_blocks_are_refused() {
    let make = |width, bytes: usize| {
        let made =
            GgufBlocks::from_parts(GgufBlock::Q4_K, [3, width], vec![0; bytes], &Device::flex());
        made.map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(make(512, 6 * 144), Ok(()));
    assert_eq!(
        make(512, 6 * 144 - 1),
        Err("bytes of blocks: expected 864, found 863".into())
    );
    assert_eq!(
        make(544, 6 * 144),
        Err("values of a row: expected a multiple of 256, found 544".into())
    );
}

#[test]
#[should_panic(expected = "row 3 of a matrix with 3 rows")]
fn a_row_beyond_the_last_is_our_bug() {
    int8(&[0.0; 15], [3, 5]).rows(&[0, 3]);
}

fn floats_of_all_sizes() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -3.0f32..3.0,
        1 => -1.0e38f32..1.0e38,
        1 => -1.0e-36f32..1.0e-36,
        1 => Just(0.0f32),
    ]
}

proptest! {
    /// Whatever a damaged file has, products are numbers or not, and nothing panics.
    #[test]
    fn blocks_of_any_bytes_make_values(
        bytes in proptest::collection::vec(any::<u8>(), 2 * 210),
        kind in proptest::sample::select(GgufBlock::ALL),
    ) {
        let bytes = &bytes[..2 * kind.bytes()];
        let matrix = gguf(kind, [2, kind.values()], bytes.to_vec());
        let found = values(&matrix.dequantize());
        prop_assert_eq!(found.iter().all(|value| value.is_finite()), kind.all_finite(bytes));
        let [x, dy] = [[3, kind.values()], [3, 2]].map(random);
        prop_assert_eq!(matrix.matmul(&x).dims(), [3, 2]);
        prop_assert_eq!(matrix.matmul_transposed(&dy).dims(), [3, kind.values()]);
        prop_assert_eq!(matrix.rows(&[1]).dims(), [1, kind.values()]);
    }

    /// Values that a matrix of codes stands for are quantised to themselves.
    #[test]
    fn quantising_again_changes_nothing(
        source in proptest::collection::vec(floats_of_all_sizes(), 1..700),
        format in prop_oneof![Just(FourBitFormat::Nf4), Just(FourBitFormat::Fp4)],
        block_size in prop_oneof![Just(64usize), Just(128)],
    ) {
        let dims = [1, source.len()];
        let once = matrix(&source, dims, format, block_size, false);
        let values_once = values(&once.dequantize());
        let again = matrix(&values_once, dims, format, block_size, false);
        let values_again = values(&again.dequantize());
        prop_assert_eq!(values_once, values_again);
    }

    /// Every value is within half the widest gap of its block's table.
    #[test]
    fn the_error_is_bounded(source in proptest::collection::vec(floats_of_all_sizes(), 1..700)) {
        let dims = [1, source.len()];
        for (format, gap) in [(FourBitFormat::Nf4, 0.304), (FourBitFormat::Fp4, 0.334)] {
            let restored = values(&matrix(&source, dims, format, 64, false).dequantize());
            for (source, restored) in source.chunks(64).zip(restored.chunks(64)) {
                let largest = source.iter().fold(0f64, |a, b| a.max(f64::from(b.abs())));
                for (&x, &y) in source.iter().zip(restored) {
                    let error = (f64::from(x) - f64::from(y)).abs();
                    prop_assert!(error <= gap / 2.0 * largest * 1.001 + 1e-45, "{x} became {y}");
                }
            }
        }
    }

    /// More bits, less error: each format is bounded by its widest cell, and where its ends are pinned, codes that are
    /// made again of the values are the same.
    #[test]
    fn nested_values_stay_in_their_cells(
        source in proptest::collection::vec(prop_oneof![3 => -3.0f32..3.0, 1 => Just(0.0f32)], 1..700),
    ) {
        let dims = [1, source.len()];
        let codes = nested_codes(&source, 64);
        // The widest cells of NF4 are its two outermost pairs.
        for (format, cell) in [(NestedFormat::Nf3, 0.391), (NestedFormat::Nf5, 0.12), (NestedFormat::Nf6, 0.06)] {
            let restored = values(&nested_matrix(&source, dims, format, 64, false).dequantize());
            let blocks = source.chunks(64).zip(restored.chunks(64));
            for (block, &largest) in blocks.zip(&codes.absmax) {
                for (x, y) in block.0.iter().zip(block.1) {
                    prop_assert!((x - y).abs() <= cell * largest, "{format}: {x} became {y}");
                    prop_assert!(*x != 0.0 || *y == 0.0, "{format}: zero became {y}");
                }
            }
            if format != NestedFormat::Nf3 {
                let again = nested_codes(&restored, 64);
                prop_assert_eq!(planes(&again.codes, format), planes(&codes.codes, format));
                prop_assert_eq!(&again.absmax, &codes.absmax);
            }
        }
    }
}
