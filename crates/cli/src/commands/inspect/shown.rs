//! What was found, for programs and for people.

use serde_json::{Map, Value};

use crate::plain::group;

/// Facts in their order: a value for programs, and the words for people where the value alone would not do.
#[derive(Debug, Default)]
pub(super) struct Shown {
    facts: Vec<(String, Value, Option<String>)>,
}

impl Shown {
    /// A fact whose value speaks for itself.
    pub(super) fn fact(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.facts.push((key.to_owned(), value.into(), None));
        self
    }

    /// A fact in words of its own.
    pub(super) fn told(mut self, key: &str, value: impl Into<Value>, words: String) -> Self {
        self.facts.push((key.to_owned(), value.into(), Some(words)));
        self
    }

    /// A fact for programs alone.
    pub(super) fn quiet(self, key: &str, value: impl Into<Value>) -> Self {
        self.told(key, value, String::new())
    }

    /// A number that may be large.
    pub(super) fn count(self, key: &str, count: usize) -> Self {
        self.told(key, count, group(count as u64))
    }

    /// A number of bytes.
    pub(super) fn bytes(self, key: &str, bytes: usize) -> Self {
        self.told(key, bytes, gib(bytes))
    }

    /// Every entry of an object.
    pub(super) fn all(mut self, object: Value) -> Self {
        if let Value::Object(object) = object {
            let facts = object.into_iter().map(|(key, value)| (key, value, None));
            self.facts.extend(facts);
        }
        self
    }

    /// One object.
    pub(super) fn to_json(&self) -> Value {
        let facts = self.facts.iter();
        let facts = facts.map(|(key, value, _)| (key.clone(), value.clone()));
        Value::Object(facts.collect::<Map<_, _>>())
    }

    /// A line for each fact; what is not there is left out.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (key, value, words) in &self.facts {
            match words {
                Some(words) if words.is_empty() => {}
                Some(words) => lines.push(line(key, words)),
                None => push_lines(&mut lines, key, value),
            }
        }
        lines
    }
}

fn line(key: &str, words: &str) -> String {
    format!("{:<26} {words}", key.replace('_', " "))
}

fn push_lines(lines: &mut Vec<String>, key: &str, value: &Value) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                push_lines(lines, &format!("{key}.{field}"), value);
            }
        }
        Value::Array(values) if values.iter().any(Value::is_object) => {
            for (index, value) in values.iter().enumerate() {
                push_lines(lines, &format!("{key}[{index}]"), value);
            }
        }
        value => lines.extend(words(value).map(|words| line(key, &words))),
    }
}

/// A value in words; `None` where there is none.
fn words(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Bool(true) => Some("yes".to_owned()),
        Value::Bool(false) => Some("no".to_owned()),
        Value::String(text) => Some(text.replace('\n', "\\n")),
        Value::Number(number) => Some(number.to_string()),
        Value::Array(values) if values.is_empty() => None,
        Value::Array(values) => {
            let words: Vec<String> = values.iter().filter_map(words).collect();
            Some(words.join(", "))
        }
        Value::Object(_) => Some(value.to_string()),
    }
}

fn gib(bytes: usize) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn people_read_words_and_programs_values() {
        let shown = Shown::default()
            .fact("kind", "recipe")
            .bytes("memory_base", 3 << 29)
            .quiet("total_steps", 9)
            .told(
                "heads",
                json!({"query": 9, "size": 64}),
                "9 query, of 64".to_owned(),
            )
            .all(json!({
                "lora": {"rank": 16, "bias": null, "target_modules": ["q_proj", "v_proj"]},
                "fields": {"instruction": "q"},
                "train": [{"path": "a.jsonl", "weight": 1.5}],
                "load_in_4bit": true,
                "seed": 12345,
                "skip": [],
            }))
            .count("tokens", 12345);
        insta::assert_snapshot!(shown.lines().join("\n"), @r"
        kind                       recipe
        memory base                1.50 GiB
        heads                      9 query, of 64
        lora.rank                  16
        lora.target modules        q_proj, v_proj
        fields.instruction         q
        train[0].path              a.jsonl
        train[0].weight            1.5
        load in 4bit               yes
        seed                       12345
        tokens                     12,345
        ");
        let json = shown.to_json();
        assert_eq!(json["memory_base"], 3u64 << 29);
        assert_eq!(json["heads"]["query"], 9);
        assert_eq!(json["lora"]["bias"], Value::Null);
    }
}
