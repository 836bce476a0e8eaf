//! Calls of tools in a model's text, as Hermes and Qwen write them: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.

use serde_json::{Map, Value, json};

use crate::stop::StopText;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// Text of an answer: what stands before the first call is shown as it comes, the rest at the end.
#[derive(Debug)]
pub(crate) struct ToolText {
    before: StopText,
    /// From the first call on, once it is there.
    calls: Option<String>,
    /// All pieces, to find what stands behind the opening.
    all: String,
    shown: usize,
}

impl ToolText {
    pub(crate) fn new() -> Self {
        Self {
            before: StopText::new(&[OPEN.to_owned()]),
            calls: None,
            all: String::new(),
            shown: 0,
        }
    }

    /// What may be shown now.
    pub(crate) fn push(&mut self, piece: &str) -> String {
        if let Some(calls) = &mut self.calls {
            calls.push_str(piece);
            return String::new();
        }
        self.all.push_str(piece);
        let (shown, found) = self.before.push(piece);
        self.shown += shown.len();
        if found {
            self.calls = Some(self.all[self.shown..].to_owned());
        }
        shown
    }

    /// What is still to be shown, and the calls. Text that begins like a call and is none is shown as it is.
    pub(crate) fn finish(&mut self) -> (String, Vec<Value>) {
        let Some(text) = self.calls.take() else {
            return (self.before.finish(), Vec::new());
        };
        match calls(&text) {
            Some(calls) => (String::new(), calls),
            None => (text, Vec::new()),
        }
    }
}

/// `function` objects of OpenAI's `tool_calls`; `None` where the text holds anything but calls.
fn calls(text: &str) -> Option<Vec<Value>> {
    let mut calls = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let body = rest.strip_prefix(OPEN)?;
        let (body, after) = match body.split_once(CLOSE) {
            Some(parts) => parts,
            // The end of the answer ends the last call too.
            None => (body, ""),
        };
        let call: Map<String, Value> = serde_json::from_str(body.trim()).ok()?;
        let name = call.get("name")?.as_str()?;
        let arguments = call.get("arguments").or(call.get("parameters"));
        let arguments = match arguments {
            None => "{}".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        };
        calls.push(json!({ "name": name, "arguments": arguments }));
        rest = after.trim();
    }
    (!calls.is_empty()).then_some(calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&str]) -> (String, Vec<Value>) {
        let mut text = ToolText::new();
        let mut shown: String = pieces.iter().map(|piece| text.push(piece)).collect();
        let (rest, calls) = text.finish();
        shown.push_str(&rest);
        (shown, calls)
    }

    #[test]
    fn calls_are_cut_out_of_the_text() {
        let (text, calls) = read(&[
            "Let me see.\n<tool",
            "_call>\n{\"name\": \"time\", \"arguments\": {\"zone\": \"UTC\"}}\n</tool_call>",
            "\n<tool_call>{\"name\": \"now\"}",
        ]);
        assert_eq!(text, "Let me see.\n");
        let expected = [
            json!({"name": "time", "arguments": "{\"zone\":\"UTC\"}"}),
            json!({"name": "now", "arguments": "{}"}),
        ];
        assert_eq!(calls, expected);
    }

    #[test]
    fn what_is_no_call_stays_text() {
        for text in [
            "a < b",
            "<tool_call>",
            "<tool_call>{\"name\": 3}</tool_call>",
            "<tool_call>{}</tool_call> so",
        ] {
            let pieces: Vec<String> = text.chars().map(String::from).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            assert_eq!(read(&pieces), (text.to_owned(), Vec::new()));
        }
    }
}
