//! Tokenised rows, in memory or in a mapped file.

use std::borrow::Cow;

use crate::DataError;
use crate::IGNORE_INDEX;
use crate::answers::Answers;
use crate::pipeline::{RowSink, TokenizedRow};
use backdraft_formats::{StoredAnswers, StoredRow, TokenFile};

/// The rows of a data set.
#[derive(Debug)]
pub enum TokenRows {
    /// All of them at hand.
    Memory(Vec<TokenizedRow>),
    /// In a file, read as they are needed.
    File(TokenFile),
}

impl Default for TokenRows {
    fn default() -> Self {
        Self::Memory(Vec::new())
    }
}

/// A row's ids and labels.
#[derive(Clone, Debug, PartialEq)]
pub struct RowView<'a> {
    /// Token ids, `[s]`.
    pub input_ids: &'a [u32],
    /// The id where it is trained, else [`IGNORE_INDEX`], `[s]`.
    pub labels: Cow<'a, [i64]>,
    /// What its answers are to each other.
    pub answers: Answers,
    /// Number of its file among those of all sources.
    pub file: usize,
    /// Its line in its file.
    pub line: usize,
    /// Equal rows have equal keys.
    pub key: u64,
}

impl TokenRows {
    /// Number of rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Memory(rows) => rows.len(),
            Self::File(file) => file.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A row; `None` for one that does not exist.
    pub fn row(&self, index: usize) -> Option<RowView<'_>> {
        match self {
            Self::Memory(rows) => rows.get(index).map(|row| RowView {
                input_ids: &row.input_ids,
                labels: Cow::Borrowed(&row.labels),
                answers: row.answers,
                file: row.file,
                line: row.line,
                key: row.key,
            }),
            Self::File(file) => file.row(index).map(|row| RowView {
                input_ids: row.ids,
                labels: Cow::Owned(labels(&row)),
                answers: match row.answers {
                    StoredAnswers::One => Answers::One,
                    StoredAnswers::Pair { second, margin } => Answers::Pair {
                        rejected: second as usize,
                        margin,
                    },
                    StoredAnswers::Judged(desirable) => Answers::Judged { desirable },
                },
                file: row.source as usize,
                line: usize::try_from(row.line).unwrap_or(usize::MAX),
                key: row.key,
            }),
        }
    }

    /// Tokens of every row, for [`crate::Loader`].
    pub fn lengths(&self) -> Vec<u32> {
        let length = |index: usize| match self {
            Self::Memory(rows) => rows[index].input_ids.len(),
            Self::File(file) => file.length(index),
        };
        // A row of 2^32 tokens is not made.
        (0..self.len()).map(|index| length(index) as u32).collect()
    }

    /// The number of every row's file.
    pub fn files(&self) -> Vec<u32> {
        let file = |index: usize| match self {
            Self::Memory(rows) => rows[index].file as u32,
            Self::File(file) => file.row(index).map_or(u32::MAX, |row| row.source),
        };
        (0..self.len()).map(file).collect()
    }

    /// The key of every row.
    pub fn keys(&self) -> Vec<u64> {
        let key = |index: usize| match self {
            Self::Memory(rows) => rows[index].key,
            Self::File(file) => file.row(index).map_or(0, |row| row.key),
        };
        (0..self.len()).map(key).collect()
    }
}

impl RowSink for TokenRows {
    /// Adds a row to those in memory; a file takes none.
    fn push(&mut self, row: TokenizedRow) -> Result<(), DataError> {
        match self {
            Self::Memory(rows) => {
                rows.push(row);
                Ok(())
            }
            Self::File(file) => Err(DataError::Option {
                option: "rows",
                expected: "rows in memory to add to".to_owned(),
                actual: format!("the file {}", file.path().display()),
            }),
        }
    }
}

fn labels(row: &StoredRow<'_>) -> Vec<i64> {
    let label = |(token, id): (usize, &u32)| match row.is_trained(token) {
        true => i64::from(*id),
        false => IGNORE_INDEX,
    };
    row.ids.iter().enumerate().map(label).collect()
}

/// A bit for each label that is trained, lowest first.
pub(crate) fn trained_bits(labels: &[i64], bits: &mut Vec<u8>) {
    bits.clear();
    bits.resize(labels.len().div_ceil(8), 0);
    for (token, label) in labels.iter().enumerate() {
        if *label != IGNORE_INDEX {
            bits[token / 8] |= 1 << (token % 8);
        }
    }
}
