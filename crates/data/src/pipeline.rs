//! From sources to rows of ids and labels, on all cores, in memory that does not grow with them.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::IGNORE_INDEX;
use crate::answers::{Answers, supervised_tokens};
use crate::broken::BrokenRows;
use crate::conversation::Record;
use crate::error::DataError;
use crate::findings::{Finding, Findings, examine, unread_fields};
use crate::format::{FieldMap, Format};
use crate::jsonl::field_error;
use crate::options::{DataOptions, row_error};
use crate::report::{DataReport, LoadProgress};
use crate::source::{DecompressLimits, RawRow, RowReader, Source};
use crate::supervise::{Supervised, supervise};
use crate::tokenizer::ChatTokenizer;

/// Rows that are parsed and tokenised together.
const CHUNK: usize = 512;
/// Bytes after which a chunk is long enough.
const CHUNK_BYTES: usize = 8 << 20;
/// Rows that could not be used and are listed.
const LISTED: usize = 1 << 20;
/// Different rows that are remembered to count duplicates.
const REMEMBERED: usize = 1 << 22;

/// What becomes of rows longer than `max_seq_length`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlong {
    /// Their end is cut away.
    #[default]
    Truncate,
    /// They are left out.
    Drop,
    /// They become several rows: for `text` rows only, whose parts make sense alone.
    Split,
}

impl Overlong {
    /// The names that recipes use.
    pub const NAMES: &'static [&'static str] = &["truncate", "drop", "split"];

    /// The name that recipes use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// What is to say about a row that is too long.
    pub(crate) fn finding(self) -> Finding {
        match self {
            Self::Truncate => Finding::Truncated,
            Self::Drop => Finding::TooLong,
            Self::Split => Finding::Split,
        }
    }
}

/// How sources are to be read and tokenised.
#[derive(Clone, Debug)]
pub struct TokenizeOptions {
    /// Format, template, supervision and length.
    pub data: DataOptions,
    /// Other names of the format's fields.
    pub fields: FieldMap,
    /// What becomes of rows that are too long.
    pub overlong: Overlong,
    /// Tokens that a part of a row that is split repeats of the one before it, as context that is not trained again; at
    /// least 1, which nothing predicts anyway.
    pub split_overlap: usize,
    /// How many rows may be unusable; they are listed in [`Outcome::skipped`].
    pub skip_bad_rows: usize,
    /// How far compressed files may grow.
    pub limits: DecompressLimits,
}

impl From<DataOptions> for TokenizeOptions {
    fn from(data: DataOptions) -> Self {
        Self {
            data,
            fields: FieldMap::default(),
            overlong: Overlong::default(),
            split_overlap: 1,
            skip_bad_rows: 0,
            limits: DecompressLimits::default(),
        }
    }
}

impl TokenizeOptions {
    /// The options for one source: a format that it names itself counts, and a prompt template is
    /// for its alpaca rows.
    pub fn of(&self, source: &Source) -> Cow<'_, Self> {
        let Some(own) = &source.rows else {
            return Cow::Borrowed(self);
        };
        let mut options = self.clone();
        options.data.format = own.format;
        options.fields = own.fields.clone();
        if own.format != Format::Alpaca {
            options.data.template = None;
        }
        Cow::Owned(options)
    }

    /// Refuses options that cannot work together.
    ///
    /// # Errors
    /// [`DataError::Option`].
    pub fn check(&self) -> Result<(), DataError> {
        self.data.check()?;
        if self.overlong == Overlong::Split && self.data.format != Format::Text {
            return Err(DataError::Option {
                option: "overlong",
                expected: "\"truncate\" or \"drop\": half a conversation makes no sense".to_owned(),
                actual: format!("\"split\" with format \"{}\"", self.data.format),
            });
        }
        let longest = self.data.max_seq_length;
        if self.overlong == Overlong::Split && !(1..longest).contains(&self.split_overlap) {
            return Err(DataError::Option {
                option: "split_overlap",
                expected: format!("at least 1 and below max_seq_length, {longest}"),
                actual: self.split_overlap.to_string(),
            });
        }
        Ok(())
    }
}

/// A row that is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizedRow {
    /// Token ids, `[s]`.
    pub input_ids: Vec<u32>,
    /// The id where it is trained, else [`crate::IGNORE_INDEX`], `[s]`.
    pub labels: Vec<i64>,
    /// What its answers are to each other.
    pub answers: Answers,
    /// Number of its file among those of all sources.
    pub file: usize,
    /// Its line in its file, from 1.
    pub line: usize,
    /// A hash of its tokens before they were cut: equal rows have equal keys.
    pub key: u64,
}

/// What takes the rows, in the order of the sources.
pub trait RowSink {
    /// Takes a row.
    ///
    /// # Errors
    /// Whatever keeps the sink from taking it; the work ends there.
    fn push(&mut self, row: TokenizedRow) -> Result<(), DataError>;
}

/// Counts only.
impl RowSink for () {
    fn push(&mut self, _: TokenizedRow) -> Result<(), DataError> {
        Ok(())
    }
}

/// A row that was passed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedRow {
    /// Its file.
    pub path: PathBuf,
    /// Its line there, from 1.
    pub line: usize,
    /// The message of the error that it would have been.
    pub problem: String,
}

/// What became of all rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Numbers.
    pub report: DataReport,
    /// What is wrong with rows, or worth knowing.
    pub findings: Findings,
    /// Rows that could not be used, at most a million.
    pub skipped: Vec<SkippedRow>,
    /// Rows kept of each source.
    pub source_rows: Vec<usize>,
    /// What is wrong with rows that could not be used, by kind.
    #[serde(default)]
    pub broken: BrokenRows,
    /// What is not read of the files, such as columns that no row can hold.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Outcome {
    /// Names and numbers, as summaries list them.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let DataReport {
            rows,
            kept,
            truncated,
            dropped,
            tokens,
            supervised_tokens,
            longest,
            duplicates,
            ..
        } = self.report;
        vec![
            ("rows", rows as u64),
            ("kept", kept as u64),
            ("skipped as broken", self.broken.rows() as u64),
            ("left out", dropped as u64),
            ("cut at max_seq_length", truncated as u64),
            ("duplicates", duplicates as u64),
            ("tokens", tokens),
            ("supervised tokens", supervised_tokens),
            ("tokens of the longest row", longest as u64),
        ]
    }
}

/// Counts, lengths and findings, for people.
impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, value) in self.counts() {
            writeln!(f, "{value:>12}  {name}")?;
        }
        writeln!(f, "lengths in tokens:")?;
        let classes = self.report.lengths.classes();
        for (shortest, longest, rows) in classes.filter(|class| class.2 > 0) {
            writeln!(f, "{rows:>12}  {shortest} to {longest}")?;
        }
        for note in self.report.comparisons.notes() {
            writeln!(f, "note: {note}")?;
        }
        for (finding, found) in self.findings.iter() {
            let level = if finding.is_problem() {
                "problem"
            } else {
                "note"
            };
            let summary = finding.summary(found.rows);
            writeln!(f, "{level}: {} {summary}", found.rows)?;
            if let Some(first) = found.first.first() {
                writeln!(f, "  first: {first}")?;
            }
            writeln!(f, "  next: {}", finding.next_step())?;
        }
        Ok(())
    }
}

/// Reads, tokenises and labels sources, on all cores of the current rayon pool.
///
/// The result does not depend on the number of threads. `progress` is called after every few
/// hundred rows.
///
/// # Errors
/// The first broken row beyond those that may be skipped, anything about a whole file, options that
/// cannot work together, [`DataError::NoRows`], and [`DataError::NothingToTrain`] if no row is left.
pub fn tokenize(
    sources: &[Source],
    options: &TokenizeOptions,
    tokenizer: &ChatTokenizer,
    sink: &mut dyn RowSink,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Outcome, DataError> {
    let limit = Some(options.skip_bad_rows);
    let outcome = work(sources, options, tokenizer, sink, limit, progress)?;
    let DataReport { rows, kept, .. } = outcome.report;
    if kept == 0 {
        let first = sources.first();
        let path = first.map_or_else(PathBuf::new, |source| source.spec.clone().into());
        return Err(match rows {
            0 => DataError::NoRows { path },
            _ => DataError::NothingToTrain {
                path,
                rows,
                max_seq_length: options.data.max_seq_length,
            },
        });
    }
    Ok(outcome)
}

/// Reads all rows of all sources, however many cannot be used: [`Outcome::broken`] says what is wrong
/// with them. A file that breaks off is left there, and the next one is read.
///
/// # Errors
/// Options that cannot work together.
pub fn survey(
    sources: &[Source],
    options: &TokenizeOptions,
    tokenizer: &ChatTokenizer,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Outcome, DataError> {
    work(sources, options, tokenizer, &mut (), None, progress)
}

/// Tokenises all rows; `limit` of them may be unusable, all where there is none.
fn work(
    sources: &[Source],
    options: &TokenizeOptions,
    tokenizer: &ChatTokenizer,
    sink: &mut dyn RowSink,
    limit: Option<usize>,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Outcome, DataError> {
    for source in sources {
        let options = options.of(source);
        options.check()?;
        options.data.check_template(tokenizer)?;
    }
    let mut work = Work {
        options,
        limit,
        tokenizer,
        sink,
        outcome: Outcome::default(),
        seen: HashSet::new(),
        began: Instant::now(),
        total_bytes: sources.iter().map(Source::bytes).sum(),
        bytes_before: 0,
        files_before: 0,
    };
    for (number, source) in sources.iter().enumerate() {
        work.outcome.source_rows.push(0);
        work.read(number, source, progress)?;
        work.bytes_before += source.bytes();
        work.files_before += source.files.len();
    }
    Ok(work.outcome)
}

struct Work<'a> {
    options: &'a TokenizeOptions,
    limit: Option<usize>,
    tokenizer: &'a ChatTokenizer,
    sink: &'a mut dyn RowSink,
    outcome: Outcome,
    seen: HashSet<u64>,
    began: Instant,
    total_bytes: u64,
    bytes_before: u64,
    files_before: usize,
}

type Chunk = Vec<Result<RawRow, DataError>>;

impl Work<'_> {
    fn read(
        &mut self,
        number: usize,
        source: &Source,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<(), DataError> {
        let options = self.options.of(source);
        let mut reader = RowReader::new(&source.files, options.limits);
        let reads_on = self.limit.is_none();
        let mut chunk = next_chunk(&mut reader, reads_on);
        while !chunk.is_empty() {
            let bytes = self.bytes_before + reader.bytes();
            // The next chunk is read while this one is tokenised.
            let tokenizer = self.tokenizer;
            let (next, rows) = rayon::join(
                || next_chunk(&mut reader, reads_on),
                || tokenize_chunk(chunk, source, &options, tokenizer),
            );
            // In the order of the file, so that the first broken row is the one reported.
            for (place, row) in rows {
                match row {
                    Ok(row) => {
                        self.keep(row, number, place.0, &source.files[place.0].path, place.1)?
                    }
                    Err(error) => self.skip(error)?,
                }
            }
            progress(LoadProgress {
                rows: self.outcome.report.rows,
                bytes,
                total_bytes: self.total_bytes,
                elapsed: self.began.elapsed(),
            });
            chunk = next;
        }
        self.outcome.notes.extend_from_slice(reader.notes());
        Ok(())
    }

    fn skip(&mut self, error: DataError) -> Result<(), DataError> {
        let is_row = error.is_about_a_row();
        if let Some(limit) = self.limit {
            if !is_row {
                return Err(error);
            }
            if self.outcome.broken.rows() == limit {
                return Err(error.beyond(limit));
            }
        }
        let path = error.path().unwrap_or(Path::new("")).to_owned();
        let line = error.line().unwrap_or(0);
        let row = SkippedRow {
            path,
            line,
            problem: error.with_causes(),
        };
        self.outcome.broken.add(&error, &row);
        if is_row {
            self.outcome.report.rows += 1;
            self.outcome.findings.add(Finding::Skipped, &row.path, line);
        }
        if self.outcome.skipped.len() < LISTED {
            self.outcome.skipped.push(row);
        }
        Ok(())
    }

    fn keep(
        &mut self,
        row: Prepared,
        source: usize,
        file: usize,
        path: &Path,
        line: usize,
    ) -> Result<(), DataError> {
        let file = self.files_before + file;
        let Outcome {
            report,
            findings,
            source_rows,
            ..
        } = &mut self.outcome;
        report.rows += 1;
        report.longest = report.longest.max(row.length);
        report.lengths.add(row.length);
        for finding in row.findings {
            findings.add(finding, path, line);
        }
        if self.seen.contains(&row.key) {
            report.duplicates += 1;
            findings.add(Finding::Duplicate, path, line);
        } else if self.seen.len() < REMEMBERED {
            self.seen.insert(row.key);
        }
        if row.pieces.is_empty() {
            report.dropped += 1;
            return Ok(());
        }
        report.truncated += usize::from(row.cut);
        report.open_turns += row.open_turns;
        for (input_ids, labels) in row.pieces {
            report.kept += 1;
            report.tokens += input_ids.len() as u64;
            report.supervised_tokens += row.answers.supervised_tokens(&labels) as u64;
            report.comparisons.add(row.answers, &labels);
            source_rows[source] += 1;
            self.sink.push(TokenizedRow {
                input_ids,
                labels,
                answers: row.answers,
                file,
                line,
                key: row.key,
            })?;
        }
        Ok(())
    }
}

/// Up to [`CHUNK`] rows and a few megabytes. After an error that ends a file, the next one is read
/// where `reads_on` says so.
fn next_chunk(reader: &mut RowReader, reads_on: bool) -> Chunk {
    let mut chunk = Vec::new();
    let mut bytes = 0;
    while chunk.len() < CHUNK && bytes < CHUNK_BYTES {
        let Some(row) = reader.next() else { break };
        match &row {
            Ok(row) => bytes += row.body.size(),
            Err(error) if reads_on && !error.is_about_a_row() => reader.pass_over_file(),
            Err(_) => {}
        }
        chunk.push(row);
    }
    chunk
}

/// A row's pieces that are trained, none if there are none.
struct Prepared {
    pieces: Vec<(Vec<u32>, Vec<i64>)>,
    answers: Answers,
    /// Tokens of its longest text.
    length: usize,
    cut: bool,
    open_turns: usize,
    findings: Vec<Finding>,
    key: u64,
}

/// File and line, and what became of the row there.
type Placed = ((usize, usize), Result<Prepared, DataError>);

fn tokenize_chunk(
    chunk: Chunk,
    source: &Source,
    options: &TokenizeOptions,
    tokenizer: &ChatTokenizer,
) -> Vec<Placed> {
    chunk
        .into_par_iter()
        .map(|row| match row {
            Ok(row) => {
                let place = (row.file, row.line);
                let path = &source.files[row.file].path;
                (place, prepare(path, row, options, tokenizer))
            }
            // The error itself names its file.
            Err(error) => ((0, 0), Err(error)),
        })
        .collect()
}

fn prepare(
    path: &Path,
    row: RawRow,
    options: &TokenizeOptions,
    tokenizer: &ChatTokenizer,
) -> Result<Prepared, DataError> {
    let (supervised, mut findings) = tokenize_row(path, row, options, tokenizer)?;
    let Supervised {
        input_ids,
        labels,
        open_turns,
        mut answers,
        ..
    } = supervised;
    let length = answers.longest(input_ids.len());
    let key = key(&input_ids, answers);
    let limit = options.data.max_seq_length;
    let too_long = length > limit;
    let mut pieces = match options.overlong {
        Overlong::Drop if too_long => Vec::new(),
        Overlong::Split => split(&input_ids, &labels, limit, options.split_overlap),
        Overlong::Truncate | Overlong::Drop => {
            let (input_ids, labels, cut) = answers.cut((input_ids, labels), limit);
            answers = cut;
            vec![(input_ids, labels)]
        }
    };
    // Each answer of a pair needs something to compare.
    pieces.retain(|(_, labels)| {
        let mut texts = answers.texts(labels.len());
        texts.all(|(text, _)| supervised_tokens(&labels[text]) > 0)
    });
    if too_long {
        findings.push(options.overlong.finding());
        if options.overlong == Overlong::Truncate && answers != Answers::One && !pieces.is_empty() {
            findings.push(Finding::LostEnd);
        }
    }
    if pieces.is_empty() && !(too_long && options.overlong == Overlong::Drop) {
        findings.push(Finding::WithoutSupervision);
    }
    Ok(Prepared {
        cut: too_long && options.overlong == Overlong::Truncate,
        pieces,
        answers,
        length,
        open_turns,
        findings,
        key,
    })
}

/// Parses, renders and tokenises one row, and says what is to say about it.
pub(crate) fn tokenize_row(
    path: &Path,
    row: RawRow,
    options: &TokenizeOptions,
    tokenizer: &ChatTokenizer,
) -> Result<(Supervised, Vec<Finding>), DataError> {
    let line = row.line;
    let data = &options.data;
    let (record, unread) = parse_row(path, row, options)?;
    let template = data.template.as_ref();
    let supervised = supervise(&record, tokenizer, template, data.supervision)
        .map_err(|error| row_error(path, line, error))?;
    let mut findings = examine(&record, &supervised, tokenizer);
    findings.extend(unread_fields(&record, unread, tokenizer));
    Ok((supervised, findings))
}

/// Reads one row as a record of its format, and names the fields that the format does not read.
pub(crate) fn parse_row(
    path: &Path,
    row: RawRow,
    options: &TokenizeOptions,
) -> Result<(Record, Vec<String>), DataError> {
    let line = row.line;
    let (fields, format) = (&options.fields, options.data.format);
    let reads = |name: &str| fields.reads(format, name);
    let value = row.body.read_by(path, line, &reads)?;
    let unread = fields.unread(format, &value);
    let record = fields
        .read(format, value)
        .map_err(|error| field_error(path, line, error))?;
    Ok((record, unread))
}

/// Pieces of at most `limit` tokens; each begins with the last `overlap` tokens of the one before, and every token but the
/// first is trained once, in the first piece that predicts it.
fn split(ids: &[u32], labels: &[i64], limit: usize, overlap: usize) -> Vec<(Vec<u32>, Vec<i64>)> {
    let mut pieces = Vec::new();
    let mut start = 0;
    loop {
        let end = ids.len().min(start + limit);
        let mut trained = labels[start..end].to_vec();
        if start > 0 {
            // Nothing predicts the first.
            trained[1..overlap].fill(IGNORE_INDEX);
        }
        pieces.push((ids[start..end].to_vec(), trained));
        if end == ids.len() {
            return pieces;
        }
        start = end - overlap;
    }
}

/// The same answer with another label says something else, and so does a pair with another margin.
fn key(ids: &[u32], answers: Answers) -> u64 {
    let mut hash = Sha256::new();
    for id in ids {
        hash.update(id.to_le_bytes());
    }
    match answers {
        Answers::Judged { desirable } => hash.update([u8::from(desirable)]),
        Answers::Pair {
            margin: Some(margin),
            ..
        } => hash.update(margin.to_le_bytes()),
        Answers::Pair { margin: None, .. } | Answers::One => {}
    }
    let digest = hash.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(first)
}

#[cfg(test)]
mod compared_tests;
#[cfg(test)]
mod rows_tests;
#[cfg(test)]
mod tests;
