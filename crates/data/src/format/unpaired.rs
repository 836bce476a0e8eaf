//! `{"prompt": …, "completion": …, "label": true}`: one answer, and whether it is a good one.

use serde_json::{Map, Value};

use super::field::{FieldError, describe, missing};
use super::prompt_completion;
use crate::conversation::{Record, Unpaired};

const LABEL: &str = "true for a desirable answer or false for an undesirable one";

pub(super) fn read(row: Map<String, Value>) -> Result<Record, FieldError> {
    let desirable = match row.get("label") {
        Some(Value::Bool(label)) => *label,
        Some(other) => return Err(FieldError::new("label", LABEL, describe(other))),
        None => return Err(FieldError::new("label", LABEL, missing(&row))),
    };
    let answer = prompt_completion::read(row)?;
    Ok(Record::Unpaired(Box::new(Unpaired { answer, desirable })))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Format;
    use crate::conversation::Record;

    #[test]
    fn reads_an_answer_with_its_label() {
        let plain = json!({"prompt": "a ", "completion": "b"});
        for label in [true, false] {
            let mut row = plain.clone();
            row["label"] = label.into();
            let Record::Unpaired(read) = Format::Unpaired.read(row).unwrap() else {
                panic!("an unpaired row")
            };
            assert_eq!(read.desirable, label);
            let answer = Format::PromptCompletion.read(plain.clone()).unwrap();
            assert_eq!(read.answer, answer);
        }
    }

    #[test]
    fn names_the_broken_field() {
        let message = |row| Format::Unpaired.read(row).unwrap_err().to_string();
        assert_eq!(
            message(json!({"prompt": "a", "completion": "b", "label": 1})),
            "field `label`: expected true for a desirable answer or false for an undesirable one, found the number 1"
        );
        assert_eq!(
            message(json!({"prompt": "a", "label": true})),
            "field `completion`: expected a string, found no such key (the keys are `prompt`, `label`)"
        );
    }
}
