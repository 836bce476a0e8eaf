//! Which tokens end an answer.
//!
//! The template is asked: a few conversations are rendered with answers that cannot be mistaken,
//! and what it writes behind them is looked at. Any added token may end a turn, whether its file
//! calls it special or not; what also stands before turns begins them instead.

use serde_json::json;

use super::{ChatTokenizer, tokenizer_error};
use crate::conversation::{Conversation, Message, Role};
use crate::error::DataError;

/// How the chat template ends an assistant turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndOfTurn {
    /// The token's text, such as `<|im_end|>`.
    pub token: String,
    /// The token's id.
    pub token_id: u32,
    /// Everything between the answer and the end of the turn, such as `<|im_end|>\n`.
    pub tail: String,
    /// Bytes of `tail` up to the end of the token.
    pub length: usize,
}

/// What is known of the ends of turns.
#[derive(Default)]
pub(super) struct Ends {
    /// How an answer ends.
    pub(super) end_of_turn: Option<EndOfTurn>,
    /// Texts of all tokens that end a turn.
    pub(super) tokens: Vec<String>,
    /// Ids after which generation stops.
    pub(super) stop_ids: Vec<u32>,
}

const QUESTION: &str = "Zq7question7qZ";
const ANSWER: &str = "Zq7answer7qZ";

pub(super) fn find(tokenizer: &ChatTokenizer) -> Result<Ends, DataError> {
    let probes = Probes::render(tokenizer);
    let mut ends = Ends::default();
    let eos = tokenizer.eos.as_ref().map(|(_, id)| *id);
    ends.stop_ids.extend(eos);
    // What stands right before a turn begins it. Further before may be the end of another.
    let mut opening = added(tokenizer, &probes.prompt)?;
    opening.extend(added(tokenizer, &probes.opening)?.pop());
    let behind = |tail: &Option<String>| -> Result<Vec<Token>, DataError> {
        let tokens = added(tokenizer, tail.as_deref().unwrap_or_default())?;
        let ends = |token: &Token| {
            let configured = Some(token.id) == eos || tokenizer.eos_token_ids.contains(&token.id);
            configured || !opening.iter().any(|other| other.id == token.id)
        };
        Ok(tokens.into_iter().filter(ends).collect())
    };
    let (last, middle, call) = (
        behind(&probes.last)?,
        behind(&probes.middle)?,
        behind(&probes.call)?,
    );
    let both = last.iter().zip(&middle);
    let both = both
        .take_while(|(last, middle)| last.id == middle.id)
        .count();
    // Where the last turn ends as the others do, what follows ends the conversation. Else the last
    // turn is as generation leaves it.
    let chosen = match (last.as_slice(), both) {
        (_, 1..) => last.get(both - 1),
        ([], 0) => middle.first(),
        (_, 0) => last.iter().find(|token| token.special).or(last.first()),
    };
    let tail = if last.is_empty() {
        &probes.middle
    } else {
        &probes.last
    };
    let end_of_turn = chosen.zip(tail.as_deref()).and_then(|(token, tail)| {
        // Not the token's offsets: a token that swallows following whitespace would include it.
        let length = tail.find(&token.text)? + token.text.len();
        let tail = if last.is_empty() {
            &tail[..length]
        } else {
            tail
        };
        Some(EndOfTurn {
            token: token.text.clone(),
            token_id: token.id,
            tail: tail.to_owned(),
            length,
        })
    });
    ends.stop_ids
        .extend(end_of_turn.as_ref().map(|end| end.token_id));
    let ends_alike = |end: &EndOfTurn| call.iter().any(|token| token.id == end.token_id);
    if !end_of_turn.as_ref().is_some_and(ends_alike) {
        ends.stop_ids.extend(call.last().map(|token| token.id));
    }
    let others = tokenizer.eos_token_ids.iter().chain(&ends.stop_ids);
    let texts = others.filter_map(|id| tokenizer.id_to_token(*id));
    for text in texts.chain(middle.first().map(|token| token.text.clone())) {
        if !text.is_empty() && !ends.tokens.contains(&text) {
            ends.tokens.push(text);
        }
    }
    ends.end_of_turn = end_of_turn;
    Ok(ends)
}

/// What the template writes around turns.
#[derive(Default)]
struct Probes {
    /// Before the first question.
    opening: String,
    /// Before an answer.
    prompt: String,
    /// Behind the last answer.
    last: Option<String>,
    /// Between an answer and the next question.
    middle: Option<String>,
    /// Behind a last turn that calls a tool.
    call: Option<String>,
}

impl Probes {
    fn render(tokenizer: &ChatTokenizer) -> Self {
        // A template that wants other turns is tried with a system prompt before them.
        let systems = [None, Some(Message::new(Role::System, "system"))];
        systems
            .into_iter()
            .find_map(|system| Self::with(tokenizer, system))
            .unwrap_or_default()
    }

    fn with(tokenizer: &ChatTokenizer, system: Option<Message>) -> Option<Self> {
        let template = tokenizer.template.as_ref()?;
        let question = || Message::new(Role::User, QUESTION);
        let answer = || Message::new(Role::Assistant, ANSWER);
        let render = |turns: Vec<Message>, prompt: bool| {
            let turns = system.iter().cloned().chain(turns).collect();
            template.render(&Conversation::new(turns), prompt).ok()
        };
        let last = render(vec![question(), answer()], false)?;
        let tail = |text: &str| Some(text.rsplit_once(ANSWER)?.1.to_owned());
        let next = Message::new(Role::User, "Zq7next7qZ");
        let middle = render(vec![question(), answer(), next, answer()], false);
        let middle = middle.and_then(|text| {
            let (before, _) = text.split_once("Zq7next7qZ")?;
            tail(before)
        });
        let arguments = json!({ "a": ANSWER });
        let function = json!({"name": "f", "arguments": arguments});
        let calls = json!([{"id": "abcdefghi", "type": "function", "function": function}]);
        let mut call = Message::new(Role::Assistant, "");
        call.extra.insert("tool_calls".to_owned(), calls);
        let opening = last.split_once(QUESTION).map_or("", |(before, _)| before);
        let prompt = render(vec![question()], true);
        let prompt = prompt.and_then(|text| Some(text.split_once(QUESTION)?.1.to_owned()));
        let without = render(vec![question()], false);
        let without = without.and_then(|text| Some(text.split_once(QUESTION)?.1.to_owned()));
        let prompt = prompt.zip(without);
        let prompt = prompt
            .as_ref()
            .and_then(|(with, without)| with.strip_prefix(&**without));
        Some(Self {
            opening: opening.to_owned(),
            prompt: prompt.unwrap_or_default().to_owned(),
            last: tail(&last),
            middle,
            call: render(vec![question(), call], false).and_then(|text| tail(&text)),
        })
    }
}

/// An added token, or one that the configuration names as an end.
struct Token {
    id: u32,
    text: String,
    special: bool,
}

/// The added tokens of a text in their order.
fn added(tokenizer: &ChatTokenizer, text: &str) -> Result<Vec<Token>, DataError> {
    let encoded = tokenizer
        .encode_rendered(text)
        .map_err(tokenizer_error("encoding the end of a turn"))?;
    let added = tokenizer.tokenizer.get_added_tokens_decoder();
    let ids = encoded.ids.into_iter();
    Ok(ids
        .filter_map(|id| {
            let token = added.get(&id);
            let configured = tokenizer.eos_token_ids.contains(&id)
                || tokenizer.eos.as_ref().is_some_and(|(_, eos)| *eos == id);
            (configured || token.is_some()).then_some(())?;
            Some(Token {
                id,
                text: tokenizer.id_to_token(id)?,
                special: configured || token.is_some_and(|token| token.special),
            })
        })
        .collect())
}
