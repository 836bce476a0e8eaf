//! `POST /v1/chat/completions`: what is asked.

use backdraft_data::{Conversation, DataError, Format, Message, Record, Role, TemplateError};
use serde_json::{Map, Value, json};

use crate::api_error::ApiError;
use crate::fields::{Fields, expected};
use crate::models::{Prompting, Served};
use crate::options::Options;

/// Alternatives for each token, at most.
const MAX_TOP: i64 = 20;

/// A chat to answer.
#[derive(Clone, Debug)]
pub(crate) struct Chat {
    pub(crate) options: Options,
    /// Tell how likely tokens are, and so many alternatives.
    pub(crate) logprobs: Option<usize>,
    conversation: Conversation,
}

impl Chat {
    /// # Errors
    /// A field is missing, wrong or unknown.
    pub(crate) fn read(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::read(body)?;
        let options = Options::read(&mut fields, &["max_completion_tokens", "max_tokens"])?;
        let told = fields.boolean("logprobs")?.unwrap_or(false);
        let top = fields.integer("top_logprobs", 0, MAX_TOP)?;
        if top.is_some() && !told {
            return Err(ApiError::field(
                "top_logprobs",
                "`top_logprobs` needs `logprobs`: true",
            ));
        }
        fields.neutral("response_format", &[json!({"type": "text"})])?;
        fields.neutral("modalities", &[json!(["text"])])?;
        fields.neutral("functions", &[json!([])])?;
        fields.neutral("function_call", &[json!("auto"), json!("none")])?;
        fields.ignore(&["reasoning_effort", "verbosity"]);
        let mut tools = fields.take("tools");
        match fields.take("tool_choice") {
            None => {}
            Some(Value::String(choice)) if choice == "auto" => {}
            Some(Value::String(choice)) if choice == "none" => tools = None,
            Some(_) => {
                let message = "`tool_choice` must be \"auto\" or \"none\": nothing can make a model call a tool";
                return Err(ApiError::field("tool_choice", message).coded("unsupported_parameter"));
            }
        }
        let conversation = conversation(fields.take("messages"), tools)?;
        fields.finish()?;
        Ok(Self {
            options,
            logprobs: told.then_some(top.unwrap_or(0) as usize),
            conversation,
        })
    }

    /// Whether there are tools that the model may call.
    pub(crate) fn has_tools(&self) -> bool {
        self.conversation.tools.is_some()
    }

    /// The tokens of the conversation, ready for the model to answer.
    ///
    /// # Errors
    /// The template refuses it, or there is none.
    pub(crate) fn encode(&self, served: &Served) -> Result<Vec<u32>, ApiError> {
        let chat = &self.conversation;
        let tokenizer = &served.tokenizer;
        if served.prompting == Prompting::Nothing {
            let [only] = &chat.messages[..] else {
                return Err(plain(served));
            };
            if only.role != Role::User || chat.tools.is_some() {
                return Err(plain(served));
            }
            let encoded = tokenizer.encode_text(only.text()).map_err(unencodable)?;
            return Ok(encoded.ids);
        }
        if let (Some(_), Some(template)) = (&chat.tools, tokenizer.template_for(chat))
            && !template.source().contains("tools")
        {
            let message = format!(
                "the chat template of {} shows no tools to the model",
                served.name
            );
            return Err(ApiError::field("tools", message).coded("unsupported_parameter"));
        }
        tokenizer.encode_chat(chat).map_err(|error| match error {
            DataError::Template(TemplateError::Missing) => ApiError::field(
                "model",
                format!(
                    "{} has no chat template, as is usual for base models: use /v1/completions, or start the server \
                     with --chat-template",
                    served.name
                ),
            ),
            error => ApiError::field("messages", with_causes(&error)).coded("template_error"),
        })
    }
}

fn conversation(messages: Option<Value>, tools: Option<Value>) -> Result<Conversation, ApiError> {
    let messages = match messages {
        None => return Err(ApiError::field("messages", "`messages` is missing")),
        Some(Value::Array(messages)) if messages.is_empty() => {
            return Err(ApiError::field(
                "messages",
                "`messages` is empty: at least one is needed",
            ));
        }
        Some(messages @ Value::Array(_)) => messages,
        Some(other) => return Err(expected("messages", "a list", &other)),
    };
    let mut row = Map::new();
    row.insert("messages".to_owned(), messages);
    match tools {
        None => {}
        Some(tools @ Value::Array(_)) => {
            row.insert("tools".to_owned(), tools);
        }
        Some(other) => return Err(expected("tools", "a list", &other)),
    }
    // The format of training rows is OpenAI's.
    match Format::Messages.read(Value::Object(row)) {
        Ok(Record::Conversation(mut conversation)) => {
            conversation.messages.iter_mut().for_each(open_arguments);
            Ok(conversation)
        }
        Ok(_) => unreachable!("the format reads conversations"),
        Err(error) => {
            let message = format!(
                "`{}`: expected {}, found {}",
                error.field, error.expected, error.found
            );
            Err(ApiError::field(error.field, message))
        }
    }
}

/// Clients send the arguments of calls as JSON in a string; templates expect what it stands for.
fn open_arguments(message: &mut Message) {
    let calls = message
        .extra
        .get_mut("tool_calls")
        .and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        if let Some(arguments) = call.pointer_mut("/function/arguments")
            && let Some(opened) = arguments
                .as_str()
                .and_then(|text| serde_json::from_str(text).ok())
        {
            *arguments = Value::Object(opened);
        }
    }
}

fn plain(served: &Served) -> ApiError {
    let message = format!(
        "{} was trained on prompts as they are: send one message of the user, or use /v1/completions",
        served.name
    );
    ApiError::field("messages", message)
}

pub(crate) fn unencodable(error: Box<dyn std::error::Error + Send + Sync>) -> ApiError {
    ApiError::invalid(format!("the tokenizer cannot encode the prompt: {error}"))
}

/// An error and its causes in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::completions::Completion;

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            prop_oneof![
                "\\PC{0,8}",
                Just("user".to_owned()),
                Just("auto".to_owned())
            ]
            .prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            let key = prop_oneof![
                "[a-z]{1,4}",
                Just("role".to_owned()),
                Just("content".to_owned()),
                Just("tool_calls".to_owned())
            ];
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key, inner), 0..4)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    const KEYS: [&str; 22] = [
        "model",
        "messages",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "top_k",
        "n",
        "stop",
        "max_tokens",
        "max_completion_tokens",
        "seed",
        "tools",
        "tool_choice",
        "logprobs",
        "top_logprobs",
        "prompt",
        "logit_bias",
        "response_format",
        "best_of",
        "presence_penalty",
        "echo",
    ];

    #[test]
    fn arguments_of_calls_are_opened() {
        let call = |arguments: &str| json!({"type": "function", "function": {"name": "f", "arguments": arguments}});
        let messages = json!([{"role": "assistant", "content": null, "tool_calls": [call("{\"x\": 1}"), call("no JSON")]}]);
        let read = conversation(Some(messages), None).unwrap();
        let arguments: Vec<&Value> = read.messages[0]
            .calls()
            .iter()
            .map(|call| &call["function"]["arguments"])
            .collect();
        assert_eq!(arguments, [&json!({"x": 1}), &json!("no JSON")]);
    }

    proptest! {
        /// An answer or an error, never a panic.
        #[test]
        fn any_body_is_read_or_refused(
            fields in prop::collection::vec((prop::sample::select(&KEYS[..]), json()), 0..8),
            name in any::<bool>(),
        ) {
            let mut body: Map<String, Value> = fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            if name {
                body.insert("model".to_owned(), "base".into());
            }
            let body = Value::Object(body).to_string();
            for error in [Chat::read(body.as_bytes()).err(), Completion::read(body.as_bytes()).err()].into_iter().flatten() {
                prop_assert_eq!(error.status.as_u16(), 400);
                prop_assert!(!error.message.is_empty());
            }
        }

        #[test]
        fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(Chat::read(&bytes).is_err());
        }
    }
}
