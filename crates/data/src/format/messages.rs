//! `{"messages": [{"role": "user", "content": …}, …]}`

use serde_json::{Map, Value};

use super::field::{FieldError, describe, missing};
use crate::conversation::{Conversation, Message, Record, Role};

const LIST: &str = "a list with at least one message";

pub(super) fn read(mut row: Map<String, Value>) -> Result<Record, FieldError> {
    let messages = match row.remove("messages") {
        Some(Value::Array(list)) if !list.is_empty() => list,
        Some(other) => return Err(FieldError::new("messages", LIST, describe(&other))),
        None => return Err(FieldError::new("messages", LIST, missing(&row))),
    };
    let messages = messages
        .into_iter()
        .enumerate()
        .map(|(index, message)| read_message(index, message))
        .collect::<Result<_, _>>()?;
    let tools = row.remove("tools").filter(|tools| !tools.is_null());
    Ok(Record::Conversation(Conversation { messages, tools }))
}

fn read_message(index: usize, message: Value) -> Result<Message, FieldError> {
    let path = |key: &str| format!("messages[{index}].{key}");
    let Value::Object(mut message) = message else {
        let found = describe(&message);
        return Err(FieldError::new(
            format!("messages[{index}]"),
            "an object with `role` and `content`",
            found,
        ));
    };
    let role = read_role(&message, path("role"))?;
    let content = read_content(&message, path("content"))?;
    let trained = role == Role::Assistant && read_weight(&message, path("weight"))?;
    for key in ["role", "content", "weight"] {
        // `shift_remove` keeps the order of the others, which `tojson` shows.
        message.shift_remove(key);
    }
    Ok(Message {
        role,
        content,
        trained,
        extra: message,
    })
}

fn read_role(message: &Map<String, Value>, path: String) -> Result<Role, FieldError> {
    const EXPECTED: &str = "\"system\", \"user\", \"assistant\" or \"tool\"";
    let Some(value) = message.get("role") else {
        return Err(FieldError::new(path, EXPECTED, missing(message)));
    };
    value
        .as_str()
        .and_then(Role::from_name)
        .ok_or_else(|| FieldError::new(path, EXPECTED, describe(value)))
}

fn read_content(message: &Map<String, Value>, path: String) -> Result<String, FieldError> {
    match message.get("content") {
        Some(Value::String(text)) => Ok(text.clone()),
        // A turn that only calls tools says nothing.
        None | Some(Value::Null) if message.contains_key("tool_calls") => Ok(String::new()),
        Some(other) => Err(FieldError::new(path, "a string", describe(other))),
        None => Err(FieldError::new(path, "a string", missing(message))),
    }
}

/// OpenAI's `weight`: 0 keeps an assistant turn as context only.
fn read_weight(message: &Map<String, Value>, path: String) -> Result<bool, FieldError> {
    match message.get("weight") {
        None | Some(Value::Null) => Ok(true),
        Some(value) if value.as_f64() == Some(0.0) => Ok(false),
        Some(value) if value.as_f64() == Some(1.0) => Ok(true),
        Some(other) => Err(FieldError::new(path, "0 or 1", describe(other))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use crate::conversation::{Conversation, Message, Record, Role};
    use serde_json::json;

    #[test]
    fn reads_roles_weights_tools_and_extra_keys() {
        let read = Format::Messages
            .read(json!({
                "messages": [
                    {"role": "system", "content": ""},
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "no", "weight": 0},
                    {"role": "assistant", "content": null, "tool_calls": [{"name": "f"}]},
                    {"role": "tool", "content": "1", "name": "f"},
                    {"role": "assistant", "content": "yes", "weight": 1},
                ],
                "tools": [{"name": "f"}],
            }))
            .unwrap();
        let mut messages = vec![
            Message::new(Role::System, ""),
            Message::new(Role::User, "Hi"),
            Message::new(Role::Assistant, "no"),
            Message::new(Role::Assistant, ""),
            Message::new(Role::Tool, "1"),
            Message::new(Role::Assistant, "yes"),
        ];
        messages[2].trained = false;
        messages[3]
            .extra
            .insert("tool_calls".into(), json!([{"name": "f"}]));
        messages[4].extra.insert("name".into(), json!("f"));
        let expected = Conversation {
            messages,
            tools: Some(json!([{"name": "f"}])),
        };
        assert_eq!(read, Record::Conversation(expected));
    }

    #[test]
    fn names_the_broken_field() {
        let message = |value| Format::Messages.read(value).unwrap_err().to_string();
        let cases = [
            (
                json!({}),
                "field `messages`: expected a list with at least one message, found an empty object",
            ),
            (
                json!({"messages": []}),
                "field `messages`: expected a list with at least one message, found an empty list",
            ),
            (
                json!({"messages": ["x"]}),
                "field `messages[0]`: expected an object with `role` and `content`, found the string \"x\"",
            ),
            (
                json!({"messages": [{"role": "user", "content": "x"}, {"role": "bot", "content": "y"}]}),
                "field `messages[1].role`: expected \"system\", \"user\", \"assistant\" or \"tool\", found the string \"bot\"",
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
                "field `messages[0].content`: expected a string, found a list of 1",
            ),
            (
                json!({"messages": [{"role": "user"}]}),
                "field `messages[0].content`: expected a string, found no such key (the keys are `role`)",
            ),
            (
                json!({"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]}),
                "field `messages[0].weight`: expected 0 or 1, found the number 0.5",
            ),
        ];
        for (row, expected) in cases {
            assert_eq!(message(row), expected);
        }
    }
}
