//! Rows as a data set of Burn's, for its samplers, mappers and data loaders.

use backdraft_data::{RowSet, TokenizedRow};
use burn::data::dataset::{Dataset, DatasetError};

/// Tokenised rows. The trainer's own [`StepLoader`](crate::loader::StepLoader) packs them and goes on exactly where it
/// stopped; a program with a loop of its own may sample and map them as any other data set.
#[derive(Clone, Debug)]
pub struct TokenDataset(pub RowSet);

impl Dataset<TokenizedRow> for TokenDataset {
    fn get(&self, index: usize) -> Result<TokenizedRow, DatasetError> {
        let Some(row) = self.0.row(index) else {
            panic!("row {index} of {}", self.0.len());
        };
        Ok(TokenizedRow {
            input_ids: row.input_ids.to_vec(),
            labels: row.labels.into_owned(),
            answers: row.answers,
            file: row.file,
            line: row.line,
            key: row.key,
        })
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use backdraft_data::TokenRows;
    use burn::data::dataset::transform::{Mapper, MapperDataset, PartialDataset, SamplerDataset};

    use super::*;

    /// Row i has i + 1 tokens, of which the last is trained.
    fn rows(count: u32) -> TokenDataset {
        let rows = (0..count).map(|i| {
            let input_ids: Vec<u32> = (0..=i).collect();
            let mut labels = vec![backdraft_data::IGNORE_INDEX; input_ids.len()];
            labels[i as usize] = i64::from(i);
            TokenizedRow {
                input_ids,
                labels,
                answers: backdraft_data::Answers::One,
                file: 0,
                line: i as usize + 1,
                key: u64::from(i),
            }
        });
        TokenDataset(RowSet::new(TokenRows::Memory(rows.collect()), &[]))
    }

    struct Length;

    impl Mapper<TokenizedRow, usize> for Length {
        fn map(&self, row: &TokenizedRow) -> usize {
            assert_eq!(row.labels.len(), row.input_ids.len());
            row.input_ids.len()
        }
    }

    #[test]
    fn burns_transforms_take_the_rows() {
        let chosen = TokenDataset(rows(6).0.choose([5, 0, 2]));
        let lengths = MapperDataset::new(chosen, Length);
        let lengths: Vec<usize> = lengths.iter().map(Result::unwrap).collect();
        assert_eq!(lengths, [6, 1, 3]);

        let parts = PartialDataset::split(rows(6), 2);
        assert_eq!(parts[1].len(), 3);
        assert_eq!(parts[1].get(0).unwrap().input_ids, [0, 1, 2, 3]);

        let sampled = SamplerDataset::without_replacement(rows(6), 6);
        let lines: BTreeSet<usize> = sampled.iter().map(|row| row.unwrap().line).collect();
        assert_eq!(lines, (1..=6).collect());
    }

    #[test]
    #[should_panic(expected = "row 2 of 2")]
    fn a_row_beyond_the_end_is_a_mistake_of_the_program() {
        let _ = rows(2).get(2);
    }
}
