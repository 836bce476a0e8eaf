//! What can go wrong between a data file and a batch.

use std::path::PathBuf;

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
    /// A line is not UTF-8.
    #[error(
        "{path}, line {line}: expected UTF-8 text, found an invalid sequence at byte {byte} of the \
         line; convert the file to UTF-8",
        path = path.display()
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
        "{path}, line {line}: expected a JSON object on one line of at most {limit} bytes, found a \
         longer line; a file with one big JSON list must be split into one object per line",
        path = path.display()
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
    #[error("{path}, line {line}: expected one JSON object, found broken JSON", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The parser's reason, with the column.
        #[source]
        source: serde_json::Error,
    },
    /// A field is missing or of the wrong type.
    #[error("{path}, line {line}, field `{field}`: expected {expected}, found {found}", path = path.display())]
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
    #[error("{path}, line {line}: the template cannot render this row", path = path.display())]
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
    #[error("{path}, line {line}: cannot tell which tokens are the answer", path = path.display())]
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
    #[error("{path}, line {line}: the tokenizer cannot encode this row", path = path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The tokenizer's reason.
        #[source]
        source: Source,
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
    /// The chat or prompt template is broken.
    #[error(transparent)]
    Template(#[from] TemplateError),
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
        "{path}: none of its {rows} rows has a supervised token within max_seq_length = \
         {max_seq_length}; raise max_seq_length, or check that rows hold answers",
        path = path.display()
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
        source: minijinja::Error,
    },
    /// Rendering failed.
    #[error("the chat template failed")]
    Render {
        /// The engine's reason.
        #[source]
        source: minijinja::Error,
    },
    /// The rendering is larger than any sensible conversation.
    #[error("the chat template wrote more than {limit} bytes; it is broken or hostile")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The tokenizer has no chat template where one is needed.
    #[error(
        "the model has no chat template; use an instruction-tuned model, or alpaca rows with a \
         prompt_template"
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
         on all tokens (train_on = \"all\") or use another template"
    )]
    Unstable {
        /// Index of the message, from 0.
        message: usize,
    },
}
