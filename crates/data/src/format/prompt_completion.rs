//! `{"prompt": …, "completion": …}`, both texts or both lists of messages.

use serde_json::{Map, Value};

use super::field::{FieldError, describe, missing, string};
use super::messages::read_message;
use super::system;
use super::tools::read_tools;
use crate::conversation::{Completion, Conversation, Message, Record};

const EITHER: &str = "a string, or a list of messages";

pub(super) fn read(mut row: Map<String, Value>) -> Result<Record, FieldError> {
    match row.get("prompt") {
        Some(Value::String(_)) => Ok(Record::Completion(Completion {
            prompt: string(&row, "prompt", "prompt")?,
            completion: string(&row, "completion", "completion")?,
        })),
        Some(Value::Array(_)) => {
            let mut messages = turns(&mut row, "prompt", false)?;
            system::put_before(&row, &mut messages)?;
            let prompt_messages = messages.len();
            messages.extend(turns(&mut row, "completion", true)?);
            let tools = read_tools(&mut row)?;
            Ok(Record::Chat {
                chat: Conversation { messages, tools },
                prompt_messages,
            })
        }
        Some(other) => Err(FieldError::new("prompt", EITHER, describe(other))),
        None => Err(FieldError::new("prompt", EITHER, missing(&row))),
    }
}

pub(super) fn turns(
    row: &mut Map<String, Value>,
    key: &'static str,
    trained: bool,
) -> Result<Vec<Message>, FieldError> {
    let list = match row.remove(key) {
        Some(Value::Array(list)) if !list.is_empty() => list,
        Some(other) => {
            let expected = "a list with at least one message";
            return Err(FieldError::new(key, expected, describe(&other)));
        }
        None => return Err(FieldError::new(key, EITHER, missing(row))),
    };
    list.into_iter()
        .enumerate()
        .map(|(index, message)| {
            let mut message = read_message(key, index, message)?;
            message.trained &= trained;
            Ok(message)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use crate::conversation::{Completion, Message, Record, Role};
    use serde_json::json;

    #[test]
    fn reads_texts_and_messages() {
        let read = |value| Format::PromptCompletion.read(value).unwrap();
        assert_eq!(
            read(json!({"prompt": "a ", "completion": "b"})),
            Record::Completion(Completion {
                prompt: "a ".into(),
                completion: "b".into()
            })
        );
        let Record::Chat {
            chat,
            prompt_messages,
        } = read(json!({
            "prompt": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}],
            "completion": [{"role": "assistant", "content": "z"}],
        }))
        else {
            panic!("a chat")
        };
        assert_eq!(prompt_messages, 2);
        let mut expected = vec![
            Message::new(Role::Assistant, "x"),
            Message::new(Role::User, "y"),
            Message::new(Role::Assistant, "z"),
        ];
        expected[0].trained = false;
        assert_eq!(chat.messages, expected);
    }

    #[test]
    fn names_the_broken_field() {
        let message = |value| {
            Format::PromptCompletion
                .read(value)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            message(json!({"prompt": "a"})),
            "field `completion`: expected a string, found no such key (the keys are `prompt`)"
        );
        assert_eq!(
            message(json!({"prompt": {}, "completion": "b"})),
            "field `prompt`: expected a string, or a list of messages, found an object"
        );
        assert_eq!(
            message(json!({"prompt": [{"role": "user", "content": "x"}], "completion": "b"})),
            "field `completion`: expected a list with at least one message, found the string \"b\""
        );
    }
}
