//! Tokens that other files than `tokenizer.json` add to a vocabulary.

use std::path::Path;

use serde_json::{Map, Value};

use super::read_object;
use crate::error::Result;
use crate::json;

const DECODER: &str = "added_tokens_decoder";
const ADDED_TOKENS: &str = "added_tokens.json";

/// A token as `tokenizer_config.json` or `added_tokens.json` declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredToken {
    /// The id that the file gives it.
    pub id: u32,
    /// Its text.
    pub content: String,
    /// How it is matched; `None` in `added_tokens.json`, which says nothing of it.
    pub flags: Option<DeclaredFlags>,
}

/// How a token is matched in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeclaredFlags {
    /// Whether it takes the spaces before it.
    pub lstrip: bool,
    /// Whether it takes the spaces behind it.
    pub rstrip: bool,
    /// Whether it must be a word of its own.
    pub single_word: bool,
    /// Whether it is matched in the normalised text.
    pub normalized: bool,
    /// Whether it is a special token.
    pub special: bool,
}

/// `added_tokens_decoder` of `tokenizer_config.json`, or else `added_tokens.json`, by ids.
///
/// # Source
/// `PreTrainedTokenizerBase._from_pretrained` of transformers.
pub(super) fn declared(
    directory: &Path,
    config_path: &Path,
    config: &Map<String, Value>,
) -> Result<Vec<DeclaredToken>> {
    let mut declared = match config.get(DECODER) {
        None | Some(Value::Null) => legacy(&directory.join(ADDED_TOKENS))?,
        Some(Value::Object(tokens)) => {
            let tokens = tokens.iter();
            let tokens = tokens.map(|(id, token)| declared_token(config_path, id, token));
            tokens.collect::<Result<_>>()?
        }
        Some(other) => {
            return Err(json::field_error(
                config_path,
                DECODER,
                "an object of tokens by their ids",
                other,
            ));
        }
    };
    declared.sort_by_key(|token| token.id);
    Ok(declared)
}

fn declared_token(path: &Path, id: &str, token: &Value) -> Result<DeclaredToken> {
    let (Ok(number), Some(content)) = (id.parse(), token["content"].as_str()) else {
        let key = format!("{DECODER}.{id}");
        return Err(json::field_error(
            path,
            &key,
            "an id, and an object with `content`",
            token,
        ));
    };
    let flag = |key: &str| token[key].as_bool();
    let special = flag("special").unwrap_or_default();
    Ok(DeclaredToken {
        id: number,
        content: content.to_owned(),
        flags: Some(DeclaredFlags {
            lstrip: flag("lstrip").unwrap_or_default(),
            rstrip: flag("rstrip").unwrap_or_default(),
            single_word: flag("single_word").unwrap_or_default(),
            normalized: flag("normalized").unwrap_or(!special),
            special,
        }),
    })
}

fn legacy(path: &Path) -> Result<Vec<DeclaredToken>> {
    let token = |(content, id): (String, Value)| {
        let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = number.ok_or_else(|| json::field_error(path, &content, "an id", &id))?;
        Ok(DeclaredToken {
            id,
            content,
            flags: None,
        })
    };
    read_object(path)?.into_iter().map(token).collect()
}
