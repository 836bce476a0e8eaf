//! What a step and an evaluation leave on the device. The only place that reads tensors back to the host while
//! training.

use backdraft_journal::report::AnswersReport;
use backdraft_kernels::exchange::Messages;
use backdraft_plan::StepFailure;
use burn::backend::ExecutionError;
use burn::tensor::{Device, Tensor, TensorReadError};
use burn::train::ItemLazy;
use burn::train::logger::MetricLogger;
use burn::train::metric::store::{EpochSummary, MetricsUpdate, Split};
use burn::train::metric::{MetricDefinition, NumericEntry};

use crate::compared::Compared;
use crate::loader::Step;
use crate::objective::{Objective, ToldAnswers};

/// What one optimiser step left behind, still on the device.
#[derive(Clone, Debug)]
pub struct StepOutput {
    nll: Tensor<1>,
    penalized: Option<Tensor<1>>,
    grad_norm: Tensor<1>,
    supervised_tokens: usize,
    failure: Option<StepFailure>,
    answers: Option<StepAnswers>,
}

/// What came of the answers of a step.
#[derive(Clone, Debug)]
struct StepAnswers {
    objective: Objective,
    told: Vec<ToldAnswers>,
    divergence: Option<Tensor<1>>,
    /// Of each answer of the step: whether it is a good one.
    good: Vec<bool>,
    /// Its tokens.
    lengths: Vec<usize>,
    /// Targets of the good ones.
    good_targets: usize,
}

impl StepOutput {
    /// Σ nll and gradient norm (before clipping) of `step`.
    ///
    /// # Shapes
    /// Both `[1]`.
    pub fn new(step: &Step, nll: Tensor<1>, grad_norm: Tensor<1>) -> Self {
        Self {
            nll,
            penalized: None,
            grad_norm,
            supervised_tokens: step.supervised_tokens(),
            failure: None,
            answers: None,
        }
    }

    /// The same of a step that minimises more than the nll: Σ of its tokens' losses, `[1]`.
    #[must_use]
    pub fn penalized(self, penalized: Option<Tensor<1>>) -> Self {
        Self { penalized, ..self }
    }

    /// The same of a step that compares answers: what came of each micro-batch, and how far the policy has gone.
    #[must_use]
    pub fn comparing(
        self,
        step: &Step,
        (objective, told, divergence): (Objective, Vec<ToldAnswers>, Option<Tensor<1>>),
    ) -> Self {
        let good = step.answers.iter().flat_map(|compared| &compared.good);
        let answers = objective.compares().then(|| StepAnswers {
            objective,
            told,
            divergence,
            good: good.copied().collect(),
            lengths: step
                .answers
                .iter()
                .flat_map(|it| it.lengths.clone())
                .collect(),
            good_targets: step.good_targets(),
        });
        Self { answers, ..self }
    }

    /// A step that was not computed for want of memory.
    pub fn failed(step: &Step, failure: StepFailure, device: &Device) -> Self {
        Self {
            failure: Some(failure),
            ..Self::unknown(step, device)
        }
    }

    /// A step of which this process knows nothing: the others did not tell.
    pub(crate) fn unknown(step: &Step, device: &Device) -> Self {
        let nothing = || Tensor::from_floats([f32::NAN], device);
        Self::new(step, nothing(), nothing())
    }

    /// Why the step was not computed, if it was not.
    pub fn failure(&self) -> Option<StepFailure> {
        self.failure
    }

    /// Waits for the device and reads the numbers.
    ///
    /// # Errors
    /// A device that failed.
    pub fn read(&self) -> Result<StepMetrics, TensorReadError> {
        let nll = self.nll.clone().try_into_scalar::<f64>()?;
        let (loss, answers) = match &self.answers {
            None => (nll / self.supervised_tokens as f64, None),
            Some(answers) => answers.read(nll)?,
        };
        let penalized = self.penalized.clone().map(Tensor::try_into_scalar::<f64>);
        let tokens = self.supervised_tokens as f64;
        Ok(StepMetrics {
            loss,
            penalized_loss: penalized.transpose()?.map(|sum| sum / tokens),
            grad_norm: self.grad_norm.clone().try_into_scalar::<f64>()?,
            answers,
        })
    }
}

impl StepAnswers {
    /// The loss, and what to tell of the answers; `nll` is the sum over the good ones.
    fn read(&self, nll: f64) -> Result<(f64, Option<AnswersReport>), TensorReadError> {
        let of = |part: fn(&ToldAnswers) -> &Tensor<1>| {
            let parts = self.told.iter().map(|told| part(told).clone());
            parts.collect::<Vec<_>>()
        };
        let terms = self.objective.terms().enumerate();
        let terms =
            terms.flat_map(|(i, _)| self.told.iter().map(move |told| told.terms[i].clone()));
        let parts = [
            of(|told| &told.losses),
            terms.collect(),
            of(|told| &told.rewards),
            of(|told| &told.log_likelihoods),
            self.divergence.iter().cloned().collect(),
        ];
        if self.told.is_empty() {
            return Ok((f64::NAN, None));
        }
        // One read for all of them.
        let values = numbers(Tensor::cat(parts.concat(), 0))?;
        let answers = self.good.len();
        let count = self.objective.losses(answers);
        let (losses, rest) = values.split_at(count);
        let (terms, rest) = rest.split_at(count * self.objective.terms().count());
        let (rewards, rest) = rest.split_at(answers);
        let (log_likelihoods, divergence) = rest.split_at(answers);
        Ok(summary(
            self.objective,
            (losses, terms),
            (rewards, log_likelihoods),
            (&self.good, &self.lengths),
            (nll, self.good_targets),
            divergence.first().copied(),
        ))
    }
}

/// A tensor's values.
pub(crate) fn numbers(values: Tensor<1>) -> Result<Vec<f64>, TensorReadError> {
    Ok(values.try_into_data()?.iter::<f64>().collect())
}

/// A tensor's values as they are exchanged between processes.
///
/// # Panics
/// A device that failed, where it had computed these already.
pub(crate) fn host(values: &Tensor<1>) -> Vec<f32> {
    match values.clone().try_into_data() {
        Ok(data) => data.iter::<f32>().collect(),
        Err(error) => panic!("{LOST}: {error}"),
    }
}

/// The same of a message.
///
/// # Panics
/// As [`host`].
pub(crate) fn message(messages: &Messages, i: usize) -> Vec<f32> {
    match messages.to_host(i) {
        Ok(values) => values,
        Err(error) => panic!("{LOST}: {error}"),
    }
}

const LOST: &str = "the device lost what it had computed";

/// The loss, and what to tell of answers; `terms` are the losses that each of `losses` is the sum of, one term after the
/// other.
pub(crate) fn summary(
    objective: Objective,
    (losses, terms): (&[f64], &[f64]),
    (rewards, log_likelihoods): (&[f64], &[f64]),
    (good, lengths): (&[bool], &[usize]),
    (nll, good_targets): (f64, usize),
    divergence: Option<f64>,
) -> (f64, Option<AnswersReport>) {
    let log_likelihoods: &[f64] = match objective.scores() {
        true => &[],
        false => log_likelihoods,
    };
    let nll = (objective.nll_weight() > 0.0).then(|| nll / good_targets.max(1) as f64);
    let comparison = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
    let loss = comparison + nll.map_or(0.0, |nll| objective.nll_weight() * nll);
    let report = AnswersReport::new((losses, rewards, log_likelihoods), good, nll, divergence);
    let terms = objective.terms().zip(terms.chunks(losses.len().max(1)));
    let report = report.with_lengths(rewards, lengths).with_losses(terms);
    (loss, Some(report))
}

/// The numbers of one optimiser step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepMetrics {
    /// Mean nll of the step's supervised tokens, nats, or the loss of its answers.
    pub loss: f64,
    /// Mean loss of the step's supervised tokens with label smoothing and z-loss, where there is either: what it minimises.
    pub penalized_loss: Option<f64>,
    /// What came of its answers, where they are compared.
    pub answers: Option<AnswersReport>,
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
}

impl StepMetrics {
    /// Whether loss and gradient are numbers.
    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }

    /// Whether only the gradient is no number.
    pub fn overflows(&self) -> bool {
        self.loss.is_finite() && !self.grad_norm.is_finite()
    }
}

impl ItemLazy for StepOutput {
    fn sync(self) -> Result<Self, ExecutionError> {
        Ok(self)
    }
}

/// What an evaluation finds of one pass.
#[derive(Clone, Debug)]
pub struct EvalOutput {
    nll: Tensor<1>,
    answers: Option<Box<EvalAnswers>>,
}

/// Answers of an evaluation's pass.
#[derive(Clone, Debug)]
pub struct EvalAnswers {
    /// Σ nll of the targets of good answers, `[1]`; no number where a head scores them.
    pub nll: Tensor<1>,
    /// Log-likelihoods, or scores, `[answers]`.
    pub policy: Tensor<1>,
    /// The reference's, where they are compared with it.
    pub reference: Option<Tensor<1>>,
    /// Σ of the entropies of the next token over each answer's tokens, nats, `[answers]`; absent where a head scores answers.
    pub entropy: Option<Tensor<1>>,
    /// Σ of ln π − ln ρ over prompts with other answers, `[1]`, where something asks for it.
    pub divergence: Option<Tensor<1>>,
    /// Which they are.
    pub compared: Compared,
}

impl EvalOutput {
    /// Of tokens that are learned from.
    ///
    /// # Shapes
    /// `nll` `[n]`.
    pub fn new(nll: Tensor<1>) -> Self {
        Self { nll, answers: None }
    }

    /// Of answers that are compared.
    pub fn comparing(answers: EvalAnswers) -> Self {
        Self {
            nll: answers.nll.clone(),
            answers: Some(Box::new(answers)),
        }
    }

    /// The answers, where they are compared.
    pub fn answers(&self) -> Option<&EvalAnswers> {
        self.answers.as_deref()
    }

    /// Σ nll in nats, and the number of tokens.
    ///
    /// # Errors
    /// A device that failed.
    pub fn read(&self) -> Result<(f64, usize), TensorReadError> {
        let values = self.nll.clone().try_into_data()?;
        let sum = values.iter::<f64>().sum();
        let tokens = match &self.answers {
            None => values.num_elements(),
            Some(answers) => answers.compared.good_targets(),
        };
        Ok((sum, tokens))
    }
}

impl EvalAnswers {
    /// Log-likelihoods, those of the reference, the divergence's sum, and sums of entropies.
    ///
    /// # Errors
    /// A device that failed.
    pub fn read(&self) -> Result<[Vec<f64>; 4], TensorReadError> {
        let one = |tensor: &Option<Tensor<1>>| match tensor {
            Some(tensor) => numbers(tensor.clone()),
            None => Ok(Vec::new()),
        };
        Ok([
            numbers(self.policy.clone())?,
            one(&self.reference)?,
            one(&self.divergence)?,
            one(&self.entropy)?,
        ])
    }
}

impl ItemLazy for EvalOutput {
    fn sync(self) -> Result<Self, ExecutionError> {
        Ok(self)
    }
}

/// In place of burn-train's metric files: no metric is registered with its learner, `metrics.jsonl` has the numbers,
/// and a full disk is an error there instead of a panic.
#[derive(Clone, Copy, Debug)]
pub struct NoFiles;

impl MetricLogger for NoFiles {
    fn log(&mut self, _: MetricsUpdate, _: usize, _: &Split) {}

    fn read_numeric(&mut self, _: &str, _: usize, _: &Split) -> Result<Vec<NumericEntry>, String> {
        Ok(Vec::new())
    }

    fn log_metric_definition(&mut self, _: MetricDefinition) {}

    fn log_epoch_summary(&mut self, _: EpochSummary) {}
}
