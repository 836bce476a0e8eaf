//! A data file as ids and labels.

use std::path::Path;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::IGNORE_INDEX;
use crate::error::{DataError, SpanError};
use crate::format::Format;
use crate::lengths::LengthHistogram;
use crate::pipeline::{RowSink, TokenizeOptions, TokenizedRow, tokenize};
use crate::prompt_template::PromptTemplate;
use crate::source::Source;
use crate::supervise::{RowError, Supervision};
use crate::tokenizer::ChatTokenizer;

/// How a data file is to be read.
#[derive(Clone, Debug)]
pub struct DataOptions {
    /// The format of its rows.
    pub format: Format,
    /// A prompt template for alpaca rows; without one they go through the chat template.
    pub template: Option<PromptTemplate>,
    /// What is trained.
    pub supervision: Supervision,
    /// Tokens after which a row is cut, at least 2.
    pub max_seq_length: usize,
}

/// A row that is trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Token ids, `[s]`.
    pub input_ids: Vec<u32>,
    /// The id where it is trained, else [`IGNORE_INDEX`], `[s]`.
    pub labels: Vec<i64>,
    /// Line in the file, from 1.
    pub line: usize,
}

impl Example {
    /// Labels that are predicted: the first position has nothing before it.
    pub fn supervised_tokens(&self) -> usize {
        supervised_tokens(&self.labels)
    }
}

/// What became of the rows of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct DataReport {
    /// Rows read, skipped ones included.
    pub rows: usize,
    /// Rows kept.
    pub kept: usize,
    /// Kept rows that were cut at `max_seq_length`.
    pub truncated: usize,
    /// Rows without a supervised token, cut ones included.
    pub dropped: usize,
    /// The lines of the dropped rows.
    pub dropped_lines: Vec<usize>,
    /// Tokens of kept rows.
    pub tokens: u64,
    /// Supervised tokens of kept rows (after the shift).
    pub supervised_tokens: u64,
    /// Tokens of the longest row before it was cut.
    pub longest: usize,
    /// Trained turns that no special token ends.
    pub open_turns: usize,
    /// Rows that say the same as one before them, among the first four million different ones.
    pub duplicates: usize,
    /// Rows by length before they were cut.
    pub lengths: LengthHistogram,
}

/// A tokenised file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dataset {
    /// The kept rows in the order of the file.
    pub examples: Vec<Example>,
    /// What became of all rows.
    pub report: DataReport,
}

/// How far loading has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    /// Rows tokenised.
    pub rows: usize,
    /// Bytes read.
    pub bytes: u64,
    /// Bytes of all files.
    pub total_bytes: u64,
    /// Time since the beginning.
    pub elapsed: Duration,
}

impl LoadProgress {
    /// Bytes read each second; 0 at the beginning.
    pub fn bytes_per_second(&self) -> f64 {
        rate(self.bytes as f64, self.elapsed)
    }

    /// Rows tokenised each second; 0 at the beginning.
    pub fn rows_per_second(&self) -> f64 {
        rate(self.rows as f64, self.elapsed)
    }

    /// Time that the rest will take if it goes on like this; `None` at the beginning.
    pub fn time_left(&self) -> Option<Duration> {
        let rest = self.total_bytes.saturating_sub(self.bytes) as f64;
        Duration::try_from_secs_f64(rest / self.bytes_per_second()).ok()
    }
}

fn rate(count: f64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 { count / seconds } else { 0.0 }
}

impl Dataset {
    /// Tokens of every row, for [`crate::Loader`] and cost estimates.
    pub fn lengths(&self) -> Vec<usize> {
        self.examples
            .iter()
            .map(|example| example.input_ids.len())
            .collect()
    }

    /// SHA-256 over ids and labels in order, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for example in &self.examples {
            hash.update((example.input_ids.len() as u64).to_le_bytes());
            for (id, label) in example.input_ids.iter().zip(&example.labels) {
                hash.update(id.to_le_bytes());
                hash.update(label.to_le_bytes());
            }
        }
        crate::hex(&hash.finalize())
    }
}

/// Reads, tokenises and labels a file, on all cores of the current rayon pool.
///
/// The result does not depend on the number of threads. `progress` is called after every few
/// hundred rows.
///
/// # Errors
/// The first broken line (see [`DataError`]), options that cannot work together, and
/// [`DataError::NothingToTrain`] if no row is left.
pub fn load(
    path: &Path,
    options: &DataOptions,
    tokenizer: &ChatTokenizer,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Dataset, DataError> {
    let options = TokenizeOptions::from(options.clone());
    let mut examples = Vec::new();
    let source = Source::from_file(path);
    let outcome = tokenize(&[source], &options, tokenizer, &mut examples, progress)?;
    Ok(Dataset {
        examples,
        report: outcome.report,
    })
}

impl RowSink for Vec<Example> {
    fn push(&mut self, row: TokenizedRow) -> Result<(), DataError> {
        Vec::push(
            self,
            Example {
                input_ids: row.input_ids,
                labels: row.labels,
                line: row.line,
            },
        );
        Ok(())
    }
}

impl DataOptions {
    /// Refuses options that cannot work together.
    ///
    /// # Errors
    /// [`DataError::Option`].
    pub fn check(&self) -> Result<(), DataError> {
        if self.max_seq_length < 2 {
            return Err(DataError::Option {
                option: "max_seq_length",
                expected: "at least 2 tokens: one to see, one to predict".to_owned(),
                actual: self.max_seq_length.to_string(),
            });
        }
        let has_completion = matches!(self.format, Format::Alpaca | Format::PromptCompletion);
        if self.supervision == Supervision::Completion && !has_completion {
            return Err(DataError::Option {
                option: "train_on",
                expected: "\"responses\", \"last_turn\" or \"all\" beside this format".to_owned(),
                actual: format!("\"completion\" with format \"{}\"", self.format),
            });
        }
        if self.template.is_some() && self.format != Format::Alpaca {
            return Err(DataError::Option {
                option: "prompt_template",
                expected: "format \"alpaca\" beside it".to_owned(),
                actual: format!("format \"{}\"", self.format),
            });
        }
        Ok(())
    }
}

/// How many labels are predicted.
pub(crate) fn supervised_tokens(labels: &[i64]) -> usize {
    labels
        .iter()
        .skip(1)
        .filter(|label| **label != IGNORE_INDEX)
        .count()
}

/// Adds file and line.
pub(crate) fn row_error(path: &Path, line: usize, error: RowError) -> DataError {
    let path = path.to_owned();
    match error {
        RowError::Template(source) => DataError::Render { path, line, source },
        RowError::Span(SpanError::Template(source)) => DataError::Render { path, line, source },
        RowError::Span(source) => DataError::Span { path, line, source },
        RowError::Encode(source) => DataError::Encode { path, line, source },
        RowError::UnusedInput => DataError::Field {
            path,
            line,
            field: "input".to_owned(),
            expected: "nothing, since the prompt template has no {input}".to_owned(),
            found: "text; add {input} to the template".to_owned(),
        },
        RowError::NoCompletion => DataError::Option {
            option: "train_on",
            expected: "something that conversations have, such as \"responses\"".to_owned(),
            actual: "\"completion\"".to_owned(),
        },
        RowError::NoEos => DataError::Option {
            option: "eos_token",
            expected: "an EOS token to end every row with".to_owned(),
            actual: "a tokenizer without one".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests;
