//! Which fields of a row are probably meant, where its names are not those of a format.

use serde_json::{Map, Value};

use super::Format;

/// A format's fields with names that others use for them, the likeliest first.
type Names = &'static [(&'static str, &'static [&'static str])];

const ALPACA: Names = &[
    (
        "instruction",
        &[
            "instruction",
            "question",
            "query",
            "prompt",
            "problem",
            "request",
            "task",
            "user",
            "human",
            "user_input",
            "user_message",
            "q",
            "input",
            "source",
        ],
    ),
    (
        "output",
        &[
            "output",
            "answer",
            "response",
            "completion",
            "reply",
            "assistant",
            "solution",
            "bot",
            "gpt",
            "model",
            "target",
            "a",
            "answers",
            "chosen",
        ],
    ),
    ("input", &["input", "context", "passage"]),
];
const PROMPT_COMPLETION: Names = &[
    (
        "prompt",
        &[
            "prompt",
            "question",
            "query",
            "instruction",
            "problem",
            "input",
            "source",
        ],
    ),
    (
        "completion",
        &[
            "completion",
            "answer",
            "response",
            "output",
            "solution",
            "target",
            "chosen",
        ],
    ),
];
const TEXT: Names = &[(
    "text",
    &[
        "text", "content", "document", "body", "article", "story", "passage", "code", "sentence",
    ],
)];

/// The line of a recipe that names the fields of a row that fits no format; `None` where nothing is
/// likely.
pub(super) fn suggest(row: &Map<String, Value>) -> Option<String> {
    if let Some((key, ours)) = row
        .iter()
        .find_map(|(key, value)| Some((key, list(value)?)))
    {
        return Some(line(&[(ours, key)]));
    }
    let texts: Vec<&str> = row
        .iter()
        .filter(|(_, value)| value.is_string())
        .map(|(key, _)| &**key)
        .collect();
    pairs(ALPACA, 2, &texts).or_else(|| pairs(TEXT, 1, &texts))
}

/// The same for one format, by names alone.
pub(super) fn suggest_for(format: Format, keys: &[&str]) -> Option<String> {
    match format {
        Format::Alpaca => pairs(ALPACA, 2, keys),
        Format::PromptCompletion => pairs(PROMPT_COMPLETION, 2, keys),
        Format::Text => pairs(TEXT, 1, keys),
        Format::Messages | Format::Sharegpt | Format::Preference | Format::Unpaired => None,
    }
}

/// The field that a list of turns is for.
fn list(value: &Value) -> Option<&'static str> {
    let first = value.as_array()?.first()?.as_object()?;
    let has = |a, b| first.contains_key(a) && first.contains_key(b);
    match () {
        () if has("role", "content") => Some("messages"),
        () if has("from", "value") => Some("conversations"),
        () => None,
    }
}

/// Pairs of each field and the likeliest key; the first `needed` fields must have one.
fn pairs(names: Names, needed: usize, keys: &[&str]) -> Option<String> {
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    for (number, (ours, theirs)) in names.iter().enumerate() {
        let is_free = |key: &&&str| !pairs.iter().any(|(_, taken)| taken == *key);
        let likeliest = theirs.iter().find_map(|name| {
            let mut free = keys.iter().filter(is_free);
            free.find(|key| key.eq_ignore_ascii_case(name))
        });
        match likeliest {
            Some(key) => pairs.push((ours, key)),
            None if number < needed => return None,
            None => {}
        }
    }
    Some(line(&pairs))
}

/// `fields = { instruction = "question", output = "answer" }`
fn line(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        // A TOML string has JSON's escapes.
        .map(|(ours, theirs)| format!("{ours} = {}", Value::from(*theirs)))
        .collect();
    format!("fields = {{ {} }}", pairs.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_that_others_use_are_known() {
        let suggested = |row: Value| suggest(row.as_object().unwrap());
        for (row, expected) in [
            (
                json!({"id": "7", "Question": "q", "Answer": "a"}),
                r#"{ instruction = "Question", output = "Answer" }"#,
            ),
            (
                json!({"context": "c", "question": "q", "response": "r"}),
                r#"{ instruction = "question", output = "response", input = "context" }"#,
            ),
            (
                json!({"input": "i", "output": "o"}),
                r#"{ instruction = "input", output = "output" }"#,
            ),
            (
                json!({"dialog": [{"role": "user", "content": "x"}], "answer": "a"}),
                r#"{ messages = "dialog" }"#,
            ),
            (
                json!({"turns": [{"from": "human", "value": "x"}]}),
                r#"{ conversations = "turns" }"#,
            ),
            (json!({"id": 1, "content": "t"}), r#"{ text = "content" }"#),
        ] {
            assert_eq!(suggested(row), Some(format!("fields = {expected}")));
        }
        assert_eq!(suggested(json!({"id": 1, "label": "x"})), None);
        assert_eq!(suggested(json!({"question": 1, "answer": 2})), None);
        assert_eq!(suggested(json!({"question": "q"})), None);
    }
}
