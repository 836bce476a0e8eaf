//! What single answers cost that are good or bad (KTO).
//!
//! # Source
//! TRL 1.16, whose values and gradients `tests/golden/preference` has.

use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid;

use super::judged::Judged;
use crate::compared::floats;

/// w (1 − σ(±β(Δ − z))): + and one weight for good answers, − and another for bad ones; Δ is a log-likelihood less the
/// reference's, z how far the policy has gone from the reference altogether.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SingleLoss {
    /// β.
    pub beta: f64,
    /// Weight of good answers.
    pub desirable_weight: f64,
    /// Weight of bad ones.
    pub undesirable_weight: f64,
}

impl SingleLoss {
    /// Judges answers.
    ///
    /// # Shapes
    /// `policy` and `reference` `[answers]`, `divergence` `[1]`, which is not differentiated.
    pub fn judge(
        self,
        policy: &Tensor<1>,
        reference: &Tensor<1>,
        divergence: &Tensor<1>,
        good: &[bool],
    ) -> Judged {
        let Self {
            beta,
            desirable_weight,
            undesirable_weight,
        } = self;
        let device = policy.device();
        let signs = good.iter().map(|good| if *good { 1.0 } else { -1.0 });
        let signs = floats(signs, &device);
        let weights = good.iter().map(|good| match good {
            true => desirable_weight as f32,
            false => undesirable_weight as f32,
        });
        let weights = floats(weights, &device);
        let delta = policy.clone() - reference.clone();
        let away = delta.clone() - divergence.clone();
        let s = sigmoid(away * signs.clone() * beta);
        let doubt = s.clone().neg() + 1.0;
        Judged {
            slopes: weights.clone() * signs * s * doubt.clone() * -beta,
            losses: weights * doubt,
            terms: Vec::new(),
            rewards: delta * beta,
        }
    }
}
