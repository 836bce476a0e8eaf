//! What can go wrong between a data file and a batch.

use std::path::{Path, PathBuf};

/// Boxed source of a foreign error.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// A problem with a data file, a tokenizer, or the options given for them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The file cannot be opened or read.
    #[error("cannot read {path}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A data source that leads to nothing.
    #[error(
        "there is no {spec:?}; expected a file, a folder, a glob such as data/*.jsonl, or a hub \
         data set (org/name or org/name:split)"
    )]
    NoSource {
        /// The source as given.
        spec: String,
    },
    /// A folder or glob without a file that could be read.
    #[error(
        "{spec:?} holds no data file; expected files ending in {expected}, optionally with .gz or \
         .zst behind (files of other kinds: {others})"
    )]
    NoFiles {
        /// The source as given.
        spec: String,
        /// The endings that are read.
        expected: &'static str,
        /// How many other files are there.
        others: usize,
    },
    /// A glob that cannot be parsed.
    #[error("{spec:?} is not a valid glob")]
    Glob {
        /// The source as given.
        spec: String,
        /// The reason, with the place.
        #[source]
        source: glob::PatternError,
    },
    /// A file of a kind that is not read.
    #[error(
        "{path}: expected a file ending in {expected}, optionally with .gz or .zst behind; rename \
         or convert it",
        path = path.display()
    )]
    UnknownKind {
        /// The file.
        path: PathBuf,
        /// The endings that are read.
        expected: &'static str,
    },
    /// A file that holds something other than rows.
    #[error("{path}: expected rows, found {found}; {next}", path = path.display())]
    NotRows {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: &'static str,
        /// What to do.
        next: &'static str,
    },
    /// A pipe whose bytes cannot be kept.
    #[error(
        "cannot keep what comes out of {path} in {folder}; set TMPDIR to a folder with enough room",
        path = path.display(),
        folder = folder.display()
    )]
    Spool {
        /// The pipe.
        path: PathBuf,
        /// The folder for temporary files.
        folder: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A compressed file that cannot be decompressed.
    #[error(
        "{path} is damaged or not what its ending says; compress it again, or take the ending away",
        path = path.display()
    )]
    Compressed {
        /// The file.
        path: PathBuf,
        /// The decompressor's reason.
        #[source]
        source: std::io::Error,
    },
    /// A compressed file that grows beyond reason.
    #[error(
        "{path}: expected at most {max_ratio} bytes from each compressed byte, found more than \
         {written} bytes from {read}; if the file is sound, decompress it and name the result",
        path = path.display()
    )]
    Bomb {
        /// The file.
        path: PathBuf,
        /// The limit.
        max_ratio: u64,
        /// Compressed bytes read.
        read: u64,
        /// Bytes that came of them.
        written: u64,
    },
    /// A file that changed while it was read.
    #[error(
        "{path} changed while it was read: expected {expected}, found {actual}; let its writer \
         finish and start again",
        path = path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// Length and time of change at the beginning.
        expected: String,
        /// The same at the end.
        actual: String,
    },
    /// A file whose rows are not laid out as its kind asks for.
    #[error("{place}: expected {expected}, found {found}", place = place(path, *line))]
    Layout {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What may stand there.
        expected: String,
        /// What stands there.
        found: String,
        /// Whether the rows after it can be read all the same.
        recoverable: bool,
    },
    /// A Parquet file that cannot be read.
    #[error("{path} cannot be read as Parquet (row {row}); write it again", path = path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// Rows read before, plus 1.
        row: usize,
        /// The reader's reason.
        #[source]
        source: Source,
    },
    /// Rows that look like several formats, or like none.
    #[error("{place}: cannot tell the format: {problem}; set `format` to one of {expected}", place = place(path, *line))]
    Detect {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What is unclear.
        problem: String,
        /// The formats that are known.
        expected: String,
    },
    /// More broken rows than allowed.
    #[error("more than {limit} rows cannot be used; the next one is")]
    TooManyBadRows {
        /// The number allowed.
        limit: usize,
        /// The row that was one too many.
        #[source]
        source: Box<DataError>,
    },
    /// The tokenised cache cannot be written or read.
    #[error("the tokenised data in {path} cannot be used", path = path.display())]
    Cache {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: Box<backdraft_formats::FormatError>,
    },
    /// A line is not UTF-8.
    #[error(
        "{place}: expected UTF-8 text, found an invalid sequence at byte {byte} of the \
         line; convert the file to UTF-8",
        place = place(path, *line)
    )]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// Byte within the line, from 1.
        byte: usize,
    },
    /// A line is longer than any sensible row.
    #[error(
        "{place}: expected a row of at most {limit} bytes, found a longer line; put one \
         JSON object on each line",
        place = place(path, *line)
    )]
    LineTooLong {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A line is not JSON.
    #[error("{place}: expected one JSON object, found broken JSON", place = place(path, *line))]
    Json {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The parser's reason, with the column.
        #[source]
        source: JsonFault,
    },
    /// A field is missing or of the wrong type.
    #[error("{place}, field `{field}`: expected {expected}, found {found}", place = place(path, *line))]
    Field {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// Path of the field inside the row, such as `messages[2].role`.
        field: String,
        /// What the format asks for.
        expected: String,
        /// What the row holds.
        found: String,
    },
    /// The template cannot render a row.
    #[error("{place}: the template cannot render this row", place = place(path, *line))]
    Render {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The template's reason.
        #[source]
        source: TemplateError,
    },
    /// The trained text of a row cannot be located.
    #[error("{place}: cannot tell which tokens are the answer", place = place(path, *line))]
    Span {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// Why not.
        #[source]
        source: SpanError,
    },
    /// The tokenizer rejects a row.
    #[error("{place}: the tokenizer cannot encode this row", place = place(path, *line))]
    Encode {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The tokenizer's reason.
        #[source]
        source: Source,
    },
    /// A row has a token that the model has no embedding for.
    #[error(
        "{place}: the token {token:?} has id {id}, but the model's embedding has {rows} \
         rows (ids 0 to {last}); take the token out of the row or the template, or use the tokenizer \
         that belongs to the model",
        place = place(path, *line), last = rows.saturating_sub(1)
    )]
    RowBeyondEmbedding {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The token's text.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the embedding.
        rows: usize,
    },
    /// A text has a token that the model has no embedding for.
    #[error(
        "the token {token:?} has id {id}, but the model's embedding has {rows} rows (ids 0 to \
         {last}); take the token out of the text or the template, or use the tokenizer that belongs \
         to the model",
        last = rows.saturating_sub(1)
    )]
    BeyondEmbedding {
        /// The token's text.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the embedding.
        rows: usize,
    },
    /// `tokenizer.json` cannot be used.
    #[error("cannot read the tokenizer: {what}")]
    Tokenizer {
        /// What was being done.
        what: String,
        /// The tokenizer library's reason.
        #[source]
        source: Source,
    },
    /// A special token is not in the vocabulary.
    #[error(
        "the {role} token `{token}` is not in the tokenizer's vocabulary; the tokenizer and its \
         configuration belong to different models"
    )]
    SpecialToken {
        /// `bos` or `eos`.
        role: &'static str,
        /// The token's text.
        token: String,
    },
    /// A token whose id differs between the tokenizer's files.
    #[error(
        "the token `{token}` is declared with id {declared}, but would get id {found}, the next one \
         after those of tokenizer.json; the tokenizer's files contradict each other: save the \
         tokenizer again, or take the files of one model"
    )]
    DeclaredToken {
        /// The token's text.
        token: String,
        /// The id in `tokenizer_config.json` or `added_tokens.json`.
        declared: u32,
        /// The id that it gets.
        found: u32,
    },
    /// The chat or prompt template is broken.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A source without a single row.
    #[error("{path}: expected rows, found none; name a file that has some", path = path.display())]
    NoRows {
        /// The file, or the source as the user wrote it.
        path: PathBuf,
    },
    /// Options that cannot work together.
    #[error("{option}: expected {expected}, found {actual}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        actual: String,
    },
    /// Nothing to train on.
    #[error(
        "{path}: {none} a supervised token within max_seq_length = {max_seq_length}; raise \
         max_seq_length, or check that rows hold answers",
        path = path.display(),
        none = if *rows == 1 { "its only row does not have".to_owned() } else { format!("none of its {rows} rows has") }
    )]
    NothingToTrain {
        /// The file.
        path: PathBuf,
        /// Rows read.
        rows: usize,
        /// The limit in tokens.
        max_seq_length: usize,
    },
    /// A batch built from arrays is inconsistent.
    #[error("{what}: expected {expected}, found {actual}")]
    Batch {
        /// The array.
        what: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        actual: String,
    },
    /// A saved loader state belongs to another run.
    #[error(
        "loader state: expected {expected}, found {actual}; the data or the batch size changed since it was saved"
    )]
    LoaderState {
        /// What this loader can resume from.
        expected: String,
        /// What the state says.
        actual: String,
    },
}

impl DataError {
    /// Whether the error is about one row only, so that the rows after it can still be used.
    pub fn is_about_a_row(&self) -> bool {
        match self {
            Self::NotUtf8 { .. }
            | Self::LineTooLong { .. }
            | Self::Json { .. }
            | Self::Field { .. }
            | Self::Render { .. }
            | Self::Span { .. }
            | Self::RowBeyondEmbedding { .. }
            | Self::Encode { .. } => true,
            Self::Layout { recoverable, .. } => *recoverable,
            _ => false,
        }
    }

    /// The error of a row that comes after as many broken ones as are allowed.
    pub(crate) fn beyond(self, limit: usize) -> Self {
        let about_rows = self.is_about_a_row() || matches!(self, Self::Detect { .. });
        match limit {
            1.. if about_rows => Self::TooManyBadRows {
                limit,
                source: Box::new(self),
            },
            _ => self,
        }
    }

    /// Whether the message says which file it is about.
    pub fn names_its_file(&self) -> bool {
        !matches!(
            self,
            Self::TooManyBadRows { .. }
                | Self::Tokenizer { .. }
                | Self::SpecialToken { .. }
                | Self::DeclaredToken { .. }
                | Self::BeyondEmbedding { .. }
                | Self::Template(_)
                | Self::Option { .. }
                | Self::Batch { .. }
                | Self::LoaderState { .. }
        )
    }

    /// The file that an error about a row is in.
    pub fn path(&self) -> Option<&std::path::Path> {
        match self {
            Self::NotUtf8 { path, .. }
            | Self::LineTooLong { path, .. }
            | Self::Json { path, .. }
            | Self::Field { path, .. }
            | Self::Render { path, .. }
            | Self::Span { path, .. }
            | Self::RowBeyondEmbedding { path, .. }
            | Self::Encode { path, .. }
            | Self::Layout { path, .. } => Some(path),
            _ => None,
        }
    }

    /// Where in its file the error is: the line, or the row of a Parquet file.
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::NotUtf8 { line, .. }
            | Self::LineTooLong { line, .. }
            | Self::Json { line, .. }
            | Self::Field { line, .. }
            | Self::Render { line, .. }
            | Self::Span { line, .. }
            | Self::RowBeyondEmbedding { line, .. }
            | Self::Encode { line, .. }
            | Self::Layout { line, .. }
            | Self::Detect { line, .. } => Some(*line),
            Self::Parquet { row, .. } => Some(*row),
            _ => None,
        }
    }

    /// The message with those of its causes, on one line.
    pub fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// Where a row stands, in words: its line, or its number in a Parquet file.
pub(crate) fn place(path: &Path, line: usize) -> String {
    let is_parquet = path
        .extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("parquet"));
    let unit = if is_parquet { "row" } else { "line" };
    format!("{}, {unit} {line}", path.display())
}

/// What is wrong with a JSON text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at column {column}")]
pub struct JsonFault {
    /// The parser's words.
    pub problem: String,
    /// Lines of the text before the fault.
    pub lines_before: usize,
    /// Its column, from 1.
    pub column: usize,
}

impl JsonFault {
    pub(crate) fn of(error: &serde_json::Error) -> Self {
        let place = format!(" at line {} column {}", error.line(), error.column());
        let text = error.to_string();
        Self {
            problem: text.strip_suffix(&place).unwrap_or(&text).to_owned(),
            lines_before: error.line().saturating_sub(1),
            column: error.column(),
        }
    }
}

/// A problem with a chat template or a prompt template.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template itself refused the conversation (`raise_exception`).
    #[error("the chat template refuses the conversation: {message}")]
    Raised {
        /// The template's own words.
        message: String,
    },
    /// The template's source cannot be parsed.
    #[error("the chat template cannot be parsed")]
    Parse {
        /// The parser's reason.
        #[source]
        source: Box<backdraft_jinja::JinjaError>,
    },
    /// The template asks for what no chat template has, whatever the rows say.
    #[error("the chat template is at fault, whatever the rows say")]
    Broken {
        /// What is missing, and the template's line.
        #[source]
        source: Box<backdraft_jinja::JinjaError>,
    },
    /// Rendering failed.
    #[error("the chat template failed")]
    Render {
        /// The engine's reason.
        #[source]
        source: Box<backdraft_jinja::JinjaError>,
    },
    /// The template does more work than any sensible one.
    #[error(
        "the chat template did more than {limit} steps of work on one conversation; it loops. Use \
         the template that belongs to the model, or a built-in one"
    )]
    Endless {
        /// The limit.
        limit: u64,
    },
    /// The rendering is larger than any sensible conversation.
    #[error("the chat template wrote more than {limit} bytes; it is broken or hostile")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The tokenizer has no chat template where one is needed.
    #[error(
        "the model has no chat template, as is usual for base models, and these rows need one. \
         Name one with data.chat_template = \"chatml\" (`backdraft init --templates` lists the \
         built-in ones) or the path of a .jinja file; or use the instruction-tuned version of the \
         model; or write alpaca rows as plain text with data.prompt_template"
    )]
    Missing,
    /// A prompt template is malformed.
    #[error("prompt template, byte {at}: expected {expected}, found {found}")]
    Prompt {
        /// Byte offset in the template.
        at: usize,
        /// What is allowed there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
}

/// Why the trained text of a conversation cannot be located.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpanError {
    /// Rendering a part of the conversation failed.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The template rewrites answers, so their place is not known.
    #[error(
        "the chat template changes the text of assistant message {message} or of what precedes it \
         as the conversation grows; expected a template that renders every answer in place. Train \
         on all tokens (train_on = \"everything\") or use another template"
    )]
    Unstable {
        /// Index of the message, from 0.
        message: usize,
    },
}
