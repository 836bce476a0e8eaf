//! Codes of 3, 5 and 6 bits whose cells nest in NF4's.
//!
//! Each of NF4's sixteen cells is cut into equal parts, so that one pass over a matrix gives every format: the code of
//! 6 bits without its last two bits is bitsandbytes' NF4 code, without its last bit that of 5 bits, and NF4's without
//! its last bit that of 3.

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
}
