//! Text from tokens that arrive one by one.

use super::ChatTokenizer;
use crate::error::Source;

/// Turns generated tokens into text, holding back characters whose bytes are not all there yet.
///
/// The pieces of [`Self::push`] and [`Self::finish`] joined are the text of all ids.
pub struct TokenStream<'a> {
    tokenizer: &'a ChatTokenizer,
    skip_special_tokens: bool,
    /// Ids of the last piece and of what is held back: decoders look at neighbours.
    ids: Vec<u32>,
    /// How many of `ids` have been given out.
    given: usize,
}

impl<'a> TokenStream<'a> {
    pub(super) fn new(tokenizer: &'a ChatTokenizer, skip_special_tokens: bool) -> Self {
        Self {
            tokenizer,
            skip_special_tokens,
            ids: Vec::new(),
            given: 0,
        }
    }

    /// Adds a token and returns the text that is now complete (may be empty).
    ///
    /// # Errors
    /// The tokenizer library's reason.
    pub fn push(&mut self, id: u32) -> Result<String, Source> {
        self.ids.push(id);
        let text = self.pending()?;
        if text.is_empty() || text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        Ok(text)
    }

    /// Returns what is still held back; broken characters become U+FFFD.
    ///
    /// # Errors
    /// The tokenizer library's reason.
    pub fn finish(mut self) -> Result<String, Source> {
        let text = self.pending()?;
        self.ids.clear();
        Ok(text)
    }

    fn pending(&self) -> Result<String, Source> {
        let before = self
            .tokenizer
            .decode(&self.ids[..self.given], self.skip_special_tokens)?;
        let all = self.tokenizer.decode(&self.ids, self.skip_special_tokens)?;
        Ok(all
            .strip_prefix(before.as_str())
            .unwrap_or_default()
            .to_owned())
    }
}
