//! Exact scoring of an answer.

use serde::Serialize;
use serde_json::{Map, Value};

/// How good an answer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Score {
    /// The answer is the expected text, but for whitespace at both ends.
    pub exact: bool,
    /// The answer is one JSON object and nothing else.
    pub valid_json: bool,
    /// Expected fields with the expected value (numbers compared as numbers).
    pub fields_right: usize,
    /// Expected fields.
    pub fields: usize,
}

/// Compares a generated answer with the expected one.
pub fn score(prediction: &str, expected: &str) -> Score {
    let expected_fields = object(expected).unwrap_or_default();
    let predicted = object(prediction);
    let fields_right = predicted.as_ref().map_or(0, |predicted| {
        let right = |(key, value): &(&String, &Value)| {
            predicted.get(*key).is_some_and(|other| same(other, value))
        };
        expected_fields.iter().filter(right).count()
    });
    Score {
        exact: prediction.trim() == expected.trim(),
        valid_json: predicted.is_some(),
        fields_right,
        fields: expected_fields.len(),
    }
}

fn object(text: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(text.trim()).ok()
}

fn same(one: &Value, other: &Value) -> bool {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use super::{Score, score};

    #[track_caller]
    fn check(prediction: &str, exact: bool, valid_json: bool, fields_right: usize) {
        let expected = r#"{"name":"Ana","amount":42.50}"#;
        assert_eq!(
            score(prediction, expected),
            Score {
                exact,
                valid_json,
                fields_right,
                fields: 2
            }
        );
    }

    #[test]
    fn tells_exact_valid_and_wrong_answers_apart() {
        check(" {\"name\":\"Ana\",\"amount\":42.50}\n", true, true, 2);
        check(r#"{"amount": 42.5, "name": "Ana"}"#, false, true, 2);
        check(r#"{"name":"Ben","amount":42.50,"more":1}"#, false, true, 1);
        check(r#"{"name":"Ana","amount":"42.50"}"#, false, true, 1);
        check(r#"[{"name":"Ana"}]"#, false, false, 0);
        check(r#"Here: {"name":"Ana","amount":42.50}"#, false, false, 0);
        check(r#"{"name":"Ana","amount":42.50"#, false, false, 0);
        check("", false, false, 0);
    }
}
