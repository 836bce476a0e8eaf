//! What a request is answered, as JSON: whole, or piece by piece.

use serde_json::{Value, json};

use crate::job::{Event, Reason, TokenText};
use crate::tool_calls::ToolText;

/// Chats and completions differ in their objects only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Completion,
}

/// What stands in every object of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    /// Number of the request; its id and those of its tool calls are made of it.
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
}

/// An answer as it comes about.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: Head,
    pub(crate) prompt_tokens: usize,
    completion_tokens: usize,
    choices: Vec<Choice>,
}

/// One text of it.
#[derive(Debug)]
struct Choice {
    text: String,
    /// Only where the model may call tools.
    tools: Option<ToolText>,
    calls: Vec<Value>,
    likely: Vec<(TokenText, Vec<TokenText>)>,
    /// Where each token begins in the text, in characters.
    offsets: Vec<usize>,
    tells_likely: bool,
    finish: Option<&'static str>,
}

/// What an event adds to a choice.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    choice: usize,
    text: String,
    likely: Option<(TokenText, Vec<TokenText>)>,
    calls: Vec<Value>,
    finish: Option<&'static str>,
}

impl Answer {
    /// With `choices` choices; `tools` where the model may call some, `likely` where it tells how likely tokens are.
    pub(crate) fn new(
        head: Head,
        (prompt_tokens, choices): (usize, usize),
        tools: bool,
        likely: bool,
    ) -> Self {
        let choice = || Choice {
            text: String::new(),
            tools: tools.then(ToolText::new),
            calls: Vec::new(),
            likely: Vec::new(),
            offsets: Vec::new(),
            tells_likely: likely,
            finish: None,
        };
        Self {
            head,
            prompt_tokens,
            completion_tokens: 0,
            choices: (0..choices).map(|_| choice()).collect(),
        }
    }

    /// Whether all of it is there.
    pub(crate) fn is_complete(&self) -> bool {
        self.choices.iter().all(|choice| choice.finish.is_some())
    }

    /// Takes in a token or an end, and says what is new.
    pub(crate) fn take(&mut self, event: Event) -> Piece {
        match event {
            Event::Token {
                choice,
                text,
                likely,
            } => {
                self.completion_tokens += 1;
                let into = &mut self.choices[choice];
                let text = match &mut into.tools {
                    Some(tools) => tools.push(&text),
                    None => text,
                };
                if likely.is_some() {
                    into.offsets.push(into.text.chars().count());
                }
                into.text.push_str(&text);
                into.likely.extend(likely.clone());
                Piece {
                    choice,
                    text,
                    likely,
                    ..Piece::default()
                }
            }
            Event::End { choice, reason } => {
                let into = &mut self.choices[choice];
                let (text, calls) = match &mut into.tools {
                    Some(tools) => tools.finish(),
                    None => Default::default(),
                };
                into.text.push_str(&text);
                let id = &self.head.id;
                let numbered = |(i, function): (usize, Value)| json!({"id": format!("call_{id}_{choice}_{i}"), "type": "function", "function": function});
                into.calls = calls.into_iter().enumerate().map(numbered).collect();
                let finish = match (into.calls.is_empty(), reason) {
                    (false, _) => "tool_calls",
                    (true, Reason::Stop) => "stop",
                    (true, Reason::Length) => "length",
                };
                into.finish = Some(finish);
                Piece {
                    choice,
                    text,
                    calls: into.calls.clone(),
                    finish: Some(finish),
                    likely: None,
                }
            }
            Event::Timeout | Event::Refused(_) | Event::Failed(_) => {
                unreachable!("the caller answers these")
            }
        }
    }

    /// The whole answer.
    pub(crate) fn to_json(&self) -> Value {
        let choices: Vec<Value> = self
            .choices
            .iter()
            .enumerate()
            .map(|(i, c)| self.choice(i, c))
            .collect();
        let mut object = self.object(false, choices);
        object["usage"] = self.usage();
        object
    }

    fn choice(&self, index: usize, choice: &Choice) -> Value {
        match self.head.kind {
            Kind::Chat => {
                let content = match choice.calls.is_empty() || !choice.text.is_empty() {
                    true => json!(choice.text),
                    false => Value::Null,
                };
                let mut message = json!({"role": "assistant", "content": content, "refusal": null});
                if !choice.calls.is_empty() {
                    message["tool_calls"] = json!(choice.calls);
                }
                let likely = choice.tells_likely.then(|| chat_logprobs(&choice.likely));
                json!({"index": index, "message": message, "logprobs": likely, "finish_reason": choice.finish})
            }
            Kind::Completion => {
                let likely = choice.tells_likely;
                let likely = likely.then(|| logprobs(&choice.likely, &choice.offsets));
                json!({"index": index, "text": choice.text, "logprobs": likely, "finish_reason": choice.finish})
            }
        }
    }

    /// The objects that tell a client of a stream what is new: the roles first.
    pub(crate) fn opening(&self) -> Vec<Value> {
        if self.head.kind == Kind::Completion {
            return Vec::new();
        }
        let delta = json!({"role": "assistant", "content": "", "refusal": null});
        (0..self.choices.len())
            .map(|i| {
                let choice =
                    json!({"index": i, "delta": delta, "logprobs": null, "finish_reason": null});
                self.object(true, vec![choice])
            })
            .collect()
    }

    /// A piece of a stream; `None` where it says nothing.
    pub(crate) fn chunk(&self, piece: &Piece) -> Option<Value> {
        let silent = piece.text.is_empty() && piece.likely.is_none() && piece.finish.is_none();
        if silent {
            return None;
        }
        Some(self.object(true, vec![self.delta(piece)]))
    }

    fn delta(&self, piece: &Piece) -> Value {
        let likely = piece.likely.as_ref().map(std::slice::from_ref);
        match self.head.kind {
            Kind::Chat => {
                let mut delta = json!({});
                if !piece.text.is_empty() {
                    delta["content"] = json!(piece.text);
                }
                if !piece.calls.is_empty() {
                    let numbered = piece.calls.iter().enumerate().map(|(i, call)| {
                        let mut call = call.clone();
                        call["index"] = json!(i);
                        call
                    });
                    delta["tool_calls"] = numbered.collect();
                }
                let likely = likely.map(chat_logprobs);
                json!({"index": piece.choice, "delta": delta, "logprobs": likely, "finish_reason": piece.finish})
            }
            Kind::Completion => {
                let offset = self.choices[piece.choice].offsets.last().copied();
                let likely = likely.map(|likely| logprobs(likely, offset.as_slice()));
                json!({"index": piece.choice, "text": piece.text, "logprobs": likely, "finish_reason": piece.finish})
            }
        }
    }

    /// The last object of a stream that asks for it.
    pub(crate) fn usage_chunk(&self) -> Value {
        let mut object = self.object(true, Vec::new());
        object["usage"] = self.usage();
        object
    }

    fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        })
    }

    fn object(&self, chunk: bool, choices: Vec<Value>) -> Value {
        let Head {
            kind,
            id,
            created,
            model,
        } = &self.head;
        let (prefix, object) = match (kind, chunk) {
            (Kind::Chat, false) => ("chatcmpl", "chat.completion"),
            (Kind::Chat, true) => ("chatcmpl", "chat.completion.chunk"),
            (Kind::Completion, _) => ("cmpl", "text_completion"),
        };
        json!({
            "id": format!("{prefix}-{id}"), "object": object, "created": created, "model": model,
            "choices": choices,
        })
    }
}

fn chat_logprobs(tokens: &[(TokenText, Vec<TokenText>)]) -> Value {
    let one = |token: &TokenText| json!({"token": token.text, "logprob": token.logprob, "bytes": token.text.as_bytes()});
    let content = tokens.iter().map(|(token, top)| {
        let mut entry = one(token);
        entry["top_logprobs"] = top.iter().map(one).collect();
        entry
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}

fn logprobs(tokens: &[(TokenText, Vec<TokenText>)], offsets: &[usize]) -> Value {
    let top = tokens.iter().map(|(_, top)| {
        let named = top
            .iter()
            .map(|token| (token.text.clone(), json!(token.logprob)));
        Value::Object(named.collect())
    });
    json!({
        "tokens": tokens.iter().map(|(token, _)| &token.text).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|(token, _)| token.logprob).collect::<Vec<_>>(),
        "top_logprobs": top.collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}
