//! A conversation whose texts carry marks, to see where a template puts them.
//!
//! A mark is a noncharacter with a number. Marks stand inside the whitespace around a text, so that
//! a template may trim it. A rendering counts only where it is the true one without its marks.

use serde_json::{Map, Value};

use crate::conversation::{Conversation, Message, REASONING_KEYS, Role};
use crate::template::ChatTemplate;

/// A text of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// What a message says.
    Content(usize),
    /// What the model thinks before it.
    Reasoning(usize),
    /// The name of a message's call.
    CallName(usize, usize),
    /// A text in the arguments of a message's call.
    CallArguments(usize, usize),
    /// The name of a tool beside the messages.
    Tool(usize),
}

impl Field {
    /// The message that has it.
    pub(super) fn message(self) -> Option<usize> {
        match self {
            Self::Content(message) | Self::Reasoning(message) => Some(message),
            Self::CallName(message, _) | Self::CallArguments(message, _) => Some(message),
            Self::Tool(_) => None,
        }
    }
}

/// Where marks stand around a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sides {
    Both,
    Before,
    After,
}

/// A text and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Which text.
    pub(super) field: Field,
    /// The whitespace before and behind it.
    pub(super) around: (String, String),
    /// Its first byte in the rendering, if it has one.
    pub(super) open: Option<usize>,
    /// The byte behind its last one.
    pub(super) close: Option<usize>,
}

impl Place {
    /// The places in the rendering that are known.
    pub(super) fn points(&self) -> impl Iterator<Item = usize> {
        [self.open, self.close].into_iter().flatten()
    }
}

/// A rendering with the places of the texts that were marked in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marked {
    /// The rendering without its marks.
    pub(super) text: String,
    /// The texts that were marked, whether they were found or not.
    pub(super) places: Vec<Place>,
    /// Texts that came twice, so that their place is not known.
    pub(super) repeated: Vec<Field>,
    /// Whether every text was marked that can be.
    pub(super) complete: bool,
}

impl Marked {
    /// The last place that is known, and the text behind it.
    pub(super) fn tail(&self) -> Option<(usize, Edge, &str)> {
        let edges = self.places.iter().enumerate().flat_map(|(number, place)| {
            let open = place.open.map(|at| (at, number, Edge::Open));
            let close = place.close.map(|at| (at, number, Edge::Close));
            open.into_iter().chain(close)
        });
        let (at, number, edge) = edges.max_by_key(|(at, number, edge)| (*at, *edge, *number))?;
        Some((number, edge, &self.text[at..]))
    }
}

/// A side of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Edge {
    Open,
    Close,
}

/// Noncharacters: no text for interchange contains them.
const OPEN: char = '\u{FDD0}';
const CLOSE: char = '\u{FDD1}';
/// Sixteen digits.
const DIGIT: char = '\u{FDE0}';
const DIGITS: u32 = 4;

/// Renders some messages of a conversation with marks around the texts that are wanted.
///
/// `None` where the template refuses it, where there are too many texts to number, or where one of
/// them contains a mark itself.
pub(super) fn render(
    template: &ChatTemplate,
    chat: &Conversation,
    add_generation_prompt: bool,
    sides: Sides,
    wanted: &dyn Fn(Field) -> bool,
) -> Option<Marked> {
    let (marked, places) = mark(chat, (sides, Kind::Numbered), wanted)?;
    let rendered = template.render(&marked, add_generation_prompt).ok()?;
    Some(unmark(&rendered, places))
}

/// How many of a field's texts show a mark of one character that is put to them, and how many have
/// one; `None` where the template refuses it.
///
/// One character is as little as a template can be asked to bear, but it has no number.
pub(super) fn count(
    template: &ChatTemplate,
    chat: &Conversation,
    sides: Sides,
    field: Field,
) -> Option<(usize, usize)> {
    let (marked, places) = mark(chat, (sides, Kind::Bare), &|other| other == field)?;
    let rendered = template.render(&marked, false).ok()?;
    let unescaped = unescape(&rendered);
    let rendered = unescaped.as_deref().unwrap_or(&rendered);
    let shown = rendered.chars().filter(|c| is_mark(*c)).count();
    Some((shown, places.len()))
}

fn mark(
    chat: &Conversation,
    (sides, kind): (Sides, Kind),
    wanted: &dyn Fn(Field) -> bool,
) -> Option<(Conversation, Vec<Place>)> {
    let mut marker = Marker {
        sides,
        kind,
        wanted,
        places: Vec::new(),
        failed: false,
    };
    let messages = chat.messages.iter().enumerate();
    let messages = messages.map(|(index, message)| marker.message(index, message));
    let messages = messages.collect();
    let tools = chat.tools.as_ref().map(|tools| marker.tools(tools));
    let Marker { places, failed, .. } = marker;
    let too_many = places.len() >= 1 << (4 * DIGITS);
    (!failed && !too_many).then_some((Conversation { messages, tools }, places))
}

/// The rendering of a whole conversation with marks around the texts of one message, its content
/// included where that is empty.
pub(super) fn one(template: &ChatTemplate, chat: &Conversation, index: usize) -> Option<Marked> {
    let wanted = |field: Field| field.message() == Some(index);
    let known = render(template, chat, false, Sides::Both, &wanted)?;
    if known
        .places
        .iter()
        .any(|place| place.points().next().is_some())
    {
        return Some(known);
    }
    let mut bare = chat.clone();
    let message = bare.messages.get_mut(index)?;
    message.extra.clear();
    let (marked, places) = mark(&bare, (Sides::Both, Kind::Numbered), &wanted)?;
    let mut marked = marked.messages.into_iter().nth(index)?;
    marked.extra = chat.messages[index].extra.clone();
    bare = chat.clone();
    bare.messages[index] = marked;
    Some(unmark(&template.render(&bare, false).ok()?, places))
}

/// The rendering of a whole conversation with as many marks as its template bears: it counts only
/// where it is `text` without them.
pub(super) fn everywhere(
    template: &ChatTemplate,
    chat: &Conversation,
    text: &str,
) -> Option<Marked> {
    let message = |field: Field| field.message().map(|message| &chat.messages[message]);
    let of_answers = |field| message(field).is_some_and(|m| m.role == Role::Assistant);
    // Templates that compare names, or ask how other turns begin.
    let unnamed = |field| !matches!(field, Field::CallName(..) | Field::Tool(_));
    let attempts: [&dyn Fn(Field) -> bool; 3] = [&|_| true, &unnamed, &|field| {
        of_answers(field) && unnamed(field)
    }];
    attempts.into_iter().enumerate().find_map(|(at, wanted)| {
        let mut marked = render(template, chat, false, Sides::Both, wanted)?;
        marked.complete = at == 0;
        (marked.text == text).then_some(marked)
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Numbered,
    Bare,
}

struct Marker<'a> {
    sides: Sides,
    kind: Kind,
    wanted: &'a dyn Fn(Field) -> bool,
    places: Vec<Place>,
    failed: bool,
}

impl Marker<'_> {
    fn message(&mut self, index: usize, message: &Message) -> Message {
        let mut message = message.clone();
        // An answer that says nothing is trained all the same; other turns without a text have
        // nothing to be found, and templates ask whether there is one.
        let answers = message.role == Role::Assistant
            && message.calls().is_empty()
            && message.reasoning().is_none();
        if let Some(content) = &mut message.content
            && (answers || !content.trim().is_empty())
        {
            self.text(Field::Content(index), content);
        }
        for key in REASONING_KEYS {
            if let Some(Value::String(text)) = message.extra.get_mut(key)
                && !text.trim().is_empty()
            {
                self.text(Field::Reasoning(index), text);
            }
        }
        if let Some(Value::Array(calls)) = message.extra.get_mut("tool_calls") {
            for (call, value) in calls.iter_mut().enumerate() {
                self.call(index, call, value);
            }
        }
        message
    }

    fn call(&mut self, message: usize, call: usize, value: &mut Value) {
        let function = match value.get("function") {
            Some(Value::Object(_)) => &mut value["function"],
            _ => value,
        };
        let Value::Object(function) = function else {
            return;
        };
        if let Some(Value::String(name)) = function.get_mut("name") {
            self.text(Field::CallName(message, call), name);
        }
        if let Some(arguments) = function.get_mut("arguments") {
            let field = Field::CallArguments(message, call);
            if !self.leaves(field, arguments)
                && let Value::Object(arguments) = arguments
            {
                self.first_key(field, arguments);
            }
        }
    }

    /// Marks every text inside a value; says whether there was one.
    fn leaves(&mut self, field: Field, value: &mut Value) -> bool {
        match value {
            Value::String(text) if !text.trim().is_empty() => {
                self.text(field, text);
                true
            }
            Value::Array(list) => {
                let leaves = list.iter_mut().map(|value| self.leaves(field, value));
                leaves.fold(false, |any, found| any | found)
            }
            Value::Object(map) => {
                let leaves = map.values_mut().map(|value| self.leaves(field, value));
                leaves.fold(false, |any, found| any | found)
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        }
    }

    /// Numbers cannot be marked; the key of the first one can.
    fn first_key(&mut self, field: Field, map: &mut Map<String, Value>) {
        let entries = std::mem::take(map).into_iter().enumerate();
        *map = entries
            .map(|(at, (mut key, value))| {
                if at == 0 {
                    self.text(field, &mut key);
                }
                (key, value)
            })
            .collect();
    }

    fn tools(&mut self, tools: &Value) -> Value {
        let mut tools = tools.clone();
        for (index, tool) in tools.as_array_mut().into_iter().flatten().enumerate() {
            let name = match tool.get("function") {
                Some(Value::Object(_)) => tool["function"].get_mut("name"),
                _ => tool.get_mut("name"),
            };
            if let Some(Value::String(name)) = name {
                self.text(Field::Tool(index), name);
            }
        }
        tools
    }

    fn text(&mut self, field: Field, text: &mut String) {
        if !(self.wanted)(field) {
            return;
        }
        self.failed |= text.contains(is_mark);
        let body = text.trim();
        let start = match body.is_empty() {
            true => text.len(),
            false => text.len() - text.trim_start().len(),
        };
        let (before, after) = (&text[..start], &text[start + body.len()..]);
        let digits = match self.kind {
            Kind::Numbered => 0..DIGITS,
            Kind::Bare => 0..0,
        };
        let number: String = digits
            .rev()
            .map(|digit| (self.places.len() >> (4 * digit)) as u32 & 15)
            .filter_map(|digit| char::from_u32(u32::from(DIGIT) + digit))
            .collect();
        let open = match self.sides {
            Sides::Both | Sides::Before => format!("{OPEN}{number}"),
            Sides::After => String::new(),
        };
        let close = match self.sides {
            Sides::Both | Sides::After => format!("{CLOSE}{number}"),
            Sides::Before => String::new(),
        };
        self.places.push(Place {
            field,
            around: (before.to_owned(), after.to_owned()),
            open: None,
            close: None,
        });
        *text = format!("{before}{open}{body}{close}{after}");
    }
}

fn is_mark(c: char) -> bool {
    matches!(c, '\u{FDD0}'..='\u{FDD1}' | '\u{FDE0}'..='\u{FDEF}')
}

/// Takes the marks out of a rendering.
fn unmark(rendered: &str, mut places: Vec<Place>) -> Marked {
    let unescaped = unescape(rendered);
    let rendered = unescaped.as_deref().unwrap_or(rendered);
    let mut text = String::with_capacity(rendered.len());
    let mut repeated = Vec::new();
    let mut rest = rendered;
    while let Some(at) = rest.find(is_mark) {
        text.push_str(&rest[..at]);
        let mut chars = rest[at..].chars();
        let kind = chars.next();
        let mut number = Some(0);
        for _ in 0..DIGITS {
            let digit = chars
                .clone()
                .next()
                .filter(|c| (DIGIT..='\u{FDEF}').contains(c));
            number = number
                .zip(digit)
                .map(|(number, digit)| number << 4 | (u32::from(digit) & 15) as usize);
            if digit.is_some() {
                chars.next();
            }
        }
        rest = chars.as_str();
        // Half a mark is none.
        let Some(place) = number.and_then(|number| places.get_mut(number)) else {
            continue;
        };
        let edge = match kind {
            Some(OPEN) => &mut place.open,
            Some(CLOSE) => &mut place.close,
            _ => continue,
        };
        match edge {
            None => *edge = Some(text.len()),
            Some(_) => repeated.push(place.field),
        }
    }
    text.push_str(rest);
    Marked {
        text,
        places,
        repeated,
        complete: false,
    }
}

/// Marks that JSON or Python wrote as escapes, if there are any.
fn unescape(rendered: &str) -> Option<String> {
    const ESCAPE: &str = "\\ufd";
    rendered.contains(ESCAPE).then(|| {
        let mut text = String::with_capacity(rendered.len());
        let mut rest = rendered;
        while let Some(at) = rest.find(ESCAPE) {
            let code = rest.get(at + 2..at + 6);
            let code = code.and_then(|code| u32::from_str_radix(code, 16).ok());
            let mark = code.and_then(char::from_u32).filter(|c| is_mark(*c));
            let length = if mark.is_some() { 6 } else { ESCAPE.len() };
            text.push_str(&rest[..at]);
            match mark {
                Some(mark) => text.push(mark),
                None => text.push_str(ESCAPE),
            }
            rest = &rest[at + length..];
        }
        text.push_str(rest);
        text
    })
}
