//! Values of several tensors added, some of them left out.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::{Combination, MajoritySign};

/// Which values stay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pruning {
    pub(super) combination: Combination,
    /// Share of them.
    pub(super) density: f64,
    pub(super) majority_sign: MajoritySign,
}

impl Pruning {
    /// Σ wᵢ·xᵢ of what stays of each xᵢ; of signs that are elected, the mean over those that have the one that prevails.
    pub(super) fn weighted_sum(
        self,
        tensors: &[&[f32]],
        weights: &[f32],
        rng: &mut ChaCha8Rng,
    ) -> Vec<f32> {
        let kept: Vec<Vec<f32>> = tensors
            .iter()
            .map(|values| self.kept(values, rng))
            .collect();
        let length = kept.first().map_or(0, Vec::len);
        let at = |place: usize| {
            let values = || kept.iter().map(move |values| values[place]);
            if !self.combination.elects_signs() {
                let weighted = values().zip(weights).map(|(value, weight)| value * weight);
                return weighted.sum();
            }
            let prevails: f32 = match self.majority_sign {
                MajoritySign::Total => values().sum(),
                MajoritySign::Frequency => values().map(sign).sum(),
            };
            let majority = if prevails >= 0.0 { 1.0 } else { -1.0 };
            let agreeing = || {
                values()
                    .zip(weights)
                    .filter(|(value, _)| sign(*value) == majority)
            };
            let sum: f32 = agreeing().map(|(value, weight)| value * weight).sum();
            sum / (agreeing().count().max(1)) as f32
        };
        (0..length).map(at).collect()
    }

    /// The values with zeros in place of those that are left out.
    fn kept(self, values: &[f32], rng: &mut ChaCha8Rng) -> Vec<f32> {
        if self.density >= 1.0 || !self.combination.prunes() {
            return values.to_vec();
        }
        if self.combination.draws() {
            let density = self.density;
            let keep = |value: &f32| match rng.random::<f64>() < density {
                true => value / density as f32,
                false => 0.0,
            };
            return values.iter().map(keep).collect();
        }
        largest(values, (self.density * values.len() as f64) as usize)
    }
}

/// The `count` largest magnitudes, zeros in place of the others; of equal ones the first stay.
fn largest(values: &[f32], count: usize) -> Vec<f32> {
    let mut places: Vec<usize> = (0..values.len()).collect();
    places.sort_by(|&a, &b| values[b].abs().total_cmp(&values[a].abs()).then(a.cmp(&b)));
    let mut kept = vec![0.0; values.len()];
    for &place in places.iter().take(count) {
        kept[place] = values[place];
    }
    kept
}

/// −1, 0 or 1.
fn sign(value: f32) -> f32 {
    if value == 0.0 { 0.0 } else { value.signum() }
}
