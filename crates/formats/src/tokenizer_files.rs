//! What a model directory says about its tokenizer.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{FormatError, Result};
use crate::json;

mod added;

pub use added::{DeclaredFlags, DeclaredToken};

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// Tokens that have a field of their own.
const NAMED_TOKENS: [&str; 4] = ["bos_token", "eos_token", "pad_token", "unk_token"];
const ADDITIONAL_TEMPLATES: &str = "additional_chat_templates";

/// A tokenizer, and the texts that go with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizerFiles {
    /// The bytes of `tokenizer.json`, for `tokenizers::Tokenizer::from_bytes`.
    pub tokenizer_json: Vec<u8>,
    /// The chat template's Jinja text, if the model has one.
    pub chat_template: Option<String>,
    /// A second one for conversations with tools, if the model has a list with `tool_use`.
    pub tool_use_template: Option<String>,
    /// The token that begins a text.
    pub bos_token: Option<String>,
    /// The token that ends a text.
    pub eos_token: Option<String>,
    /// The token that fills short rows.
    pub pad_token: Option<String>,
    /// The token for what the vocabulary lacks.
    pub unk_token: Option<String>,
    /// Tokens with other names, such as `sep_token`, by their names; templates may ask for them.
    pub other_tokens: BTreeMap<String, String>,
    /// Tokens that files beside `tokenizer.json` declare, by their ids.
    pub declared_tokens: Vec<DeclaredToken>,
    /// Whether BOS is put before every plain text; unsaid if `None`.
    pub add_bos_token: Option<bool>,
    /// Whether EOS is put after every plain text; unsaid if `None`.
    pub add_eos_token: Option<bool>,
}

impl TokenizerFiles {
    /// Reads `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and
    /// `chat_template.jinja` of a directory; only the first must be there.
    ///
    /// # Errors
    /// [`FormatError::TokenizerMissing`], or a file that is not what it should be.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(TOKENIZER);
        if !path.is_file() {
            return Err(FormatError::TokenizerMissing {
                path: directory.into(),
            });
        }
        let config_path = directory.join(TOKENIZER_CONFIG);
        let config = read_object(&config_path)?;
        let specials_path = directory.join(SPECIAL_TOKENS);
        let specials = read_object(&specials_path)?;
        let token = |key| match token_text(&config_path, &config, key)? {
            None => token_text(&specials_path, &specials, key),
            found => Ok(found),
        };
        let flag = |key| match config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(json::field_error(&config_path, key, "true or false", other)),
        };
        Ok(Self {
            tokenizer_json: json::read_bytes(&path)?,
            chat_template: chat_template(directory, &config_path, &config)?,
            tool_use_template: tool_use_template(directory, &config)?,
            bos_token: token("bos_token")?,
            eos_token: token("eos_token")?,
            pad_token: token("pad_token")?,
            unk_token: token("unk_token")?,
            other_tokens: other_tokens(&[(&specials_path, &specials), (&config_path, &config)])?,
            declared_tokens: added::declared(directory, &config_path, &config)?,
            add_bos_token: flag("add_bos_token")?,
            add_eos_token: flag("add_eos_token")?,
        })
    }

    /// The files of a directory that [`read`](Self::read) and transformers understand, by name.
    #[must_use]
    pub fn to_files(&self) -> Vec<(&'static str, Vec<u8>)> {
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        let tokens = [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
            ("pad_token", &self.pad_token),
            ("unk_token", &self.unk_token),
        ];
        for (key, value) in tokens {
            if let Some(value) = value {
                config.insert(key.into(), json!(value));
            }
        }
        for (key, value) in &self.other_tokens {
            config.insert(key.clone(), json!(value));
        }
        match (&self.chat_template, &self.tool_use_template) {
            (Some(default), Some(tool_use)) => {
                let list = json!([
                    {"name": "default", "template": default},
                    {"name": "tool_use", "template": tool_use},
                ]);
                config.insert("chat_template".into(), list);
            }
            (Some(only), None) => {
                config.insert("chat_template".into(), json!(only));
            }
            (None, _) => {}
        }
        let flags = [
            ("add_bos_token", self.add_bos_token),
            ("add_eos_token", self.add_eos_token),
        ];
        for (key, value) in flags {
            if let Some(value) = value {
                config.insert(key.into(), json!(value));
            }
        }
        config.insert("clean_up_tokenization_spaces".into(), json!(false));
        vec![
            (TOKENIZER, self.tokenizer_json.clone()),
            (TOKENIZER_CONFIG, json::pretty(&Value::Object(config))),
        ]
    }
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    match json::read_optional(path)? {
        None => Ok(Map::new()),
        Some(Value::Object(object)) => Ok(object),
        Some(other) => Err(json::field_error(
            path,
            "(the whole file)",
            "an object",
            &other,
        )),
    }
}

/// A token written as a text, or as an object with `content`.
fn token_text(path: &Path, object: &Map<String, Value>, key: &str) -> Result<Option<String>> {
    let value = match object.get(key) {
        Some(Value::Object(token)) => token.get("content"),
        other => other,
    };
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(json::field_error(
            path,
            key,
            "a token's text, or an object with `content`",
            other,
        )),
    }
}

/// Tokens whose names end in `_token`, and those that `extra_special_tokens` names; later files win.
///
/// # Source
/// `PreTrainedTokenizerBase.__init__` and `special_tokens_map` of transformers.
fn other_tokens(files: &[(&Path, &Map<String, Value>)]) -> Result<BTreeMap<String, String>> {
    let is_text = |value: &Value| value.is_string() || value["content"].is_string();
    let mut found = BTreeMap::new();
    for (path, object) in files {
        let named = object
            .iter()
            .filter(|(key, _)| key.ends_with("_token") && !NAMED_TOKENS.contains(&key.as_str()));
        for (key, _) in named.filter(|(_, value)| is_text(value)) {
            found.extend(token_text(path, object, key)?.map(|token| (key.clone(), token)));
        }
        for extra in ["extra_special_tokens", "model_specific_special_tokens"] {
            let Some(Value::Object(extra)) = object.get(extra) else {
                continue;
            };
            for (key, _) in extra.iter().filter(|(_, value)| is_text(value)) {
                found.extend(token_text(path, extra, key)?.map(|token| (key.clone(), token)));
            }
        }
    }
    Ok(found)
}

fn chat_template(
    directory: &Path,
    config_path: &Path,
    config: &Map<String, Value>,
) -> Result<Option<String>> {
    // The separate file wins, as in transformers.
    let path = directory.join(CHAT_TEMPLATE);
    if path.is_file() {
        let text = std::fs::read_to_string(&path).map_err(FormatError::io(&path, "read"))?;
        return Ok(Some(text));
    }
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(templates)) => Ok(default_template(templates)),
        Some(other) => Err(json::field_error(
            config_path,
            "chat_template",
            "a text, or a list of {name, template}",
            other,
        )),
    }
}

/// The template named `tool_use`: a file of its own, or of the list.
fn tool_use_template(directory: &Path, config: &Map<String, Value>) -> Result<Option<String>> {
    let path = directory.join(ADDITIONAL_TEMPLATES).join("tool_use.jinja");
    if path.is_file() {
        let text = std::fs::read_to_string(&path).map_err(FormatError::io(&path, "read"))?;
        return Ok(Some(text));
    }
    // Beside a separate file the list is not looked at, as in transformers.
    if directory.join(CHAT_TEMPLATE).is_file() {
        return Ok(None);
    }
    let list = config.get("chat_template").and_then(Value::as_array);
    let named = list.and_then(|list| list.iter().find(|template| template["name"] == "tool_use"));
    Ok(named
        .and_then(|template| template["template"].as_str())
        .map(Into::into))
}

/// The template named `default`, or the only one.
fn default_template(templates: &[Value]) -> Option<String> {
    let named = templates
        .iter()
        .find(|template| template["name"] == "default");
    let only = match templates {
        [only] => Some(only),
        _ => None,
    };
    named.or(only)?["template"].as_str().map(Into::into)
}

#[cfg(test)]
mod tests;
