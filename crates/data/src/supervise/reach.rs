//! What a row says and its rendering does not show.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::marks::{self, Field, Marked, Place, Sides};
use crate::conversation::{Conversation, Role};
use crate::template::ChatTemplate;

/// A field of a row that leaves no trace in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unseen {
    /// The content of a system message.
    System,
    /// The content of a user's message.
    User,
    /// The content of an answer.
    Answer,
    /// The content of a tool's message.
    ToolResult,
    /// What the model thinks before an answer.
    Reasoning,
    /// The same, between tags inside the content of an answer.
    Thought,
    /// A tool call, or its name.
    Call,
    /// Arguments of a tool call.
    Arguments,
    /// Descriptions of tools.
    Tools,
}

impl Unseen {
    /// The field's name.
    pub fn field(self) -> &'static str {
        match self {
            Self::System => "`content` of a system message",
            Self::User => "`content` of a user message",
            Self::Answer => "`content` of an assistant message",
            Self::ToolResult => "`content` of a tool message",
            Self::Reasoning => "`reasoning_content` of an assistant message",
            Self::Thought => "text before `</think>` in `content` of an assistant message",
            Self::Call => "`tool_calls` of an assistant message",
            Self::Arguments => "`arguments` of a tool call",
            Self::Tools => "`tools`",
        }
    }
}

/// What became of a conversation's texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    /// Fields that are lost.
    pub(super) unseen: BTreeSet<Unseen>,
    /// Whether the template leaves out what the model thought in earlier turns, as some do on
    /// purpose.
    pub(super) earlier_reasoning: bool,
    /// Whether a trained turn neither says anything nor shows a call.
    pub(super) empty_answer: bool,
}

/// Looks for every text of a conversation in its rendering.
///
/// `marked` is the rendering with marks, where there is one that is the true one without them.
pub(super) fn reach(
    template: &ChatTemplate,
    chat: &Conversation,
    text: &str,
    marked: Option<&Marked>,
) -> Reach {
    let look = Look {
        template,
        chat,
        text,
        marked,
    };
    let mut reach = Reach::default();
    for field in look.fields() {
        if look.shows(field) {
            continue;
        }
        match field {
            // A call that is not there has no arguments there.
            Field::CallArguments(message, call) if !look.shows(Field::CallName(message, call)) => {}
            Field::Reasoning(message) if look.shows_when_last(field, message) => {
                reach.earlier_reasoning = true;
            }
            _ => {
                reach.unseen.insert(look.kind(field));
            }
        }
    }
    for message in look.lost_thoughts() {
        if look.thinks_when_last(message) {
            reach.earlier_reasoning = true;
        } else {
            reach.unseen.insert(Unseen::Thought);
        }
    }
    let calls_nothing = |message: usize, calls: usize| {
        (0..calls).all(|call| !look.shows(Field::CallName(message, call)))
    };
    reach.empty_answer = chat.messages.iter().enumerate().any(|(index, message)| {
        message.trained
            && message.text().trim().is_empty()
            && calls_nothing(index, message.calls().len())
    });
    reach
}

/// Longer conversations are not rendered once for each of their texts.
const RENDERED_AGAIN: usize = 64;

struct Look<'a> {
    template: &'a ChatTemplate,
    chat: &'a Conversation,
    text: &'a str,
    marked: Option<&'a Marked>,
}

impl Look<'_> {
    /// Every field that says something.
    fn fields(&self) -> Vec<Field> {
        let mut fields = Vec::new();
        for (index, message) in self.chat.messages.iter().enumerate() {
            if !message.text().trim().is_empty() {
                fields.push(Field::Content(index));
            }
            if message
                .reasoning()
                .is_some_and(|text| !text.trim().is_empty())
            {
                fields.push(Field::Reasoning(index));
            }
            for call in 0..message.calls().len() {
                fields.push(Field::CallName(index, call));
                fields.push(Field::CallArguments(index, call));
            }
        }
        let tools = self.chat.tools.as_ref().and_then(|tools| tools.as_array());
        fields.extend((0..tools.map_or(0, Vec::len)).map(Field::Tool));
        fields
    }

    fn kind(&self, field: Field) -> Unseen {
        match field {
            Field::Content(message) => match self.chat.messages[message].role {
                Role::System => Unseen::System,
                Role::User => Unseen::User,
                Role::Assistant => Unseen::Answer,
                Role::Tool => Unseen::ToolResult,
            },
            Field::Reasoning(_) => Unseen::Reasoning,
            Field::CallName(..) => Unseen::Call,
            Field::CallArguments(..) => Unseen::Arguments,
            Field::Tool(_) => Unseen::Tools,
        }
    }

    fn shows(&self, field: Field) -> bool {
        let in_whole = self.marked.and_then(|marked| {
            // What cannot be marked, such as arguments that are empty, has nothing to show.
            shown(marked, field).or(marked.complete.then_some(true))
        });
        in_whole.unwrap_or_else(|| self.shows_alone(field))
    }

    /// Whether a rendering in which only this text is marked has the mark.
    ///
    /// Of a template that refuses every marked text, and of a conversation too long to be rendered
    /// so often, no more is asked than whether the rendering has the text somewhere.
    fn shows_alone(&self, field: Field) -> bool {
        if self.chat.messages.len() > RENDERED_AGAIN {
            return self.has_text(field);
        }
        let mut rendered = false;
        for sides in [Sides::After, Sides::Before] {
            // A text whose end is missing was cut.
            if sides == Sides::Before && rendered && matches!(field, Field::Content(_)) {
                break;
            }
            if let Some(count) = marks::count(self.template, self.chat, sides, field) {
                rendered = true;
                if enough(field, count) {
                    return true;
                }
            }
        }
        !rendered && self.has_text(field)
    }

    fn has_text(&self, field: Field) -> bool {
        match field {
            Field::Content(message) => {
                let content = self.chat.messages[message].text();
                self.text.contains(content.trim())
            }
            Field::Reasoning(message) => {
                let reasoning = self.chat.messages[message].reasoning();
                reasoning.is_none_or(|text| self.text.contains(text.trim()))
            }
            Field::CallName(message, call) => {
                let call = &self.chat.messages[message].calls()[call];
                let name = call.get("function").unwrap_or(call)["name"].as_str();
                name.is_none_or(|name| self.text.contains(name))
            }
            // Templates that look into them show them too.
            Field::CallArguments(..) | Field::Tool(_) => true,
        }
    }

    /// Answers whose content has a thought between tags that the rendering lacks: many templates cut
    /// contents at such a tag.
    fn lost_thoughts(&self) -> impl Iterator<Item = usize> {
        let messages = self.chat.messages.iter().enumerate();
        messages.filter_map(|(index, message)| {
            let lost = message.role == Role::Assistant && !has_thoughts(self.text, message.text());
            lost.then_some(index)
        })
    }

    /// Whether an answer's thought is shown as long as no other turn follows.
    fn thinks_when_last(&self, message: usize) -> bool {
        let messages = &self.chat.messages[..=message];
        let tools = self.chat.tools.as_ref();
        let text = self.template.render_messages(messages, tools, false);
        text.is_ok_and(|text| has_thoughts(&text, messages[message].text()))
    }

    /// Whether a turn's reasoning is shown as long as no other turn follows.
    fn shows_when_last(&self, field: Field, message: usize) -> bool {
        let earlier = Conversation {
            messages: self.chat.messages[..=message].to_vec(),
            tools: self.chat.tools.clone(),
        };
        let count = marks::count(self.template, &earlier, Sides::After, field);
        count.is_some_and(|count| enough(field, count))
    }
}

/// Whether a text has all that a content says before its last `</think>`.
fn has_thoughts(text: &str, content: &str) -> bool {
    let Some((thoughts, _)) = content.rsplit_once("</think>") else {
        return true;
    };
    let mut parts = thoughts
        .split("</think>")
        .flat_map(|part| part.split("<think>"));
    parts.all(|part| text.contains(part.trim()))
}

/// Whether enough of a field's texts are shown: each of several texts; of several names for one
/// text, any.
fn enough(field: Field, (shown, texts): (usize, usize)) -> bool {
    match field {
        Field::CallArguments(..) => shown >= texts,
        _ => shown > 0 || texts == 0,
    }
}

/// Whether a field was found, if it was marked at all.
fn shown(marked: &Marked, field: Field) -> Option<bool> {
    let mut places = marked.places.iter().filter(|place| place.field == field);
    let first = places.next()?;
    let ends = |place: &Place| match field {
        // A text whose end is missing was cut.
        Field::Content(_) => place.close.is_some(),
        _ => place.points().next().is_some(),
    };
    Some(match field {
        // Each of several texts; of several names for one text, any.
        Field::CallArguments(..) => ends(first) && places.all(ends),
        _ => ends(first) || places.any(ends),
    })
}
