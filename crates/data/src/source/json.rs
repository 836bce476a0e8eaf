//! JSON as Python writes it: with bare words for numbers that JSON does not have.

use serde_json::{Map, Value};

use crate::error::JsonFault;
use crate::format::FieldError;

/// Numbers that Python's `json` writes as bare words.
const WORDS: [&str; 3] = ["NaN", "Infinity", "-Infinity"];
/// The key of an object that stands for such a word until it is known whether anybody reads it.
const MARK: &str = "\0";
/// Bytes of `{"\u0000":""}`, which a mark adds to its word.
const MARK_BYTES: usize = 13;
/// The digits of the smallest integer that 64 bits do not hold.
const LARGE: usize = 19;
/// The keys of a message that have a meaning of their own; others are only there for templates.
const OF_A_MESSAGE: [&str; 17] = [
    "role",
    "from",
    "content",
    "value",
    "name",
    "tool_calls",
    "tool_call_id",
    "function_call",
    "tool_responses",
    "reasoning_content",
    "reasoning",
    "thinking",
    "weight",
    "train",
    "masked",
    "text",
    "type",
];

/// A value, and whether it has [marks](MARK).
pub(super) struct Parsed {
    pub(super) value: Value,
    pub(super) marked: bool,
}

/// Reads a JSON text in which numbers may be `NaN`, `Infinity` or out of range, integers of any size.
pub(super) fn parse(text: &str) -> Result<Parsed, JsonFault> {
    let read: Result<Value, _> = serde_json::from_str(text);
    let marks = match &read {
        // A large integer is read, as a float with other digits.
        Ok(_) if !has_many_digits(text) => None,
        Ok(_) | Err(_) => mark(text),
    };
    let Some((marked, ends)) = marks else {
        let value = read.map_err(|error| JsonFault::of(&error))?;
        return Ok(Parsed {
            value,
            marked: false,
        });
    };
    let value = serde_json::from_str(&marked).map_err(|error| {
        let mut fault = JsonFault::of(&error);
        fault.column -= added_before(&marked, &ends, &fault);
        fault
    })?;
    Ok(Parsed {
        value,
        marked: true,
    })
}

/// Bytes that the marks before a fault, in its line, have added to it.
fn added_before(marked: &str, ends: &[usize], fault: &JsonFault) -> usize {
    let lines = marked.split_inclusive('\n').take(fault.lines_before);
    let start: usize = lines.map(str::len).sum();
    let inside = start + 1..start + fault.column;
    ends.iter().filter(|end| inside.contains(end)).count() * MARK_BYTES
}

/// The text with a mark in place of each number that JSON cannot hold, and where the marks end;
/// `None` if there is none.
fn mark(text: &str) -> Option<(String, Vec<usize>)> {
    let mut marked = String::with_capacity(text.len());
    let mut rest = text;
    let mut ends = Vec::new();
    while let Some(at) = rest.find(|c: char| c == '"' || is_of_a_word(c)) {
        marked.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match rest.starts_with('"') {
            true => string_length(rest),
            false => rest.find(|c| !is_of_a_word(c)).unwrap_or(rest.len()),
        };
        let (word, behind) = rest.split_at(length);
        if WORDS.contains(&word) || is_out_of_range(word) || is_large_integer(word) {
            marked.push_str(&format!("{{\"\\u0000\":\"{word}\"}}"));
            ends.push(marked.len());
        } else {
            marked.push_str(word);
        }
        rest = behind;
    }
    marked.push_str(rest);
    (!ends.is_empty()).then_some((marked, ends))
}

fn is_of_a_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.')
}

/// The bytes of a string with its quotes.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// A number such as `1e999`, which Python reads as infinity.
fn is_out_of_range(word: &str) -> bool {
    word.starts_with(|c: char| c == '-' || c.is_ascii_digit())
        && word.contains(['e', 'E'])
        && word.parse::<f64>().is_ok_and(f64::is_infinite)
}

/// An integer that 64 bits do not hold.
fn is_large_integer(word: &str) -> bool {
    let digits = word.strip_prefix('-').unwrap_or(word);
    digits.len() >= LARGE
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && word.parse::<u64>().is_err()
        && word.parse::<i64>().is_err()
}

fn has_many_digits(text: &str) -> bool {
    let mut words = text.as_bytes().split(|byte| !byte.is_ascii_digit());
    words.any(|digits| digits.len() >= LARGE)
}

/// Takes out of a row what is marked and not read; `reads` knows the names of the fields that are.
///
/// # Errors
/// A field that is read and marked, with its path.
pub(super) fn settle(row: &mut Value, reads: &dyn Fn(&str) -> bool) -> Result<(), FieldError> {
    let fields = match row {
        Value::Object(fields) if !is_mark(fields) => fields,
        _ => return refuse(row, String::new()),
    };
    fields.retain(|name, value| reads(name) || !is_marked(value));
    for (name, value) in fields {
        settle_field(value, name.clone())?;
    }
    Ok(())
}

fn settle_field(value: &mut Value, path: String) -> Result<(), FieldError> {
    // Of a tool every key is shown.
    if let Value::Array(messages) = value
        && !matches!(path.as_str(), "tools" | "functions")
    {
        let objects = messages.iter_mut().filter_map(Value::as_object_mut);
        for message in objects.filter(|message| !is_mark(message)) {
            message.retain(|key, value| OF_A_MESSAGE.contains(&&**key) || !is_marked(value));
        }
    }
    refuse(value, path)
}

fn refuse(value: &Value, path: String) -> Result<(), FieldError> {
    match value {
        Value::Object(fields) if is_mark(fields) => {
            let word = fields[MARK].as_str().unwrap_or_default();
            let (expected, instead) = match is_large_integer(word) {
                true => ("an integer of at most 64 bits", "it as a string"),
                false => ("a value that JSON has", "a number, a string or null"),
            };
            Err(FieldError {
                field: path,
                expected: expected.to_owned(),
                found: format!("{word}; write {instead}"),
            })
        }
        Value::Object(fields) => fields.iter().try_for_each(|(key, value)| {
            let dot = if path.is_empty() { "" } else { "." };
            refuse(value, format!("{path}{dot}{key}"))
        }),
        Value::Array(list) => {
            let mut items = list.iter().enumerate();
            items.try_for_each(|(index, value)| refuse(value, format!("{path}[{index}]")))
        }
        _ => Ok(()),
    }
}

fn is_mark(fields: &Map<String, Value>) -> bool {
    fields.len() == 1 && fields.contains_key(MARK)
}

fn is_marked(value: &Value) -> bool {
    refuse(value, String::new()).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn settled(text: &str) -> Result<Value, String> {
        let mut parsed = parse(text).map_err(|error| error.to_string())?;
        let reads = |name: &str| ["messages", "output", "tools"].contains(&name);
        settle(&mut parsed.value, &reads).map_err(|error| error.to_string())?;
        Ok(parsed.value)
    }

    /// Python reads every one of these.
    #[test]
    fn numbers_that_json_lacks_are_no_matter_where_nobody_reads() {
        for (text, expected) in [
            (
                r#"{"output": "a NaN", "score": NaN, "low":-Infinity,"n": 1}"#,
                json!({"output": "a NaN", "n": 1}),
            ),
            (
                r#"{"output": "\"NaN", "list": [1, {"a": Infinity}], "big": 1e999}"#,
                json!({"output": "\"NaN"}),
            ),
            (
                r#"{"messages": [{"role": "user", "content": "NaN", "reward": NaN}]}"#,
                json!({"messages": [{"role": "user", "content": "NaN"}]}),
            ),
        ] {
            assert_eq!(settled(text).unwrap(), expected);
        }
    }

    #[test]
    fn where_they_are_read_they_are_named() {
        let error = |text| settled(text).unwrap_err();
        assert_eq!(
            error(r#"{"output": NaN}"#),
            "field `output`: expected a value that JSON has, found NaN; write a number, a string or null"
        );
        assert_eq!(
            error(r#"{"messages": [{"role": "user", "content": -Infinity}]}"#),
            "field `messages[0].content`: expected a value that JSON has, found -Infinity; write a number, a string or null"
        );
        assert_eq!(
            error(r#"{"messages": [{"tool_calls": [{"arguments": {"x": [1, 1e400]}}]}]}"#),
            "field `messages[0].tool_calls[0].arguments.x[1]`: expected a value that JSON has, found 1e400; write a number, a string or null"
        );
        assert_eq!(
            error("NaN"),
            "field ``: expected a value that JSON has, found NaN; write a number, a string or null"
        );
    }

    #[test]
    fn integers_beyond_64_bits_do_not_change_their_digits() {
        // The largest and smallest that are exact, and one beyond each.
        let exact = r#"{"output": [18446744073709551615, -9223372036854775808], "id": 18446744073709551616}"#;
        assert_eq!(
            settled(exact).unwrap(),
            json!({"output": [u64::MAX, i64::MIN]})
        );
        let error = |text| settled(text).unwrap_err();
        assert_eq!(
            error(r#"{"tools": [{"x": 18446744073709551616}]}"#),
            "field `tools[0].x`: expected an integer of at most 64 bits, found 18446744073709551616; write it as a string"
        );
        assert!(error(r#"{"output": -9223372036854775809}"#).contains("64 bits"));
        // Digits in texts, and floats, are what they are.
        let others =
            r#"{"output": "18446744073709551616", "tools": [0.12345678901234567890123, 1e22]}"#;
        assert_eq!(
            settled(others).unwrap(),
            json!({"output": "18446744073709551616", "tools": [0.12345678901234568, 1e22]})
        );
    }

    #[test]
    fn other_words_are_still_errors() {
        let error = |text| settled(text).unwrap_err();
        assert_eq!(error(r#"{"a": nan}"#), "expected ident at column 8");
        assert_eq!(
            error(r#"{"a": NaN, "b": None}"#),
            "expected value at column 17"
        );
        assert_eq!(
            error("{\"a\": [NaN,\n Infinity, 1, nope]}"),
            "expected ident at column 16"
        );
        assert_eq!(error(r#"{"a": xNaN}"#), "expected value at column 7");
        assert_eq!(error(r#"{"a": 1,}"#), "trailing comma at column 9");
    }
}
