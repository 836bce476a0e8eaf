//! Quantisation in vector registers and on all cores: a code is the number of midpoints below the value,
//! counted for 64 values at once.

use rayon::prelude::*;

use super::{ByteBlocks, PackedBlocks, Scale};
use crate::codebook::{DynamicMap, FourBitFormat};
use crate::cpu::{max_abs, simd, simd_256};

/// Values of one parallel task, before rounding to whole blocks.
const TASK: usize = 1 << 15;
/// Values whose codes are counted together: enough for all registers, and whole blocks.
const LANES: usize = 64;

/// A midpoint of the ascending table, and how far the code moves when a value is above it.
#[derive(Clone, Copy)]
struct Threshold {
    above: f32,
    delta: i32,
}

/// Thresholds, and the code below all of them.
struct Ladder {
    thresholds: [Threshold; 15],
    first: i32,
}

impl Ladder {
    fn of(format: FourBitFormat) -> Self {
        let table = format.values();
        let order = format.ascending();
        // The two zeros of FP4 leave a rung over, which nothing is above.
        let never = Threshold {
            above: f32::INFINITY,
            delta: 0,
        };
        let mut thresholds = [never; 15];
        for (threshold, pair) in thresholds.iter_mut().zip(order.windows(2)) {
            let (low, high) = (table[usize::from(pair[0])], table[usize::from(pair[1])]);
            *threshold = Threshold {
                above: (low + high) / 2.0,
                delta: i32::from(pair[1]) - i32::from(pair[0]),
            };
        }
        Self {
            thresholds,
            first: i32::from(order[0]),
        }
    }

    /// Codes of some values, two to a byte.
    #[inline(always)]
    fn packed(&self, values: &[f32; LANES], scale: Scale) -> [u8; LANES / 2] {
        let mut scaled = [0.0; LANES];
        for (scaled, &x) in scaled.iter_mut().zip(values) {
            *scaled = scale.apply(x);
        }
        let mut codes = [self.first; LANES];
        for Threshold { above, delta } in self.thresholds {
            for (code, &x) in codes.iter_mut().zip(&scaled) {
                *code += if x > above { delta } else { 0 };
            }
        }
        // Narrowed, taken apart and put together in loops of their own, which the compiler turns into a few
        // shuffles of whole registers.
        let mut bytes = [0; LANES];
        for (byte, &code) in bytes.iter_mut().zip(&codes) {
            *byte = code as u8;
        }
        let (mut high, mut low) = ([0; LANES / 2], [0; LANES / 2]);
        for ((high, low), pair) in high.iter_mut().zip(&mut low).zip(bytes.chunks_exact(2)) {
            (*high, *low) = (pair[0], pair[1]);
        }
        for (high, low) in high.iter_mut().zip(&low) {
            *high = *high << 4 | low;
        }
        high
    }

    #[inline(always)]
    fn block(&self, values: &[f32], packed: &mut [u8]) -> f32 {
        let absmax = max_abs(values);
        let scale = Scale::of(absmax);
        let (whole, rest) = values.as_chunks::<LANES>();
        let mut packed = packed.chunks_mut(LANES / 2);
        for (values, packed) in whole.iter().zip(&mut packed) {
            packed.copy_from_slice(&self.packed(values, scale));
        }
        if let Some(packed) = packed.next() {
            // Beyond the last value the lanes hold zeros, whose code fills the last byte.
            let mut lanes = [0.0; LANES];
            lanes[..rest.len()].copy_from_slice(rest);
            let length = packed.len();
            packed.copy_from_slice(&self.packed(&lanes, scale)[..length]);
        }
        absmax
    }
}

pub(super) fn four_bit(values: &[f32], format: FourBitFormat, block_size: usize) -> PackedBlocks {
    let ladder = Ladder::of(format);
    let mut blocks = PackedBlocks {
        packed: vec![0; values.len().div_ceil(2)],
        absmax: vec![0.0; values.len().div_ceil(block_size)],
    };
    let per_task = TASK.div_ceil(block_size);
    (
        values.par_chunks(per_task * block_size),
        blocks.packed.par_chunks_mut(per_task * block_size / 2),
        blocks.absmax.par_chunks_mut(per_task),
    )
        .into_par_iter()
        .for_each(|(values, packed, absmax)| {
            let blocks = values
                .chunks(block_size)
                .zip(packed.chunks_mut(block_size / 2));
            simd_256(
                #[inline(always)]
                || {
                    for ((values, packed), absmax) in blocks.zip(absmax) {
                        *absmax = ladder.block(values, packed);
                    }
                },
            );
        });
    blocks
}

pub(super) fn blockwise(values: &[f32], map: DynamicMap, block_size: usize) -> ByteBlocks {
    let mut blocks = ByteBlocks {
        codes: vec![0; values.len()],
        absmax: vec![0.0; values.len().div_ceil(block_size)],
    };
    let per_task = TASK.div_ceil(block_size);
    (
        values.par_chunks(per_task * block_size),
        blocks.codes.par_chunks_mut(per_task * block_size),
        blocks.absmax.par_chunks_mut(per_task),
    )
        .into_par_iter()
        .for_each(|(values, codes, absmax)| {
            let blocks = values.chunks(block_size).zip(codes.chunks_mut(block_size));
            simd(
                #[inline(always)]
                || {
                    for ((values, codes), absmax) in blocks.zip(absmax) {
                        *absmax = encode(values, map, codes);
                    }
                },
            );
        });
    blocks
}

/// The codes of one block; returns its absmax.
#[inline(always)]
pub(crate) fn encode(values: &[f32], map: DynamicMap, codes: &mut [u8]) -> f32 {
    let midpoints = map.midpoints();
    let absmax = max_abs(values);
    let scale = Scale::of(absmax);
    for (code, &x) in codes.iter_mut().zip(values) {
        *code = rank(scale.apply(x), midpoints);
    }
    absmax
}

/// The number of midpoints below `x`, by bisection without branches.
#[inline(always)]
fn rank(x: f32, midpoints: &[f32; 256]) -> u8 {
    let mut rank = 0usize;
    let mut step = 128;
    while step > 0 {
        rank += if x > midpoints[rank + step - 1] {
            step
        } else {
            0
        };
        step /= 2;
    }
    rank as u8
}

/// 1.5·2²³.
const ROUND: f32 = 12_582_912.0;

pub(super) fn int8_rows(values: &[f32], width: usize) -> (Vec<i8>, Vec<f32>) {
    let rows = values.len() / width.max(1);
    let mut codes = vec![0; values.len()];
    let mut absmax = vec![0.0; rows];
    if width > 0 {
        (
            values.par_chunks(width),
            codes.par_chunks_mut(width),
            absmax.par_iter_mut(),
        )
            .into_par_iter()
            .with_min_len(TASK / width + 1)
            .for_each(|(values, codes, absmax)| {
                simd(
                    #[inline(always)]
                    || {
                        *absmax = max_abs(values);
                        let scale = Scale::of(*absmax);
                        for (code, &x) in codes.iter_mut().zip(values) {
                            // Added to a number whose last bit is worth 1, x is rounded to a whole number, ties to
                            // even, which then stands in the last bits.
                            *code = (scale.apply(x) * 127.0 + ROUND).to_bits() as i8;
                        }
                    },
                );
            });
    }
    (codes, absmax)
}

pub(super) fn all_finite(values: &[f32]) -> bool {
    values.par_chunks(TASK).all(|values| {
        // The largest exponent marks infinities and NaN; a maximum of bits is a vector instruction.
        let largest = simd(
            #[inline(always)]
            || values.iter().fold(0, |bits, x| bits.max(x.abs().to_bits())),
        );
        largest < f32::INFINITY.to_bits()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::reference;
    use super::*;

    /// Values of every size: normal, huge, tiny, denormal, and both zeros.
    fn values() -> impl Strategy<Value = Vec<f32>> {
        let one = prop_oneof![
            4 => -3.0f32..3.0,
            1 => -1.0e38f32..1.0e38,
            1 => -1.0e-37f32..1.0e-37,
            1 => -1.0e-44f32..1.0e-44,
            1 => Just(0.0f32),
            1 => Just(-0.0f32),
        ];
        prop_oneof![
            3 => proptest::collection::vec(one, 0..600),
            1 => proptest::collection::vec(-1.0e-40f32..1.0e-40, 0..300),
            1 => proptest::collection::vec(Just(0.0f32), 0..300),
        ]
    }

    const FORMATS: [FourBitFormat; 2] = [FourBitFormat::Nf4, FourBitFormat::Fp4];

    proptest! {
        #[test]
        fn four_bit_is_the_reference(values in values()) {
            for format in FORMATS {
                for block_size in [2, 64, 128] {
                    let expected = reference::four_bit(&values, format, block_size);
                    prop_assert_eq!(four_bit(&values, format, block_size), expected);
                }
            }
        }

        #[test]
        fn blockwise_is_the_reference(values in values()) {
            for map in [DynamicMap::Signed, DynamicMap::Unsigned] {
                for block_size in [1, 100, 256] {
                    let expected = reference::blockwise(&values, map, block_size);
                    prop_assert_eq!(blockwise(&values, map, block_size), expected);
                }
            }
        }

        #[test]
        fn pieces_of_whole_blocks_are_the_whole(values in values(), at in 0usize..5) {
            let at = (at * 128).min(values.len() / 128 * 128);
            for format in FORMATS {
                let mut first = four_bit(&values[..at], format, 128);
                let second = four_bit(&values[at..], format, 128);
                first.packed.extend(second.packed);
                first.absmax.extend(second.absmax);
                prop_assert_eq!(first, four_bit(&values, format, 128));
            }
        }

        #[test]
        fn int8_is_the_definition(values in values(), width in 1usize..40) {
            let whole = values.len() / width * width;
            let (codes, absmax) = int8_rows(&values[..whole], width);
            for (i, (&x, &code)) in values[..whole].iter().zip(&codes).enumerate() {
                let scale = Scale::of(absmax[i / width]);
                prop_assert_eq!(code, (scale.apply(x) * 127.0).round_ties_even() as i8);
            }
        }

        #[test]
        fn numbers_that_are_not_finite_are_found(
            values in values(),
            at in any::<proptest::sample::Index>(),
            wrong in prop_oneof![Just(f32::NAN), Just(-f32::NAN), Just(f32::INFINITY), Just(f32::NEG_INFINITY)],
        ) {
            prop_assert!(all_finite(&values));
            if !values.is_empty() {
                let mut values = values;
                let at = at.index(values.len());
                values[at] = wrong;
                prop_assert!(!all_finite(&values));
            }
        }

        #[test]
        fn int8_is_within_half_a_step(values in values(), width in 1usize..40) {
            let whole = values.len() / width * width;
            let (codes, absmax) = int8_rows(&values[..whole], width);
            for (i, (&x, &code)) in values[..whole].iter().zip(&codes).enumerate() {
                let step = f64::from(absmax[i / width]) / 127.0;
                let error = (f64::from(x) - f64::from(code) * step).abs();
                prop_assert!(error <= 0.5001 * step + 1e-45, "{x} became {code} of {step:e}");
            }
        }
    }
}
