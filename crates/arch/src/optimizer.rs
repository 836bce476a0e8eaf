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

/// What an optimiser keeps of each factor between updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptState {
    /// Two moments.
    Moments(StatePrecision),
    /// One value for each, in f32.
    Momentum,
    /// One value for each row and each column, in f32.
    Factored,
    /// Two values for each, and one beside them, in f32.
    ScheduleFree,
}

impl From<StatePrecision> for KeptState {
    fn from(precision: StatePrecision) -> Self {
        Self::Moments(precision)
    }
}

impl KeptState {
    /// Memory of what is kept of a factor.
    ///
    /// # Units
    /// Bytes.
    #[must_use]
    pub const fn state_bytes(self, [rows, columns]: [usize; 2]) -> usize {
        match self {
            Self::Moments(precision) => precision.state_bytes(rows * columns),
            Self::Momentum => 4 * rows * columns,
            Self::Factored => 4 * (rows + columns),
            Self::ScheduleFree => 8 * rows * columns + 4,
        }
    }
}

/// What is kept of each factor beside its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptimizerState {
    /// By the update rule.
    pub rule: KeptState,
    /// Whether there is a running mean of the factors, in f32.
    pub mean: bool,
}

impl<T: Into<KeptState>> From<T> for OptimizerState {
    fn from(rule: T) -> Self {
        Self {
            rule: rule.into(),
            mean: false,
        }
    }
}

impl OptimizerState {
    /// Memory of what is kept of a factor.
    ///
    /// # Units
    /// Bytes.
    #[must_use]
    pub const fn state_bytes(self, [rows, columns]: [usize; 2]) -> usize {
        let mean = if self.mean { 4 * rows * columns } else { 0 };
        self.rule.state_bytes([rows, columns]) + mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_optimisers_keep_less() {
        let of = |kept: KeptState| kept.state_bytes([16, 512]);
        assert_eq!(of(StatePrecision::F32.into()), 8 * 16 * 512);
        assert_eq!(of(KeptState::Momentum), 4 * 16 * 512);
        assert_eq!(of(KeptState::Factored), 4 * (16 + 512));
        assert_eq!(of(KeptState::ScheduleFree), 8 * 16 * 512 + 4);
        let with_mean = OptimizerState {
            rule: KeptState::Momentum,
            mean: true,
        };
        assert_eq!(with_mean.state_bytes([16, 512]), 8 * 16 * 512);
    }

    #[test]
    fn large_tensors_take_a_code_and_a_share_of_a_scale_for_each_moment() {
        let bits8 = StatePrecision::Bits8(Guard::On);
        assert_eq!(bits8.state_bytes(4095), 8 * 4095);
        assert_eq!(bits8.state_bytes(4096), 2 * (4096 + 4 * 16));
        assert_eq!(bits8.state_bytes(4097), 2 * (4097 + 4 * 17));
        assert_eq!(StatePrecision::F32.state_bytes(4097), 8 * 4097);
    }
}
