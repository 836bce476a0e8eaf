//! A few rows answered before and after a run, to be read beside the curves.

use std::error::Error;
use std::path::Path;

use backdraft_data::{Answers, ChatTokenizer, IGNORE_INDEX, RowSet};
use backdraft_formats::FormatError;
use backdraft_journal::run_files::{SAMPLES, Sample, write_json};
use backdraft_model::CausalLm;
use backdraft_model::generate::GenerateConfig;

/// Tokens of an answer at most.
const LONGEST: usize = 48;

/// Why answers cannot be noted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SampleError {
    /// The file cannot be written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// Ids that the tokenizer has no text for.
    #[error("the tokenizer cannot decode the rows that are answered before and after the run")]
    Decode(#[source] Box<dyn Error + Send + Sync>),
}

/// Rows as questions with the answers that the data gives.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    prompts: Vec<Vec<u32>>,
    expected: Vec<Vec<u32>>,
}

impl Questions {
    /// Up to `count` of `rows`, spread over all of them; rows that begin with what is trained ask
    /// nothing.
    pub(crate) fn choose(rows: &RowSet, count: usize) -> Self {
        let mut questions = Self::default();
        let count = count.min(rows.len());
        for row in (0..count).filter_map(|i| rows.row(i * rows.len() / count)) {
            // What an answer should not be is no answer to expect; of a pair the chosen one comes first.
            if row.answers == (Answers::Judged { desirable: false }) {
                continue;
            }
            let labels = &row.labels;
            let Some(start) = labels.iter().position(|label| *label != IGNORE_INDEX) else {
                continue;
            };
            let length = labels[start..]
                .iter()
                .take_while(|label| **label != IGNORE_INDEX)
                .count();
            if start > 1 {
                let ids = row.input_ids;
                questions.prompts.push(ids[..start].to_vec());
                questions.expected.push(ids[start..start + length].to_vec());
            }
        }
        questions
    }

    /// Notes what the base answers.
    ///
    /// # Errors
    /// The system refuses, or the tokenizer does.
    pub(crate) fn ask_before(
        &self,
        model: &CausalLm,
        tokenizer: &ChatTokenizer,
        output_dir: &Path,
    ) -> Result<(), SampleError> {
        if self.prompts.is_empty() {
            return Ok(());
        }
        // The token that ends an answer need not be one that decoding leaves out.
        let ends = tokenizer.eos_token_ids();
        let plain = |ids: &Vec<u32>| {
            let length = ids
                .iter()
                .rposition(|id| !ends.contains(id))
                .map_or(0, |at| at + 1);
            tokenizer.decode(&ids[..length], true)
        };
        let answers = self.answers(model, tokenizer)?;
        let mut samples = Vec::with_capacity(answers.len());
        for ((prompt, expected), before) in self.prompts.iter().zip(&self.expected).zip(answers) {
            samples.push(Sample {
                prompt: tokenizer
                    .decode(prompt, false)
                    .map_err(SampleError::Decode)?,
                expected: plain(expected).map_err(SampleError::Decode)?,
                before,
                after: String::new(),
            });
        }
        Ok(write_json(&output_dir.join(SAMPLES), &samples)?)
    }

    /// Notes what the trained model answers, beside what was noted before.
    ///
    /// # Errors
    /// The system refuses, or the tokenizer does.
    pub(crate) fn ask_after(
        &self,
        model: &CausalLm,
        tokenizer: &ChatTokenizer,
        output_dir: &Path,
    ) -> Result<(), SampleError> {
        let path = output_dir.join(SAMPLES);
        let noted = std::fs::read(&path).ok();
        let noted = noted.and_then(|text| serde_json::from_slice::<Vec<Sample>>(&text).ok());
        // A run of another version, or with other rows by now.
        let Some(mut samples) = noted.filter(|noted| noted.len() == self.prompts.len()) else {
            return Ok(());
        };
        for (sample, after) in samples.iter_mut().zip(self.answers(model, tokenizer)?) {
            sample.after = after;
        }
        Ok(write_json(&path, &samples)?)
    }

    fn answers(
        &self,
        model: &CausalLm,
        tokenizer: &ChatTokenizer,
    ) -> Result<Vec<String>, SampleError> {
        if self.prompts.is_empty() {
            return Ok(Vec::new());
        }
        let config = GenerateConfig {
            max_new_tokens: LONGEST,
            stop_ids: tokenizer.eos_token_ids().to_vec(),
            ..GenerateConfig::default()
        };
        let answers = model.generate(&self.prompts, &config, |_, _| true);
        let text = |ids: Vec<u32>| tokenizer.decode(&ids, true).map_err(SampleError::Decode);
        answers.into_iter().map(text).collect()
    }
}

#[cfg(test)]
mod tests {
    use backdraft_data::TokenRows;
    use backdraft_data::pipeline::TokenizedRow;

    use super::*;

    #[test]
    fn questions_end_where_the_answer_begins() {
        let example = |supervised: &[bool]| TokenizedRow {
            input_ids: (0..supervised.len() as u32).collect(),
            labels: supervised
                .iter()
                .enumerate()
                .map(|(i, yes)| if *yes { i as i64 } else { IGNORE_INDEX })
                .collect(),
            answers: backdraft_data::Answers::One,
            file: 0,
            line: 1,
            key: 0,
        };
        let set = |rows| RowSet::new(TokenRows::Memory(rows), &[]);
        let asks = example(&[false, false, true, true, false, true]);
        let all = example(&[true, true, true]);
        let rows = set(vec![asks.clone(), all, asks.clone(), asks]);
        let questions = Questions::choose(&rows, 4);
        assert_eq!(questions.prompts, vec![vec![0, 1]; 3]);
        assert_eq!(questions.expected, vec![vec![2, 3]; 3]);
        assert_eq!(Questions::choose(&rows, 2).prompts.len(), 2);
        assert!(Questions::choose(&rows, 0).prompts.is_empty());
        assert!(Questions::choose(&set(Vec::new()), 3).prompts.is_empty());
    }
}
