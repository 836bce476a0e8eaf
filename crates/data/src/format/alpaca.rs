//! `{"instruction": …, "input": …, "output": …}`

use serde_json::{Map, Value};

use super::field::{FieldError, describe, optional_string, string};
use super::system::read_system;
use crate::conversation::{Instruction, Record};

pub(super) fn read(row: &Map<String, Value>) -> Result<Record, FieldError> {
    Ok(Record::Instruction(Instruction {
        instruction: string(row, "instruction", "instruction")?,
        input: optional_string(row, "input")?,
        output: string(row, "output", "output")?,
        system: read_system(row)?,
        history: read_history(row.get("history"))?,
    }))
}

/// LLaMA-Factory's earlier turns, `[[question, answer], …]`; tables hold them as JSON in a string.
fn read_history(history: Option<&Value>) -> Result<Vec<(String, String)>, FieldError> {
    const EXPECTED: &str = "a list of [question, answer], null or nothing";
    let turns = match history {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(Vec::new()),
        Some(Value::String(text)) => serde_json::from_str(text).ok(),
        Some(list) => list.as_array().cloned(),
    };
    let Some(turns): Option<Vec<Value>> = turns else {
        let found = history.map(describe).unwrap_or_default();
        return Err(FieldError::new("history", EXPECTED, found));
    };
    let turn = |(index, turn): (usize, &Value)| match turn.as_array().map(Vec::as_slice) {
        Some([Value::String(question), Value::String(answer)]) => {
            Ok((question.clone(), answer.clone()))
        }
        _ => Err(FieldError::new(
            format!("history[{index}]"),
            "two strings, [question, answer]",
            describe(turn),
        )),
    };
    turns.iter().enumerate().map(turn).collect()
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
                ..Instruction::default()
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
    fn a_row_without_instruction_asks_its_input_alone() {
        let row = json!({"instruction": "", "input": "1 + 2", "output": "3"});
        let Record::Instruction(row) = Format::Alpaca.read(row).unwrap() else {
            panic!("an alpaca row");
        };
        assert_eq!(row.to_conversation().messages[0].text(), "1 + 2");
    }

    #[test]
    fn reads_a_system_prompt_and_earlier_turns() {
        use crate::conversation::{Message, Role};
        let expected = [
            Message::new(Role::System, "S"),
            Message::new(Role::User, "a"),
            Message::new(Role::Assistant, "b"),
            Message::new(Role::User, "c"),
            Message::new(Role::Assistant, "d"),
        ];
        // As a list, and as a table writes it.
        for history in [json!([["a", "b"]]), json!("[[\"a\", \"b\"]]")] {
            let row = json!({"instruction": "c", "output": "d", "system": "S", "history": history});
            let Record::Instruction(row) = Format::Alpaca.read(row).unwrap() else {
                panic!("an instruction")
            };
            assert_eq!(row.to_conversation().messages, expected);
        }
        let empty = [json!(null), json!([]), json!(""), json!("[]")];
        for history in empty {
            let row =
                json!({"instruction": "c", "output": "d", "system": null, "history": history});
            let Record::Instruction(row) = Format::Alpaca.read(row).unwrap() else {
                panic!("an instruction")
            };
            assert_eq!(row.to_conversation().messages.len(), 2);
        }
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
            message(json!({"instruction": "x", "output": "y", "system": 1})),
            "field `system`: expected a string, null or nothing, found the number 1"
        );
        assert_eq!(
            message(json!({"instruction": "x", "output": "y", "history": "a"})),
            "field `history`: expected a list of [question, answer], null or nothing, found the string \"a\""
        );
        assert_eq!(
            message(json!({"instruction": "x", "output": "y", "history": [["a", "b"], ["c"]]})),
            "field `history[1]`: expected two strings, [question, answer], found a list of 1"
        );
        assert_eq!(
            message(json!([1])),
            "field ``: expected a JSON object, found a list of 1"
        );
    }
}
