//! What a chat template sees.

use indexmap::IndexMap;
use serde_json::{Map, Value as Json};

use crate::conversation::Message;

/// Special tokens by the names that templates know them by, such as `bos_token`.
///
/// A token that the model lacks is undefined in the template, not empty, as in transformers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedTokens(IndexMap<String, String>);

impl NamedTokens {
    /// Names a token, or says that there is none of this name.
    pub fn set(&mut self, name: &str, token: Option<String>) {
        match token {
            Some(token) => self.0.insert(name.to_owned(), token),
            None => self.0.shift_remove(name),
        };
    }

    /// Names with their tokens.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, token)| (&**name, &**token))
    }
}

/// The variables of a rendering; [`Message::to_json`] says which keys of messages are among them.
pub(super) fn of(
    messages: &[Message],
    tools: Option<&Json>,
    add_generation_prompt: bool,
    tokens: &NamedTokens,
) -> Map<String, Json> {
    let mut context = Map::new();
    for (name, token) in tokens.iter() {
        context.insert(name.to_owned(), token.into());
    }
    let messages: Vec<Json> = messages.iter().map(Message::to_json).collect();
    context.insert("messages".into(), messages.into());
    context.insert("tools".into(), tools.cloned().unwrap_or(Json::Null));
    context.insert("documents".into(), Json::Null);
    context.insert("add_generation_prompt".into(), add_generation_prompt.into());
    context
}
