//! A batch as the model sees it.

use backdraft_kernels::Segments;

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
        }
    }

    /// New tokens of sequences of which some tokens, the given number of each, are in a cache.
    ///
    /// # Panics
    /// If there is not one number for each sequence.
    pub fn continuing<S: AsRef<[u32]>>(sequences: &[S], past: &[usize]) -> Self {
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
        let lengths = past
            .iter()
            .zip(sequences)
            .map(|(&past, new)| (past, new.as_ref().len()));
        Self {
            input_ids,
            position_ids,
            segments: Segments::continuing(lengths),
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
}
