use proptest::prelude::*;

use super::*;

/// Every scheme that a recipe can ask for.
const SCHEMES: [Scheme; 13] = [
    Scheme::Int8,
    Scheme::nested(NestedFormat::Nf3),
    Scheme::nested(NestedFormat::Nf5),
    Scheme::nested(NestedFormat::Nf6),
    Scheme::Nested {
        format: NestedFormat::Nf5,
        block_size: 128,
        double_quant: false,
    },
    four_bit(FourBitFormat::Nf4, 64, false),
    four_bit(FourBitFormat::Nf4, 64, true),
    four_bit(FourBitFormat::Nf4, 128, false),
    four_bit(FourBitFormat::Nf4, 128, true),
    four_bit(FourBitFormat::Fp4, 64, false),
    four_bit(FourBitFormat::Fp4, 64, true),
    four_bit(FourBitFormat::Fp4, 128, false),
    four_bit(FourBitFormat::Fp4, 128, true),
];

const fn four_bit(format: FourBitFormat, block_size: usize, double_quant: bool) -> Scheme {
    Scheme::FourBit {
        format,
        block_size,
        double_quant,
    }
}

/// Numbers of every size: ordinary, up to 3·10³⁸, tiny, denormal, and both zeros.
fn number() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => -3.0f32..3.0,
        1 => -1.0e38f32..1.0e38,
        1 => Just(3.0e38f32),
        1 => -1.0e-37f32..1.0e-37,
        1 => -1.0e-43f32..1.0e-43,
        1 => Just(0.0f32),
        1 => Just(-0.0f32),
    ]
}

/// A matrix of any shape, sides of 0 among them, some of whose blocks are zero or of one size throughout.
fn matrix() -> impl Strategy<Value = ([usize; 2], Vec<f32>)> {
    let factor = prop_oneof![
        6 => Just(1.0f32),
        1 => Just(0.0f32),
        1 => Just(1.0e-40f32),
        1 => Just(1.0e30f32),
    ];
    (0usize..20, 0usize..150).prop_flat_map(move |(out, input)| {
        let numbers = proptest::collection::vec(number(), out * input);
        let factors = proptest::collection::vec(factor.clone(), (out * input).div_ceil(64));
        (numbers, factors).prop_map(move |(mut numbers, factors)| {
            for (i, x) in numbers.iter_mut().enumerate() {
                *x = (*x * factors[i / 64]).clamp(-3.0e38, 3.0e38);
            }
            ([out, input], numbers)
        })
    })
}

fn values(weight: &Weight) -> Vec<f32> {
    weight.dequantize().into_data().iter::<f32>().collect()
}

fn quantized(values: &[f32], dims: [usize; 2], scheme: Scheme) -> Weight {
    Weight::quantize(values, dims, scheme, &Device::flex())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_weight_is_what_its_scheme_says((dims, source) in matrix()) {
        for scheme in SCHEMES {
            let weight = quantized(&source, dims, scheme);
            prop_assert_eq!(weight.dims(), dims);
            prop_assert_eq!(weight.scheme(), Some(scheme));
            prop_assert_eq!(weight.num_bytes(), scheme.num_bytes(dims));
            let restored = values(&weight);
            prop_assert_eq!(restored.len(), source.len());
            prop_assert!(restored.iter().all(|x| x.is_finite()));
        }
    }

    /// In pieces, as a loader reads a file, codes and scales come out as from the whole.
    #[test]
    fn pieces_make_the_whole((dims, source) in matrix(), blocks in 1usize..6) {
        for scheme in SCHEMES {
            let mut quantizer = Quantizer::new(dims, scheme);
            for piece in source.chunks(blocks * quantizer.granularity()) {
                quantizer.push(piece);
            }
            let pieces = values(&quantizer.finish(&Device::flex()));
            let whole = values(&quantized(&source, dims, scheme));
            prop_assert!(pieces.iter().zip(&whole).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }

    /// Values that codes stand for have themselves as their values. (Not where the scales are quantised
    /// too: their mean is another then.)
    #[test]
    fn quantising_again_changes_nothing((dims, source) in matrix()) {
        for scheme in SCHEMES {
            if let Scheme::FourBit { double_quant: false, .. } = scheme {
                let once = values(&quantized(&source, dims, scheme));
                let again = values(&quantized(&once, dims, scheme));
                prop_assert_eq!(once, again, "{}", scheme);
            }
        }
    }

    #[test]
    fn whole_numbers_are_found_again(
        rows in proptest::collection::vec((-10i32..10, proptest::collection::vec(-127i8..=127, 9)), 1..9),
    ) {
        let mut source = Vec::new();
        let mut codes = Vec::new();
        for (exponent, mut row) in rows.clone() {
            row[0] = 127;
            let step = 10f32.powi(exponent);
            source.extend(row.iter().map(|&code| f32::from(code) * step));
            codes.extend(row);
        }
        let weight = quantized(&source, [rows.len(), 9], Scheme::Int8);
        let Weight::Int8(matrix) = &weight else { unreachable!() };
        let found: Vec<i8> = matrix.codes().clone().into_data().iter::<i8>().collect();
        prop_assert_eq!(found, codes);
        for (a, b) in values(&weight).iter().zip(&source) {
            prop_assert!((a - b).abs() <= 3e-7 * b.abs(), "{a} and {b}");
        }
    }

    /// Where all of a block is zero, so is what comes back, whatever the blocks beside it are.
    #[test]
    fn zeros_stay_zeros((dims, source) in matrix()) {
        for scheme in SCHEMES {
            let row = dims[1].max(1);
            let block = scheme.blocks().map_or(row, |(block_size, _)| block_size);
            let restored = values(&quantized(&source, dims, scheme));
            for (source, restored) in source.chunks(block).zip(restored.chunks(block)) {
                if source.iter().all(|&x| x == 0.0) {
                    prop_assert!(restored.iter().all(|&x| x == 0.0), "{scheme}: {restored:?}");
                }
            }
        }
    }

    /// x·Wᵀ and dy·W are those of the values.
    #[test]
    fn products_are_those_of_the_values(
        (out, input, t) in (1usize..40, 1usize..150, 0usize..5),
        seed in 0u32..1000,
    ) {
        let wave = |n: usize, from: u32| -> Vec<f32> {
            (0..n).map(|i| ((i as u32 * 7919 + from * 104_729) % 1009) as f32 / 504.5 - 1.0).collect()
        };
        let tensor = |n: usize, m: usize, from: u32| {
            Tensor::<2>::from_data(TensorData::new(wave(n * m, from), [n, m]), &Device::flex())
        };
        let (x, dy) = (tensor(t, input, seed + 1), tensor(t, out, seed + 2));
        for scheme in SCHEMES {
            let weight = quantized(&wave(out * input, seed), [out, input], scheme);
            let dense = weight.dequantize();
            let pairs = [
                (weight.matmul(&x), x.clone().matmul(dense.clone().transpose())),
                (weight.matmul_transposed(&dy), dy.clone().matmul(dense)),
            ];
            for (actual, expected) in pairs {
                prop_assert_eq!(actual.dims(), expected.dims());
                let error = (actual - expected).abs().into_data();
                let largest = error.iter::<f32>().fold(0.0, f32::max);
                prop_assert!(largest <= 1e-5 * (out.max(input) as f32), "{scheme}: {largest}");
            }
        }
    }
}

#[test]
fn matrices_without_values_are_matrices() {
    for scheme in SCHEMES {
        for dims in [[0, 0], [0, 5], [5, 0]] {
            let weight = quantized(&[], dims, scheme);
            assert_eq!(weight.dims(), dims);
            assert_eq!(weight.dequantize().dims(), dims);
        }
    }
}

#[test]
fn rows_are_those_of_the_values() {
    let source: Vec<f32> = (0..7 * 33).map(|i| (i as f32).sin()).collect();
    for scheme in SCHEMES {
        let weight = quantized(&source, [7, 33], scheme);
        let (all, some) = (values(&weight), weight.rows(&[6, 0, 6]));
        assert_eq!(some.dims(), [3, 33]);
        let some: Vec<f32> = some.into_data().iter::<f32>().collect();
        assert_eq!(some, [&all[198..], &all[..33], &all[198..]].concat());
    }
}

#[test]
#[should_panic(expected = "values so far in pieces of 64")]
fn a_piece_that_ends_inside_a_block_is_our_bug() {
    let mut quantizer = Quantizer::new([2, 64], Scheme::NF4);
    quantizer.push(&[0.0; 63]);
    quantizer.push(&[0.0; 65]);
}

/// A weight in a file's blocks is a weight like any other.
#[test]
fn blocks_of_a_file_are_a_weight() {
    use backdraft_arch::GgufBlock;
    let device = Device::flex();
    // Whole numbers 0 to 63, in units of a half.
    let block = |first: u8| [vec![0, 0x38], (first..first + 32).collect()].concat();
    let bytes: Vec<u8> = [0, 32].into_iter().flat_map(block).collect();
    let blocks = GgufBlocks::from_parts(GgufBlock::Q8_0, [2, 32], bytes, &device).unwrap();
    let weight = Weight::Gguf(blocks);
    assert_eq!(weight.dims(), [2, 32]);
    assert_eq!((weight.num_params(), weight.num_bytes()), (64, 68));
    let scheme = weight.scheme().unwrap();
    assert_eq!(scheme, Scheme::Gguf(GgufBlock::Q8_0));
    assert_eq!(weight.num_bytes(), scheme.num_bytes(weight.dims()));
    let values: Vec<f32> = (0..64).map(|i| i as f32 / 2.0).collect();
    let expected = Tensor::<1>::from_floats(&values[..], &device).reshape([2, 32]);
    assert_eq!(
        weight.dequantize().into_data(),
        expected.clone().into_data()
    );
    assert_eq!(
        weight.rows(&[1]).into_data(),
        expected
            .clone()
            .slice([1..2, 0..expected.dims()[1]])
            .into_data()
    );
    assert!(weight.tracked().is_none());
    let x = Tensor::<2>::ones([3, 32], &device);
    let product = weight.matmul_add(&x, 1.0, Some(&Tensor::ones([3, 2], &device)));
    let sums = [
        31.0 * 16.0 / 2.0 + 1.0,
        (63.0 * 64.0 - 31.0 * 32.0) / 4.0 + 1.0,
    ];
    assert_eq!(
        product.into_data().iter::<f32>().collect::<Vec<_>>(),
        sums.repeat(3)
    );
    let dy = Tensor::<2>::ones([1, 2], &device);
    let expected = expected.sum_dim(0);
    assert_eq!(
        weight.matmul_transposed(&dy).into_data(),
        expected.into_data()
    );
}

#[test]
#[should_panic(expected = "blocks of q4_k are taken from a file, not made")]
fn blocks_of_a_file_are_not_made() {
    let _ = Quantizer::new([1, 256], Scheme::Gguf(backdraft_arch::GgufBlock::Q4_K));
}
