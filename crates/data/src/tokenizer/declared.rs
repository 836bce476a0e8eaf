//! Tokens that other files than `tokenizer.json` declare.

use backdraft_formats::{DeclaredFlags, DeclaredToken};
use sha2::{Digest, Sha256};
use tokenizers::AddedToken;

use super::{ChatTokenizer, Words, tokenizer_error};
use crate::error::DataError;

impl ChatTokenizer {
    /// The same tokenizer with the tokens that `tokenizer_config.json` or `added_tokens.json`
    /// declare: those that `tokenizer.json` lacks are added, the others are matched as declared.
    ///
    /// # Source
    /// `TokenizersBackend.__init__` of transformers, which adds tokens in the order of their ids and
    /// looks at nothing else of the ids.
    ///
    /// # Errors
    /// [`DataError::DeclaredToken`] if a token that is added gets another id than declared.
    pub fn with_declared_tokens(mut self, declared: &[DeclaredToken]) -> Result<Self, DataError> {
        let mut changed = String::new();
        for token in declared.iter().filter(|token| !token.content.is_empty()) {
            let before = self.tokenizer.token_to_id(&token.content);
            let known = self.tokenizer.get_added_tokens_decoder();
            let mut known = known.into_values();
            let known = known.find(|known| known.content == token.content);
            let Some(new) = self.as_declared(token, known.as_ref()) else {
                continue;
            };
            self.tokenizer
                .add_tokens([new])
                .map_err(tokenizer_error("adding a declared token"))?;
            let found = self.tokenizer.token_to_id(&token.content);
            if let (None, Some(found)) = (before, found)
                && found != token.id
            {
                return Err(DataError::DeclaredToken {
                    token: token.content.clone(),
                    declared: token.id,
                    found,
                });
            }
            changed.push_str(&format!("{token:?}"));
        }
        if changed.is_empty() {
            return Ok(self);
        }
        let base = Sha256::new()
            .chain_update(&self.base_fingerprint)
            .chain_update(changed);
        self.base_fingerprint = crate::hex(&base.finalize());
        let added = self.tokenizer.get_added_tokens_decoder().into_values();
        self.added_tokens = added.map(|token| token.content).collect();
        self.words = Words::of(&self.tokenizer);
        self.find_ends()?;
        Ok(self)
    }

    /// The token to add, where that changes anything.
    fn as_declared(&self, token: &DeclaredToken, known: Option<&AddedToken>) -> Option<AddedToken> {
        let text = |token: &Option<(String, u32)>| token.as_ref().map(|(text, _)| text.clone());
        let named = [text(&self.bos), text(&self.eos)].contains(&Some(token.content.clone()));
        let flags = match (token.flags, known) {
            (Some(flags), _) => flags,
            // `added_tokens.json` only names tokens.
            (None, Some(_)) => return None,
            (None, None) => DeclaredFlags {
                lstrip: false,
                rstrip: false,
                single_word: false,
                normalized: !named,
                special: named,
            },
        };
        let new = AddedToken::from(token.content.clone(), flags.special || named)
            .lstrip(flags.lstrip)
            .rstrip(flags.rstrip)
            .single_word(flags.single_word)
            .normalized(flags.normalized);
        let same = known.is_some_and(|known| {
            (known.special, known.lstrip, known.rstrip) == (new.special, new.lstrip, new.rstrip)
                && (known.single_word, known.normalized) == (new.single_word, new.normalized)
        });
        (!same).then_some(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::{END, START, tokenizer};

    fn declared(id: u32, content: &str, rstrip: bool, special: bool) -> DeclaredToken {
        let flags = DeclaredFlags {
            lstrip: false,
            rstrip,
            single_word: false,
            normalized: false,
            special,
        };
        DeclaredToken {
            id,
            content: content.into(),
            flags: Some(flags),
        }
    }

    fn ids(tokens: &[DeclaredToken], text: &str) -> Vec<u32> {
        let tokenizer = tokenizer(None).with_declared_tokens(tokens).unwrap();
        tokenizer.encode_rendered(text).unwrap().ids
    }

    #[test]
    fn declared_tokens_are_added_and_matched_as_declared() {
        let new = declared(END + 1, "<new>", false, false);
        assert_eq!(ids(&[], "<new>").len(), 5);
        assert_eq!(ids(std::slice::from_ref(&new), "a<new>"), [97, END + 1]);
        // The file's own token, that now takes the line break behind it.
        assert_eq!(ids(&[], "<|im_end|>\na"), [END, 10, 97]);
        let strips = declared(END, "<|im_end|>", true, true);
        assert_eq!(
            ids(std::slice::from_ref(&strips), "<|im_end|>\na"),
            [END, 97]
        );
        // `added_tokens.json` has names only, and changes nothing of what there is.
        let named = |id, content: &str| DeclaredToken {
            flags: None,
            ..declared(id, content, false, false)
        };
        let legacy = [named(START, "<|im_start|>"), named(END + 1, "<new>")];
        assert_eq!(ids(&legacy, "<|im_start|><new>"), [START, END + 1]);
        let known = |tokens: &[DeclaredToken]| {
            let tokenizer = tokenizer(None).with_declared_tokens(tokens).unwrap();
            tokenizer.fingerprint()
        };
        assert_eq!(known(&legacy[..1]), known(&[]));
        assert_ne!(known(&legacy), known(&[]));
    }

    #[test]
    fn a_declared_id_that_the_token_does_not_get_is_refused() {
        let far = declared(END + 7, "<new>", false, true);
        let error = tokenizer(None).with_declared_tokens(&[far]).err();
        let error = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(
            error.starts_with(&format!(
                "the token `<new>` is declared with id {}, but would get id {}",
                END + 7,
                END + 1
            )),
            "{error}"
        );
    }
}
