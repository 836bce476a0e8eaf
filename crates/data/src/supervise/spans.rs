//! Where a chat template puts the answers.

use std::ops::Range;

use crate::conversation::{Conversation, Role};
use crate::error::{SpanError, TemplateError};
use crate::template::ChatTemplate;
use crate::tokenizer::EndOfTurn;

/// A conversation as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rendered {
    /// The text.
    pub(super) text: String,
    /// Trained bytes, ascending.
    pub(super) spans: Vec<Range<usize>>,
    /// Trained turns that no special token ends.
    pub(super) open_turns: usize,
}

impl Rendered {
    /// A text of which everything is trained.
    pub(super) fn whole(text: String) -> Self {
        let spans = std::iter::once(0..text.len()).collect();
        Self {
            text,
            spans,
            open_turns: 0,
        }
    }
}

/// Renders a conversation and locates its trained answers.
///
/// An answer begins where the rendering of the turns before it, with the generation prompt, ends:
/// there the model will begin to write. Its turn ends where the rendering of the turns up to and
/// including it ends. Both renderings must be prefixes of the whole. Where one is not (templates
/// that look ahead), a mark put into the answer shows the place instead; it counts only if the
/// rendering with the mark taken out is the whole again.
pub(super) fn locate(
    template: &ChatTemplate,
    chat: &Conversation,
    end_of_turn: Option<&EndOfTurn>,
) -> Result<Rendered, SpanError> {
    let text = template.render(chat, false)?;
    let places = Places {
        template,
        chat,
        text: &text,
        end_of_turn,
    };
    let mut spans: Vec<Range<usize>> = Vec::new();
    let mut open_turns = 0;
    for (index, message) in chat.messages.iter().enumerate() {
        if message.role != Role::Assistant || !message.trained {
            continue;
        }
        let unstable = SpanError::Unstable { message: index };
        let Some(start) = places.start(index)? else {
            return Err(unstable);
        };
        let Some((end, closed)) = places.end(index, start)? else {
            return Err(unstable);
        };
        if end < start || spans.last().is_some_and(|last| start < last.end) {
            return Err(unstable);
        }
        spans.push(start..end);
        open_turns += usize::from(!closed);
    }
    Ok(Rendered {
        text,
        spans,
        open_turns,
    })
}

struct Places<'a> {
    template: &'a ChatTemplate,
    chat: &'a Conversation,
    text: &'a str,
    end_of_turn: Option<&'a EndOfTurn>,
}

impl Places<'_> {
    fn start(&self, index: usize) -> Result<Option<usize>, TemplateError> {
        match self.prefix(index, true)? {
            Some(start) => Ok(Some(start)),
            None => self.mark(index, Side::Before),
        }
    }

    /// The end of the trained text, and whether an end-of-turn token closes it.
    fn end(&self, index: usize, start: usize) -> Result<Option<(usize, bool)>, TemplateError> {
        if let Some(turn_end) = self.prefix(index + 1, false)?
            && let Some(turn) = self.text.get(start..turn_end)
        {
            return Ok(Some(match self.closed_length(turn) {
                Some(length) => (start + length, true),
                None => (turn_end, false),
            }));
        }
        let Some(answer_end) = self.mark(index, Side::After)? else {
            return Ok(None);
        };
        let after = &self.text[answer_end..];
        Ok(Some(match self.end_of_turn {
            Some(end) if after.starts_with(&end.tail[..end.length]) => {
                (answer_end + end.length, true)
            }
            _ => (answer_end, false),
        }))
    }

    /// The bytes of a turn up to its end-of-turn token, leaving out what the template adds behind.
    fn closed_length(&self, turn: &str) -> Option<usize> {
        let end = self.end_of_turn?;
        if let Some(body) = turn.strip_suffix(end.tail.as_str()) {
            return Some(body.len() + end.length);
        }
        // Another tail than the last turn's, as where only the last ends in a line break.
        let trimmed = turn.trim_end();
        trimmed
            .ends_with(end.token.as_str())
            .then_some(trimmed.len())
    }

    /// The length of the rendering of the first `count` messages, if the whole begins with it.
    fn prefix(
        &self,
        count: usize,
        add_generation_prompt: bool,
    ) -> Result<Option<usize>, TemplateError> {
        let messages = &self.chat.messages[..count];
        match self.template.render_messages(
            messages,
            self.chat.tools.as_ref(),
            add_generation_prompt,
        ) {
            Ok(prefix) => Ok(self.text.starts_with(&prefix).then_some(prefix.len())),
            // A part of a conversation may be refused where the whole is not.
            Err(TemplateError::Raised { .. } | TemplateError::Render { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Finds a side of an answer by a mark that nothing else in the text contains.
    fn mark(&self, index: usize, side: Side) -> Result<Option<usize>, TemplateError> {
        let Some(mark) = MARKS.into_iter().find(|mark| !self.text.contains(*mark)) else {
            return Ok(None);
        };
        let content = &self.chat.messages[index].content;
        // The second spelling is for templates that trim: a mark would keep them from it.
        for content in [content.as_str(), content.trim()] {
            let marked = match side {
                Side::Before => format!("{mark}{content}"),
                Side::After => format!("{content}{mark}"),
            };
            let mut chat = self.chat.clone();
            chat.messages[index].content = marked;
            let Ok(text) = self.template.render(&chat, false) else {
                continue;
            };
            if let Some((before, after)) = text.split_once(mark)
                && self.text.strip_prefix(before) == Some(after)
            {
                return Ok(Some(before.len()));
            }
        }
        Ok(None)
    }
}

#[derive(Clone, Copy)]
enum Side {
    Before,
    After,
}

/// Noncharacters: no text for interchange contains them.
const MARKS: [char; 3] = ['\u{FDD0}', '\u{FDD1}', '\u{FDEF}'];
