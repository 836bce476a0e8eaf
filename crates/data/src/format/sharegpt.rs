//! `{"conversations": [{"from": "human", "value": …}, …]}`, in its dialects.

use serde_json::{Map, Value, json};

use super::field::{FieldError, describe, list, missing};
use super::messages::{read_content, read_trained};
use super::system;
use super::tools::{read_calls, read_tools};
use crate::conversation::{Conversation, Message, Record, Role};

const LIST: &str = "a list with at least one turn";
const ROLES: &str = "\"system\", \"human\", \"user\", \"gpt\", \"assistant\", \"model\", \"tool\" or another role of ShareGPT's dialects";

pub(super) fn read(mut row: Map<String, Value>) -> Result<Record, FieldError> {
    let key = match row.contains_key("conversations") {
        true => "conversations",
        false if row.contains_key("conversation") => "conversation",
        false => return Err(FieldError::new("conversations", LIST, missing(&row))),
    };
    let turns = list(&mut row, key, LIST)?;
    let mut messages = turns
        .into_iter()
        .enumerate()
        .map(|(index, turn)| read_turn(key, index, turn))
        .collect::<Result<_, _>>()?;
    system::put_before(&row, &mut messages)?;
    let tools = read_tools(&mut row)?;
    Ok(Record::Conversation(Conversation { messages, tools }))
}

/// What a dialect calls a turn.
enum Speaker {
    Role(Role),
    /// The assistant calls a tool: the text is the call in JSON.
    Call,
}

fn speaker(name: &str) -> Option<Speaker> {
    Some(Speaker::Role(match name.to_ascii_lowercase().as_str() {
        "system" => Role::System,
        "human" | "user" | "prompter" => Role::User,
        "gpt" | "assistant" | "model" | "bot" | "chatgpt" | "bing" | "bard" | "claude" => {
            Role::Assistant
        }
        "tool" | "function" | "observation" | "function_response" | "tool_response"
        | "function-response" => Role::Tool,
        "function_call" | "tool_call" | "function-call" => return Some(Speaker::Call),
        _ => return None,
    }))
}

fn read_turn(key: &str, index: usize, turn: Value) -> Result<Message, FieldError> {
    let path = |field: &str| format!("{key}[{index}].{field}");
    let Value::Object(mut turn) = turn else {
        let found = describe(&turn);
        let expected = "an object with `from` and `value`";
        return Err(FieldError::new(format!("{key}[{index}]"), expected, found));
    };
    // Some files keep the list's name and write the turns as `messages` rows do.
    let (from, value) = match turn.contains_key("from") || !turn.contains_key("role") {
        true => ("from", "value"),
        false => ("role", "content"),
    };
    let name = match turn.get(from) {
        Some(Value::String(name)) => name,
        Some(other) => return Err(FieldError::new(path(from), ROLES, describe(other))),
        None => return Err(FieldError::new(path(from), ROLES, missing(&turn))),
    };
    let Some(speaker) = speaker(name) else {
        let found = format!("the string \"{}\"", super::field::shorten(name));
        return Err(FieldError::new(path(from), ROLES, found));
    };
    read_calls(&mut turn, &path)?;
    let (role, content) = match speaker {
        Speaker::Role(role) => (role, read_content(&turn, value, path(value))?),
        Speaker::Call => {
            let calls = calls(turn.get(value), path(value))?;
            turn.insert("tool_calls".to_owned(), calls);
            (Role::Assistant, None)
        }
    };
    let trained = read_trained(&turn, role, &path)?;
    for key in [from, value, "weight", "train", "masked"] {
        // `shift_remove` keeps the order of the others, which `tojson` shows.
        turn.shift_remove(key);
    }
    Ok(Message {
        role,
        content,
        trained,
        extra: turn,
    })
}

/// A turn that is one call in JSON, `{"name": …, "arguments": …}`, or a list of calls.
fn calls(call: Option<&Value>, path: String) -> Result<Value, FieldError> {
    const EXPECTED: &str = "a call in JSON, {\"name\": …, \"arguments\": …}, or a list of them";
    let read = match call {
        Some(Value::String(text)) => serde_json::from_str(text).ok(),
        other => other.cloned(),
    };
    let calls = match read {
        Some(Value::Array(calls)) if !calls.is_empty() => calls,
        Some(call @ Value::Object(_)) => vec![call],
        _ => Vec::new(),
    };
    if calls.is_empty() || calls.iter().any(|call| !call["name"].is_string()) {
        let found = call.map_or_else(|| "no such key".to_owned(), describe);
        return Err(FieldError::new(path, EXPECTED, found));
    }
    let calls = calls.into_iter();
    Ok(calls
        .map(|call| json!({"type": "function", "function": call}))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use crate::conversation::{Conversation, Message, Record, Role};
    use serde_json::json;

    fn read(value: serde_json::Value) -> Conversation {
        match Format::Sharegpt.read(value).unwrap() {
            Record::Conversation(chat) => chat,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reads_the_dialects_of_role_names() {
        for (human, gpt, tool) in [
            ("human", "gpt", "tool"),
            ("user", "assistant", "function_response"),
            ("prompter", "Bing", "observation"),
            ("USER", "model", "function"),
        ] {
            let chat = read(json!({"conversations": [
                {"from": "system", "value": "s"},
                {"from": human, "value": "q"},
                {"from": gpt, "value": "a"},
                {"from": tool, "value": "t"},
                {"from": gpt, "value": "b", "weight": 0},
                {"from": gpt, "value": "c", "train": true},
            ]}));
            let mut expected = vec![
                Message::new(Role::System, "s"),
                Message::new(Role::User, "q"),
                Message::new(Role::Assistant, "a"),
                Message::new(Role::Tool, "t"),
                Message::new(Role::Assistant, "b"),
                Message::new(Role::Assistant, "c"),
            ];
            expected[4].trained = false;
            assert_eq!(chat.messages, expected);
        }
    }

    #[test]
    fn reads_a_system_prompt_tools_and_calls() {
        let chat = read(json!({
            "system": "s",
            "tools": "[{\"name\": \"f\"}]",
            "conversation": [
                {"role": "user", "content": "q"},
                {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"},
            ],
        }));
        assert_eq!(chat.tools, Some(json!([{"name": "f"}])));
        assert_eq!(chat.messages[0], Message::new(Role::System, "s"));
        assert_eq!(chat.messages[1], Message::new(Role::User, "q"));
        assert_eq!(
            chat.messages[2].extra["tool_calls"],
            json!([{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}])
        );
        assert!(chat.messages[2].trained);
    }

    #[test]
    fn names_the_broken_field() {
        let message = |value| Format::Sharegpt.read(value).unwrap_err().to_string();
        assert_eq!(
            message(json!({"conversations": [{"from": "alien", "value": "x"}]})),
            "field `conversations[0].from`: expected \"system\", \"human\", \"user\", \"gpt\", \"assistant\", \
             \"model\", \"tool\" or another role of ShareGPT's dialects, found the string \"alien\""
        );
        assert_eq!(
            message(json!({"conversations": [{"from": "gpt", "value": 3}]})),
            "field `conversations[0].value`: expected a string, found the number 3"
        );
        assert_eq!(
            message(json!({"turns": []})),
            "field `conversations`: expected a list with at least one turn, found no such key (the keys are `turns`)"
        );
        assert_eq!(
            message(json!({"conversations": [{"from": "function_call", "value": "f(1)"}]})),
            "field `conversations[0].value`: expected a call in JSON, {\"name\": …, \"arguments\": …}, or a \
             list of them, found the string \"f(1)\""
        );
    }
}
