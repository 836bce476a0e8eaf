//! How alike two models answer, one of them loaded at a time.

use backdraft_model::{CausalLm, Tokens};
use burn::tensor::activation::log_softmax;

use crate::error::TrainError;

/// Tokens whose logits exist on the device at a time.
const CHUNK: usize = 64;

/// Log-probabilities of the next token after each token of some texts, on the host.
#[derive(Clone, Debug)]
pub struct NextTokens {
    vocabulary: usize,
    log_probabilities: Vec<f32>,
}

/// What became of a model's next tokens in another one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likeness {
    /// Mean KL divergence of the other's probabilities from the model's, nats.
    pub mean_kl: f64,
    /// Share of tokens after which both hold the same one for the most likely.
    pub same_best: f64,
    /// Tokens compared.
    pub tokens: usize,
}

impl NextTokens {
    /// What a model says after each token of these texts.
    ///
    /// # Errors
    /// A device that failed.
    pub fn of(model: &CausalLm, texts: &[Vec<u32>]) -> Result<Self, TrainError> {
        let vocabulary = model.spec().vocab_size;
        let mut log_probabilities = Vec::new();
        for text in texts {
            let tokens = Tokens::from_sequences(&[text]);
            let states = model.forward_hidden(&tokens, None).inner();
            for start in (0..text.len()).step_by(CHUNK) {
                let length = CHUNK.min(text.len() - start);
                let logits = model.logits(states.clone().narrow(0, start, length));
                let chunk = log_softmax(logits, 1).into_data().convert::<f32>();
                let chunk = chunk.try_into_vec::<f32>();
                log_probabilities.extend(chunk.map_err(|error| TrainError::Device {
                    step: 0,
                    message: format!("{error:?}"),
                })?);
            }
        }
        Ok(Self {
            vocabulary,
            log_probabilities,
        })
    }

    /// How another model's next tokens after the same texts differ from these.
    #[must_use]
    pub fn likeness(&self, other: &Self) -> Likeness {
        let rows = |of: &'_ Self| of.log_probabilities.len() / of.vocabulary.max(1);
        let tokens = rows(self).min(rows(other));
        let ours = self.log_probabilities.chunks_exact(self.vocabulary.max(1));
        let theirs = other
            .log_probabilities
            .chunks_exact(other.vocabulary.max(1));
        let (mut kl, mut same) = (0.0, 0usize);
        for (p, q) in ours.zip(theirs) {
            let pairs = p.iter().zip(q).map(|(p, q)| (f64::from(*p), f64::from(*q)));
            let sum: f64 = pairs.map(|(p, q)| p.exp() * (p - q)).sum();
            // Rounding takes a divergence of nothing below zero, where none can be.
            kl += sum.max(0.0);
            same += usize::from(best(p) == best(q));
        }
        let count = tokens.max(1) as f64;
        Likeness {
            mean_kl: kl / count,
            same_best: same as f64 / count,
            tokens,
        }
    }
}

fn best(values: &[f32]) -> Option<usize> {
    let order = |a: &(usize, &f32), b: &(usize, &f32)| a.1.total_cmp(b.1);
    values
        .iter()
        .enumerate()
        .max_by(order)
        .map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(rows: &[[f32; 2]]) -> NextTokens {
        NextTokens {
            vocabulary: 2,
            log_probabilities: rows.concat().iter().map(|p| p.ln()).collect(),
        }
    }

    #[test]
    fn divergence_and_agreement() {
        let model = next(&[[0.5, 0.5], [0.9, 0.1]]);
        let same = model.likeness(&model);
        assert_eq!((same.mean_kl, same.same_best, same.tokens), (0.0, 1.0, 2));
        let other = model.likeness(&next(&[[0.5, 0.5], [0.1, 0.9]]));
        // 0.8 · ln 9, over two tokens.
        assert!((other.mean_kl - 0.4 * 9f64.ln()).abs() < 1e-6, "{other:?}");
        assert_eq!(other.same_best, 0.5);
    }
}
