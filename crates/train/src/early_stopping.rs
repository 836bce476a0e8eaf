//! When a run may end before its last step.

use backdraft_journal::report::AnswersReport;
use backdraft_recipe::EvalMetric;
use serde::{Deserialize, Serialize};

/// What an evaluation costs by a metric: the less, the better. NaN where the evaluation does not have it.
#[must_use]
pub fn cost(metric: EvalMetric, loss: f64, answers: Option<&AnswersReport>) -> f64 {
    let of = |number: fn(&AnswersReport) -> Option<f64>| answers.and_then(number);
    let value = match metric {
        EvalMetric::Loss => Some(loss),
        EvalMetric::Nll => of(|answers| answers.nll),
        EvalMetric::Accuracy => of(|answers| Some(answers.accuracy?.mean)),
        EvalMetric::Margin => of(|answers| Some(answers.margin?.mean)),
        EvalMetric::RewardChosen => of(|answers| Some(answers.reward_chosen?.mean)),
        EvalMetric::RewardRejected => of(|answers| Some(answers.reward_rejected?.mean)),
        EvalMetric::LogpChosen => of(|answers| Some(answers.logp_chosen?.mean)),
        EvalMetric::LogpRejected => of(|answers| Some(answers.logp_rejected?.mean)),
        EvalMetric::Entropy => of(|answers| Some(answers.entropy?.mean)),
        EvalMetric::Kl => of(|answers| answers.kl),
    };
    let value = value.unwrap_or(f64::NAN);
    match metric.higher_is_better() {
        true => -value,
        false => value,
    }
}

/// Ends a run after `patience` evaluations in a row that were no improvement.
///
/// An evaluation is an improvement if it is below the best one so far by more than
/// `min_improvement`. A cost that is no number is none.
///
/// # Source
/// `transformers.EarlyStoppingCallback` with `early_stopping_patience` and `early_stopping_threshold`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopping {
    patience: usize,
    #[serde(with = "backdraft_journal::exact")]
    min_improvement: f64,
    #[serde(with = "backdraft_journal::exact::option")]
    best: Option<f64>,
    best_step: usize,
    without_improvement: usize,
}

/// What an evaluation means for the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The best so far.
    Improved,
    /// No improvement, and patience is left for this many evaluations without one.
    Waiting {
        /// Evaluations without an improvement that may still come before the run ends, this one not
        /// counted.
        left: usize,
    },
    /// Patience is at an end.
    Stop,
}

impl EarlyStopping {
    /// A rule that has seen nothing. A patience of 0 counts as 1: a run ends at the first evaluation
    /// that is no improvement.
    ///
    /// # Units
    /// `min_improvement` as what is observed, for a loss nats; negative and non-finite values count as 0.
    #[must_use]
    pub fn new(patience: usize, min_improvement: f64) -> Self {
        let usable = min_improvement.is_finite() && min_improvement > 0.0;
        Self {
            patience: patience.max(1),
            min_improvement: if usable { min_improvement } else { 0.0 },
            best: None,
            best_step: 0,
            without_improvement: 0,
        }
    }

    /// Takes in what the evaluation after `step` costs.
    pub fn observe(&mut self, step: usize, cost: f64) -> Progress {
        let limit = self
            .best
            .map_or(f64::INFINITY, |best| best - self.min_improvement);
        if cost < limit {
            self.best = Some(cost);
            self.best_step = step;
            self.without_improvement = 0;
            return Progress::Improved;
        }
        self.without_improvement += 1;
        match self.patience.saturating_sub(self.without_improvement) {
            0 => Progress::Stop,
            left => Progress::Waiting { left },
        }
    }

    /// Whether patience is at an end.
    #[must_use]
    pub const fn is_spent(&self) -> bool {
        self.without_improvement >= self.patience
    }

    /// With what `other` has seen, by this rule's patience and minimum.
    #[must_use]
    pub fn having_seen(self, other: &Self) -> Self {
        Self {
            patience: self.patience,
            min_improvement: self.min_improvement,
            ..*other
        }
    }

    /// Step and cost of the best evaluation, none before the first that is a number.
    #[must_use]
    pub fn best(&self) -> Option<(usize, f64)> {
        self.best.map(|cost| (self.best_step, cost))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(
        patience: usize,
        min_improvement: f64,
        losses: &[f64],
    ) -> (Vec<Progress>, EarlyStopping) {
        let mut rule = EarlyStopping::new(patience, min_improvement);
        let heard = losses
            .iter()
            .enumerate()
            .map(|(i, &loss)| rule.observe(10 * (i + 1), loss))
            .collect();
        (heard, rule)
    }

    #[test]
    fn a_metric_says_which_evaluation_is_better() {
        let good = [true, false];
        let report = AnswersReport::new((&[0.5], &[0.75, 0.25], &[-3.0, -4.0]), &good, None, None);
        let found = |metric| cost(metric, 0.5, Some(&report));
        let costs = [
            EvalMetric::Loss,
            EvalMetric::Accuracy,
            EvalMetric::Margin,
            EvalMetric::RewardChosen,
            EvalMetric::RewardRejected,
            EvalMetric::LogpChosen,
            EvalMetric::LogpRejected,
        ]
        .map(found);
        assert_eq!(costs, [0.5, -1.0, -0.5, -0.75, 0.25, 3.0, -4.0]);
        for absent in [EvalMetric::Nll, EvalMetric::Kl, EvalMetric::Entropy] {
            assert!(found(absent).is_nan(), "{absent}");
        }
        assert!(cost(EvalMetric::Margin, 0.5, None).is_nan());
        // An accuracy that rises improves; the loss beside it may do what it likes.
        let mut rule = EarlyStopping::new(1, 0.05);
        let heard = [0.5, 0.6, 0.64].map(|accuracy: f64| rule.observe(1, -accuracy));
        assert_eq!(
            heard,
            [Progress::Improved, Progress::Improved, Progress::Stop]
        );
    }

    #[test]
    fn stops_after_patience_evaluations_in_a_row() {
        use Progress::{Improved, Stop, Waiting};
        let (heard, rule) = run(2, 0.0, &[2.0, 1.5, 1.6, 1.4, 1.5, 1.4]);
        let one = Waiting { left: 1 };
        assert_eq!(heard, [Improved, Improved, one, Improved, one, Stop]);
        assert_eq!(rule.best(), Some((40, 1.4)));
    }

    #[test]
    fn small_gains_do_not_count() {
        let (heard, rule) = run(2, 0.1, &[1.0, 0.95, 0.91]);
        assert_eq!(heard[2], Progress::Stop);
        assert_eq!(rule.best(), Some((10, 1.0)));
        // Gains add up, since they are taken against the best that counted.
        let (heard, _) = run(2, 0.1, &[1.0, 0.95, 0.89]);
        assert_eq!(heard[2], Progress::Improved);
    }

    #[test]
    fn what_is_no_number_is_no_improvement() {
        let (heard, rule) = run(2, f64::NAN, &[f64::NAN, f64::INFINITY]);
        assert_eq!(heard, [Progress::Waiting { left: 1 }, Progress::Stop]);
        assert_eq!(rule.best(), None);
        let (heard, _) = run(0, -1.0, &[1.0, 1.0]);
        assert_eq!(heard, [Progress::Improved, Progress::Stop]);
    }

    #[test]
    fn its_state_survives_a_checkpoint() {
        let (_, rule) = run(3, 0.01, &[2.0 / 3.0, 2.5]);
        let text = serde_json::to_string(&rule).unwrap();
        let mut back: EarlyStopping = serde_json::from_str(&text).unwrap();
        assert_eq!(back, rule);
        assert_eq!(back.observe(30, 2.5), Progress::Waiting { left: 1 });
        // Another patience goes on from what was seen.
        assert!(!rule.is_spent());
        let mut shorter = EarlyStopping::new(2, 0.0).having_seen(&rule);
        assert_eq!(shorter.best(), rule.best());
        assert_eq!(shorter.observe(30, 2.5), Progress::Stop);
    }
}
