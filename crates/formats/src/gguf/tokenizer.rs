//! The tokenizer in a GGUF file's metadata, as Hugging Face's `tokenizer.json`.

use serde_json::{Map, Value, json};

use super::error::GgufTokenizerError;
use super::value::GgufMetadata;
use super::{bpe, sentencepiece};
use crate::tokenizer_files::TokenizerFiles;

/// What a token is, in the numbers of `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenKind {
    fn from_number(number: i64) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }

    pub(super) const fn number(self) -> i32 {
        match self {
            Self::Normal => 1,
            Self::Unknown => 2,
            Self::Control => 3,
            Self::UserDefined => 4,
            Self::Unused => 5,
            Self::Byte => 6,
        }
    }
}

/// The lists that make up a vocabulary, indexed by token id.
pub(super) struct Vocabulary<'a> {
    pub(super) tokens: Vec<&'a str>,
    pub(super) kinds: Vec<TokenKind>,
    /// Each token with its id; no token has two.
    pub(super) ids: Map<String, Value>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: GgufMetadata<'a>) -> Result<Self, GgufTokenizerError> {
        let key = "tokenizer.ggml.tokens";
        let tokens = metadata
            .strings(key)?
            .ok_or_else(|| super::GgufError::KeyMissing { key: key.into() })?;
        let kinds = match metadata.integers("tokenizer.ggml.token_type")? {
            Some(kinds) => kinds.into_iter().map(TokenKind::from_number).collect(),
            None => vec![TokenKind::Normal; tokens.len()],
        };
        check_length("tokenizer.ggml.token_type", tokens.len(), kinds.len())?;
        let mut ids = Map::new();
        for (id, token) in tokens.iter().enumerate() {
            // A list longer than 2^32 would need a file of 32 GiB of lengths alone.
            let id = id as u32;
            if let Some(first) = ids.insert((*token).into(), json!(id)) {
                return Err(GgufTokenizerError::DuplicateToken {
                    token: (*token).into(),
                    first: first.as_u64().unwrap_or_default() as u32,
                    second: id,
                });
            }
        }
        Ok(Self { tokens, kinds, ids })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &'a str, TokenKind)> {
        let tokens = self.tokens.iter().enumerate().zip(&self.kinds);
        tokens.map(|((id, token), kind)| (id, *token, *kind))
    }

    /// The `added_tokens` entry of one token.
    pub(super) fn added_token(id: usize, content: &str, special: bool) -> Value {
        json!({
            "id": id,
            "content": content,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": special,
        })
    }
}

/// Further tokens by transformers' names and GGUF's keys, one of which is misspelt for good.
const OTHER_TOKENS: [(&str, &str); 4] = [
    ("sep_token", "tokenizer.ggml.seperator_token_id"),
    ("sep_token", "tokenizer.ggml.separator_token_id"),
    ("cls_token", "tokenizer.ggml.cls_token_id"),
    ("mask_token", "tokenizer.ggml.mask_token_id"),
];

/// Tokens that stand for themselves, and whether they are added around every text.
pub(super) struct SpecialTokens {
    pub(super) bos: Option<(u32, String)>,
    pub(super) eos: Option<(u32, String)>,
    pub(super) unknown: Option<(u32, String)>,
    pub(super) padding: Option<(u32, String)>,
    /// Tokens with other names, as transformers calls them.
    pub(super) others: Vec<(&'static str, String)>,
    pub(super) add_bos: Option<bool>,
    pub(super) add_eos: Option<bool>,
}

impl SpecialTokens {
    fn read(metadata: GgufMetadata<'_>, tokens: &[&str]) -> Result<Self, GgufTokenizerError> {
        let token = |key: &'static str| match metadata.unsigned(key)? {
            None => Ok(None),
            Some(id) => match usize::try_from(id).ok().and_then(|id| tokens.get(id)) {
                Some(token) => Ok(Some((id as u32, (*token).to_owned()))),
                None => Err(GgufTokenizerError::TokenId {
                    key,
                    expected: tokens.len(),
                    actual: id,
                }),
            },
        };
        let mut others = Vec::new();
        for (name, key) in OTHER_TOKENS {
            others.extend(token(key)?.map(|(_, token)| (name, token)));
        }
        Ok(Self {
            others,
            bos: token("tokenizer.ggml.bos_token_id")?,
            eos: token("tokenizer.ggml.eos_token_id")?,
            unknown: token("tokenizer.ggml.unknown_token_id")?,
            padding: token("tokenizer.ggml.padding_token_id")?,
            add_bos: metadata.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: metadata.bool("tokenizer.ggml.add_eos_token")?,
        })
    }

    /// The step that puts BOS before and EOS after a text; `None` where neither is wanted.
    pub(super) fn template(&self) -> Option<Value> {
        let bos = self.bos.as_ref().filter(|_| self.add_bos == Some(true));
        let eos = self.eos.as_ref().filter(|_| self.add_eos == Some(true));
        if bos.is_none() && eos.is_none() {
            return None;
        }
        let part = |sequence: &str, type_id: u32| {
            let special = |(_, token): &(u32, String)| json!({"SpecialToken": {"id": token, "type_id": type_id}});
            let mut part: Vec<Value> = bos.map(special).into_iter().collect();
            part.push(json!({"Sequence": {"id": sequence, "type_id": type_id}}));
            part.extend(eos.map(special));
            part
        };
        let special_tokens: Map<String, Value> = (bos.into_iter().chain(eos))
            .map(|(id, token)| {
                let entry = json!({"id": token, "ids": [id], "tokens": [token]});
                (token.clone(), entry)
            })
            .collect();
        let pair: Vec<Value> = part("A", 0).into_iter().chain(part("B", 1)).collect();
        Some(json!({
            "type": "TemplateProcessing",
            "single": part("A", 0),
            "pair": pair,
            "special_tokens": special_tokens,
        }))
    }
}

pub(super) fn check_length(
    key: &'static str,
    expected: usize,
    actual: usize,
) -> Result<(), GgufTokenizerError> {
    if expected == actual {
        Ok(())
    } else {
        Err(GgufTokenizerError::Length {
            key,
            expected,
            actual,
        })
    }
}

/// Everything about the tokenizer that a Hugging Face directory would hold.
pub(super) fn tokenizer_files(
    metadata: GgufMetadata<'_>,
) -> Result<TokenizerFiles, GgufTokenizerError> {
    let key = "tokenizer.ggml.model";
    let model = metadata
        .str(key)?
        .ok_or_else(|| super::GgufError::KeyMissing { key: key.into() })?;
    let vocabulary = match model {
        "gpt2" | "llama" | "gemma4" => Vocabulary::read(metadata)?,
        other => {
            return Err(GgufTokenizerError::Model {
                actual: other.into(),
            });
        }
    };
    let mut special = SpecialTokens::read(metadata, &vocabulary.tokens)?;
    let json = match model {
        "gpt2" => bpe::tokenizer_json(metadata, vocabulary, &mut special)?,
        "gemma4" => sentencepiece::tokenizer_json_of_merges(metadata, vocabulary, &mut special)?,
        _ => sentencepiece::tokenizer_json(metadata, vocabulary, &mut special)?,
    };
    let text = |token: Option<(u32, String)>| token.map(|(_, token)| token);
    Ok(TokenizerFiles {
        tokenizer_json: json.to_string().into_bytes(),
        chat_template: metadata.str("tokenizer.chat_template")?.map(Into::into),
        tool_use_template: metadata
            .str("tokenizer.chat_template.tool_use")?
            .map(Into::into),
        bos_token: text(special.bos),
        eos_token: text(special.eos),
        pad_token: text(special.padding),
        unk_token: text(special.unknown),
        other_tokens: (special.others.into_iter())
            .map(|(name, token)| (name.to_owned(), token))
            .collect(),
        declared_tokens: Vec::new(),
        add_bos_token: special.add_bos,
        add_eos_token: special.add_eos,
    })
}

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod tests;
