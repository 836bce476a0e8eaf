//! What came of answers that were compared.

use std::collections::BTreeMap;

use backdraft_recipe::DpoLoss;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

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

/// Pearson's correlation of two lists; `None` of fewer than three values, or of values that are all the same.
#[must_use]
pub fn correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let count = a.len().min(b.len()) as f64;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / count;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut products, mut squares) = (0.0, [0.0; 2]);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (a - mean_a, b - mean_b);
        products += a * b;
        squares[0] += a * a;
        squares[1] += b * b;
    }
    let found = products / (squares[0] * squares[1]).sqrt();
    (count >= 3.0 && found.is_finite()).then_some(found)
}

/// Losses that are summed, each without what it counts; by their names in files.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses([Option<Estimate>; DpoLoss::COUNT]);

impl Losses {
    /// Each loss with its mean over the pairs.
    pub fn iter(&self) -> impl Iterator<Item = (DpoLoss, Estimate)> {
        let all = DpoLoss::ALL.iter().zip(self.0);
        all.filter_map(|(loss, estimate)| Some((*loss, estimate?)))
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl FromIterator<(DpoLoss, Estimate)> for Losses {
    fn from_iter<T: IntoIterator<Item = (DpoLoss, Estimate)>>(all: T) -> Self {
        let mut losses = Self::default();
        for (loss, estimate) in all {
            losses.0[loss as usize] = Some(estimate);
        }
        losses
    }
}

impl Serialize for Losses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for Losses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let all = BTreeMap::<String, Estimate>::deserialize(deserializer)?;
        // A loss of a later version is one that this one cannot show.
        let known = all
            .into_iter()
            .filter_map(|(name, estimate)| Some((name.parse().ok()?, estimate)));
        Ok(known.collect())
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
    /// The losses that it is the weighted sum of, where there are several.
    #[serde(default, skip_serializing_if = "Losses::is_empty")]
    pub losses: Losses,
    /// Mean reward of chosen answers; absent where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_chosen: Option<Estimate>,
    /// Mean reward of rejected ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_rejected: Option<Estimate>,
    /// Reward of the chosen answer less that of the rejected one, of pairs; of single answers the difference of the means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<Estimate>,
    /// Share of pairs whose chosen answer has the higher reward; absent of single answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Estimate>,
    /// Correlation over the pairs of the margin with how many tokens longer the chosen answer is; absent of fewer than three.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length_bias: Option<f64>,
    /// Mean log-likelihood of chosen answers, nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logp_chosen: Option<Estimate>,
    /// Mean log-likelihood of rejected ones, nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logp_rejected: Option<Estimate>,
    /// Mean over the answers of the entropy of the next token, a mean over their tokens, nats; absent of steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<Estimate>,
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
            let (chosen, rejected) = (Estimate::of(&chosen)?, Estimate::of(&rejected)?);
            // Two samples that have nothing to do with each other.
            let error = chosen.error.zip(rejected.error);
            Some(Estimate {
                mean: chosen.mean - rejected.mean,
                error: error.map(|(c, r)| c.hypot(r)),
            })
        };
        Self {
            chosen: chosen.len(),
            rejected: rejected.len(),
            loss: Estimate::of(losses).unwrap_or_default(),
            losses: Losses::default(),
            margin: Estimate::of(&margins).or_else(apart),
            accuracy: Estimate::of(&right),
            length_bias: None,
            reward_chosen: Estimate::of(&chosen),
            reward_rejected: Estimate::of(&rejected),
            logp_chosen: Estimate::of(&of(log_likelihoods, true)),
            logp_rejected: Estimate::of(&of(log_likelihoods, false)),
            entropy: None,
            nll,
            kl,
        }
    }

    /// The same of pairs whose answers have `lengths`, chosen and rejected in turn as their `rewards`.
    #[must_use]
    pub fn with_lengths(self, rewards: &[f64], lengths: &[usize]) -> Self {
        let are_pairs = self.accuracy.is_some() && rewards.len() == lengths.len();
        let margins = rewards.chunks_exact(2).map(|pair| pair[0] - pair[1]);
        let longer = lengths.chunks_exact(2);
        let longer = longer.map(|pair| pair[0] as f64 - pair[1] as f64);
        let (margins, longer): (Vec<f64>, Vec<f64>) = (margins.collect(), longer.collect());
        let length_bias = correlation(&margins, &longer).filter(|_| are_pairs);
        Self {
            length_bias,
            ..self
        }
    }

    /// The same, whose loss is a sum of losses, each `[pairs]`.
    #[must_use]
    pub fn with_losses<'a>(self, terms: impl IntoIterator<Item = (DpoLoss, &'a [f64])>) -> Self {
        let terms = terms.into_iter();
        let losses = terms.filter_map(|(loss, values)| Some((loss, Estimate::of(values)?)));
        Self {
            losses: losses.collect(),
            ..self
        }
    }

    /// Names and numbers, for curves.
    #[must_use]
    pub fn scalars(&self) -> Vec<(String, f64)> {
        let mean = |estimate: Option<Estimate>| estimate.map(|estimate| estimate.mean);
        let all = [
            ("rewards/chosen", mean(self.reward_chosen)),
            ("rewards/rejected", mean(self.reward_rejected)),
            ("rewards/margins", mean(self.margin)),
            ("rewards/accuracies", mean(self.accuracy)),
            ("logps/chosen", mean(self.logp_chosen)),
            ("logps/rejected", mean(self.logp_rejected)),
            ("length_bias", self.length_bias),
            ("entropy", mean(self.entropy)),
            ("nll", self.nll),
            ("kl", self.kl),
        ];
        let losses = self.losses.iter();
        let losses = losses.map(|(loss, estimate)| (format!("losses/{loss}"), estimate.mean));
        let all = all.into_iter();
        let all = all.filter_map(|(name, value)| Some((name.to_owned(), value?)));
        all.chain(losses).collect()
    }
}

/// `accuracy 0.7500 ± 0.1000, margin 0.2500 ± 0.0500, rewards 0.3750 ± 0.0400 chosen and 0.1250 ± 0.0400 rejected`
impl std::fmt::Display for AnswersReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let losses = self.losses.iter();
        let mut parts: Vec<String> = losses
            .map(|(loss, mean)| format!("{loss} {mean}"))
            .collect();
        parts.extend(self.accuracy.map(|accuracy| format!("accuracy {accuracy}")));
        parts.extend(self.margin.map(|margin| format!("margin {margin}")));
        parts.push(match (self.reward_chosen, self.reward_rejected) {
            (Some(chosen), Some(rejected)) => {
                format!("rewards {chosen} chosen and {rejected} rejected")
            }
            (Some(chosen), None) => format!("rewards {chosen} chosen"),
            (None, Some(rejected)) => format!("rewards {rejected} rejected"),
            (None, None) => "no answers".to_owned(),
        });
        if let (Some(chosen), Some(rejected)) = (self.logp_chosen, self.logp_rejected) {
            parts.push(format!(
                "log-likelihoods {chosen} chosen and {rejected} rejected"
            ));
        }
        parts.extend(self.entropy.map(|entropy| format!("entropy {entropy}")));
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
            "accuracy 0.5000 ± 0.5000, margin 0.2500 ± 0.7500, rewards 0.3750 ± 0.1250 chosen and 0.1250 ± 0.6250 \
             rejected, log-likelihoods -2.0000 ± 1.0000 chosen and -3.0000 ± 1.0000 rejected"
        );
        let json = serde_json::to_string(&found).unwrap();
        assert_eq!(serde_json::from_str::<AnswersReport>(&json).unwrap(), found);
        let names: Vec<String> = found.scalars().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), 6, "{names:?}");
    }

    #[test]
    fn losses_that_are_summed_are_told_of_by_name() {
        let report = AnswersReport::new(
            (&[1.0, 2.0], &[0.5; 4], &[-1.0; 4]),
            &[true, false, true, false],
            None,
            None,
        );
        let terms = [
            (DpoLoss::ApoZero, &[3.0, 5.0][..]),
            (DpoLoss::Sigmoid, &[0.5, 0.7]),
        ];
        let found = report.with_losses(terms);
        let json = serde_json::to_value(found).unwrap();
        assert_eq!(json["losses"]["apo_zero"]["mean"], 4.0);
        assert_eq!(
            serde_json::from_value::<AnswersReport>(json).unwrap(),
            found
        );
        assert!(
            found
                .scalars()
                .contains(&("losses/apo_zero".to_owned(), 4.0))
        );
        let text = found.to_string();
        assert!(
            text.starts_with("sigmoid 0.6000 ± 0.1000, apo_zero 4.0000 ± 1.0000, accuracy"),
            "{text}"
        );
        assert!(
            serde_json::to_value(report)
                .unwrap()
                .get("losses")
                .is_none()
        );
    }

    #[test]
    fn margins_may_follow_the_lengths() {
        assert_eq!(correlation(&[1.0, 2.0, 3.0], &[2.0, 4.0, 6.0]), Some(1.0));
        let found = correlation(&[1.0, 2.0, 3.0, 4.0], &[1.0, -1.0, -1.0, 1.0]);
        assert_eq!(found, Some(0.0));
        assert_eq!(correlation(&[1.0, 2.0], &[2.0, 4.0]), None);
        assert_eq!(correlation(&[1.0, 2.0, 3.0], &[2.0; 3]), None);
        let rewards = [3.0, 0.0, 2.0, 0.0, 0.0, 1.0];
        let good = [true, false, true, false, true, false];
        let report = AnswersReport::new((&[0.0; 3], &rewards, &rewards), &good, None, None);
        let found = report.with_lengths(&rewards, &[9, 2, 6, 2, 3, 3]);
        // Margins 3, 2, −1 and differences 7, 4, 0.
        assert!((found.length_bias.unwrap() - 0.9803).abs() < 1e-4);
        let single = AnswersReport::new((&[0.0; 3], &[1.0; 3], &[1.0; 3]), &[true; 3], None, None);
        assert_eq!(single.with_lengths(&[1.0; 3], &[1, 2, 3]).length_bias, None);
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
        // One answer on a side says nothing of how sure that is; two on either do.
        assert_eq!(found.margin.unwrap().error, None);
        let rewards = [1.0, 2.0, 0.5, 0.5];
        let good = [true, true, false, false];
        let found = AnswersReport::new((&[0.5; 4], &rewards, &[-1.0; 4]), &good, None, None);
        assert_eq!(found.margin.unwrap().to_string(), "1.0000 ± 0.5000");
        let one = AnswersReport::new((&[0.5], &[1.0], &[-1.0]), &[true], None, None);
        assert_eq!(
            (one.margin, one.reward_rejected, one.loss.error),
            (None, None, None)
        );
    }
}
