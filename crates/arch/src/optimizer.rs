//! How an optimiser keeps its state.

/// Values of an 8-bit moment that share a scale.
pub const BLOCK_SIZE: usize = 256;

/// Tensors with fewer values keep their moments in 32 bits.
pub const MIN_8BIT_SIZE: usize = 4096;

/// Whether a second moment in 8 bits may round to zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Guard {
    /// Never, unless it is zero.
    #[default]
    On,
    /// As bitsandbytes: where zero is nearest.
    Off,
}

/// How AdamW's moments are kept between updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatePrecision {
    /// In f32.
    F32,
    /// In 8 bits; tensors of fewer than [`MIN_8BIT_SIZE`] values in f32.
    Bits8(Guard),
}

impl StatePrecision {
    /// Memory of both moments of a parameter with `values` values.
    ///
    /// # Units
    /// Bytes.
    #[must_use]
    pub const fn state_bytes(self, values: usize) -> usize {
        match self {
            Self::Bits8(_) if values >= MIN_8BIT_SIZE => {
                2 * (values + 4 * values.div_ceil(BLOCK_SIZE))
            }
            Self::Bits8(_) | Self::F32 => 8 * values,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_tensors_take_a_code_and_a_share_of_a_scale_for_each_moment() {
        let bits8 = StatePrecision::Bits8(Guard::On);
        assert_eq!(bits8.state_bytes(4095), 8 * 4095);
        assert_eq!(bits8.state_bytes(4096), 2 * (4096 + 4 * 16));
        assert_eq!(bits8.state_bytes(4097), 2 * (4097 + 4 * 17));
        assert_eq!(StatePrecision::F32.state_bytes(4097), 8 * 4097);
    }
}
