//! Nested codes: a value falls into one of the bins between −1 and 1, which are so narrow that at most one threshold
//! lies in each. Two look-ups and one comparison take the place of 63.

use rayon::prelude::*;

use super::{ByteBlocks, Scale};
use crate::bits::pack;
use crate::codebook::{NestedFormat, THRESHOLDS, ZERO};
use crate::cpu::{max_abs, simd};

/// Values of one parallel task, before rounding to whole blocks.
const TASK: usize = 1 << 15;
/// Values that are taken together: enough for all registers.
const LANES: usize = 64;
/// Codes that are packed together.
const GROUP: usize = 8;

/// What each bin says of the values in it.
struct Bins {
    /// Thresholds in the bins below.
    below: [i32; 256],
    /// The threshold in the bin itself.
    inside: [f32; 256],
}

static BINS: Bins = Bins::new();

impl Bins {
    const fn new() -> Self {
        let mut bins = Self {
            below: [0; 256],
            inside: [f32::INFINITY; 256],
        };
        let mut i = 0;
        while i < THRESHOLDS.len() {
            let at = bin(THRESHOLDS[i]);
            assert!(bins.inside[at] == f32::INFINITY, "two thresholds in a bin");
            bins.inside[at] = THRESHOLDS[i];
            let mut above = at + 1;
            while above < 256 {
                bins.below[above] += 1;
                above += 1;
            }
            i += 1;
        }
        bins
    }

    #[inline(always)]
    fn code(&self, x: f32) -> u8 {
        let at = bin(x);
        (self.below[at] + i32::from(x > self.inside[at])) as u8
    }
}

/// The bin of a value between −1 and 1: as it rises with the value, all that matters is that thresholds fall into
/// theirs by the same arithmetic.
#[inline(always)]
const fn bin(x: f32) -> usize {
    // Added to a number whose last bit is worth 1, 64·x is rounded to a whole number, which stands in the last bits.
    const MIDDLE: f32 = 12_582_912.0 + 128.0;
    ((x * 64.0 + MIDDLE).to_bits() & 255) as usize
}

pub(super) fn codes(values: &[f32], block_size: usize) -> ByteBlocks {
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
                        *absmax = block(values, codes);
                    }
                },
            );
        });
    blocks
}

/// The codes of one block; returns its absmax.
#[inline(always)]
fn block(values: &[f32], codes: &mut [u8]) -> f32 {
    let absmax = max_abs(values);
    let scale = Scale::of(absmax);
    let (whole, rest) = values.as_chunks::<LANES>();
    let (whole_codes, rest_codes) = codes.as_chunks_mut::<LANES>();
    for (codes, values) in whole_codes.iter_mut().zip(whole) {
        for (code, &x) in codes.iter_mut().zip(values) {
            *code = BINS.code(scale.apply(x));
        }
    }
    for (code, &x) in rest_codes.iter_mut().zip(rest) {
        *code = BINS.code(scale.apply(x));
    }
    absmax
}

pub(super) fn planes(codes: &[u8], format: NestedFormat) -> [Vec<u8>; 2] {
    match format {
        NestedFormat::Nf3 => split::<2, 1>(codes, 0),
        // As bitsandbytes fills its last byte: with the code of zero, whose further bits are none.
        NestedFormat::Nf5 => split::<4, 1>(codes, ZERO & !3),
        NestedFormat::Nf6 => split::<4, 2>(codes, ZERO & !3),
    }
}

/// The upper `HIGH` and the `LOW` bits after them of codes of 6 bits; `fill` stands behind the last.
fn split<const HIGH: usize, const LOW: usize>(codes: &[u8], fill: u8) -> [Vec<u8>; 2] {
    let mut planes = [HIGH, LOW].map(|bits| vec![0; codes.len().div_ceil(8 / bits)]);
    let [high, low] = &mut planes;
    (
        codes.par_chunks(TASK),
        high.par_chunks_mut(TASK / 8 * HIGH),
        low.par_chunks_mut(TASK / 8 * LOW),
    )
        .into_par_iter()
        .for_each(|(codes, high, low)| {
            simd(
                #[inline(always)]
                || {
                    let (whole, rest) = codes.as_chunks::<GROUP>();
                    let planes = high.chunks_mut(HIGH).zip(low.chunks_mut(LOW));
                    let mut last = [fill; GROUP];
                    last[..rest.len()].copy_from_slice(rest);
                    for (codes, (high, low)) in whole.iter().chain([&last]).zip(planes) {
                        let codes = u64::from_be_bytes(*codes) >> (6 - HIGH - LOW);
                        high.copy_from_slice(&pack::<HIGH>(codes >> LOW)[..high.len()]);
                        low.copy_from_slice(&pack::<LOW>(codes)[..low.len()]);
                    }
                },
            );
        });
    planes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{cpu, reference};
    use super::*;
    use crate::codebook::FourBitFormat;

    /// Values of every size, and those around thresholds.
    fn values() -> impl Strategy<Value = Vec<f32>> {
        let near = (0..63usize, -2i32..=2).prop_map(|(i, steps)| {
            let bits = THRESHOLDS[i].to_bits() as i32 + steps;
            f32::from_bits(bits as u32)
        });
        let one = prop_oneof![
            4 => -1.0f32..1.0,
            4 => near,
            1 => -1.0e38f32..1.0e38,
            1 => -1.0e-37f32..1.0e-37,
            1 => -1.0e-44f32..1.0e-44,
            1 => Just(0.0f32),
            1 => Just(-0.0f32),
            2 => Just(1.0f32),
        ];
        proptest::collection::vec(one, 0..600)
    }

    proptest! {
        #[test]
        fn codes_are_the_reference(values in values()) {
            for block_size in [8, 64, 128] {
                let blocks = codes(&values, block_size);
                prop_assert_eq!(&blocks, &reference::nested_codes(&values, block_size));
                for &format in NestedFormat::ALL {
                    let expected = reference::planes(&blocks.codes, format);
                    prop_assert_eq!(planes(&blocks.codes, format), expected);
                }
            }
        }

        #[test]
        fn four_bits_of_the_six_are_those_of_nf4(values in values()) {
            let nested = codes(&values, 64);
            let plain = cpu::four_bit(&values, FourBitFormat::Nf4, 64);
            prop_assert_eq!(nested.absmax, plain.absmax);
            let [nibbles, _] = planes(&nested.codes, NestedFormat::Nf6);
            prop_assert_eq!(nibbles, plain.packed);
        }
    }

    /// Thresholds themselves, their neighbours and the ends, without a block's scale between.
    #[test]
    fn a_code_is_the_number_of_thresholds_below() {
        let near = THRESHOLDS
            .iter()
            .flat_map(|t| [t.next_down(), *t, t.next_up()]);
        for x in near.chain([-1.000_000_1, -1.0, -0.0, 0.0, 1.0, 1.000_000_1]) {
            let below = THRESHOLDS.iter().filter(|&&t| t < x).count();
            assert_eq!(usize::from(BINS.code(x)), below, "{x}");
        }
    }
}
