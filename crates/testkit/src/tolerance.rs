//! How far from a reference value a correct float32 program may be.

use std::fmt::Display;

/// A largest difference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// The same for every value.
    Absolute(f64),
    /// A share of the expected value.
    Relative(f64),
    /// A share of the largest magnitude among the expected values.
    OfLargest(f64),
}

use Tolerance::{Absolute, OfLargest, Relative};

/// Logits and hidden states of the tiny models.
pub const TINY_LOGITS: Tolerance = Absolute(1e-4);
/// Losses of the tiny models.
pub const TINY_LOSS: Tolerance = Absolute(1e-5);
/// Gradients of the tiny models.
pub const TINY_GRADIENT: Tolerance = OfLargest(1e-4);
/// Norms of the tiny models' gradients.
pub const TINY_NORM: Tolerance = Relative(1e-4);
/// Logits and hidden states of SmolLM2.
pub const SMOLLM2_LOGITS: Tolerance = Absolute(1e-3);
/// Mean negative log-likelihood of SmolLM2.
pub const SMOLLM2_MEAN_NLL: Tolerance = Absolute(1e-5);
/// Negative log-likelihood of one token.
pub const SMOLLM2_TOKEN_NLL: Tolerance = Absolute(1e-3);
/// Losses of the ten adapter steps.
pub const SMOLLM2_LORA_LOSS: Tolerance = Absolute(1e-4);
/// Gradient norms of the ten adapter steps.
pub const SMOLLM2_LORA_GRADIENT_NORM: Tolerance = Relative(1e-4);
/// Norms of the factors after the ten adapter steps.
pub const SMOLLM2_LORA_FINAL_NORM: Tolerance = Relative(3e-4);
/// Everything of the ten steps over a 4-bit base: one nested code on an edge moves the last digits.
pub const SMOLLM2_QLORA: Tolerance = Relative(1e-3);

impl Tolerance {
    /// The largest difference allowed from `expected`, `largest` being the largest magnitude.
    fn allowed(self, expected: f64, largest: f64) -> f64 {
        match self {
            Absolute(difference) => difference,
            Relative(share) => share * expected.abs(),
            OfLargest(share) => share * largest,
        }
    }

    /// Compares numbers one by one; NaN is never close.
    ///
    /// # Panics
    /// If there is not one for each expected one, or one is too far away.
    #[track_caller]
    pub fn check(self, what: impl Display, actual: &[f32], expected: &[f32]) {
        assert_eq!(actual.len(), expected.len(), "{what}: how many numbers");
        let magnitudes = expected.iter().map(|&value| f64::from(value).abs());
        let largest = magnitudes.fold(0.0, f64::max);
        for (i, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
            let (actual, expected) = (f64::from(actual), f64::from(expected));
            let allowed = self.allowed(expected, largest);
            assert!(
                (actual - expected).abs() <= allowed,
                "{what}, number {i}: expected {expected} to within {allowed:.1e}, got {actual}"
            );
        }
    }

    /// Compares two numbers; NaN is never close.
    ///
    /// # Panics
    /// If they are too far apart.
    #[track_caller]
    pub fn check_one(self, what: impl Display, actual: f64, expected: f64) {
        let allowed = self.allowed(expected, expected.abs());
        assert!(
            (actual - expected).abs() <= allowed,
            "{what}: expected {expected} to within {allowed:.1e}, got {actual}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_up_to_the_tolerance_pass() {
        Absolute(0.1).check("absolute", &[1.05, -3.0], &[1.0, -3.05]);
        OfLargest(0.1).check("of the largest", &[0.9, 10.5], &[0.0, 10.0]);
        Relative(0.1).check_one("relative", 9.5, 10.0);
    }

    #[test]
    #[should_panic(expected = "number 1: expected 1 to within 1.0e-1, got 1.25")]
    fn a_larger_one_is_named() {
        Absolute(0.1).check("numbers", &[1.0, 1.25], &[1.0, 1.0]);
    }

    #[test]
    #[should_panic(expected = "got NaN")]
    fn nan_is_never_close() {
        Absolute(0.1).check("numbers", &[f32::NAN], &[1.0]);
    }
}
