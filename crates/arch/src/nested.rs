//! Codes of 3, 5 and 6 bits whose cells nest in NF4's.
//!
//! Each of NF4's sixteen cells is cut into equal parts, so that one pass over a matrix gives every format: the code of
//! 6 bits without its last two bits is bitsandbytes' NF4 code, without its last bit that of 5 bits, and NF4's without
//! its last bit that of 3.
//!
//! The value of a code is the mean of its cell where blocks are normal ([`derivation`] computes it), but for a few
//! that are pinned. In a block that one outlier dominates all other values are zero, or nearly, next to the scale;
//! where zero and the ends are means as well, 5 and 6 bits do worse there than NF4, which has 0 and ±1. So 0 is pinned
//! in every format, ±1 in those of 5 and 6 bits; the ends of 3 bits are too wide for that. It costs 6.5 % more squared
//! error with 5 bits in normal blocks and 2.2 % with 6.

pub mod derivation;
mod tables;

use crate::four_bit::FourBitFormat;
use crate::named;

named! {
    /// NF4 with a bit less, one more or two more.
    NestedFormat {
        /// Pairs of NF4's cells.
        Nf3 = "nf3",
        /// Halves of NF4's cells.
        #[default]
        Nf5 = "nf5",
        /// Quarters of NF4's cells.
        Nf6 = "nf6",
    }
}

/// Bits of the longest code, which holds all others.
pub const BITS: usize = 6;

/// The cells of 6 bits are between these and below and above all of them; a code is the number of thresholds below the
/// value, in units of the block's largest magnitude.
pub const THRESHOLDS: [f32; 63] = thresholds();

/// The code of 6 bits that zero gets.
pub const ZERO: u8 = zero();

impl NestedFormat {
    /// Bits of a code.
    #[must_use]
    pub const fn bits(self) -> usize {
        match self {
            Self::Nf3 => 3,
            Self::Nf5 => 5,
            Self::Nf6 => 6,
        }
    }

    /// How far a code of 6 bits is shifted right for one of this format.
    #[must_use]
    pub const fn shift(self) -> usize {
        BITS - self.bits()
    }

    /// The widths of the arrays that codes are kept in, high bits first: nibbles and a plane beside them, or, below four
    /// bits, pairs and a plane of single bits.
    #[must_use]
    pub const fn planes(self) -> [usize; 2] {
        match self {
            Self::Nf3 => [2, 1],
            Self::Nf5 => [4, 1],
            Self::Nf6 => [4, 2],
        }
    }

    /// The value of each code, in units of the block's largest magnitude.
    #[must_use]
    pub const fn values(self) -> &'static [f32] {
        match self {
            Self::Nf3 => &tables::NF3,
            Self::Nf5 => &tables::NF5,
            Self::Nf6 => &tables::NF6,
        }
    }

    /// Codes whose value is no mean, and that value.
    #[must_use]
    pub fn pinned(self) -> Vec<(usize, f32)> {
        let zero = (usize::from(ZERO) >> self.shift(), 0.0);
        let last = (1 << self.bits()) - 1;
        match self {
            Self::Nf3 => vec![zero],
            Self::Nf5 | Self::Nf6 => vec![(0, -1.0), zero, (last, 1.0)],
        }
    }
}

/// The ends of the 64 cells of 6 bits: quarters of what lies between NF4's midpoints.
const fn edges() -> [f64; 65] {
    let values = FourBitFormat::Nf4.values();
    let mut outer = [-1.0; 17];
    outer[16] = 1.0;
    let mut i = 1;
    while i < 16 {
        outer[i] = (values[i - 1] as f64 + values[i] as f64) / 2.0;
        i += 1;
    }
    let mut edges = [1.0; 65];
    let mut i = 0;
    while i < 64 {
        let (low, high) = (outer[i / 4], outer[i / 4 + 1]);
        edges[i] = low + (high - low) * (i % 4) as f64 / 4.0;
        i += 1;
    }
    edges
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "rounded once, as values are compared in f32"
)]
const fn thresholds() -> [f32; 63] {
    let edges = edges();
    let mut thresholds = [0.0; 63];
    let mut i = 0;
    while i < 63 {
        thresholds[i] = edges[i + 1] as f32;
        i += 1;
    }
    thresholds
}

const fn zero() -> u8 {
    let mut code = 0;
    while THRESHOLDS[code as usize] < 0.0 {
        code += 1;
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cell of `code`, of a format of so many bits.
    fn cell(code: usize, shift: usize) -> (f32, f32) {
        let (first, next) = (code << shift, (code + 1) << shift);
        let low = first.checked_sub(1).map_or(-1.0, |i| THRESHOLDS[i]);
        (low, THRESHOLDS.get(next - 1).copied().unwrap_or(1.0))
    }

    #[test]
    fn values_ascend_each_in_its_cell() {
        for &format in NestedFormat::ALL {
            let values = format.values();
            assert_eq!(values.len(), 1 << format.bits());
            for (code, &value) in values.iter().enumerate() {
                let (low, high) = cell(code, format.shift());
                assert!(low <= value && value <= high, "{format} {code}: {value}");
            }
        }
        for (code, &value) in FourBitFormat::Nf4.values().iter().enumerate() {
            let (low, high) = cell(code, 2);
            assert!(low <= value && value <= high, "nf4 {code}: {value}");
        }
    }

    #[test]
    fn zero_is_a_value_and_where_there_is_room_one_is() {
        for &format in NestedFormat::ALL {
            let values = format.values();
            assert_eq!(values[usize::from(ZERO) >> format.shift()], 0.0);
            let ends = [values[0], values[values.len() - 1]];
            assert_eq!(ends == [-1.0, 1.0], format != NestedFormat::Nf3);
        }
    }

    /// Between NF4's midpoints lie three thresholds, and those are rounded as f32 arithmetic rounds them.
    #[test]
    fn every_fourth_threshold_is_that_of_nf4() {
        for (i, pair) in FourBitFormat::Nf4.values().windows(2).enumerate() {
            assert_eq!(THRESHOLDS[4 * i + 3], (pair[0] + pair[1]) / 2.0);
        }
    }
}
