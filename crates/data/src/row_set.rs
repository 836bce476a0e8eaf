//! The rows that a run learns from, or is measured on.

use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::answers::Answers;
use crate::error::DataError;
use crate::findings::RowPlace;
use crate::pipeline::{Outcome, TokenizeOptions, tokenize};
use crate::report::LoadProgress;
use crate::source::Source;
use crate::store::{RowView, TokenRows};
use crate::tokenizer::ChatTokenizer;

/// Tokenised rows, or some of them, with the files they came from. Copies share the rows.
#[derive(Clone, Debug, Default)]
pub struct RowSet {
    rows: Arc<TokenRows>,
    /// Numbers of the rows that belong to the set; `None` if all do.
    chosen: Option<Arc<[usize]>>,
    /// The files that [`RowView::file`] counts.
    files: Arc<[PathBuf]>,
}

/// How much a set holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RowCounts {
    /// Rows.
    pub rows: usize,
    /// Their tokens.
    pub tokens: u64,
    /// Tokens among them that are predicted and trained.
    pub supervised_tokens: u64,
}

impl RowSet {
    /// All rows of some sources.
    pub fn new(rows: TokenRows, sources: &[Source]) -> Self {
        let files = sources.iter().flat_map(|source| &source.files);
        Self {
            rows: Arc::new(rows),
            chosen: None,
            files: files.map(|file| file.path.clone()).collect(),
        }
    }

    /// Tokenises sources into memory.
    ///
    /// # Errors
    /// As [`tokenize`].
    pub fn load(
        sources: &[Source],
        options: &TokenizeOptions,
        tokenizer: &ChatTokenizer,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<(Self, Outcome), DataError> {
        let mut rows = TokenRows::default();
        let outcome = tokenize(sources, options, tokenizer, &mut rows, progress)?;
        Ok((Self::new(rows, sources), outcome))
    }

    /// Some rows of this set, by their numbers in it; numbers beyond its end are left out.
    #[must_use]
    pub fn choose(&self, rows: impl IntoIterator<Item = usize>) -> Self {
        let rows = rows.into_iter();
        let chosen = rows.filter_map(|row| self.number(row));
        Self {
            chosen: Some(chosen.collect()),
            ..self.clone()
        }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        match &self.chosen {
            Some(chosen) => chosen.len(),
            None => self.rows.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A row; `None` for one that does not exist.
    pub fn row(&self, row: usize) -> Option<RowView<'_>> {
        self.rows.row(self.number(row)?)
    }

    /// All rows in order.
    pub fn iter(&self) -> impl Iterator<Item = RowView<'_>> {
        (0..self.len()).filter_map(|row| self.row(row))
    }

    /// The file and line of a row; `None` for one that does not exist.
    pub fn place(&self, row: usize) -> Option<RowPlace> {
        let view = self.row(row)?;
        Some(RowPlace {
            path: self.files.get(view.file).cloned().unwrap_or_default(),
            line: view.line,
        })
    }

    /// Tokens of every row, for [`crate::Loader`].
    pub fn lengths(&self) -> Vec<u32> {
        self.of_chosen(self.rows.lengths())
    }

    /// Tokens of the longest text: a pair has two.
    pub fn longest_text(&self) -> usize {
        let texts = self
            .iter()
            .map(|row| row.answers.longest(row.input_ids.len()));
        texts.max().unwrap_or(0)
    }

    /// The key of every row.
    pub fn keys(&self) -> Vec<u64> {
        self.of_chosen(self.rows.keys())
    }

    /// Rows of each source with its weight, as [`crate::LoaderOptions::sources`] has them;
    /// `sources` are those that the set was made of.
    pub fn source_rows(&self, sources: &[Source]) -> Vec<(usize, f64)> {
        let source_of: Vec<usize> = sources
            .iter()
            .enumerate()
            .flat_map(|(number, source)| source.files.iter().map(move |_| number))
            .collect();
        let mut rows: Vec<(usize, f64)> = sources.iter().map(|s| (0, s.weight)).collect();
        for file in self.of_chosen(self.rows.files()) {
            if let Some(source) = source_of
                .get(file as usize)
                .and_then(|at| rows.get_mut(*at))
            {
                source.0 += 1;
            }
        }
        rows
    }

    /// Rows, tokens and supervised tokens; reads every row.
    pub fn counts(&self) -> RowCounts {
        let mut counts = RowCounts::default();
        for row in self.iter() {
            counts.rows += 1;
            counts.tokens += row.input_ids.len() as u64;
            counts.supervised_tokens += row.answers.supervised_tokens(&row.labels) as u64;
        }
        counts
    }

    /// SHA-256 over ids and labels in order, and over what answers are to each other; in hexadecimal.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for row in self.iter() {
            hash.update((row.input_ids.len() as u64).to_le_bytes());
            for (id, label) in row.input_ids.iter().zip(row.labels.iter()) {
                hash.update(id.to_le_bytes());
                hash.update(label.to_le_bytes());
            }
            match row.answers {
                Answers::One => {}
                Answers::Pair { rejected, margin } => {
                    hash.update(b"pair");
                    hash.update((rejected as u64).to_le_bytes());
                    if let Some(margin) = margin {
                        hash.update(b"margin");
                        hash.update(margin.to_le_bytes());
                    }
                }
                Answers::Judged { desirable } => {
                    hash.update(b"judged");
                    hash.update([u8::from(desirable)]);
                }
            }
        }
        crate::hex(&hash.finalize())
    }

    fn number(&self, row: usize) -> Option<usize> {
        match &self.chosen {
            Some(chosen) => chosen.get(row).copied(),
            None => (row < self.rows.len()).then_some(row),
        }
    }

    fn of_chosen<T: Copy>(&self, all: Vec<T>) -> Vec<T> {
        match &self.chosen {
            Some(chosen) => chosen.iter().map(|row| all[*row]).collect(),
            None => all,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IGNORE_INDEX;
    use crate::pipeline::TokenizedRow;

    const X: i64 = IGNORE_INDEX;

    fn row(ids: &[u32], labels: &[i64], file: usize, line: usize) -> TokenizedRow {
        TokenizedRow {
            input_ids: ids.to_vec(),
            labels: labels.to_vec(),
            answers: Answers::One,
            file,
            line,
            key: ids.iter().map(|id| u64::from(*id)).sum(),
        }
    }

    fn set(rows: Vec<TokenizedRow>) -> RowSet {
        RowSet::new(TokenRows::Memory(rows), &[])
    }

    #[test]
    fn the_fingerprint_is_of_ids_and_labels_alone() {
        let one = set(vec![row(&[1, 2], &[X, 2], 0, 1)]).fingerprint();
        // Computed outside this project.
        assert_eq!(
            one,
            "4dfa4ebcdacdfd13827b1a77db06d6cd1092e4d2aa9194ac2f59fe74cffac98a"
        );
        let print = |rows| set(rows).fingerprint();
        assert_eq!(one, print(vec![row(&[1, 2], &[X, 2], 3, 9)]));
        assert_ne!(one, print(vec![row(&[1, 2], &[1, 2], 0, 1)]));
        let two = vec![row(&[1], &[X], 0, 1), row(&[2], &[2], 0, 2)];
        assert_ne!(one, print(two));
    }

    #[test]
    fn a_choice_of_a_choice_keeps_places_and_sources() {
        let folder = tempfile::tempdir().unwrap();
        let source = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, "").unwrap();
            Source::from_file(&path)
        };
        let sources = [
            source("a.jsonl"),
            source("b.jsonl").with_weight(2.0).unwrap(),
        ];
        let rows = vec![
            row(&[1], &[X], 0, 1),
            row(&[2, 3], &[X, 3], 0, 2),
            row(&[4, 5, 6], &[X, X, 6], 1, 7),
        ];
        let all = RowSet::new(TokenRows::Memory(rows), &sources);
        assert_eq!(all.source_rows(&sources), [(2, 1.0), (1, 2.0)]);
        let some = all.choose([2, 1, 9]).choose([0]);
        assert_eq!(
            (some.len(), some.lengths(), some.keys()),
            (1, vec![3], vec![15])
        );
        assert_eq!(some.source_rows(&sources), [(0, 1.0), (1, 2.0)]);
        let place = some.place(0).unwrap();
        assert!(place.path.ends_with("b.jsonl") && place.line == 7);
        assert!(some.place(1).is_none() && some.row(1).is_none());
        let counts = RowCounts {
            rows: 3,
            tokens: 6,
            supervised_tokens: 2,
        };
        assert_eq!(all.counts(), counts);
    }
}
