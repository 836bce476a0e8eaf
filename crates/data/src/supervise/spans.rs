//! Where a chat template puts the answers.

use std::ops::Range;

use crate::conversation::{Conversation, Message, Role};
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

/// Which answers are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chosen {
    /// Those whose message says so.
    Trained,
    /// The last one, if its message says so.
    Last,
    /// Everything from this message on.
    From(usize),
}

/// Renders a conversation and locates its trained answers.
///
/// A template with `{% generation %}` says itself where answers are. In any other, an answer
/// begins where the rendering of the turns before it, with the generation prompt, ends: there the
/// model will begin to write. Its turn ends where the rendering of the turns up to and including
/// it ends. Both renderings must be prefixes of the whole. Where one is not (templates that look
/// ahead), a mark put into the answer shows the place instead; it counts only if the rendering
/// with the mark taken out is the whole again.
pub(super) fn locate(
    template: &ChatTemplate,
    chat: &Conversation,
    ends: Ends<'_>,
    chosen: Chosen,
) -> Result<Rendered, SpanError> {
    let text = template.render(chat, false)?;
    let places = Places {
        template,
        chat,
        text: &text,
        ends,
    };
    let (spans, open_turns) = match chosen {
        Chosen::From(message) => places.rest(message)?,
        Chosen::Trained | Chosen::Last => {
            let trained = trained(chat, chosen);
            if let Some(found) = places.marked(&trained)? {
                found
            } else if let Some(found) = places.bracketed(&trained)? {
                found
            } else {
                places.each(&trained)?
            }
        }
    };
    Ok(Rendered {
        text,
        spans,
        open_turns,
    })
}

/// The trained answers by their messages' indices.
fn trained(chat: &Conversation, chosen: Chosen) -> Vec<usize> {
    let messages = chat.messages.iter().enumerate();
    let mut answers = messages.filter(|(_, message)| message.role == Role::Assistant);
    let indices = |(index, message): (usize, &Message)| message.trained.then_some(index);
    match chosen {
        Chosen::Last => answers.next_back().and_then(indices).into_iter().collect(),
        Chosen::Trained | Chosen::From(_) => answers.filter_map(indices).collect(),
    }
}

/// Trained bytes, ascending, and how many of them no special token ends.
type Spans = (Vec<Range<usize>>, usize);

/// The tokens that end an answer.
#[derive(Clone, Copy)]
pub(super) struct Ends<'a> {
    /// What the template is known to write.
    pub(super) end_of_turn: Option<&'a EndOfTurn>,
    /// What it may write where that is not known.
    pub(super) eos_token: Option<&'a str>,
    /// What stands before an answer.
    pub(super) generation_prompt: Option<&'a str>,
}

impl Ends<'_> {
    /// The bytes of a turn up to its end token, leaving out what the template adds behind.
    fn of_turn(&self, turn: &str) -> Option<usize> {
        if let Some(end) = self.end_of_turn
            && let Some(body) = turn.strip_suffix(end.tail.as_str())
        {
            return Some(body.len() + end.length);
        }
        // Another tail than the last turn's, as where only the last ends in a line break.
        let trimmed = turn.trim_end();
        trimmed.ends_with(self.token()?).then_some(trimmed.len())
    }

    /// The bytes of the end token that follows an answer.
    fn after_answer(&self, after: &str) -> Option<usize> {
        let end = match self.end_of_turn {
            Some(end) => &end.tail[..end.length],
            None => self.eos_token?,
        };
        after.starts_with(end).then_some(end.len())
    }

    fn token(&self) -> Option<&str> {
        self.end_of_turn
            .map(|end| end.token.as_str())
            .or(self.eos_token)
    }
}

struct Places<'a> {
    template: &'a ChatTemplate,
    chat: &'a Conversation,
    text: &'a str,
    ends: Ends<'a>,
}

impl Places<'_> {
    /// The spans that the template itself marks, if it marks every answer once.
    fn marked(&self, trained: &[usize]) -> Result<Option<Spans>, SpanError> {
        let Some((text, marked)) = self.template.render_marked(self.chat)? else {
            return Ok(None);
        };
        let is_answer = |message: &&Message| message.role == Role::Assistant;
        let answers = self.chat.messages.iter().filter(is_answer).count();
        if text != self.text || marked.len() != answers {
            return Ok(None);
        }
        let mut open_turns = 0;
        let mut spans = Vec::with_capacity(trained.len());
        let messages = self.chat.messages.iter().enumerate();
        let indices = messages.filter_map(|(index, message)| is_answer(&message).then_some(index));
        for (index, span) in indices.zip(marked) {
            if !trained.contains(&index) {
                continue;
            }
            let closed = self.ends.of_turn(&self.text[span.clone()]).is_some();
            let behind = self.ends.after_answer(&self.text[span.end..]);
            open_turns += usize::from(!closed && behind.is_none());
            // An end token behind the mark is trained all the same, or the model never stops.
            let extra = if closed { 0 } else { behind.unwrap_or(0) };
            spans.push(span.start..span.end + extra);
        }
        Ok(Some((spans, open_turns)))
    }

    /// The spans of many answers by one rendering with marks around each of them.
    ///
    /// It counts only where the mark behind every answer is followed by the known end token, the one
    /// before it is preceded by the known generation prompt, and the rendering is the whole without
    /// its marks. One answer alone is found as cheaply without.
    fn bracketed(&self, trained: &[usize]) -> Result<Option<Spans>, SpanError> {
        let (Some(end), Some(prompt)) = (self.ends.end_of_turn, self.ends.generation_prompt) else {
            return Ok(None);
        };
        let [open, close, _] = MARKS;
        if trained.len() < 2 || self.text.contains([open, close]) {
            return Ok(None);
        }
        let mut chat = self.chat.clone();
        for index in trained {
            let content = &mut chat.messages[*index].content;
            *content = format!("{open}{content}{close}");
        }
        let Ok(marked) = self.template.render(&chat, false) else {
            return Ok(None);
        };
        let mut spans = Vec::with_capacity(trained.len());
        let mut text = String::with_capacity(self.text.len());
        let mut rest = marked.as_str();
        while let Some((before, after)) = rest.split_once(open) {
            let Some((answer, behind)) = after.split_once(close) else {
                return Ok(None);
            };
            if !before.ends_with(prompt) || !behind.starts_with(&end.tail[..end.length]) {
                return Ok(None);
            }
            text.push_str(before);
            let start = text.len();
            text.push_str(answer);
            spans.push(start..text.len() + end.length);
            rest = behind;
        }
        text.push_str(rest);
        let found = text == self.text && spans.len() == trained.len();
        Ok(found.then_some((spans, 0)))
    }

    fn each(&self, trained: &[usize]) -> Result<Spans, SpanError> {
        let mut spans: Vec<Range<usize>> = Vec::with_capacity(trained.len());
        let mut open_turns = 0;
        for &index in trained {
            let unstable = SpanError::Unstable { message: index };
            let Some(start) = self.start(index)? else {
                return Err(unstable);
            };
            let Some((end, closed)) = self.end(index, start)? else {
                return Err(unstable);
            };
            if end < start || spans.last().is_some_and(|last| start < last.end) {
                return Err(unstable);
            }
            spans.push(start..end);
            open_turns += usize::from(!closed);
        }
        Ok((spans, open_turns))
    }

    /// Everything from a message on, up to the last end token.
    fn rest(&self, message: usize) -> Result<Spans, SpanError> {
        let answers_first = self
            .chat
            .messages
            .get(message)
            .is_some_and(|next| next.role == Role::Assistant);
        let Some(start) = self.prefix(message, answers_first)? else {
            return Err(SpanError::Unstable { message });
        };
        let rest = &self.text[start..];
        let (length, open_turns) = match self.ends.of_turn(rest) {
            Some(length) => (length, 0),
            None => (rest.len(), 1),
        };
        Ok((std::iter::once(start..start + length).collect(), open_turns))
    }

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
            return Ok(Some(match self.ends.of_turn(turn) {
                Some(length) => (start + length, true),
                None => (turn_end, false),
            }));
        }
        let Some(answer_end) = self.mark(index, Side::After)? else {
            return Ok(None);
        };
        // Only an answer's last character in that place makes the mark believable.
        let answer = self.chat.messages[index].content.trim_end();
        let seen = self.text.get(start..answer_end).unwrap_or_default();
        if !answer
            .chars()
            .next_back()
            .is_none_or(|last| seen.trim_end().ends_with(last))
        {
            return Ok(None);
        }
        Ok(Some(
            match self.ends.after_answer(&self.text[answer_end..]) {
                Some(length) => (answer_end + length, true),
                None => (answer_end, false),
            },
        ))
    }

    /// The length of the rendering of the first `count` messages, if the whole begins with it.
    fn prefix(
        &self,
        count: usize,
        add_generation_prompt: bool,
    ) -> Result<Option<usize>, TemplateError> {
        if count == self.chat.messages.len() && !add_generation_prompt {
            return Ok(Some(self.text.len()));
        }
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
                && let Some(rest) = self.text.strip_prefix(before)
                && rest == after
                && (matches!(side, Side::After) || rest.starts_with(content))
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
