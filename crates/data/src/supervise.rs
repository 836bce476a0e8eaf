//! Which tokens of a row are trained.
//!
//! Trained text is known by its place in the rendered text, never by searching for marker tokens:
//! a row whose content quotes a marker is no special case, and a template without markers works.

mod spans;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::IGNORE_INDEX;
use crate::conversation::{Conversation, Instruction, Record};
use crate::error::{Source, SpanError, TemplateError};
use crate::prompt_template::PromptTemplate;
use crate::tokenizer::{ChatTokenizer, Encoded};
use spans::{Ends, Rendered};

/// What is trained.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Supervision {
    /// Answers with the token that ends them. A `text` row is all answer.
    #[default]
    Responses,
    /// Every token.
    All,
}

/// A row as ids and labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Supervised {
    /// Token ids, `[s]`.
    pub input_ids: Vec<u32>,
    /// The id where it is trained, else [`IGNORE_INDEX`], `[s]`.
    pub labels: Vec<i64>,
    /// Trained turns that no special token ends: a tuned model would not know where to stop.
    pub open_turns: usize,
}

/// Why a row cannot be encoded; the caller adds file and line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// Rendering failed.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The trained text cannot be located.
    #[error(transparent)]
    Span(#[from] SpanError),
    /// The tokenizer failed.
    #[error("the tokenizer cannot encode the row")]
    Encode(#[source] Source),
    /// The row has an `input` that the prompt template would drop silently.
    #[error("the prompt template has no {{input}} but the row has an `input`")]
    UnusedInput,
    /// The row's end must be marked and the tokenizer has no EOS.
    #[error("the tokenizer has no EOS token to end the row with")]
    NoEos,
}

/// Encodes a row and labels it.
///
/// # Errors
/// See [`RowError`].
pub fn supervise(
    record: &Record,
    tokenizer: &ChatTokenizer,
    prompt_template: Option<&PromptTemplate>,
    supervision: Supervision,
) -> Result<Supervised, RowError> {
    match (record, prompt_template) {
        (Record::Conversation(chat), _) => supervise_chat(chat, tokenizer, supervision),
        (Record::Instruction(row), None) => {
            supervise_chat(&row.to_conversation(), tokenizer, supervision)
        }
        (Record::Instruction(row), Some(template)) => {
            supervise_prompt(row, tokenizer, template, supervision)
        }
        (Record::Text(text), _) => supervise_text(text, tokenizer),
    }
}

fn supervise_chat(
    chat: &Conversation,
    tokenizer: &ChatTokenizer,
    supervision: Supervision,
) -> Result<Supervised, RowError> {
    let template = tokenizer.template().ok_or(TemplateError::Missing)?;
    let rendered = match supervision {
        Supervision::Responses => spans::locate(template, chat, ends(tokenizer))?,
        Supervision::All => Rendered::whole(template.render(chat, false)?),
    };
    let encoded = tokenizer
        .encode_rendered(&rendered.text)
        .map_err(RowError::Encode)?;
    Ok(label(
        encoded,
        &rendered.spans,
        supervision,
        rendered.open_turns,
    ))
}

fn ends(tokenizer: &ChatTokenizer) -> Ends<'_> {
    Ends {
        end_of_turn: tokenizer.end_of_turn(),
        eos_token: tokenizer.eos_token(),
    }
}

fn supervise_prompt(
    row: &Instruction,
    tokenizer: &ChatTokenizer,
    template: &PromptTemplate,
    supervision: Supervision,
) -> Result<Supervised, RowError> {
    if !row.input.is_empty() && !template.uses_input() {
        return Err(RowError::UnusedInput);
    }
    let rendered = template.render(row, tokenizer.eos_token().ok_or(RowError::NoEos)?);
    let encoded = tokenizer
        .encode_text(&rendered.text)
        .map_err(RowError::Encode)?;
    Ok(label(encoded, &[rendered.answer], supervision, 0))
}

/// A text row ends in EOS where the model has one, so that documents stay apart.
fn supervise_text(text: &str, tokenizer: &ChatTokenizer) -> Result<Supervised, RowError> {
    let mut text = text.to_owned();
    if let Some(eos) = tokenizer.eos_token()
        && !text.ends_with(eos)
    {
        text.push_str(eos);
    }
    let encoded = tokenizer.encode_text(&text).map_err(RowError::Encode)?;
    Ok(label(encoded, &[], Supervision::All, 0))
}

/// Labels the tokens that touch a span; spans are ascending.
fn label(
    encoded: Encoded,
    spans: &[Range<usize>],
    supervision: Supervision,
    open_turns: usize,
) -> Supervised {
    let mut spans = spans.iter().peekable();
    let labels = encoded
        .ids
        .iter()
        .zip(&encoded.offsets)
        .map(|(&id, &(start, end))| {
            while spans.next_if(|span| span.end <= start).is_some() {}
            let touches = spans
                .peek()
                .is_some_and(|span| start < span.end && end > span.start);
            match supervision {
                Supervision::Responses if !touches => IGNORE_INDEX,
                Supervision::Responses | Supervision::All => i64::from(id),
            }
        });
    let labels = labels.collect();
    Supervised {
        input_ids: encoded.ids,
        labels,
        open_turns,
    }
}
