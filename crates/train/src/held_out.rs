//! What an evaluation adds up to.

mod pass;

use backdraft_journal::report::{AnswersReport, Estimate};
use burn::tensor::{Device, TensorReadError};

use crate::compared::{Compared, floats};
use crate::metrics::{EvalOutput, summary};
use crate::objective::{Objective, Others};
pub(crate) use pass::Pass;

/// Sums over the passes of an evaluation. Answers are judged when all are there, so that nothing depends on how they shared
/// passes.
#[derive(Clone, Debug, Default)]
pub struct HeldOut {
    nll: f64,
    tokens: usize,
    policy: Vec<f64>,
    reference: Vec<f64>,
    divergence: Vec<f64>,
    /// Of each answer, a mean over its tokens.
    entropies: Vec<f64>,
    good: Vec<bool>,
    lengths: Vec<usize>,
    margins: Vec<f32>,
}

impl HeldOut {
    /// Adds a pass.
    ///
    /// # Errors
    /// A device that failed.
    pub fn add(&mut self, output: &EvalOutput) -> Result<(), TensorReadError> {
        self.add_pass(Pass::read(output)?);
        Ok(())
    }

    /// Adds a pass whose numbers are on the host.
    pub(crate) fn add_pass(&mut self, pass: Pass) {
        self.nll += pass.nll;
        self.tokens += pass.tokens;
        self.policy.extend(pass.policy);
        self.reference.extend(pass.reference);
        self.divergence.extend(pass.divergence);
        self.entropies.extend(pass.entropies);
        self.good.extend(pass.good);
        self.lengths.extend(pass.lengths);
        self.margins.extend(pass.margins);
    }

    /// Supervised tokens; of answers that are compared, those of the good ones.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Mean nll of those tokens, nats.
    pub fn nll(&self) -> f64 {
        self.nll / self.tokens.max(1) as f64
    }

    /// Log-likelihood of each answer, nats, or its score where a head gives those.
    pub fn policy(&self) -> &[f64] {
        &self.policy
    }

    /// The loss, and what to tell of answers.
    ///
    /// # Errors
    /// A device that failed.
    pub fn finish(
        &self,
        objective: Objective,
        device: &Device,
    ) -> Result<(f64, Option<AnswersReport>), TensorReadError> {
        if !objective.compares() {
            return Ok((self.nll(), None));
        }
        let tensor = |values: &[f64]| floats(values.iter().map(|value| *value as f32), device);
        let answers = self.good.len();
        let divergence = (!self.divergence.is_empty()).then(|| {
            let sum: f64 = self.divergence.iter().sum();
            (sum / answers.max(1) as f64).max(0.0)
        });
        let others = Others {
            reference: (!self.reference.is_empty()).then(|| tensor(&self.reference)),
            divergence: divergence.map(|divergence| tensor(&[divergence])),
        };
        let compared = Compared::of_answers(self.good.clone(), self.lengths.clone())
            .with_margins(self.margins.clone());
        let judged = objective.judge(&tensor(&self.policy), &others, &compared);
        let read = |tensor: burn::tensor::Tensor<1>| -> Result<Vec<f64>, TensorReadError> {
            Ok(tensor.try_into_data()?.iter::<f64>().collect())
        };
        let terms: Result<Vec<Vec<f64>>, _> = judged.terms.into_iter().map(read).collect();
        let (loss, report) = summary(
            objective,
            (&read(judged.losses)?, &terms?.concat()),
            (&read(judged.rewards)?, &self.policy),
            (&self.good, &self.lengths),
            (self.nll, self.tokens),
            divergence,
        );
        let entropy = Estimate::of(&self.entropies);
        let report = report.map(|report| AnswersReport { entropy, ..report });
        Ok((loss, report))
    }
}
