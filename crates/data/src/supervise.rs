//! Which tokens of a row are trained.
//!
//! Trained text is known by its place in the rendered text, never by searching for marker tokens:
//! a row whose content quotes a marker is no special case, and a template without markers works.

mod spans;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::IGNORE_INDEX;
use crate::conversation::{Completion, Conversation, Instruction, Record};
use crate::error::{Source, SpanError, TemplateError};
use crate::prompt_template::PromptTemplate;
use crate::tokenizer::{ChatTokenizer, Encoded};
use spans::{Chosen, Ends, Rendered};

/// What is trained.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Supervision {
    /// Answers with the token that ends them. A `text` row is all answer.
    #[default]
    Responses,
    /// As [`Self::Responses`], but of a conversation only its last answer.
    LastTurn,
    /// Everything after the prompt of a `prompt_completion` or `alpaca` row.
    Completion,
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
    /// The text that was encoded.
    pub text: String,
    /// Start and end of every token, in bytes of the text, `[s]`.
    pub offsets: Vec<(usize, usize)>,
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
    /// A conversation has no completion to tell from its prompt.
    #[error("a conversation has no `completion`")]
    NoCompletion,
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
        (Record::Conversation(chat), _) => {
            let chosen = match supervision {
                Supervision::Completion => return Err(RowError::NoCompletion),
                Supervision::LastTurn => Chosen::Last,
                Supervision::Responses | Supervision::All => Chosen::Trained,
            };
            supervise_chat(chat, tokenizer, supervision, chosen)
        }
        (
            Record::Chat {
                chat,
                prompt_messages,
            },
            _,
        ) => {
            let chosen = match supervision {
                Supervision::Completion => Chosen::From(*prompt_messages),
                Supervision::LastTurn => Chosen::Last,
                Supervision::Responses | Supervision::All => Chosen::Trained,
            };
            supervise_chat(chat, tokenizer, supervision, chosen)
        }
        (Record::Instruction(row), None) => {
            supervise_chat(&row.to_conversation(), tokenizer, supervision, Chosen::Last)
        }
        (Record::Instruction(row), Some(template)) => {
            supervise_prompt(row, tokenizer, template, supervision)
        }
        (Record::Completion(row), _) => supervise_completion(row, tokenizer, supervision),
        (Record::Text(text), _) => supervise_text(text, tokenizer),
    }
}

fn supervise_chat(
    chat: &Conversation,
    tokenizer: &ChatTokenizer,
    supervision: Supervision,
    chosen: Chosen,
) -> Result<Supervised, RowError> {
    let template = tokenizer.template_for(chat).ok_or(TemplateError::Missing)?;
    let rendered = match supervision {
        Supervision::All => Rendered::whole(template.render(chat, false)?),
        Supervision::Responses | Supervision::LastTurn | Supervision::Completion => {
            spans::locate(template, chat, ends(tokenizer), chosen)?
        }
    };
    let encoded = tokenizer
        .encode_rendered(&rendered.text)
        .map_err(RowError::Encode)?;
    Ok(label(encoded, rendered, supervision))
}

fn ends(tokenizer: &ChatTokenizer) -> Ends<'_> {
    Ends {
        end_of_turn: tokenizer.end_of_turn(),
        eos_token: tokenizer.eos_token(),
        generation_prompt: tokenizer.generation_prompt(),
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
    encode_answer(tokenizer, rendered.text, rendered.answer, supervision)
}

/// Prompt and completion stand one behind the other as they are; EOS ends them.
fn supervise_completion(
    row: &Completion,
    tokenizer: &ChatTokenizer,
    supervision: Supervision,
) -> Result<Supervised, RowError> {
    let eos = tokenizer.eos_token().ok_or(RowError::NoEos)?;
    let mut text = format!("{}{}", row.prompt, row.completion);
    if !row.completion.ends_with(eos) {
        text.push_str(eos);
    }
    let answer = row.prompt.len()..text.len();
    encode_answer(tokenizer, text, answer, supervision)
}

/// Encodes a text of which one part is the answer.
fn encode_answer(
    tokenizer: &ChatTokenizer,
    text: String,
    answer: Range<usize>,
    supervision: Supervision,
) -> Result<Supervised, RowError> {
    let encoded = tokenizer.encode_text(&text).map_err(RowError::Encode)?;
    let rendered = Rendered {
        text,
        spans: std::iter::once(answer).collect(),
        open_turns: 0,
    };
    Ok(label(encoded, rendered, supervision))
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
    Ok(label(encoded, Rendered::whole(text), Supervision::All))
}

/// Labels the tokens that touch a span; spans are ascending.
fn label(encoded: Encoded, rendered: Rendered, supervision: Supervision) -> Supervised {
    let mut spans = rendered.spans.iter().peekable();
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
                Supervision::All => i64::from(id),
                _ if touches => i64::from(id),
                Supervision::Responses | Supervision::LastTurn | Supervision::Completion => {
                    IGNORE_INDEX
                }
            }
        })
        .collect();
    Supervised {
        input_ids: encoded.ids,
        labels,
        open_turns: rendered.open_turns,
        text: rendered.text,
        offsets: encoded.offsets,
    }
}
