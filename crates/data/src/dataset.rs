//! A data file as ids and labels.

use std::path::Path;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::IGNORE_INDEX;
use crate::conversation::Record;
use crate::error::{DataError, SpanError};
use crate::format::Format;
use crate::jsonl::{JsonlReader, Line, parse_line};
use crate::prompt_template::PromptTemplate;
use crate::supervise::{RowError, Supervised, Supervision, supervise};
use crate::tokenizer::ChatTokenizer;

/// Lines that are parsed and tokenised together.
const CHUNK: usize = 512;

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
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct DataReport {
    /// Rows read.
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
    /// Bytes of the file.
    pub total_bytes: u64,
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
        hash.finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
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
    options.check()?;
    let mut reader = JsonlReader::open(path)?;
    let total_bytes = std::fs::metadata(path).map_or(0, |file| file.len());
    let mut dataset = Dataset::default();
    loop {
        let (lines, failure) = next_chunk(&mut reader);
        let rows: Vec<Result<Supervised, DataError>> = lines
            .par_iter()
            .map(|line| encode_line(path, line, options, tokenizer))
            .collect();
        // In file order, so that the first broken line is the one reported.
        for (line, row) in lines.iter().zip(rows) {
            dataset.push(row?, line.number, options.max_seq_length);
        }
        if let Some(error) = failure {
            return Err(error);
        }
        if lines.is_empty() {
            break;
        }
        progress(LoadProgress {
            rows: dataset.report.rows,
            bytes: reader.bytes(),
            total_bytes,
        });
    }
    if dataset.examples.is_empty() {
        return Err(DataError::NothingToTrain {
            path: path.to_owned(),
            rows: dataset.report.rows,
            max_seq_length: options.max_seq_length,
        });
    }
    Ok(dataset)
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

impl Dataset {
    fn push(&mut self, row: Supervised, line: usize, max_seq_length: usize) {
        let Supervised {
            mut input_ids,
            mut labels,
            open_turns,
            ..
        } = row;
        let length = input_ids.len();
        input_ids.truncate(max_seq_length);
        labels.truncate(max_seq_length);
        let supervised = supervised_tokens(&labels);
        let report = &mut self.report;
        report.rows += 1;
        report.longest = report.longest.max(length);
        if supervised == 0 {
            report.dropped += 1;
            report.dropped_lines.push(line);
            return;
        }
        report.kept += 1;
        report.truncated += usize::from(length > max_seq_length);
        report.tokens += input_ids.len() as u64;
        report.supervised_tokens += supervised as u64;
        report.open_turns += open_turns;
        self.examples.push(Example {
            input_ids,
            labels,
            line,
        });
    }
}

fn supervised_tokens(labels: &[i64]) -> usize {
    labels
        .iter()
        .skip(1)
        .filter(|label| **label != IGNORE_INDEX)
        .count()
}

/// Up to [`CHUNK`] lines and a few megabytes, and the error that cut them short.
fn next_chunk(reader: &mut JsonlReader) -> (Vec<Line>, Option<DataError>) {
    const BYTES: usize = 8 << 20;
    let mut lines = Vec::new();
    let mut bytes = 0;
    while lines.len() < CHUNK && bytes < BYTES {
        match reader.next() {
            Some(Ok(line)) => {
                bytes += line.text.len();
                lines.push(line);
            }
            Some(Err(error)) => return (lines, Some(error)),
            None => break,
        }
    }
    (lines, None)
}

fn encode_line(
    path: &Path,
    line: &Line,
    options: &DataOptions,
    tokenizer: &ChatTokenizer,
) -> Result<Supervised, DataError> {
    let record: Record = parse_line(path, line, options.format)?;
    supervise(
        &record,
        tokenizer,
        options.template.as_ref(),
        options.supervision,
    )
    .map_err(|error| row_error(path, line.number, error))
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
