//! What came of answers that were compared.

use serde::{Deserialize, Serialize};

/// A mean with its standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Standard deviation (n − 1) over √n; absent of fewer than two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
}

impl Estimate {
    /// Of some values; `None` where there are none.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len() as f64;
        if values.is_empty() {
            return None;
        }
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let error = (values.len() > 1).then(|| (squares / (count - 1.0) / count).sqrt());
        Some(Self { mean, error })
    }
}

/// `0.6931 ± 0.0120`
impl std::fmt::Display for Estimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.error {
            Some(error) => write!(f, "{:.4} ± {error:.4}", self.mean),
            None => write!(f, "{:.4}", self.mean),
        }
    }
}

/// Answers of a step or of an evaluation. Rewards are β times what an answer is compared by: how much likelier it has become
/// than under the reference, or how likely it is where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AnswersReport {
    /// Chosen or desirable answers.
    pub chosen: usize,
    /// Rejected or undesirable ones.
    pub rejected: usize,
    /// Loss of the comparison alone.
    pub loss: Estimate,
    /// Mean reward of chosen answers; absent where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_chosen: Option<f64>,
    /// Mean reward of rejected ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_rejected: Option<f64>,
    /// Reward of the chosen answer less that of the rejected one, of pairs; of single answers the difference of the means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<Estimate>,
    /// Share of pairs whose chosen answer has the higher reward; absent of single answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Estimate>,
    /// Mean log-likelihood of chosen answers, nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logp_chosen: Option<f64>,
    /// Mean log-likelihood of rejected ones, nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logp_rejected: Option<f64>,
    /// Mean nll of the tokens of chosen answers, where the objective has it, nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nll: Option<f64>,
    /// Estimate of the KL divergence from the reference, where the objective has it, nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
}

impl AnswersReport {
    /// Of losses, and of rewards and log-likelihoods of answers that are good or not. Pairs are a good one and a bad one in
    /// turn.
    #[must_use]
    pub fn new(
        (losses, rewards, log_likelihoods): (&[f64], &[f64], &[f64]),
        good: &[bool],
        nll: Option<f64>,
        kl: Option<f64>,
    ) -> Self {
        let of = |values: &[f64], wanted: bool| -> Vec<f64> {
            let both = values.iter().zip(good);
            both.filter(|(_, good)| **good == wanted)
                .map(|(value, _)| *value)
                .collect()
        };
        let mean = |values: Vec<f64>| Some(Estimate::of(&values)?.mean);
        let (chosen, rejected) = (of(rewards, true), of(rewards, false));
        let are_pairs = !good.is_empty() && good.chunks(2).all(|pair| pair == [true, false]);
        let margins: Vec<f64> = match are_pairs {
            true => chosen.iter().zip(&rejected).map(|(c, r)| c - r).collect(),
            false => Vec::new(),
        };
        let right: Vec<f64> = margins
            .iter()
            .map(|margin| f64::from(u8::from(*margin > 0.0)))
            .collect();
        let apart = || {
            let mean = mean(chosen.clone())? - mean(rejected.clone())?;
            Some(Estimate { mean, error: None })
        };
        Self {
            chosen: chosen.len(),
            rejected: rejected.len(),
            loss: Estimate::of(losses).unwrap_or_default(),
            margin: Estimate::of(&margins).or_else(apart),
            accuracy: Estimate::of(&right),
            reward_chosen: mean(chosen),
            reward_rejected: mean(rejected),
            logp_chosen: mean(of(log_likelihoods, true)),
            logp_rejected: mean(of(log_likelihoods, false)),
            nll,
            kl,
        }
    }

    /// Names and numbers, for curves.
    #[must_use]
    pub fn scalars(&self) -> Vec<(&'static str, f64)> {
        let all = [
            ("rewards/chosen", self.reward_chosen),
            ("rewards/rejected", self.reward_rejected),
            ("rewards/margins", self.margin.map(|margin| margin.mean)),
            ("rewards/accuracies", self.accuracy.map(|one| one.mean)),
            ("logps/chosen", self.logp_chosen),
            ("logps/rejected", self.logp_rejected),
            ("nll", self.nll),
            ("kl", self.kl),
        ];
        all.into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }
}

/// `accuracy 0.7500 ± 0.1000, margin 0.2500 ± 0.0500, rewards 0.3750 chosen and 0.1250 rejected`
impl std::fmt::Display for AnswersReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.accuracy.map(|accuracy| format!("accuracy {accuracy}")));
        parts.extend(self.margin.map(|margin| format!("margin {margin}")));
        parts.push(match (self.reward_chosen, self.reward_rejected) {
            (Some(chosen), Some(rejected)) => {
                format!("rewards {chosen:.4} chosen and {rejected:.4} rejected")
            }
            (Some(chosen), None) => format!("rewards {chosen:.4} chosen"),
            (None, Some(rejected)) => format!("rewards {rejected:.4} rejected"),
            (None, None) => "no answers".to_owned(),
        });
        parts.extend(self.kl.map(|kl| format!("KL {kl:.4}")));
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_have_margins_and_accuracies() {
        let rewards = [0.5, -0.5, 0.25, 0.75];
        let log_likelihoods = [-1.0, -2.0, -3.0, -4.0];
        let good = [true, false, true, false];
        let found = AnswersReport::new(
            (&[0.25, 0.75], &rewards, &log_likelihoods),
            &good,
            None,
            None,
        );
        assert_eq!((found.chosen, found.rejected), (2, 2));
        assert_eq!(found.loss.to_string(), "0.5000 ± 0.2500");
        assert_eq!(found.margin.unwrap().to_string(), "0.2500 ± 0.7500");
        assert_eq!(found.accuracy.unwrap().mean, 0.5);
        assert_eq!(
            found.to_string(),
            "accuracy 0.5000 ± 0.5000, margin 0.2500 ± 0.7500, rewards 0.3750 chosen and 0.1250 rejected"
        );
        assert_eq!(
            (found.reward_chosen, found.reward_rejected),
            (Some(0.375), Some(0.125))
        );
        assert_eq!(
            (found.logp_chosen, found.logp_rejected),
            (Some(-2.0), Some(-3.0))
        );
        let json = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<AnswersReport>(&json).unwrap(), found);
        let names: Vec<&str> = found.scalars().iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), 6, "{names:?}");
    }

    #[test]
    fn single_answers_have_no_accuracy() {
        let good = [true, true, false];
        let found = AnswersReport::new(
            (&[0.5; 3], &[1.0, 2.0, 0.5], &[-1.0; 3]),
            &good,
            None,
            Some(0.1),
        );
        assert_eq!((found.accuracy, found.margin.unwrap().mean), (None, 1.0));
        let one = AnswersReport::new((&[0.5], &[1.0], &[-1.0]), &[true], None, None);
        assert_eq!(
            (one.margin, one.reward_rejected, one.loss.error),
            (None, None, None)
        );
    }
}
