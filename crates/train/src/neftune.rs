//! NEFTune: noise on the embeddings while training.
//!
//! To each value of a document's embeddings a draw from [−1, 1) is added, times α / √(length × hidden). What is drawn
//! follows from the run's seed, the step, the document's tokens and the place in it: not from where the document lies, nor
//! in which micro-batch, so that a resumed run and any packing of a step have the same bits.
//!
//! # Source
//! Jain et al. 2023, arXiv:2310.05914. transformers takes the padded length of the batch; here it is the document's own.

use backdraft_kernels::noise::RowNoise;
use backdraft_kernels::uniform::bits;
use backdraft_model::Tokens;

/// The noise of one optimiser step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neftune {
    alpha: f64,
    seed: u64,
}

impl Neftune {
    /// Noise of strength `alpha` for step `step`, counted from 0, of the run of `seed`.
    #[must_use]
    pub fn of_step(alpha: f64, seed: u64, step: usize) -> Self {
        Self {
            alpha,
            seed: bits(seed ^ NEFTUNE, step as u64),
        }
    }

    /// α / √(length × hidden), for a document of `length` tokens.
    #[must_use]
    pub fn scale(alpha: f64, length: usize, hidden: usize) -> f32 {
        (alpha / (length as f64 * hidden as f64).sqrt()) as f32
    }

    /// The noise of each token.
    #[must_use]
    pub fn rows(self, tokens: &Tokens, hidden: usize) -> Vec<RowNoise> {
        let mut rows = Vec::with_capacity(tokens.len());
        for (document, _) in tokens.segments.iter() {
            let scale = Self::scale(self.alpha, document.len(), hidden);
            let ids = tokens.input_ids[document].iter();
            let whole = ids
                .clone()
                .fold(self.seed, |key, &id| bits(key, u64::from(id)));
            rows.extend((0..ids.len() as u64).map(|i| RowNoise {
                key: bits(whole, i),
                scale,
            }));
        }
        rows
    }
}

/// Apart from what else the seed of a run begins.
const NEFTUNE: u64 = u64::from_be_bytes(*b"neftune\0");

#[cfg(test)]
mod tests {
    use super::*;

    /// A document has the same noise alone and in any pack; another step, seed or document has other noise.
    #[test]
    fn noise_goes_with_the_document() {
        let noise = Neftune::of_step(5.0, 42, 3);
        let (a, b) = (vec![5, 6, 7], vec![5, 6, 9, 7, 1]);
        let rows = |noise: Neftune, documents: &[&Vec<u32>]| {
            noise.rows(&Tokens::from_sequences(documents), 16)
        };
        let (of_a, of_b) = (rows(noise, &[&a]), rows(noise, &[&b]));
        let together = rows(noise, &[&b, &a]);
        assert_eq!(together, [of_b.clone(), of_a.clone()].concat());
        assert_eq!(of_a[0].scale, Neftune::scale(5.0, 3, 16));
        assert_eq!(of_b[0].scale, Neftune::scale(5.0, 5, 16));
        let keys = |rows: &[RowNoise]| rows.iter().map(|row| row.key).collect::<Vec<_>>();
        let mut all = keys(&together);
        all.extend(keys(&rows(Neftune::of_step(5.0, 42, 4), &[&a])));
        all.extend(keys(&rows(Neftune::of_step(5.0, 43, 3), &[&a])));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 8 + 3 + 3);
    }
}
