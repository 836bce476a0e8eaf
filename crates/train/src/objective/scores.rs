//! What a pair costs whose answers a head scores (Bradley and Terry).
//!
//! # Source
//! TRL 1.16's `RewardTrainer`.

use burn::tensor::Tensor;
use burn::tensor::activation::{log_sigmoid, sigmoid};

use super::judged::Judged;
use super::pairs::{apart, judged};

/// −ln σ(c − r − γ − m) + κ (c + r)², c and r being the scores of the chosen and of the rejected answer, m the margin that their row
/// has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreLoss {
    /// γ, the margin that every pair should have.
    pub gamma: f64,
    /// κ, which keeps scores around 0.
    pub center: f64,
}

impl ScoreLoss {
    /// Judges pairs; their rewards are the scores, and slopes are with respect to those.
    ///
    /// # Shapes
    /// `scores` `[2 × pairs]`, chosen and rejected in turn; `margins` likewise, of which the chosen answers' count.
    pub fn judge(self, scores: &Tensor<1>, margins: &Tensor<1>) -> Judged {
        let both = apart(scores.clone());
        let [margins, _] = apart(margins.clone());
        let [chosen, rejected] = both.clone();
        let x = chosen.clone() - rejected.clone() - self.gamma - margins;
        let losses = log_sigmoid(x.clone()).neg();
        let pull = sigmoid(x.neg()).neg();
        let slopes = [pull.clone(), pull.neg()];
        if self.center == 0.0 {
            return judged(losses, slopes, both);
        }
        let sum = chosen + rejected;
        let centring = sum.clone() * (2.0 * self.center);
        let losses = losses + sum.clone() * sum * self.center;
        judged(losses, slopes.map(|slope| slope + centring.clone()), both)
    }
}
