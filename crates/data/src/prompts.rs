//! Prompts with the answers that a data file expects, for scoring generations.

use std::path::Path;

use crate::conversation::{Conversation, Instruction, Record, Role};
use crate::error::{DataError, TemplateError};
use crate::options::{DataOptions, row_error};
use crate::pipeline::{TokenizeOptions, parse_row};
use crate::source::{RowReader, Source};
use crate::supervise::{RowError, render_chat};
use crate::tokenizer::ChatTokenizer;

/// A prompt and its expected answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The ids to generate from; whole, whatever `max_seq_length` says.
    pub input_ids: Vec<u32>,
    /// The rendered prompt.
    pub text: String,
    /// What the row answers.
    pub answer: String,
    /// Line in the file, from 1.
    pub line: usize,
}

/// Reads the first `limit` rows of a source as prompts: everything before the last answer.
///
/// # Errors
/// As [`crate::tokenize`]; also rows that do not end in an answer, and `text` rows, which have none.
pub fn load_prompts(
    source: &Source,
    options: &TokenizeOptions,
    tokenizer: &ChatTokenizer,
    limit: usize,
) -> Result<Vec<Prompt>, DataError> {
    let options = options.of(source);
    options.check()?;
    let mut prompts = Vec::new();
    for row in RowReader::new(&source.files, options.limits).take(limit) {
        let row = row?;
        let (path, line) = (source.files[row.file].path.as_path(), row.line);
        // Of a pair the chosen answer is expected.
        let record = match parse_row(path, row, &options)?.0 {
            Record::Preference(pair) => pair.chosen,
            Record::Unpaired(row) => row.answer,
            record => record,
        };
        let (text, answer, plain) = match record {
            Record::Conversation(chat) => from_chat(path, line, chat, tokenizer)?,
            Record::Instruction(row) => {
                from_instruction(path, line, &row, &options.data, tokenizer)?
            }
            Record::Chat { chat, .. } => from_chat(path, line, chat, tokenizer)?,
            Record::Completion(row) => (row.prompt, row.completion, true),
            Record::Text(_) | Record::Preference(_) | Record::Unpaired(_) => {
                return Err(DataError::Option {
                    option: "format",
                    expected: "a format whose rows have answers".to_owned(),
                    actual: "\"text\"".to_owned(),
                });
            }
        };
        let encoded = if plain {
            tokenizer.encode_text(&text)
        } else {
            tokenizer.encode_rendered(&text)
        };
        let encoded = encoded.map_err(|error| row_error(path, line, RowError::Encode(error)))?;
        if let Some((token, id, rows)) = tokenizer.beyond_embedding(&encoded.ids) {
            let error = RowError::BeyondEmbedding { token, id, rows };
            return Err(row_error(path, line, error));
        }
        prompts.push(Prompt {
            input_ids: encoded.ids,
            text,
            answer,
            line,
        });
    }
    Ok(prompts)
}

type Parts = (String, String, bool);

fn from_chat(
    path: &Path,
    line: usize,
    mut chat: Conversation,
    tokenizer: &ChatTokenizer,
) -> Result<Parts, DataError> {
    let answer = match chat.messages.pop() {
        Some(message) if message.role == Role::Assistant => message.text().to_owned(),
        other => {
            return Err(DataError::Field {
                path: path.to_owned(),
                line,
                field: format!("messages[{}].role", chat.messages.len()),
                expected: "\"assistant\" in the last message, to compare with".to_owned(),
                found: other.map_or_else(
                    || "nothing".to_owned(),
                    |last| format!("\"{}\"", last.role.as_str()),
                ),
            });
        }
    };
    let rendered = tokenizer
        .template_for(&chat)
        .ok_or(TemplateError::Missing)
        .and_then(|template| Ok(render_chat(template, &chat, true)?.1))
        .map_err(|error| row_error(path, line, RowError::Template(error)))?;
    Ok((rendered, answer, false))
}

fn from_instruction(
    path: &Path,
    line: usize,
    row: &Instruction,
    options: &DataOptions,
    tokenizer: &ChatTokenizer,
) -> Result<Parts, DataError> {
    match &options.template {
        None => from_chat(path, line, row.to_conversation(), tokenizer),
        Some(template) if !row.input.is_empty() && !template.uses_input() => {
            Err(row_error(path, line, RowError::UnusedInput))
        }
        Some(_) if row.beside_turn().is_some() => {
            let field = row.beside_turn().unwrap_or_default();
            Err(row_error(path, line, RowError::NoPlace { field }))
        }
        Some(template) => Ok((template.prompt(row), row.output.clone(), true)),
    }
}
