//! The tokens of a vocabulary, with what each of them is.

use std::collections::HashMap;

use serde_json::Value;

use crate::gguf::entry::{Entry, EntryValue};
use crate::gguf::export_error::GgufExportError;
use crate::gguf::tokenizer::TokenKind;
use crate::tokenizer_files::TokenizerFiles;

/// Tokens by their ids.
pub(super) struct Tokens {
    texts: Vec<Option<String>>,
    kinds: Vec<TokenKind>,
    ids: HashMap<String, u32>,
}

impl Tokens {
    pub(super) fn read(
        json: &Value,
        files: &TokenizerFiles,
        rows: usize,
    ) -> Result<Self, GgufExportError> {
        let vocab = &json["model"]["vocab"];
        let Some(vocab) = vocab.as_object() else {
            return Err(tokenizer_error("model.vocab", "an object of ids", vocab));
        };
        let mut tokens = Self {
            texts: vec![None; rows],
            kinds: vec![TokenKind::Unused; rows],
            ids: HashMap::new(),
        };
        for (token, id) in vocab {
            tokens.put(token, id, TokenKind::Normal)?;
        }
        let kind = |special| match special {
            true => TokenKind::Control,
            false => TokenKind::UserDefined,
        };
        for added in json["added_tokens"].as_array().into_iter().flatten() {
            let Some(content) = added["content"].as_str() else {
                return Err(tokenizer_error("added_tokens.content", "a text", added));
            };
            tokens.put(content, &added["id"], kind(added["special"] == true))?;
        }
        for declared in files
            .declared_tokens
            .iter()
            .filter(|it| !it.content.is_empty())
        {
            let named = [&files.bos_token, &files.eos_token];
            let named = named.contains(&&Some(declared.content.clone()));
            let special = declared.flags.is_some_and(|flags| flags.special) || named;
            // A file that only names tokens says nothing of those that are known.
            if declared.flags.is_some() || !tokens.ids.contains_key(&declared.content) {
                tokens.put(&declared.content, &declared.id.into(), kind(special))?;
            }
        }
        Ok(tokens)
    }

    fn put(&mut self, token: &str, id: &Value, kind: TokenKind) -> Result<(), GgufExportError> {
        let Some(number) = id.as_u64() else {
            return Err(tokenizer_error(token, "an id", id));
        };
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        let (Some(text), Some(slot)) = (self.texts.get_mut(index), self.kinds.get_mut(index))
        else {
            return Err(GgufExportError::TokenId {
                token: token.to_owned(),
                id: number,
                rows: self.kinds.len(),
            });
        };
        if let Some(first) = text.as_deref().filter(|first| *first != token) {
            return Err(GgufExportError::TokenTwice {
                id: index,
                first: first.to_owned(),
                second: token.to_owned(),
            });
        }
        *text = Some(token.to_owned());
        *slot = kind;
        self.ids.insert(token.to_owned(), number as u32);
        Ok(())
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// The id of a token that the files name.
    pub(super) fn special(&self, name: &'static str, token: &str) -> Result<u32, GgufExportError> {
        self.id(token).ok_or_else(|| GgufExportError::SpecialToken {
            name,
            token: token.to_owned(),
        })
    }

    /// Marks what SentencePiece files know of their own: bytes, and the token for what is unknown.
    pub(super) fn name_bytes(&mut self, unknown: Option<&str>) {
        for (token, kind) in self.texts.iter().zip(&mut self.kinds) {
            let Some(token) = token.as_deref() else {
                continue;
            };
            let byte = token
                .strip_prefix("<0x")
                .and_then(|rest| rest.strip_suffix('>'))
                .filter(|hex| hex.len() == 2);
            if byte.is_some_and(|hex| u8::from_str_radix(hex, 16).is_ok()) {
                *kind = TokenKind::Byte;
            } else if Some(token) == unknown {
                *kind = TokenKind::Unknown;
            }
        }
    }

    /// Scores that join the same pieces as the merges do: the earlier a token is made, the higher its own.
    pub(super) fn scores(&self, merges: &[[&str; 2]]) -> Vec<f32> {
        let mut scores = vec![-(merges.len() as f32) - 1.0; self.texts.len()];
        for (rank, [left, right]) in merges.iter().enumerate().rev() {
            if let Some(id) = self.id(&format!("{left}{right}")) {
                scores[id as usize] = -(rank as f32);
            }
        }
        for (score, kind) in scores.iter_mut().zip(&self.kinds) {
            if !matches!(kind, TokenKind::Normal) {
                *score = 0.0;
            }
        }
        scores
    }

    pub(super) fn entries(&self) -> [Entry; 2] {
        let text = |(id, token): (usize, &Option<String>)| match token {
            Some(token) => token.clone(),
            None => self.filler(id),
        };
        let texts = self.texts.iter().enumerate().map(text).collect();
        let kinds = self.kinds.iter().map(|kind| kind.number()).collect();
        [
            Entry::new("tokenizer.ggml.tokens", EntryValue::Texts(texts)),
            Entry::new("tokenizer.ggml.token_type", EntryValue::I32s(kinds)),
        ]
    }

    /// A text for a row of the embedding that no token has; each must have another.
    fn filler(&self, id: usize) -> String {
        let mut filler = format!("[PAD{id}]");
        while self.ids.contains_key(&filler) {
            filler.push('_');
        }
        filler
    }
}

/// The error for a field of `tokenizer.json`.
pub(super) fn tokenizer_error(
    field: &str,
    expected: &'static str,
    actual: &Value,
) -> GgufExportError {
    GgufExportError::Tokenizer {
        field: field.to_owned(),
        expected,
        actual: shortened(actual),
    }
}

/// The beginning of a value.
pub(super) fn shortened(value: &Value) -> String {
    value.to_string().chars().take(200).collect()
}
