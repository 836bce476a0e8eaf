//! Blocks of quantised values as GGUF files hold them: what a block has, and the values that it stands for.
//!
//! Every product and sum is rounded to `f32` in the order of ggml's reference, so the values are the same to the bit.
//! The reader of files and the kernels of weights that stay in their blocks both take them from here.
//!
//! # Source
//! `dequantize_row_*` in <https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>; block layouts in
//! `ggml-common.h`.

mod unpack;

use crate::named;

named! {
    /// A type of block. Names are ggml's, in small letters as files have them in their own names.
    #[allow(non_camel_case_types, reason = "the names are those of ggml")]
    GgufBlock {
        /// 32 values of 4 bits around 0, and a scale.
        Q4_0 = "q4_0",
        /// 32 values of 4 bits, a scale and a minimum.
        Q4_1 = "q4_1",
        /// 32 values of 5 bits around 0, and a scale.
        Q5_0 = "q5_0",
        /// 32 values of 5 bits, a scale and a minimum.
        Q5_1 = "q5_1",
        /// 32 whole numbers of 8 bits, and a scale.
        #[default]
        Q8_0 = "q8_0",
        /// 8 sub-blocks of 32 values of 4 bits, with scales and minimums of 6 bits.
        Q4_K = "q4_k",
        /// 8 sub-blocks of 32 values of 5 bits, with scales and minimums of 6 bits.
        Q5_K = "q5_k",
        /// 16 sub-blocks of 16 values of 6 bits around 0, with scales of 8 bits.
        Q6_K = "q6_k",
    }
}

impl GgufBlock {
    /// Values of a block, which never crosses rows.
    #[must_use]
    pub const fn values(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Where a block has its numbers in half precision: the scale, and the minimum or the scale of minimums where there is
    /// one.
    #[must_use]
    pub const fn halves(self) -> &'static [usize] {
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => &[0],
            Self::Q4_1 | Self::Q5_1 | Self::Q4_K | Self::Q5_K => &[0, 2],
            Self::Q6_K => &[208],
        }
    }

    /// What is taken off each code before it is scaled.
    #[must_use]
    pub const fn offset(self) -> u8 {
        match self {
            Self::Q4_0 => 8,
            Self::Q5_0 => 16,
            Self::Q6_K => 32,
            Self::Q4_1 | Self::Q5_1 | Self::Q8_0 | Self::Q4_K | Self::Q5_K => 0,
        }
    }

    /// Whether every value of whole blocks is finite. Codes are: a damaged block shows in its numbers in half precision,
    /// whose products with the widest codes are far from the end of `f32`.
    #[must_use]
    pub fn all_finite(self, bytes: &[u8]) -> bool {
        // All ones in the exponent.
        let finite = |block: &[u8], at: usize| block[at + 1] & 0x7c != 0x7c;
        let mut blocks = bytes.chunks_exact(self.bytes());
        blocks.all(|block| self.halves().iter().all(|&at| finite(block, at)))
    }
}

#[cfg(test)]
mod tests;
