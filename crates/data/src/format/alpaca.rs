//! `{"instruction": …, "input": …, "output": …}`

use serde_json::{Map, Value};

use super::field::{FieldError, describe, string};
use crate::conversation::{Instruction, Record};

pub(super) fn read(row: &Map<String, Value>) -> Result<Record, FieldError> {
    let input = match row.get("input") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => {
            return Err(FieldError::new(
                "input",
                "a string, null or nothing",
                describe(other),
            ));
        }
    };
    Ok(Record::Instruction(Instruction {
        instruction: string(row, "instruction", "instruction")?,
        input,
        output: string(row, "output", "output")?,
    }))
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use crate::conversation::{Instruction, Record};
    use serde_json::json;

    #[test]
    fn reads_rows_with_and_without_input() {
        let row = |instruction: &str, input: &str, output: &str| {
            Record::Instruction(Instruction {
                instruction: instruction.into(),
                input: input.into(),
                output: output.into(),
            })
        };
        let read = |value| Format::Alpaca.read(value).unwrap();
        assert_eq!(
            read(json!({"instruction": "Add", "input": "1 2", "output": "3"})),
            row("Add", "1 2", "3")
        );
        assert_eq!(
            read(json!({"instruction": "Hi", "output": ""})),
            row("Hi", "", "")
        );
        assert_eq!(
            read(json!({"instruction": "Hi", "input": null, "output": "x", "id": 1})),
            row("Hi", "", "x")
        );
    }

    #[test]
    fn names_the_broken_field() {
        let message = |value| Format::Alpaca.read(value).unwrap_err().to_string();
        assert_eq!(
            message(json!({"instruction": "x", "answer": "y"})),
            "field `output`: expected a string, found no such key (the keys are `instruction`, `answer`)"
        );
        assert_eq!(
            message(json!({"instruction": 3, "output": "y"})),
            "field `instruction`: expected a string, found the number 3"
        );
        assert_eq!(
            message(json!({"instruction": "x", "input": ["a"], "output": "y"})),
            "field `input`: expected a string, null or nothing, found a list of 1"
        );
        assert_eq!(
            message(json!([1])),
            "field ``: expected a JSON object, found a list of 1"
        );
    }
}
