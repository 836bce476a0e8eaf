//! Llama 3.1's rotary scaling, from the factors that a GGUF file keeps of it.

use std::f64::consts::TAU;

/// The parameters behind the factors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Llama3Scaling {
    pub(super) factor: f64,
    pub(super) low_freq_factor: f64,
    pub(super) high_freq_factor: f64,
    pub(super) original_max_position_embeddings: u64,
}

impl Llama3Scaling {
    /// What each rotary frequency is divided by.
    ///
    /// # Source
    /// `_compute_llama3_parameters` in transformers' `modeling_rope_utils.py`.
    pub(super) fn factors(self, theta: f64, pairs: usize) -> impl Iterator<Item = f64> {
        let original = self.original_max_position_embeddings as f64;
        (0..pairs).map(move |pair| {
            let wavelength = wavelength(theta, pair, pairs);
            if wavelength < original / self.high_freq_factor {
                1.0
            } else if wavelength > original / self.low_freq_factor {
                self.factor
            } else {
                let smooth = (original / wavelength - self.low_freq_factor)
                    / (self.high_freq_factor - self.low_freq_factor);
                1.0 / ((1.0 - smooth) / self.factor + smooth)
            }
        })
    }

    /// The parameters that reproduce `factors`, if those that every published model uses
    /// (low 1, high 4, an original context that is a power of two) do.
    pub(super) fn recover(factors: &[f32], theta: f64) -> Option<Self> {
        // The longest wavelength is divided by the whole factor.
        let factor = f64::from(*factors.last()?);
        if !(factor.is_finite() && factor > 1.0) {
            return None;
        }
        (6..=24)
            .map(|power| Self {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 1 << power,
            })
            .find(|scaling| {
                scaling
                    .factors(theta, factors.len())
                    .zip(factors)
                    .all(|(ours, theirs)| (ours / f64::from(*theirs) - 1.0).abs() < 1e-4)
            })
    }
}

/// Positions per turn of a rotary pair.
fn wavelength(theta: f64, pair: usize, pairs: usize) -> f64 {
    TAU * theta.powf(pair as f64 / pairs as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_come_back() {
        for (factor, original, theta, pairs) in [
            (8.0, 8192, 500_000.0, 64),
            (32.0, 8192, 500_000.0, 32),
            (8.0, 64, 500_000.0, 8),
        ] {
            let scaling = Llama3Scaling {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: original,
            };
            let factors: Vec<f32> = scaling.factors(theta, pairs).map(|f| f as f32).collect();
            assert_eq!(Llama3Scaling::recover(&factors, theta), Some(scaling));
        }
    }

    #[test]
    fn other_factors_are_not_explained_away() {
        assert_eq!(Llama3Scaling::recover(&[], 10_000.0), None);
        assert_eq!(Llama3Scaling::recover(&[1.0, f32::NAN], 10_000.0), None);
        let longrope = [1.0, 1.3, 2.0, 2.2, 5.0, 7.0, 8.0, 8.0];
        assert_eq!(Llama3Scaling::recover(&longrope, 500_000.0), None);
    }
}
