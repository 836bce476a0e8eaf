//! What every JSON line of the program has in common.

use serde::Serialize;
use serde_json::{Map, Value};

/// Version of the lines' shape, in each of them as `schema_version`. It rises when a key is renamed, removed or given
/// another meaning; new keys and events do not change it.
pub(crate) const SCHEMA_VERSION: u64 = 1;

/// One line without its end: `event`, `schema_version`, then the keys of `value`, which is an object.
pub(crate) fn line(event: &str, value: &impl Serialize) -> serde_json::Result<String> {
    Ok(line_of(event, serde_json::to_value(value)?))
}

/// The same of what is JSON already.
pub(crate) fn line_of(event: &str, value: Value) -> String {
    let mut line = Map::new();
    line.insert("event".to_owned(), event.into());
    line.insert("schema_version".to_owned(), SCHEMA_VERSION.into());
    match value {
        Value::Object(keys) => {
            for (key, value) in keys {
                // A name of the envelope is the envelope's.
                line.entry(key).or_insert(value);
            }
        }
        other => {
            line.insert("value".to_owned(), other);
        }
    }
    Value::Object(line).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_follow_the_name_of_the_event() {
        let text = line("step", &json!({ "step": 3, "loss": 1.5 })).unwrap();
        assert_eq!(
            text,
            r#"{"event":"step","schema_version":1,"step":3,"loss":1.5}"#
        );
        let text = line("step", &json!({ "event": "mine", "step": 3 })).unwrap();
        assert_eq!(text, r#"{"event":"step","schema_version":1,"step":3}"#);
        let text = line("names", &["a", "b"]).unwrap();
        assert_eq!(
            text,
            r#"{"event":"names","schema_version":1,"value":["a","b"]}"#
        );
    }

    #[test]
    fn what_is_no_number_is_null() {
        let text = line("step", &json!({ "loss": f64::NAN })).unwrap();
        assert_eq!(text, r#"{"event":"step","schema_version":1,"loss":null}"#);
    }
}
