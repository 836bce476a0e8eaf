//! Where a chat template puts the answers.

use std::borrow::Cow;
use std::ops::Range;

use super::marks::{self, Edge, Field, Marked, Place, Sides};
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

/// Locates the trained answers of a conversation in its rendering.
///
/// A template with `{% generation %}` says itself where answers are. In any other, an answer
/// begins where the rendering of the turns before it, with the generation prompt, ends: there the
/// model will begin to write. Its turn ends where the rendering of the turns up to and including
/// it ends. Both renderings must be prefixes of the whole. Where one is not (templates that look
/// ahead), marks around the texts of the conversation show their places in the whole, and what the
/// template writes between them is looked at by itself; they count only if the rendering without
/// its marks is the whole again.
pub(super) fn locate(
    template: &ChatTemplate,
    chat: &Conversation,
    (text, marked): (&str, Option<&Marked>),
    ends: Ends<'_>,
    chosen: Chosen,
) -> Result<Spans, SpanError> {
    let places = Places {
        template,
        chat,
        text,
        marked,
        ends,
    };
    match chosen {
        Chosen::From(message) => places.rest(message),
        Chosen::Trained | Chosen::Last => {
            let trained = trained(chat, chosen);
            if let Some(found) = places.tagged(&trained)? {
                return Ok(found);
            }
            if let Some(found) = places.between_marks(&trained) {
                return Ok(found);
            }
            let found = places.each(&trained)?;
            places.refuse_others(&trained, &found.0)?;
            Ok(found)
        }
    }
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

/// Trained bytes, ascending, and how many of them no end token ends.
pub(super) type Spans = (Vec<Range<usize>>, usize);

/// The tokens that end an answer.
#[derive(Clone, Copy)]
pub(super) struct Ends<'a> {
    /// What the template is known to write.
    pub(super) end_of_turn: Option<&'a EndOfTurn>,
    /// What it may write where that is not known.
    pub(super) eos_token: Option<&'a str>,
    /// What stands before an answer.
    pub(super) generation_prompt: Option<&'a str>,
    /// Every token that is known to end a turn of some kind.
    pub(super) turn_ends: &'a [String],
    /// Every added token.
    pub(super) added_tokens: &'a [String],
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
        let mut tokens = self.tokens();
        let ends = tokens.any(|token| trimmed.ends_with(token))
            // A template that could not be asked: whatever token its turns end in.
            || (self.end_of_turn.is_none() && self.ends_in_added(trimmed));
        ends.then_some(trimmed.len())
    }

    fn ends_in_added(&self, turn: &str) -> bool {
        let mut tokens = self.added_tokens.iter();
        tokens.any(|token| !token.is_empty() && turn.ends_with(token.as_str()))
    }

    /// The bytes up to and with the end token that follows an answer.
    fn after_answer(&self, after: &str) -> Option<usize> {
        let known = self.end_of_turn.map(|end| &end.tail[..end.length]);
        if let Some(end) = known.filter(|end| after.starts_with(end)) {
            return Some(end.len());
        }
        let space = after.len() - after.trim_start().len();
        let mut tokens = self.tokens();
        let token = tokens.find(|token| after[space..].starts_with(token))?;
        Some(space + token.len())
    }

    /// The bytes up to and with the first end token in what the template wrote.
    fn in_template_text(&self, written: &str) -> Option<usize> {
        let ends = self.tokens().filter_map(|token| {
            let at = written.find(token)?;
            Some((at, at + token.len()))
        });
        ends.min().map(|(_, end)| end)
    }

    fn tokens(&self) -> impl Iterator<Item = &str> {
        let known = self.end_of_turn.map(|end| end.token.as_str());
        let others = self.turn_ends.iter().map(String::as_str);
        known.into_iter().chain(self.eos_token).chain(others)
    }
}

struct Places<'a> {
    template: &'a ChatTemplate,
    chat: &'a Conversation,
    text: &'a str,
    marked: Option<&'a Marked>,
    ends: Ends<'a>,
}

impl Places<'_> {
    /// The spans that the template itself marks, if it marks every answer once.
    fn tagged(&self, trained: &[usize]) -> Result<Option<Spans>, SpanError> {
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

    /// The spans of answers that the known generation prompt precedes and the known end token
    /// follows, if all are such: no other rendering is needed for them.
    fn between_marks(&self, trained: &[usize]) -> Option<Spans> {
        let marked = self.marked?;
        let (end, prompt) = (self.ends.end_of_turn?, self.ends.generation_prompt?);
        let end = &end.tail[..end.length];
        let span = |index: &usize| {
            let own = Own::of(marked, *index).ok()?;
            let [place] = own.places.as_slice() else {
                return None;
            };
            let (open, close) = (place.open?, place.close?);
            let (before, behind) = (&self.text[..open], &self.text[close..]);
            let (lead, trail) = (&place.around.0, &place.around.1);
            let start = before
                .strip_suffix(lead.as_str())
                .filter(|before| before.ends_with(prompt));
            let start = start.or(before.ends_with(prompt).then_some(before))?.len();
            let behind = behind
                .strip_prefix(trail.as_str())
                .filter(|behind| behind.starts_with(end));
            let stop = match behind {
                Some(_) => close + trail.len(),
                None if self.text[close..].starts_with(end) => close,
                None => return None,
            };
            Some(start..stop + end.len())
        };
        let spans: Vec<Range<usize>> = trained.iter().map(span).collect::<Option<_>>()?;
        let ascending = spans.windows(2).all(|pair| pair[0].end <= pair[1].start);
        ascending.then_some((spans, 0))
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

    /// Refuses spans that hold a text of another turn, as where a template writes the results of
    /// tools into the answer.
    fn refuse_others(&self, trained: &[usize], spans: &[Range<usize>]) -> Result<(), SpanError> {
        let places = self.marked.map_or(&[][..], |marked| &marked.places);
        for (&message, span) in trained.iter().zip(spans) {
            let other = places.iter().find(|place| {
                let turn = place.field.message().is_some_and(|turn| turn != message);
                let inside = |at: usize| span.start < at && at < span.end;
                turn && place.points().any(inside)
            });
            if other.is_some() {
                return Err(SpanError::Unstable { message });
            }
        }
        Ok(())
    }

    /// Everything from a message on, up to the last end token.
    fn rest(&self, message: usize) -> Result<Spans, SpanError> {
        let answers_first = self
            .chat
            .messages
            .get(message)
            .is_some_and(|next| next.role == Role::Assistant);
        let start = match self.prefix(message, answers_first)? {
            Some(start) => start,
            None => self
                .boundary(message, answers_first)
                .ok_or(SpanError::Unstable { message })?,
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
            None => match self.marked_start(index) {
                Some(start) => Ok(Some(start)),
                None => self.shared_start(index),
            },
        }
    }

    /// Where a turn begins whose generation prompt goes on otherwise than the turn does, as with a
    /// thought that is opened for the model: behind what they have in common.
    fn shared_start(&self, index: usize) -> Result<Option<usize>, TemplateError> {
        let Some(prompt) = self.ends.generation_prompt else {
            return Ok(None);
        };
        let before = match self.prefix(index, false)? {
            Some(before) => Some(before),
            None => self.boundary(index, false),
        };
        let Some(before) = before else {
            return Ok(None);
        };
        let written = &self.text[before..];
        let pairs = prompt.char_indices().zip(written.chars());
        let differ = pairs.filter(|((_, one), other)| one != other);
        let shared = differ.map(|((at, _), _)| at).next();
        let shared = &prompt[..shared.unwrap_or(prompt.len()).min(written.len())];
        // Two tags that begin alike have nothing in common.
        let whole = |c: char| c.is_whitespace() || matches!(c, '>' | ']' | ':');
        let length = shared.rfind(whole).map(|at| at + 1);
        let start = length.map(|length| before + length);
        let first = self
            .own(index)
            .and_then(|(_, own)| own.first().map(|(at, _)| at));
        Ok(start.map(|start| first.map_or(start, |first| start.min(first))))
    }

    /// The end of the trained text, and whether an end token closes it.
    fn end(&self, index: usize, start: usize) -> Result<Option<(usize, bool)>, TemplateError> {
        if let Some(turn_end) = self.prefix(index + 1, false)?
            && let Some(turn) = self.text.get(start..turn_end)
        {
            return Ok(Some(match self.ends.of_turn(turn) {
                Some(length) => (start + length, true),
                None => (turn_end, false),
            }));
        }
        Ok(self.marked_end(index))
    }

    /// Where a turn begins by the marks of its texts: behind the generation prompt in what the
    /// template wrote before them, or where the turns before it end when they stand alone.
    fn marked_start(&self, index: usize) -> Option<usize> {
        let (marked, own) = self.own(index)?;
        let (first, place) = own.first()?;
        let lead = place.around.0.as_str();
        let written = &self.text[own.before..first];
        let opens = place.open == Some(first);
        let written = match opens {
            true => written.strip_suffix(lead).unwrap_or(written),
            false => written,
        };
        if let Some(prompt) = self.ends.generation_prompt {
            let found = match marked.complete {
                true if opens => written.rfind(prompt),
                // A text before the first mark may have it too.
                true => written
                    .find(prompt)
                    .filter(|at| written.rfind(prompt) == Some(*at)),
                false => written
                    .ends_with(prompt)
                    .then(|| written.len() - prompt.len()),
            };
            if let Some(at) = found {
                return Some(own.before + at + prompt.len());
            }
        }
        let before = self.boundary(index, true).filter(|at| *at <= first);
        if !(opens && matches!(place.field, Field::Content(_))) {
            return before;
        }
        let content = own.before + written.len();
        // Words before an answer that no generation prompt announces are not known to be its own.
        let known = self.ends.generation_prompt.is_some();
        let near = |at: &usize| known || self.text[*at..content].trim().is_empty();
        Some(
            before
                .filter(|at| *at <= content)
                .filter(near)
                .unwrap_or(content),
        )
    }

    /// Where a turn ends by the marks of its texts, and whether an end token closes it.
    fn marked_end(&self, index: usize) -> Option<(usize, bool)> {
        let (marked, own) = self.own(index)?;
        let (last, place) = own.last()?;
        let written = &self.text[last..own.behind];
        let trail = place.around.1.as_str();
        let trail = if written.starts_with(trail) {
            trail.len()
        } else {
            0
        };
        let token = match marked.complete {
            true => self.ends.in_template_text(&written[trail..]),
            false => self.ends.after_answer(&written[trail..]),
        };
        if let Some(length) = token {
            return Some((last + trail + length, true));
        }
        if matches!(place.field, Field::Content(_)) {
            return Some((last + trail, false));
        }
        self.boundary(index + 1, false)
            .filter(|end| *end >= last)
            .map(|end| (end, false))
    }

    /// The marks of a turn's own texts: among those of all texts, or by themselves.
    fn own(&self, index: usize) -> Option<(Cow<'_, Marked>, Own)> {
        if let Some(marked) = self.marked
            && let Ok(own) = Own::of(marked, index)
        {
            return Some((Cow::Borrowed(marked), own));
        }
        let marked = marks::one(self.template, self.chat, index)?;
        let own = Own::of(&marked, index).ok()?;
        (marked.text == self.text).then_some((Cow::Owned(marked), own))
    }

    /// Where the first `count` messages end in the whole, though their own rendering is no prefix
    /// of it: as far behind their last text as there, if what follows that text is the same.
    fn boundary(&self, count: usize, add_generation_prompt: bool) -> Option<usize> {
        let whole = self.marked.filter(|marked| marked.complete)?;
        let part = Conversation {
            messages: self.chat.messages[..count].to_vec(),
            tools: self.chat.tools.clone(),
        };
        let part = marks::render(
            self.template,
            &part,
            add_generation_prompt,
            Sides::Both,
            &|_| true,
        )?;
        let (number, edge, tail) = part.tail()?;
        let field = part.places.get(number)?.field;
        let place = whole.places.get(number)?;
        if place.field != field || whole.repeated.contains(&field) || part.repeated.contains(&field)
        {
            return None;
        }
        let at = match edge {
            Edge::Open => place.open?,
            Edge::Close => place.close?,
        };
        self.text[at..].starts_with(tail).then_some(at + tail.len())
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
            Err(
                TemplateError::Raised { .. }
                | TemplateError::Render { .. }
                | TemplateError::Broken { .. },
            ) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The texts of one turn in a rendering, and the nearest marks of others around them.
struct Own {
    places: Vec<Place>,
    /// Behind the last mark of another turn before them.
    before: usize,
    /// Before the first mark of another turn behind them.
    behind: usize,
}

/// The places of a turn's texts are not known.
struct Unknown;

impl Own {
    fn of(marked: &Marked, message: usize) -> Result<Self, Unknown> {
        let is_own = |place: &&Place| place.field.message() == Some(message);
        let places: Vec<Place> = marked.places.iter().filter(is_own).cloned().collect();
        let points: Vec<usize> = places.iter().flat_map(Place::points).collect();
        let (Some(&first), Some(&last)) = (points.iter().min(), points.iter().max()) else {
            return Err(Unknown);
        };
        let unclear = places.iter().any(|place| {
            // The name of a call may come again, with its result.
            let named = matches!(place.field, Field::CallName(..));
            marked.repeated.contains(&place.field) && !named
        });
        let others = marked.places.iter().filter(|place| !is_own(place));
        let others: Vec<usize> = others.flat_map(Place::points).collect();
        if unclear || others.iter().any(|at| (first + 1..last).contains(at)) {
            return Err(Unknown);
        }
        let before = others.iter().filter(|at| **at <= first).max();
        let behind = others.iter().filter(|at| **at >= last).min();
        Ok(Self {
            places,
            before: before.copied().unwrap_or(0),
            behind: behind.copied().unwrap_or(marked.text.len()),
        })
    }

    /// The first known place, and whose it is.
    fn first(&self) -> Option<(usize, &Place)> {
        let points = self.places.iter();
        let points = points.filter_map(|place| Some((place.points().min()?, place)));
        points.min_by_key(|(at, _)| *at)
    }

    /// The last known place, and whose it is.
    fn last(&self) -> Option<(usize, &Place)> {
        let points = self.places.iter();
        let points = points.filter_map(|place| Some((place.points().max()?, place)));
        points.max_by_key(|(at, _)| *at)
    }
}
