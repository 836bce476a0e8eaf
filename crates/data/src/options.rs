//! How rows are to be read, and what refuses that.

use std::path::Path;

use crate::error::{DataError, SpanError, TemplateError};
use crate::format::Format;
use crate::prompt_template::PromptTemplate;
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
        let has_completion = matches!(
            self.format,
            Format::Alpaca | Format::PromptCompletion | Format::Preference | Format::Unpaired
        );
        if self.supervision == Supervision::Completion && !has_completion {
            return Err(DataError::Option {
                option: "train_on",
                expected: "\"responses\", \"last_turn\" or \"everything\" beside this format"
                    .to_owned(),
                actual: format!("\"completion\" with format \"{}\"", self.format),
            });
        }
        if self.supervision == Supervision::All && self.format.compares() {
            return Err(DataError::Option {
                option: "train_on",
                expected: "\"responses\", \"last_turn\" or \"completion\": answers are compared, not their prompts"
                    .to_owned(),
                actual: format!("\"everything\" with format \"{}\"", self.format),
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

    /// Refuses rows that need a chat template where there is none, before any of them is read.
    ///
    /// # Errors
    /// [`DataError::Template`].
    pub fn check_template(&self, tokenizer: &ChatTokenizer) -> Result<(), DataError> {
        let needs_one = match self.format {
            Format::Messages | Format::Sharegpt => true,
            Format::Alpaca => self.template.is_none(),
            // Prompts may be messages, which is seen with the rows.
            Format::PromptCompletion | Format::Text | Format::Preference | Format::Unpaired => {
                false
            }
        };
        match needs_one && tokenizer.template().is_none() {
            true => Err(TemplateError::Missing.into()),
            false => Ok(()),
        }
    }
}

/// Adds file and line.
pub(crate) fn row_error(path: &Path, line: usize, error: RowError) -> DataError {
    let path = path.to_owned();
    match error {
        RowError::Template(source) | RowError::Span(SpanError::Template(source)) => match source {
            // No row is to blame, and skipping rows would not help.
            TemplateError::Missing | TemplateError::Broken { .. } => DataError::Template(source),
            source => DataError::Render { path, line, source },
        },
        RowError::Span(source) => DataError::Span { path, line, source },
        RowError::Encode(source) => DataError::Encode { path, line, source },
        RowError::UnusedInput => DataError::Field {
            path,
            line,
            field: "input".to_owned(),
            expected: "nothing, since the prompt template has no {input}".to_owned(),
            found: "text; add {input} to the template".to_owned(),
        },
        RowError::NoPlace { field } => DataError::Field {
            path,
            line,
            field: field.to_owned(),
            expected: "nothing, since a prompt template has no place for it".to_owned(),
            found: "text; train with a chat template, or take it out".to_owned(),
        },
        RowError::BeyondEmbedding { token, id, rows } => DataError::RowBeyondEmbedding {
            path,
            line,
            token,
            id,
            rows,
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
