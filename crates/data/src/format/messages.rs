//! `{"messages": [{"role": "user", "content": …}, …]}`

use serde_json::{Map, Value};

use super::field::{FieldError, describe, list, missing};
use super::system;
use super::tools::{read_calls, read_tools};
use crate::conversation::{Conversation, Message, REASONING_KEYS, Record, Role};

const LIST: &str = "a list with at least one message";

pub(super) fn read(mut row: Map<String, Value>) -> Result<Record, FieldError> {
    let mut messages = list(&mut row, "messages", LIST)?
        .into_iter()
        .enumerate()
        .map(|(index, message)| read_message("messages", index, message))
        .collect::<Result<_, _>>()?;
    system::put_before(&row, &mut messages)?;
    let tools = read_tools(&mut row)?;
    Ok(Record::Conversation(Conversation { messages, tools }))
}

pub(super) fn read_message(key: &str, index: usize, message: Value) -> Result<Message, FieldError> {
    let path = |field: &str| format!("{key}[{index}].{field}");
    let Value::Object(mut message) = message else {
        let found = describe(&message);
        return Err(FieldError::new(
            format!("{key}[{index}]"),
            "an object with `role` and `content`",
            found,
        ));
    };
    let role = read_role(&message, path("role"))?;
    read_calls(&mut message, &path)?;
    let content = read_content(&message, "content", path("content"))?;
    let trained = read_trained(&message, role, &path)?;
    for key in ["role", "content", "weight", "train", "masked"] {
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
        .and_then(Role::from_alias)
        .ok_or_else(|| FieldError::new(path, EXPECTED, describe(value)))
}

/// What a message says under `key`; `None` where it says nothing and calls a tool or thinks instead.
pub(super) fn read_content(
    message: &Map<String, Value>,
    key: &str,
    path: String,
) -> Result<Option<String>, FieldError> {
    match message.get(key) {
        Some(Value::String(text)) => Ok(Some(text.clone())),
        None | Some(Value::Null) if says_otherwise(message) => Ok(None),
        Some(Value::Array(parts)) if parts.is_empty() && says_otherwise(message) => Ok(None),
        Some(Value::Array(parts)) if !parts.is_empty() => match joined(parts) {
            Some(text) => Ok(Some(text)),
            None => Err(FieldError::new(
                path,
                "a string, or a list of {\"type\": \"text\", \"text\": …}",
                describe(&message[key]),
            )),
        },
        Some(other) => Err(FieldError::new(path, "a string", describe(other))),
        None => Err(FieldError::new(path, "a string", missing(message))),
    }
}

/// Whether a message has something beside its content.
fn says_otherwise(message: &Map<String, Value>) -> bool {
    let calls = message.get("tool_calls").and_then(Value::as_array);
    let mut reasoning = REASONING_KEYS.iter().filter_map(|key| message.get(*key));
    calls.is_some_and(|calls| !calls.is_empty()) || reasoning.any(Value::is_string)
}

/// The text of content in parts; `None` if a part is no text.
fn joined(parts: &[Value]) -> Option<String> {
    parts
        .iter()
        .map(|part| {
            (part["type"] == "text")
                .then(|| part["text"].as_str())
                .flatten()
        })
        .collect()
}

/// OpenAI's `weight` and its kin `train` and torchtune's `masked`: 0, false and true keep an assistant
/// turn as context only.
pub(super) fn read_trained(
    message: &Map<String, Value>,
    role: Role,
    path: &dyn Fn(&str) -> String,
) -> Result<bool, FieldError> {
    let weight = match message.get("weight") {
        None | Some(Value::Null) => true,
        Some(value) if value.as_f64() == Some(0.0) => false,
        Some(value) if value.as_f64() == Some(1.0) => true,
        Some(other) => return Err(FieldError::new(path("weight"), "0 or 1", describe(other))),
    };
    let flag = |key: &str| match message.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(other) => Err(FieldError::new(path(key), "true or false", describe(other))),
    };
    let train = flag("train")?.unwrap_or(true);
    let masked = flag("masked")?.unwrap_or(false);
    Ok(role == Role::Assistant && weight && train && !masked)
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
                    {"role": "assistant", "content": "no", "masked": true},
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
            Message::new(Role::Assistant, "no"),
            Message::new(Role::Assistant, ""),
            Message::new(Role::Tool, "1"),
            Message::new(Role::Assistant, "yes"),
        ];
        messages[2].trained = false;
        messages[3].trained = false;
        messages[4].content = None;
        messages[4]
            .extra
            .insert("tool_calls".into(), json!([{"name": "f"}]));
        messages[5].extra.insert("name".into(), json!("f"));
        let expected = Conversation {
            messages,
            tools: Some(json!([{"name": "f"}])),
        };
        assert_eq!(read, Record::Conversation(expected));
    }

    #[test]
    fn reads_content_in_parts_flags_and_other_names_of_roles() {
        let read = Format::Messages.read(json!({
            "messages": [
                {"role": "developer", "content": "d"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": "x", "train": false},
                {"role": "ipython", "content": "1"},
            ],
            "tools": "[]",
        }));
        let mut messages = vec![
            Message::new(Role::System, "d"),
            Message::new(Role::User, "ab"),
            Message::new(Role::Assistant, "x"),
            Message::new(Role::Tool, "1"),
        ];
        messages[2].trained = false;
        let expected = Conversation::new(messages);
        assert_eq!(read.unwrap(), Record::Conversation(expected));
        let text = r#"[{"role": "user", "content": "Hi"}]"#;
        let read = Format::Messages.read(json!({"messages": text})).unwrap();
        let expected = Conversation::new(vec![Message::new(Role::User, "Hi")]);
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
                "field `messages[0].content`: expected a string, or a list of {\"type\": \"text\", \"text\": …}, found a list of 1",
            ),
            (
                json!({"messages": "[1"}),
                "field `messages`: expected a list with at least one message, found the string \"[1\"",
            ),
            (
                json!({"messages": [{"role": "assistant", "content": "x", "train": 2}]}),
                "field `messages[0].train`: expected true or false, found the number 2",
            ),
            (
                json!({"messages": [{"role": "user", "content": "x"}], "tools": "f()"}),
                "field `tools`: expected a list of tools, as it is or as JSON in a string, found the string \"f()\"",
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
