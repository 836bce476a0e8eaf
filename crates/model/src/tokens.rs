//! A batch as the model sees it.

use std::ops::Range;

use backdraft_kernels::{Segments, cross_entropy};
use burn::tensor::{DType, Tensor};

/// Label of a position that does not count in the loss.
pub const IGNORE_INDEX: i64 = -100;

/// Token sequences laid end to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids, `[t]`.
    pub input_ids: Vec<u32>,
    /// Position of each token in its sequence, `[t]`.
    pub position_ids: Vec<u32>,
    /// Where the sequences begin and end.
    pub segments: Segments,
    /// Tokens of each sequence, with those that are in a cache and those that are still to come, as far as they are known.
    pub lengths: Vec<usize>,
}

impl Tokens {
    /// Sequences of any length; empty ones are allowed.
    pub fn from_sequences<S: AsRef<[u32]>>(sequences: &[S]) -> Self {
        let mut cumulative = vec![0];
        let (mut input_ids, mut position_ids) = (Vec::new(), Vec::new());
        for sequence in sequences {
            let sequence = sequence.as_ref();
            input_ids.extend_from_slice(sequence);
            position_ids.extend(0..sequence.len() as u32);
            cumulative.push(input_ids.len() as u32);
        }
        Self {
            input_ids,
            position_ids,
            segments: Segments::from_cumulative(&cumulative),
            lengths: sequences.iter().map(|s| s.as_ref().len()).collect(),
        }
    }

    /// New tokens of sequences of which some tokens, the given number of each, are in a cache; each is known to have so many
    /// in all.
    ///
    /// # Panics
    /// If there is not one number of both for each sequence.
    pub fn continuing<S: AsRef<[u32]>>(
        sequences: &[S],
        past: &[usize],
        lengths: Vec<usize>,
    ) -> Self {
        assert_eq!(
            lengths.len(),
            sequences.len(),
            "one length for each sequence"
        );
        assert_eq!(
            sequences.len(),
            past.len(),
            "one past length for each sequence"
        );
        let (mut input_ids, mut position_ids) = (Vec::new(), Vec::new());
        for (sequence, &past) in sequences.iter().zip(past) {
            let sequence = sequence.as_ref();
            input_ids.extend_from_slice(sequence);
            position_ids.extend((past..past + sequence.len()).map(|position| position as u32));
        }
        let parts = past
            .iter()
            .zip(sequences)
            .map(|(&past, new)| (past, new.as_ref().len()));
        Self {
            input_ids,
            position_ids,
            segments: Segments::continuing(parts),
            lengths,
        }
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.input_ids.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.input_ids.is_empty()
    }
}

/// The positions whose next token is supervised, and that token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// Rows of the hidden states, ascending.
    pub rows: Vec<u32>,
    /// The token each of them predicts.
    pub ids: Vec<u32>,
}

impl Targets {
    /// From labels aligned with the tokens (not shifted), [`IGNORE_INDEX`] where nothing is supervised.
    ///
    /// The first label of a sequence is never a target: nothing precedes it.
    ///
    /// # Panics
    /// If there is not one label for each token.
    pub fn from_labels(segments: &Segments, labels: &[i64]) -> Self {
        assert_eq!(labels.len(), segments.queries(), "one label for each token");
        let mut targets = Self::default();
        for (rows, _) in segments.iter() {
            for row in rows.start..rows.end.saturating_sub(1) {
                if let Ok(id) = u32::try_from(labels[row + 1]) {
                    targets.rows.push(row as u32);
                    targets.ids.push(id);
                }
            }
        }
        targets
    }

    /// The last token of each sequence, from which nothing is predicted: what a head reads that scores texts.
    ///
    /// # Panics
    /// If a sequence is empty.
    pub fn last_tokens(tokens: &Tokens) -> Self {
        let last = tokens.segments.iter().map(|(rows, _)| {
            assert!(!rows.is_empty(), "a text has a last token");
            rows.end - 1
        });
        let rows: Vec<u32> = last.map(|row| row as u32).collect();
        let ids = rows.iter().map(|&row| tokens.input_ids[row as usize]);
        Self {
            ids: ids.collect(),
            rows,
        }
    }

    /// The targets of each segment: they are in the order of the segments.
    pub fn by_segment(&self, segments: &Segments) -> Vec<Range<usize>> {
        let before = |row: usize| self.rows.partition_point(|&of| (of as usize) < row);
        segments
            .iter()
            .map(|(rows, _)| before(rows.start)..before(rows.end))
            .collect()
    }

    /// Log-likelihood of the supervised tokens of each segment: −Σ nll over its targets, 0 where it has none.
    ///
    /// # Shapes
    /// `nll` `[targets]`, as [`CausalLm::nll`](crate::CausalLm::nll) gives it; result `[segments]`, f32.
    ///
    /// # Units
    /// Nats.
    pub fn log_likelihoods(&self, segments: &Segments, nll: &Tensor<1>) -> Tensor<1> {
        assert_eq!(nll.dims(), [self.len()], "one nll for each target");
        let sums = self.by_segment(segments).into_iter().map(|targets| {
            if targets.is_empty() {
                return Tensor::zeros([1], (&nll.device(), DType::F32));
            }
            let nll = nll.clone().narrow(0, targets.start, targets.len());
            cross_entropy::total(&nll).neg()
        });
        Tensor::cat(sums.collect(), 0)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn labels_shift_inside_each_sequence() {
        let tokens = Tokens::from_sequences(&[vec![5, 6, 7], vec![], vec![8, 9]]);
        assert_eq!(tokens.position_ids, [0, 1, 2, 0, 1]);
        let targets = Targets::from_labels(&tokens.segments, &[5, -100, 7, 8, 9]);
        assert_eq!(
            targets,
            Targets {
                rows: vec![1, 3],
                ids: vec![7, 9]
            }
        );
    }

    #[test]
    fn log_likelihoods_are_sums_over_each_segment() {
        let tokens = Tokens::from_sequences(&[vec![5, 6, 7], vec![], vec![8, 9, 1, 2]]);
        let labels = [5, -100, 7, 8, 9, 1, 2];
        let targets = Targets::from_labels(&tokens.segments, &labels);
        assert_eq!(targets.by_segment(&tokens.segments), [0..1, 1..1, 1..4]);
        let nll = Tensor::from_floats([0.5, 1.0, 2.0, 4.0], &Device::flex());
        let sums = targets.log_likelihoods(&tokens.segments, &nll).into_data();
        assert_eq!(sums.try_into_vec::<f32>().unwrap(), [-0.5, 0.0, -7.0]);
    }
}
