//! The tools that stand beside the turns, and the calls inside them.

use serde_json::{Map, Value, json};

use super::field::{FieldError, describe};

/// The tools of a row.
///
/// A list of descriptions, as it is or in JSON; each of them may be JSON in a string, as tables
/// write it. One description alone counts as a list of one. `functions` is OpenAI's older key.
pub(super) fn read_tools(row: &mut Map<String, Value>) -> Result<Option<Value>, FieldError> {
    let tools = read_list(row, "tools")?;
    let functions = read_list(row, "functions")?;
    let functions = functions
        .into_iter()
        .map(|function| json!({"type": "function", "function": function}));
    let tools: Vec<Value> = match tools.is_empty() {
        true => functions.collect(),
        false => tools,
    };
    Ok((!tools.is_empty()).then(|| tools.into()))
}

fn read_list(row: &mut Map<String, Value>, key: &str) -> Result<Vec<Value>, FieldError> {
    const EXPECTED: &str = "a list of tools, as it is or as JSON in a string";
    let tools = match row.shift_remove(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(Vec::new()),
        Some(Value::String(text)) => match serde_json::from_str(&text) {
            Ok(tools @ (Value::Array(_) | Value::Object(_) | Value::Null)) => tools,
            _ => Value::String(text),
        },
        Some(tools) => tools,
    };
    let tools = match tools {
        Value::Null => Vec::new(),
        Value::Array(tools) => tools,
        Value::Object(tool) if tool.is_empty() => Vec::new(),
        tool @ Value::Object(_) => vec![tool],
        other => return Err(FieldError::new(key, EXPECTED, describe(&other))),
    };
    let tool = |(index, tool): (usize, Value)| {
        let read = match &tool {
            Value::String(text) => serde_json::from_str(text).ok(),
            _ => Some(tool.clone()),
        };
        read.filter(Value::is_object).ok_or_else(|| {
            let expected = "a tool: an object, as it is or as JSON in a string";
            FieldError::new(format!("{key}[{index}]"), expected, describe(&tool))
        })
    };
    tools.into_iter().enumerate().map(tool).collect()
}

/// Gives a message's calls the form that templates read, `tool_calls: [{"function": {"name": …,
/// "arguments": …}}, …]`: from JSON in a string, and from OpenAI's older `function_call`.
pub(super) fn read_calls(
    message: &mut Map<String, Value>,
    path: &dyn Fn(&str) -> String,
) -> Result<(), FieldError> {
    const EXPECTED: &str = "a list of calls, as it is or as JSON in a string";
    if let Some(Value::String(text)) = message.get("tool_calls") {
        let calls = match text.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_default(),
        };
        if !(calls.is_array() || text.trim().is_empty() || text.trim() == "null") {
            let found = describe(&message["tool_calls"]);
            return Err(FieldError::new(path("tool_calls"), EXPECTED, found));
        }
        message.insert("tool_calls".to_owned(), calls);
    }
    match message.get("tool_calls") {
        None | Some(Value::Null) => {}
        Some(Value::Array(calls)) if calls.is_empty() => {}
        Some(Value::Array(_)) => return Ok(()),
        Some(other) => {
            let found = describe(other);
            return Err(FieldError::new(path("tool_calls"), EXPECTED, found));
        }
    }
    if let Some(call @ Value::Object(_)) = message.get("function_call").cloned() {
        message.shift_remove("function_call");
        let calls = json!([{"type": "function", "function": call}]);
        message.insert("tool_calls".to_owned(), calls);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_tools_in_their_usual_shapes() {
        let tool = json!({"type": "function", "function": {"name": "f"}});
        let read = |row: Value| read_tools(&mut row.as_object().unwrap().clone());
        let one = Some(json!([tool]));
        for tools in [
            json!([tool]),
            json!(json!([tool]).to_string()),
            json!([tool.to_string()]),
            tool.clone(),
            json!(tool.to_string()),
        ] {
            assert_eq!(read(json!({"tools": tools})).unwrap(), one, "{tools}");
        }
        assert_eq!(read(json!({"functions": [{"name": "f"}]})).unwrap(), one);
        for nothing in [
            json!(null),
            json!([]),
            json!(""),
            json!("[]"),
            json!({}),
            json!("null"),
        ] {
            assert_eq!(read(json!({"tools": nothing})).unwrap(), None, "{nothing}");
        }
        let error = |row| read(row).unwrap_err().to_string();
        assert_eq!(
            error(json!({"tools": "f()"})),
            "field `tools`: expected a list of tools, as it is or as JSON in a string, found the string \"f()\""
        );
        assert_eq!(
            error(json!({"tools": [tool, "f"]})),
            "field `tools[1]`: expected a tool: an object, as it is or as JSON in a string, found the string \"f\""
        );
    }

    #[test]
    fn reads_calls_in_json_and_the_older_key() {
        let call = json!({"name": "f", "arguments": {}});
        let calls = json!([{"type": "function", "function": call}]);
        for mut message in [
            json!({"tool_calls": calls}),
            json!({"tool_calls": calls.to_string()}),
            json!({"tool_calls": null, "function_call": call}),
        ] {
            let message = message.as_object_mut().unwrap();
            read_calls(message, &str::to_owned).unwrap();
            assert_eq!(message["tool_calls"], calls);
            assert!(!message.contains_key("function_call"));
        }
        let mut wrong = json!({"tool_calls": "f()"});
        let error = read_calls(wrong.as_object_mut().unwrap(), &str::to_owned).unwrap_err();
        assert_eq!(
            error.to_string(),
            "field `tool_calls`: expected a list of calls, as it is or as JSON in a string, found the string \"f()\""
        );
    }
}
