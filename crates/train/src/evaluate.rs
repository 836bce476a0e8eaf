//! Mean nll over a data set.

use std::path::PathBuf;

use backdraft_data::Example;
use backdraft_model::Llama;
use burn::data::dataloader::DataLoader;
use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;

use crate::error::TrainError;
use crate::loader::EvalLoader;
use crate::metrics::EvalOutput;

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

/// Mean nll of the supervised tokens of `examples`, in micro-batches of `size` rows.
///
/// # Errors
/// No example, or a device that failed.
pub fn evaluate(
    model: &Llama,
    examples: &[Example],
    size: usize,
    mut progress: impl FnMut(usize, usize),
) -> Result<Evaluation, TrainError> {
    let data = |source| TrainError::Data {
        path: PathBuf::new(),
        source: Box::new(source),
    };
    let loader = EvalLoader::new(examples, size).map_err(data)?;
    let (mut sum, mut tokens) = (0.0, 0);
    for (done, batch) in loader.iter().flatten().enumerate() {
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

/// Tokens whose logits exist at a time, of both models.
const CHUNK: usize = 256;

/// Mean over all tokens of KL(p ‖ q) for the next token, p being `model`'s and q `other`'s probabilities, in
/// nats; and the number of tokens.
///
/// # Errors
/// No example, or a device that failed.
pub fn mean_kl(
    model: &Llama,
    other: &Llama,
    examples: &[Example],
) -> Result<(f64, usize), TrainError> {
    let data = |source| TrainError::Data {
        path: PathBuf::new(),
        source: Box::new(source),
    };
    let loader = EvalLoader::new(examples, 1).map_err(data)?;
    let (mut sum, mut tokens) = (0.0, 0);
    for batch in loader.iter().flatten() {
        let states = [model, other].map(|m| m.forward_hidden(&batch.tokens, None).inner());
        let count = states[0].dims()[0];
        for start in (0..count).step_by(CHUNK) {
            let end = (start + CHUNK).min(count);
            let log_probabilities = |model: &Llama, states: &Tensor<2>| {
                let states = states.clone().narrow(0, start, end - start);
                log_softmax(model.logits(states), 1)
            };
            let p = log_probabilities(model, &states[0]);
            let q = log_probabilities(other, &states[1]);
            let kl = (p.clone().exp() * (p - q)).sum();
            sum += kl
                .try_into_scalar::<f64>()
                .map_err(|error| TrainError::Device {
                    step: 0,
                    message: error.to_string(),
                })?;
        }
        tokens += count;
    }
    Ok((sum / tokens.max(1) as f64, tokens))
}
