//! The values that 4-bit codes stand for.
//!
//! # Source
//! NF4: Dettmers et al. 2023, arXiv:2305.14314. Values and order of the codes are those of bitsandbytes, so that its
//! checkpoints can be read.

use crate::named;

named! {
    /// Sixteen values that a 4-bit code chooses from.
    FourBitFormat {
        /// Quantiles of a normal distribution, ascending with the code.
        #[default]
        Nf4 = "nf4",
        /// One sign bit (the highest), two of exponent, one of mantissa, scaled so that the largest value is 1.
        Fp4 = "fp4",
    }
}

impl FourBitFormat {
    /// The value of each code, in units of the block's largest magnitude.
    #[must_use]
    pub const fn values(self) -> &'static [f32; 16] {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        }
    }

    /// The codes by ascending value; FP4's second zero, code 8, is never chosen.
    #[must_use]
    pub const fn ascending(self) -> &'static [u8] {
        match self {
            Self::Nf4 => &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
            Self::Fp4 => &[11, 10, 13, 12, 15, 14, 9, 0, 1, 6, 7, 4, 5, 2, 3],
        }
    }
}

const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

const FP4: [f32; 16] = [
    0.0,
    0.005_208_333_5,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    0.0,
    -0.005_208_333_5,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];
