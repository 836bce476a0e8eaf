//! Which tokens of a row are trained.
//!
//! Trained text is known by its place in the rendered text, never by searching for marker tokens:
//! a row whose content quotes a marker is no special case, and a template without markers works.

#[cfg(test)]
mod family_tests;
mod marks;
mod reach;
#[cfg(test)]
mod reach_tests;
mod spans;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use crate::IGNORE_INDEX;
use crate::answers::Answers;
use crate::conversation::{Completion, Conversation, Instruction, Record};
use crate::error::{Source, SpanError, TemplateError};
use crate::prompt_template::PromptTemplate;
use crate::template::ChatTemplate;
use crate::tokenizer::{ChatTokenizer, Encoded};
use reach::Reach;
pub use reach::Unseen;
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
    #[serde(rename = "everything", alias = "all")]
    All,
}

impl Supervision {
    /// The names that recipes use.
    pub const NAMES: &'static [&'static str] =
        &["responses", "last_turn", "completion", "everything"];

    /// The name that recipes use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// A row as ids and labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Supervised {
    /// Token ids, `[s]`.
    pub input_ids: Vec<u32>,
    /// The id where it is trained, else [`IGNORE_INDEX`], `[s]`.
    pub labels: Vec<i64>,
    /// Trained turns that no end token ends: a tuned model would not know where to stop.
    pub open_turns: usize,
    /// Whether a trained turn says nothing and shows no call either.
    pub empty_answer: bool,
    /// Fields of the row that leave no trace in the text.
    pub unseen: BTreeSet<Unseen>,
    /// Whether the template leaves out the reasoning of earlier turns, which it shows in the last.
    pub earlier_reasoning: bool,
    /// The text that was encoded.
    pub text: String,
    /// Start and end of every token, in bytes of the text, `[s]`.
    pub offsets: Vec<(usize, usize)>,
    /// What its answers are to each other: a pair is one text behind the other.
    pub answers: Answers,
    /// Whether both answers of a pair say the same, white space aside.
    pub same_answers: bool,
}

impl Supervised {
    /// This text as the chosen one of a pair, with the rejected one behind it.
    fn paired_with(mut self, rejected: Self, margin: Option<f32>) -> Self {
        let trained = |one: &Self| {
            let labels = one.labels.iter().copied();
            labels.filter(|label| *label != IGNORE_INDEX).collect()
        };
        let both: [Vec<i64>; 2] = [trained(&self), trained(&rejected)];
        let texts = [&self.text, &rejected.text];
        let [chosen, other] = texts.map(|text| text.chars().filter(|c| !c.is_whitespace()));
        let same_text = chosen.eq(other);
        let (tokens, bytes) = (self.input_ids.len(), self.text.len());
        let shifted = rejected.offsets.iter();
        let shifted = shifted.map(|(start, end)| (start + bytes, end + bytes));
        self.same_answers = both[0] == both[1] || same_text;
        self.answers = Answers::Pair {
            rejected: tokens,
            margin,
        };
        self.input_ids.extend(rejected.input_ids);
        self.labels.extend(rejected.labels);
        self.offsets.extend(shifted);
        self.text.push_str(&rejected.text);
        self.open_turns += rejected.open_turns;
        self.empty_answer |= rejected.empty_answer;
        self.unseen.extend(rejected.unseen);
        self.earlier_reasoning |= rejected.earlier_reasoning;
        self
    }
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
    /// The row has a field that no prompt template shows.
    #[error("a prompt template has no place for the row's `{field}`")]
    NoPlace {
        /// `system` or `history`.
        field: &'static str,
    },
    /// The row has a token that the model has no embedding for.
    #[error(
        "the token {token:?} has id {id}, but the model's embedding has {rows} rows (ids 0 to {})",
        rows.saturating_sub(1)
    )]
    BeyondEmbedding {
        /// The token's text.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the embedding.
        rows: usize,
    },
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
            let chosen = match supervision {
                Supervision::Completion | Supervision::LastTurn => Chosen::Last,
                Supervision::Responses | Supervision::All => Chosen::Trained,
            };
            supervise_chat(&row.to_conversation(), tokenizer, supervision, chosen)
        }
        (Record::Instruction(row), Some(template)) => {
            supervise_prompt(row, tokenizer, template, supervision)
        }
        (Record::Completion(row), _) => supervise_completion(row, tokenizer, supervision),
        (Record::Text(text), _) => supervise_text(text, tokenizer),
        (Record::Preference(pair), _) => {
            let one = |record| supervise(record, tokenizer, None, supervision);
            Ok(one(&pair.chosen)?.paired_with(one(&pair.rejected)?, pair.margin))
        }
        (Record::Unpaired(row), _) => {
            let answers = Answers::Judged {
                desirable: row.desirable,
            };
            let answer = supervise(&row.answer, tokenizer, None, supervision)?;
            Ok(Supervised { answers, ..answer })
        }
    }
}

fn supervise_chat(
    chat: &Conversation,
    tokenizer: &ChatTokenizer,
    supervision: Supervision,
    chosen: Chosen,
) -> Result<Supervised, RowError> {
    let template = tokenizer.template_for(chat).ok_or(TemplateError::Missing)?;
    let (chat, text) = render_chat(template, chat, false)?;
    let marked = marks::everywhere(template, &chat, &text);
    let found = reach::reach(template, &chat, &text, marked.as_ref());
    let rendered = match supervision {
        Supervision::All => Rendered::whole(text),
        Supervision::Responses | Supervision::LastTurn | Supervision::Completion => {
            let whole = (text.as_str(), marked.as_ref());
            let (spans, open_turns) =
                spans::locate(template, &chat, whole, ends(tokenizer), chosen)?;
            Rendered {
                text,
                spans,
                open_turns,
            }
        }
    };
    let encoded = encode(tokenizer.encode_rendered(&rendered.text), tokenizer)?;
    let Reach {
        unseen,
        earlier_reasoning,
        empty_answer,
    } = found;
    Ok(Supervised {
        unseen,
        earlier_reasoning,
        empty_answer,
        ..label(encoded, rendered, supervision)
    })
}

/// Renders a conversation. Where a template cannot put up with a turn that has no content, as many
/// cannot that know no tools, the turn's content is empty.
pub(crate) fn render_chat<'a>(
    template: &ChatTemplate,
    chat: &'a Conversation,
    add_generation_prompt: bool,
) -> Result<(Cow<'a, Conversation>, String), TemplateError> {
    let absent = chat
        .messages
        .iter()
        .any(|message| message.content.is_none());
    let error = match template.render(chat, add_generation_prompt) {
        Ok(text) => return Ok((Cow::Borrowed(chat), text)),
        Err(error @ TemplateError::Render { .. }) if absent => error,
        Err(error) => return Err(error),
    };
    let mut filled = chat.clone();
    for message in &mut filled.messages {
        message.content.get_or_insert_default();
    }
    match template.render(&filled, add_generation_prompt) {
        Ok(text) => Ok((Cow::Owned(filled), text)),
        Err(_) => Err(error),
    }
}

/// What was encoded, if the model has an embedding for each token.
fn encode(
    encoded: Result<Encoded, Source>,
    tokenizer: &ChatTokenizer,
) -> Result<Encoded, RowError> {
    let encoded = encoded.map_err(RowError::Encode)?;
    match tokenizer.beyond_embedding(&encoded.ids) {
        None => Ok(encoded),
        Some((token, id, rows)) => Err(RowError::BeyondEmbedding { token, id, rows }),
    }
}

fn ends(tokenizer: &ChatTokenizer) -> Ends<'_> {
    Ends {
        end_of_turn: tokenizer.end_of_turn(),
        eos_token: tokenizer.eos_token(),
        generation_prompt: tokenizer.generation_prompt(),
        turn_ends: tokenizer.turn_ends(),
        added_tokens: tokenizer.added_tokens(),
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
    if let Some(field) = row.beside_turn() {
        return Err(RowError::NoPlace { field });
    }
    let rendered = template.render(row, tokenizer.eos_token().ok_or(RowError::NoEos)?);
    let empty = row.output.trim().is_empty();
    let answer = (rendered.answer, empty);
    encode_answer(tokenizer, rendered.text, answer, supervision)
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
    let empty = row.completion.trim().is_empty();
    encode_answer(tokenizer, text, (answer, empty), supervision)
}

/// Encodes a text of which one part is the answer, which may be empty.
fn encode_answer(
    tokenizer: &ChatTokenizer,
    text: String,
    (answer, empty_answer): (Range<usize>, bool),
    supervision: Supervision,
) -> Result<Supervised, RowError> {
    let encoded = encode(tokenizer.encode_text(&text), tokenizer)?;
    let rendered = Rendered {
        text,
        spans: std::iter::once(answer).collect(),
        open_turns: 0,
    };
    Ok(Supervised {
        empty_answer,
        ..label(encoded, rendered, supervision)
    })
}

/// A text row ends in EOS where the model has one, so that documents stay apart.
fn supervise_text(text: &str, tokenizer: &ChatTokenizer) -> Result<Supervised, RowError> {
    let mut text = text.to_owned();
    if let Some(eos) = tokenizer.eos_token()
        && !text.ends_with(eos)
    {
        text.push_str(eos);
    }
    let encoded = encode(tokenizer.encode_text(&text), tokenizer)?;
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
        ..Supervised::default()
    }
}
