//! Mean nll over a data set.

use std::path::PathBuf;

use backdraft_data::Example;
use backdraft_model::Llama;
use burn::data::dataloader::DataLoader;

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
