//! Mean nll over a data set.

use backdraft_data::{Answers, RowSet};
use backdraft_journal::report::AnswersReport;
use backdraft_model::CausalLm;
use burn::data::dataloader::DataLoader;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Tensor, TensorReadError};

use crate::deal::Deal;
use crate::error::TrainError;
use crate::held_out::HeldOut;
use crate::loader::EvalLoader;
use crate::metrics::EvalOutput;
use crate::trainee::evaluated;

/// A mean over supervised tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean nll, nats.
    pub nll: f64,
    /// Supervised tokens.
    pub tokens: usize,
}

impl Evaluation {
    /// exp(nll).
    pub fn perplexity(&self) -> f64 {
        self.nll.exp()
    }
}

/// Mean nll of the supervised tokens of some rows, in micro-batches of `size` rows.
///
/// # Errors
/// No example, rows of answers to compare, or a device that failed.
pub fn evaluate(
    model: &CausalLm,
    rows: &RowSet,
    size: usize,
    mut progress: impl FnMut(usize, usize),
) -> Result<Evaluation, TrainError> {
    if rows.iter().any(|row| row.answers != Answers::One) {
        return Err(TrainError::ComparedRows);
    }
    let loader = EvalLoader::new(rows.clone(), size);
    let (mut sum, mut tokens) = (0.0, 0);
    for (done, batch) in loader.iter().enumerate() {
        let batch = batch.map_err(unreadable)?.batch;
        let output = EvalOutput::new(model.nll(&batch.tokens, &batch.targets));
        let (nll, count) = output.read().map_err(|error| TrainError::Device {
            step: 0,
            message: error.to_string(),
        })?;
        sum += nll;
        tokens += count;
        progress(done + 1, loader.num_items());
    }
    Ok(Evaluation {
        nll: sum / tokens.max(1) as f64,
        tokens,
    })
}

/// What came of rows of answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// What the objective minimises.
    pub loss: f64,
    /// Rewards, log-likelihoods and the like.
    pub answers: AnswersReport,
    /// Of the tokens of chosen or desirable answers.
    pub good: Evaluation,
}

/// Judges the answers of some rows as an objective does, in micro-batches of `size` rows; `reference` is what they are
/// compared with, where the objective has one.
///
/// # Errors
/// Rows that cannot be read, or a device that failed.
pub fn compare(
    (model, reference): (&CausalLm, &CausalLm),
    rows: &RowSet,
    (deal, size): (Deal, usize),
) -> Result<Comparison, TrainError> {
    let device = |error: TensorReadError| TrainError::Device {
        step: 0,
        message: error.to_string(),
    };
    let reference = deal.objective.has_reference().then_some(reference);
    let loader = EvalLoader::new(rows.clone(), size).comparing(Some(deal));
    let mut held_out = HeldOut::default();
    for held in loader.iter() {
        let output = evaluated(model, reference, held.map_err(unreadable)?);
        held_out.add(&output).map_err(device)?;
    }
    let found = held_out.finish(deal.objective, &model.device().inner());
    let (loss, answers) = found.map_err(device)?;
    Ok(Comparison {
        loss,
        answers: answers.unwrap_or_default(),
        good: Evaluation {
            nll: held_out.nll(),
            tokens: held_out.tokens(),
        },
    })
}

/// What a reward model makes of rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Rewards {
    /// What the objective minimises, where the rows are pairs.
    pub loss: Option<f64>,
    /// Rewards, and accuracy and margin of pairs.
    pub answers: AnswersReport,
    /// Of each text, in the order of the rows: of a pair the chosen answer's first.
    pub scores: Vec<f64>,
}

/// Scores every text of some rows with the model's head, in micro-batches of `size` rows.
///
/// # Errors
/// Rows that cannot be read, or a device that failed.
///
/// # Panics
/// If the model's head does not score.
pub fn score(
    model: &CausalLm,
    rows: &RowSet,
    (deal, size): (Deal, usize),
) -> Result<Rewards, TrainError> {
    let device = |error: TensorReadError| TrainError::Device {
        step: 0,
        message: error.to_string(),
    };
    let loader = EvalLoader::new(rows.clone(), size).comparing(Some(deal));
    let mut held_out = HeldOut::default();
    for held in loader.iter() {
        let output = evaluated(model, None, held.map_err(unreadable)?);
        held_out.add(&output).map_err(device)?;
    }
    let pair = |answers| matches!(answers, Answers::Pair { .. });
    let of_pairs = rows.iter().all(|row| pair(row.answers));
    let (loss, answers) = match of_pairs {
        true => {
            let found = held_out.finish(deal.objective, &model.device().inner());
            let (loss, answers) = found.map_err(device)?;
            (Some(loss), answers.unwrap_or_default())
        }
        false => {
            let bad = Answers::Judged { desirable: false };
            let good = rows.iter().flat_map(|row| match pair(row.answers) {
                true => vec![true, false],
                false => vec![row.answers != bad],
            });
            let good: Vec<bool> = good.collect();
            let scores = held_out.policy();
            (
                None,
                AnswersReport::new((&[], scores, &[]), &good, None, None),
            )
        }
    };
    Ok(Rewards {
        loss,
        answers,
        scores: held_out.policy().to_vec(),
    })
}

fn unreadable(error: burn::data::dataset::DatasetError) -> TrainError {
    TrainError::Learner {
        message: error.to_string(),
    }
}

/// Tokens whose logits exist at a time, of both models.
const CHUNK: usize = 256;

/// How far one model's next-token probabilities are from another's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// Mean of KL(p ‖ q) over all tokens, nats.
    pub all: f64,
    /// Tokens.
    pub tokens: usize,
    /// The same over the tokens before supervised ones, which is where an adapter was trained.
    pub supervised: f64,
    /// Supervised tokens.
    pub supervised_tokens: usize,
}

/// KL(p ‖ q) of the next token, p being `model`'s and q `other`'s probabilities.
///
/// # Errors
/// No example, or a device that failed.
pub fn divergence(
    model: &CausalLm,
    other: &CausalLm,
    rows: &RowSet,
) -> Result<Divergence, TrainError> {
    let loader = EvalLoader::new(rows.clone(), 1);
    let (mut sum, mut tokens) = (0.0, 0);
    let (mut supervised_sum, mut supervised_tokens) = (0.0, 0);
    for batch in loader.iter() {
        let batch = batch.map_err(unreadable)?.batch;
        let states = [model, other].map(|m| m.forward_hidden(&batch.tokens, None).inner());
        let values = token_divergences(model, other, &states)?;
        sum += values.iter().sum::<f64>();
        tokens += values.len();
        let rows = &batch.targets.rows;
        supervised_sum += rows.iter().map(|&row| values[row as usize]).sum::<f64>();
        supervised_tokens += rows.len();
    }
    Ok(Divergence {
        all: sum / tokens.max(1) as f64,
        tokens,
        supervised: supervised_sum / supervised_tokens.max(1) as f64,
        supervised_tokens,
    })
}

/// KL(p ‖ q) at each row of the hidden states `[p's, q's]`, nats.
///
/// Rounding takes a divergence of nothing below zero, where none can be.
pub(crate) fn token_divergences(
    model: &CausalLm,
    other: &CausalLm,
    states: &[Tensor<2>; 2],
) -> Result<Vec<f64>, TrainError> {
    let count = states[0].dims()[0];
    let mut values = Vec::with_capacity(count);
    for start in (0..count).step_by(CHUNK) {
        let end = (start + CHUNK).min(count);
        let log_probabilities = |model: &CausalLm, states: &Tensor<2>| {
            let states = states.clone().narrow(0, start, end - start);
            log_softmax(model.logits(states), 1)
        };
        let p = log_probabilities(model, &states[0]);
        let q = log_probabilities(other, &states[1]);
        let chunk = (p.clone().exp() * (p - q)).sum_dim(1).into_data();
        let chunk = chunk
            .convert::<f64>()
            .try_into_vec::<f64>()
            .map_err(|error| TrainError::Device {
                step: 0,
                message: format!("{error:?}"),
            })?;
        values.extend(chunk.into_iter().map(|kl| kl.max(0.0)));
    }
    Ok(values)
}
