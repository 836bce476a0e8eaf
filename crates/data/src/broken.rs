//! Rows that cannot be used, by what is wrong with them.

use serde::{Deserialize, Serialize};

use crate::error::{DataError, TemplateError};
use crate::pipeline::SkippedRow;

/// Rows with the same kind of fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokenKind {
    /// The kind, such as "field `output`: expected a string".
    pub kind: String,
    /// How many rows have it.
    pub rows: usize,
    /// The first ones.
    pub first: Vec<SkippedRow>,
}

/// All kinds, in the order in which they were met.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BrokenRows {
    kinds: Vec<BrokenKind>,
}

/// Rows that are kept of each kind.
const FIRST: usize = 3;
/// Kinds that are told apart.
const KINDS: usize = 64;

impl BrokenRows {
    /// Rows of all kinds.
    pub fn rows(&self) -> usize {
        self.kinds.iter().map(|kind| kind.rows).sum()
    }

    /// Every kind.
    pub fn kinds(&self) -> &[BrokenKind] {
        &self.kinds
    }

    pub(crate) fn add(&mut self, error: &DataError, row: &SkippedRow) {
        let mut kind = kind_of(error);
        let is_known = self.kinds.iter().any(|known| known.kind == kind);
        if !is_known && self.kinds.len() >= KINDS {
            kind = "other faults".to_owned();
        }
        let at = match self.kinds.iter().position(|known| known.kind == kind) {
            Some(at) => at,
            None => {
                self.kinds.push(BrokenKind {
                    kind,
                    rows: 0,
                    first: Vec::new(),
                });
                self.kinds.len() - 1
            }
        };
        let known = &mut self.kinds[at];
        known.rows += 1;
        if known.first.len() < FIRST {
            known.first.push(row.clone());
        }
    }
}

/// What errors of the same kind have in common.
fn kind_of(error: &DataError) -> String {
    match error {
        DataError::NotUtf8 { .. } => "not UTF-8".to_owned(),
        DataError::LineTooLong { limit, .. } => format!("longer than {limit} bytes"),
        DataError::Json { .. } => "broken JSON".to_owned(),
        DataError::Field {
            field, expected, ..
        } => format!("field `{}`: expected {expected}", without_places(field)),
        DataError::Render { source, .. } => match source {
            TemplateError::Raised { message } => {
                format!("the chat template refuses them: {message}")
            }
            other => other.to_string(),
        },
        DataError::Span { .. } => "it is not clear which tokens are the answer".to_owned(),
        DataError::Encode { .. } => "the tokenizer cannot encode them".to_owned(),
        DataError::RowBeyondEmbedding { .. } => {
            "a token that the model has no embedding for".to_owned()
        }
        DataError::Layout { expected, .. } => format!("expected {expected}"),
        error if error.is_about_a_row() => "other faults".to_owned(),
        _ => "files that cannot be read, or not to their end".to_owned(),
    }
}

/// `messages[12].role` as `messages[].role`.
fn without_places(field: &str) -> String {
    let mut inside = false;
    let keep = |c: &char| {
        inside = (inside || *c == '[') && *c != ']';
        !inside || *c == '['
    };
    field.chars().filter(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_inside_a_row_do_not_make_another_kind() {
        assert_eq!(without_places("messages[12].role"), "messages[].role");
        assert_eq!(without_places("a[0].b[1][2]"), "a[].b[][]");
        assert_eq!(without_places("output"), "output");
    }

    #[test]
    fn kinds_and_places_are_bounded() {
        let mut broken = BrokenRows::default();
        for line in 0..1_000 {
            let error = DataError::Field {
                path: "a".into(),
                line,
                field: format!("f{}", line % 100),
                expected: "a string".to_owned(),
                found: "null".to_owned(),
            };
            let row = SkippedRow {
                path: "a".into(),
                line,
                problem: error.to_string(),
            };
            broken.add(&error, &row);
        }
        assert_eq!((broken.rows(), broken.kinds().len()), (1_000, KINDS + 1));
        assert!(broken.kinds().iter().all(|kind| kind.first.len() == FIRST));
        assert_eq!(broken.kinds()[0].rows, 10);
        assert_eq!(broken.kinds()[KINDS].rows, 360);
    }
}
