//! Scaling the loss so that gradients fit into f16.
//!
//! The smallest f16 above zero is 6·10⁻⁸, and gradients of activations lie below. The loss is therefore
//! multiplied by a power of two, with all gradients, and norm and update divide by it again. Too large a scale
//! overflows: then the norm is not finite, and the step is repeated under half the scale before anything has
//! reached the weights, so no step and no row is lost. After a while without that the scale is doubled.
//!
//! # Source
//! Micikevicius et al. 2018, arXiv:1710.03740; start and growth as in PyTorch's `GradScaler`.

use serde::{Deserialize, Serialize};

/// A power of two, and since when it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScale {
    /// log₂ of the scale.
    exponent: u32,
    /// Steps since it last changed.
    good_steps: u32,
}

impl Default for LossScale {
    fn default() -> Self {
        Self::new(16)
    }
}

impl LossScale {
    /// Steps after which the scale is doubled.
    pub const GROWTH_INTERVAL: u32 = 2000;

    /// A larger one has never been needed.
    const LARGEST: u32 = 24;

    /// 2^`exponent`.
    #[must_use]
    pub const fn new(exponent: u32) -> Self {
        Self {
            exponent,
            good_steps: 0,
        }
    }

    /// What the loss is multiplied by.
    #[must_use]
    pub fn factor(self) -> f32 {
        2f32.powi(self.exponent as i32)
    }

    /// After an update.
    #[must_use]
    pub const fn after_update(self) -> Self {
        let good_steps = self.good_steps + 1;
        if good_steps < Self::GROWTH_INTERVAL {
            return Self { good_steps, ..self };
        }
        if self.exponent < Self::LARGEST {
            return Self::new(self.exponent + 1);
        }
        Self::new(self.exponent)
    }

    /// After an overflow; `None` below 1, where the scale is not to blame.
    #[must_use]
    pub fn after_overflow(self) -> Option<Self> {
        self.exponent.checked_sub(1).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overflow_halves_until_the_scale_is_one() {
        let mut scale = LossScale::default();
        assert_eq!(scale.factor(), 65536.0);
        for exponent in (0..16).rev() {
            scale = scale.after_overflow().unwrap();
            assert_eq!(scale.factor(), 2f32.powi(exponent));
        }
        assert_eq!(scale.after_overflow(), None);
    }

    #[test]
    fn steps_without_overflow_double_up_to_a_limit() {
        let steps = |mut scale: LossScale, count: u32| {
            for _ in 0..count {
                scale = scale.after_update();
            }
            scale
        };
        let start = LossScale::new(3);
        let waiting = steps(start, LossScale::GROWTH_INTERVAL - 1);
        assert_eq!(waiting.factor(), 8.0);
        assert_eq!(waiting.after_update(), LossScale::new(4));
        // Half, and the count begins again.
        assert_eq!(waiting.after_overflow(), Some(LossScale::new(2)));
        let long = steps(start, 40 * LossScale::GROWTH_INTERVAL);
        assert_eq!(long.factor(), 2f32.powi(24));
    }
}
