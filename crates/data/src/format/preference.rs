//! `{"prompt": …, "chosen": …, "rejected": …}`, all texts or all lists of messages, and how far apart they are.

use serde_json::{Map, Value};

use super::field::{FieldError, describe, missing, string};
use super::messages::read_message;
use super::prompt_completion::turns;
use super::system;
use super::tools::read_tools;
use crate::conversation::{Completion, Conversation, Message, Preference, Record};

const PROMPT: &str = "a string beside texts, or a list of messages";

pub(super) fn read(mut row: Map<String, Value>) -> Result<Record, FieldError> {
    let margin = margin(&row)?;
    let has_turns = matches!(row.get("chosen"), Some(Value::Array(_)));
    let [chosen, rejected] = match row.get("prompt") {
        Some(Value::Array(_)) => {
            let prompt = turns(&mut row, "prompt", false)?;
            let answers = ["chosen", "rejected"].map(|key| turns(&mut row, key, true));
            let [chosen, rejected] = answers;
            chats(&mut row, prompt, [chosen?, rejected?])?
        }
        None | Some(Value::Null | Value::String(_)) if has_turns => shared(&mut row)?,
        Some(Value::String(_)) => {
            let prompt = string(&row, "prompt", "prompt")?;
            let text = |key: &'static str| -> Result<Record, FieldError> {
                Ok(Record::Completion(Completion {
                    prompt: prompt.clone(),
                    completion: string(&row, key, key)?,
                }))
            };
            [text("chosen")?, text("rejected")?]
        }
        Some(other) => return Err(FieldError::new("prompt", PROMPT, describe(other))),
        None => return Err(FieldError::new("prompt", PROMPT, missing(&row))),
    };
    Ok(Record::Preference(Box::new(Preference {
        chosen,
        rejected,
        margin,
    })))
}

fn margin(row: &Map<String, Value>) -> Result<Option<f32>, FieldError> {
    let Some(value) = row.get("margin").filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let number = value.as_f64().map(|number| number as f32);
    match number.filter(|number| number.is_finite()) {
        Some(number) => Ok(Some(number)),
        None => {
            let expected = "a number of single precision, null or nothing";
            Err(FieldError::new("margin", expected, describe(value)))
        }
    }
}

/// Whether a row's answers are messages, so that a system prompt and tools may stand beside them.
pub(super) fn has_messages(row: &Map<String, Value>) -> bool {
    row.get("chosen").is_some_and(Value::is_array)
}

/// The prompt with each of the answers.
fn chats(
    row: &mut Map<String, Value>,
    mut prompt: Vec<Message>,
    answers: [Vec<Message>; 2],
) -> Result<[Record; 2], FieldError> {
    system::put_before(row, &mut prompt)?;
    let tools = read_tools(row)?;
    Ok(answers.map(|answer| {
        let prompt_messages = prompt.len();
        let messages = [prompt.clone(), answer].concat();
        Record::Chat {
            chat: Conversation {
                messages,
                tools: tools.clone(),
            },
            prompt_messages,
        }
    }))
}

/// Two whole conversations: the prompt is what both begin with.
fn shared(row: &mut Map<String, Value>) -> Result<[Record; 2], FieldError> {
    let whole = |key: &'static str, row: &mut Map<String, Value>| match row.remove(key) {
        Some(Value::Array(list)) if !list.is_empty() => list
            .into_iter()
            .enumerate()
            .map(|(index, message)| read_message(key, index, message))
            .collect::<Result<Vec<Message>, _>>(),
        Some(other) => {
            let expected = "a list with at least one message";
            Err(FieldError::new(key, expected, describe(&other)))
        }
        None => Err(FieldError::new(key, "a list of messages", missing(row))),
    };
    let mut chosen = whole("chosen", row)?;
    let mut rejected = whole("rejected", row)?;
    let same = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b);
    let prompt_messages = same.count().min(chosen.len().min(rejected.len()) - 1);
    if prompt_messages == 0 {
        return Err(FieldError::new(
            "rejected",
            "the messages that `chosen` begins with, and another answer; or a `prompt` beside both",
            "another first message, or one message alone",
        ));
    }
    let answers = [
        chosen.split_off(prompt_messages),
        rejected.split_off(prompt_messages),
    ];
    if let Some(Value::String(prompt)) = row.get("prompt")
        && !chosen.iter().any(|message| message.text() == prompt)
    {
        let expected = "the text of one of the messages that `chosen` and `rejected` begin with";
        let found = describe(&Value::String(prompt.clone()));
        return Err(FieldError::new("prompt", expected, found));
    }
    for message in &mut chosen {
        message.trained = false;
    }
    chats(row, chosen, answers)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::Format;
    use crate::conversation::{Completion, Record, Role};

    fn read(row: Value) -> [Record; 2] {
        match Format::Preference.read(row).unwrap() {
            Record::Preference(pair) => [pair.chosen, pair.rejected],
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reads_texts() {
        let texts = read(json!({"prompt": "a ", "chosen": "b", "rejected": "c"}));
        let expected = ["b", "c"].map(|completion| {
            Record::Completion(Completion {
                prompt: "a ".into(),
                completion: completion.into(),
            })
        });
        assert_eq!(texts, expected);
    }

    #[test]
    fn a_prompt_of_its_own_is_what_both_conversations_begin_with() {
        let user = json!({"role": "user", "content": "Hi"});
        let earlier = json!({"role": "assistant", "content": "?"});
        let answer = |text: &str| json!({"role": "assistant", "content": text});
        let tools = json!([{"type": "function", "function": {"name": "f"}}]);
        let apart = read(json!({
            "prompt": [user, earlier, user], "chosen": [answer("yes")], "rejected": [answer("no")],
            "system": "Be kind.", "tools": tools,
        }));
        let whole = read(json!({
            "prompt": "Hi",
            "chosen": [user, earlier, user, answer("yes")],
            "rejected": [user, earlier, user, answer("no")],
            "system": "Be kind.", "tools": tools,
        }));
        assert_eq!(apart, whole);
        for (record, answer) in apart.iter().zip(["yes", "no"]) {
            let Record::Chat {
                chat,
                prompt_messages: 4,
            } = record
            else {
                panic!("{record:?}")
            };
            let trained: Vec<bool> = chat.messages.iter().map(|m| m.trained).collect();
            assert_eq!(trained, [false, false, false, false, true]);
            assert_eq!(chat.messages[0].role, Role::System);
            assert_eq!(chat.messages[4].text(), answer);
            assert!(chat.tools.is_some());
        }
    }

    #[test]
    fn a_margin_is_a_number_or_nothing() {
        let read = |margin: Value| {
            let row = json!({"prompt": "a ", "chosen": "b", "rejected": "c", "margin": margin});
            let read = Format::Preference.read(row);
            read.map(|record| match record {
                Record::Preference(pair) => pair.margin,
                other => panic!("{other:?}"),
            })
        };
        for (margin, expected) in [
            (json!(0.5), Some(0.5)),
            (json!(-2), Some(-2.0)),
            (json!(0), Some(0.0)),
            (Value::Null, None),
        ] {
            assert_eq!(read(margin).unwrap(), expected);
        }
        for (margin, found) in [
            (json!("0.5"), "the string \"0.5\""),
            (json!(true), "the boolean true"),
            (json!(1e39), "the number 1e+39"),
        ] {
            let error = read(margin).unwrap_err().to_string();
            let expected =
                "field `margin`: expected a number of single precision, null or nothing, found ";
            assert_eq!(error, format!("{expected}{found}"));
        }
    }

    #[test]
    fn names_the_broken_field() {
        let message = |row| Format::Preference.read(row).unwrap_err().to_string();
        let turn = |text: &str| json!([{"role": "assistant", "content": text}]);
        assert_eq!(
            message(json!({"prompt": "a", "chosen": "b"})),
            "field `rejected`: expected a string, found no such key (the keys are `prompt`, `chosen`)"
        );
        assert_eq!(
            message(json!({"chosen": "b", "rejected": "c"})),
            "field `prompt`: expected a string beside texts, or a list of messages, found no such key (the keys are \
             `chosen`, `rejected`)"
        );
        assert_eq!(
            message(
                json!({"prompt": [{"role": "user", "content": "x"}], "chosen": turn("a"), "rejected": "b"})
            ),
            "field `rejected`: expected a list with at least one message, found the string \"b\""
        );
        assert_eq!(
            message(json!({"chosen": turn("a"), "rejected": turn("b")})),
            "field `rejected`: expected the messages that `chosen` begins with, and another answer; or a `prompt` beside \
             both, found another first message, or one message alone"
        );
        let both = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "a"}]);
        let message = message(json!({"prompt": "y", "chosen": both, "rejected": both}));
        assert!(message.starts_with("field `prompt`: expected the text of one of the messages"));
    }
}
