//! `POST /v1/completions`: what is asked.

use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::chat::{unencodable, with_causes};
use crate::fields::{Fields, expected};
use crate::models::Served;
use crate::options::Options;

/// Prompts of a request, at most.
const MAX_PROMPTS: usize = 64;
/// New tokens where a request says nothing, as OpenAI has it.
pub(crate) const DEFAULT_MAX_TOKENS: usize = 16;
/// Alternatives for each token, at most.
const MAX_TOP: i64 = 20;

/// Prompts to continue as they are.
#[derive(Clone, Debug)]
pub(crate) struct Completion {
    pub(crate) options: Options,
    /// Tell how likely tokens are, and so many alternatives.
    pub(crate) logprobs: Option<usize>,
    prompts: Vec<Prompt>,
}

#[derive(Clone, Debug)]
enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

impl Completion {
    /// # Errors
    /// A field is missing, wrong or unknown.
    pub(crate) fn read(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::read(body)?;
        let options = Options::read(&mut fields, &["max_tokens", "max_completion_tokens"])?;
        let logprobs = fields.integer("logprobs", 0, MAX_TOP)?;
        fields.neutral("echo", &[json!(false)])?;
        fields.neutral("suffix", &[json!("")])?;
        fields.neutral("best_of", &[json!(1), json!(options.n)])?;
        let prompts = prompts(fields.take("prompt"))?;
        fields.finish()?;
        Ok(Self {
            options,
            logprobs: logprobs.map(|top| top as usize),
            prompts,
        })
    }

    /// The tokens of each prompt.
    ///
    /// # Errors
    /// A prompt is empty, or has a token that the model does not know.
    pub(crate) fn encode(&self, served: &Served) -> Result<Vec<Vec<u32>>, ApiError> {
        let encode = |prompt: &Prompt| {
            let ids = match prompt {
                Prompt::Ids(ids) => ids.clone(),
                Prompt::Text(text) => served.tokenizer.encode_text(text).map_err(unencodable)?.ids,
            };
            let checked = served.tokenizer.check_ids(&ids);
            checked.map_err(|error| ApiError::field("prompt", with_causes(&error)))?;
            if let Some(id) = ids.iter().find(|&&id| id as usize >= served.vocab_size) {
                let message = format!(
                    "`prompt`: expected ids below {}, found {id}",
                    served.vocab_size
                );
                return Err(ApiError::field("prompt", message));
            }
            if ids.is_empty() {
                return Err(ApiError::field(
                    "prompt",
                    "`prompt` is empty: at least one token is needed",
                ));
            }
            Ok(ids)
        };
        self.prompts.iter().map(encode).collect()
    }
}

/// A text, some texts, ids, or several lists of ids.
fn prompts(value: Option<Value>) -> Result<Vec<Prompt>, ApiError> {
    const EXPECTED: &str = "a string, token ids, or a list of either";
    let value = value.ok_or_else(|| ApiError::field("prompt", "`prompt` is missing"))?;
    if let Some(prompt) = prompt(&value) {
        return Ok(vec![prompt]);
    }
    let Value::Array(items) = &value else {
        return Err(expected("prompt", EXPECTED, &value));
    };
    if items.is_empty() || items.len() > MAX_PROMPTS {
        let message = format!("`prompt` must be {EXPECTED}, of 1 to {MAX_PROMPTS} prompts");
        return Err(ApiError::field("prompt", message));
    }
    let each = |item: &Value| prompt(item).ok_or_else(|| expected("prompt", EXPECTED, item));
    items.iter().map(each).collect()
}

fn prompt(value: &Value) -> Option<Prompt> {
    match value {
        Value::String(text) => Some(Prompt::Text(text.clone())),
        Value::Array(ids) if !ids.is_empty() => {
            let id = |id: &Value| u32::try_from(id.as_u64()?).ok();
            Some(Prompt::Ids(ids.iter().map(id).collect::<Option<_>>()?))
        }
        _ => None,
    }
}
