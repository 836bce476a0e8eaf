//! A model with more tokens than its files have.

use std::collections::BTreeSet;

use backdraft_arch::TokenTable;
use serde_json::{Value, json};

use super::{EMBEDDING, HEAD, ModelSource, TIE, TOKENIZER};
use crate::error::{FormatError, Result};
use crate::json as files;
use crate::peft_dir::PeftDir;

const GGUF: &str = "a GGUF file's vocabulary cannot be added to; take the model's directory";

impl ModelSource {
    /// The same model with more tokens at the end of its vocabulary, and their ids: `tokenizer.json` knows them, and where
    /// the embedding has too few rows, it and the head get rows of zeros, and the config says so. That is what
    /// `add_tokens` and `resize_token_embeddings` of transformers do, but for the values of the rows.
    ///
    /// # Errors
    /// [`FormatError::AddedTokens`] for a GGUF file, a token that is there already, or an empty one, and a tokenizer with ids
    /// beyond the embedding; a table in codes; a tokenizer that cannot be read.
    pub fn with_added_tokens(self, tokens: &[String]) -> Result<(Self, Vec<u32>)> {
        if tokens.is_empty() {
            return Ok((self, Vec::new()));
        }
        let (tokenizer, ids) = self.tokenizer_with(tokens)?;
        let there = self.embedding_rows();
        if let Some(&first) = ids.first()
            && first as usize > there
        {
            return Err(self.no_tokens(format!(
                "its tokenizer.json has ids up to {}, and its embedding {there} rows",
                first - 1
            )));
        }
        let rows = ids.last().map_or(there, |&id| there.max(id as usize + 1));
        Ok((self.extended(rows, Some(tokenizer))?, ids))
    }

    /// The model that an adapter was made over, which may have had more tokens than this one: rows that the adapter holds
    /// are zeros here, and a tokenizer beside it takes the place of the model's own. An adapter without rows of tokens and
    /// whole tables leaves everything as it is.
    ///
    /// # Errors
    /// [`FormatError::AddedTokens`] where the adapter lacks rows of tokens that this model does not have, or the model is
    /// a GGUF file; a table in codes; a tokenizer that cannot be read.
    pub fn with_tokens_of(self, adapter: &PeftDir) -> Result<Self> {
        let tokens = adapter.tensors.tokens();
        let there = self.embedding_rows();
        // Rows of a table that the adapter has whole.
        let whole = |table: TokenTable| {
            let tensor = adapter
                .tensors
                .whole_of(&format!("{}.weight", table.path()))?;
            tensor.shape.first().copied()
        };
        let longest = TokenTable::ALL.into_iter().filter_map(whole).max();
        let ids = tokens.iter().flat_map(|rows| &rows.ids).copied();
        let ids = ids.filter(|&id| id as usize >= there);
        let ids = ids.chain(there as u32..longest.unwrap_or(0) as u32);
        let new: BTreeSet<u32> = ids.collect();
        let path = adapter.path.join(TOKENIZER);
        let is_own = !tokens.is_empty() || longest.is_some();
        let tokenizer = match is_own && path.is_file() {
            true => Some(files::read_bytes(&path)?),
            false => None,
        };
        if new.is_empty() {
            let is_ours = tokenizer.is_some() && matches!(self, Self::Hf(_));
            return match is_ours {
                true => self.extended(there, tokenizer),
                false => Ok(self),
            };
        }
        let tables = match self.ties_head() {
            true => &[TokenTable::Embedding][..],
            false => &TokenTable::ALL,
        };
        for &table in tables {
            let rows = tokens.iter().find(|rows| rows.table == table);
            let whole = whole(table).unwrap_or(0);
            let lacks = |id: &&u32| {
                **id as usize >= whole
                    && rows.is_none_or(|rows| rows.ids.binary_search(id).is_err())
            };
            if let Some(id) = new.iter().find(lacks) {
                return Err(self.no_tokens(format!(
                    "{} has no row of {} for token {id}; the model that it was made over had one: save that model and \
                     name it",
                    adapter.path.display(),
                    table.path()
                )));
            }
        }
        let rows = there + new.len();
        if new.last().is_some_and(|&last| last as usize + 1 != rows) {
            return Err(self.no_tokens(format!(
                "{} has rows of tokens that do not follow the model's {there}",
                adapter.path.display()
            )));
        }
        self.extended(rows, tokenizer)
    }

    /// Whether the embedding is the head too; a copy of it that some files have does not count.
    #[must_use]
    pub fn ties_head(&self) -> bool {
        self.tensor_info(HEAD).is_none() || self.config().get(TIE) == Some(&Value::Bool(true))
    }

    /// Rows of the embedding.
    fn embedding_rows(&self) -> usize {
        let info = self.tensor_info(EMBEDDING);
        let rows = info.and_then(|info| info.shape.first().copied());
        rows.unwrap_or(0)
    }

    fn no_tokens(&self, reason: String) -> FormatError {
        FormatError::AddedTokens {
            path: self.path().into(),
            reason,
        }
    }

    fn extended(self, rows: usize, tokenizer: Option<Vec<u8>>) -> Result<Self> {
        let there = self.embedding_rows();
        let directory = match self {
            Self::Hf(directory) => *directory,
            Self::Gguf(_) => return Err(self.no_tokens(GGUF.to_owned())),
        };
        let directory = match rows == there {
            true => directory,
            false => directory.with_rows(&[EMBEDDING, HEAD], rows)?,
        };
        Ok(Self::Hf(Box::new(match tokenizer {
            Some(tokenizer) => directory.with_tokenizer(tokenizer),
            None => directory,
        })))
    }

    /// `tokenizer.json` with more tokens, and their ids.
    ///
    /// # Source
    /// `AddedVocabulary::add_tokens` of the crate tokenizers: ids go on after the vocabulary and what was added before.
    fn tokenizer_with(&self, tokens: &[String]) -> Result<(Vec<u8>, Vec<u32>)> {
        let Self::Hf(_) = self else {
            return Err(self.no_tokens(GGUF.to_owned()));
        };
        let path = self.path().join(TOKENIZER);
        let mut tokenizer: Value = serde_json::from_slice(&self.tokenizer()?.tokenizer_json)
            .map_err(|source| FormatError::Json {
                path: path.clone(),
                source,
            })?;
        let vocabulary = &tokenizer["model"]["vocab"];
        let (size, known) = match vocabulary {
            Value::Object(ids) => (ids.len(), ids.keys().cloned().collect()),
            Value::Array(pieces) => {
                let texts = pieces.iter().filter_map(|piece| piece[0].as_str());
                (pieces.len(), texts.map(str::to_owned).collect())
            }
            other => {
                let expected = "a vocabulary";
                return Err(files::field_error(&path, "model.vocab", expected, other));
            }
        };
        let mut known: BTreeSet<String> = known;
        let empty = Vec::new();
        let added = tokenizer["added_tokens"].as_array().unwrap_or(&empty);
        let added = added.iter();
        let last = added.clone().filter_map(|token| token["id"].as_u64()).max();
        let last = last.filter(|&last| last < u64::from(u32::MAX));
        known.extend(added.filter_map(|token| Some(token["content"].as_str()?.to_owned())));
        let first = last.map_or(size as u64, |last| (last + 1).max(size as u64));
        let (mut ids, mut entries) = (Vec::new(), Vec::new());
        for (id, token) in (first..).zip(tokens) {
            if token.is_empty() || !known.insert(token.clone()) {
                return Err(self.no_tokens(format!(
                    "{token:?} is a token already; lora.trainable_tokens trains the row of one that is there"
                )));
            }
            let id = u32::try_from(id).map_err(|_| self.no_tokens("no id is left".to_owned()))?;
            ids.push(id);
            entries.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": false,
            }));
        }
        match &mut tokenizer["added_tokens"] {
            Value::Array(added) => added.extend(entries),
            other => *other = Value::Array(entries),
        }
        let bytes = serde_json::to_vec(&tokenizer).map_err(FormatError::encode(path))?;
        Ok((bytes, ids))
    }
}

#[cfg(test)]
mod tests;
