//! A tokenizer that knows its model's special tokens and chat template.

mod declared;
mod ends;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod words;

use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use crate::conversation::{Conversation, Message, Role};
use crate::error::{DataError, Source, TemplateError};
use crate::template::{ChatTemplate, NamedTokens};
pub use ends::EndOfTurn;
pub use stream::TokenStream;
use words::Words;

/// What a model's configuration says about special tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Text of the token that begins a document.
    pub bos_token: Option<String>,
    /// Text of the token that ends a document.
    pub eos_token: Option<String>,
    /// Tokens that only templates ask for, such as `pad_token` and `unk_token`.
    pub others: NamedTokens,
    /// Whether plain text gets a BOS; `None` asks `tokenizer.json`.
    pub add_bos: Option<bool>,
    /// The configuration's ids that end a generation.
    pub eos_token_ids: Vec<u32>,
}

/// Ids with their place in the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Start and end of every token, in bytes of the text; an added BOS is `(0, 0)`.
    pub offsets: Vec<(usize, usize)>,
}

/// A tokenizer, its special tokens and its chat template.
///
/// BOS is never doubled: rendered chats are encoded as they stand, and plain text gets a BOS only
/// if the model wants one and the text does not already begin with it.
pub struct ChatTokenizer {
    tokenizer: Tokenizer,
    words: Option<Words>,
    template: Option<ChatTemplate>,
    tool_use_template: Option<ChatTemplate>,
    /// What templates see.
    tokens: NamedTokens,
    bos: Option<(String, u32)>,
    eos: Option<(String, u32)>,
    add_bos: bool,
    end_of_turn: Option<EndOfTurn>,
    turn_ends: Vec<String>,
    added_tokens: Vec<String>,
    embedding_rows: Option<usize>,
    generation_prompt: Option<String>,
    foreign_markers: Vec<String>,
    eos_token_ids: Vec<u32>,
    /// SHA-256 of the file and the special tokens.
    base_fingerprint: String,
}

impl ChatTokenizer {
    /// Reads a `tokenizer.json` and compiles the chat template.
    ///
    /// Truncation, padding and post-processing that the file asks for are switched off: length is
    /// the caller's matter, padding does not exist here, and BOS is added by rule.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`], [`DataError::SpecialToken`], [`DataError::Template`], and
    /// [`DataError::Option`] if BOS is to be added but none is named.
    pub fn new(
        tokenizer_json: &[u8],
        special: SpecialTokens,
        chat_template: Option<&str>,
    ) -> Result<Self, DataError> {
        let mut base = Sha256::new();
        base.update(tokenizer_json);
        base.update(format!("{special:?}"));
        let base_fingerprint = crate::hex(&base.finalize());
        let mut tokenizer = Tokenizer::from_bytes(tokenizer_json)
            .map_err(tokenizer_error("parsing tokenizer.json"))?;
        tokenizer
            .with_truncation(None)
            .map_err(tokenizer_error("switching truncation off"))?;
        tokenizer.with_padding(None);
        let bos = find_token(&tokenizer, "bos", special.bos_token)?;
        let eos = find_token(&tokenizer, "eos", special.eos_token)?;
        let add_bos = match (special.add_bos, &bos) {
            (Some(true), None) => {
                return Err(DataError::Option {
                    option: "add_bos_token",
                    expected: "a bos_token to add".to_owned(),
                    actual: "no bos_token".to_owned(),
                });
            }
            (Some(add), _) => add,
            (None, Some((_, id))) => begins_with(&tokenizer, *id)?,
            (None, None) => false,
        };
        tokenizer.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        let mut tokens = special.others;
        tokens.set("bos_token", text(&bos).map(str::to_owned));
        tokens.set("eos_token", text(&eos).map(str::to_owned));
        let template = chat_template
            .map(|source| ChatTemplate::with_tokens(source, tokens.clone()))
            .transpose()?;
        let added_tokens = tokenizer.get_added_tokens_decoder().into_values();
        let added_tokens = added_tokens.map(|token| token.content).collect();
        let mut this = Self {
            words: Words::of(&tokenizer),
            tokenizer,
            template,
            tool_use_template: None,
            tokens,
            bos,
            eos,
            add_bos,
            end_of_turn: None,
            turn_ends: Vec::new(),
            added_tokens,
            embedding_rows: None,
            generation_prompt: None,
            foreign_markers: Vec::new(),
            eos_token_ids: special.eos_token_ids,
            base_fingerprint,
        };
        this.find_ends()?;
        Ok(this)
    }

    /// The same tokenizer with another chat template, such as a
    /// [built-in one](crate::template::builtin::BuiltinTemplate).
    ///
    /// # Errors
    /// [`DataError::Template`] if it cannot be parsed.
    pub fn with_template(mut self, source: &str) -> Result<Self, DataError> {
        self.template = Some(self.compile(source)?);
        self.tool_use_template = None;
        self.find_ends()?;
        Ok(self)
    }

    /// The same tokenizer with a second template for conversations with tools, which models with a
    /// list of templates call `tool_use`.
    ///
    /// # Errors
    /// [`DataError::Template`] if it cannot be parsed.
    pub fn with_tool_use_template(mut self, source: &str) -> Result<Self, DataError> {
        self.tool_use_template = Some(self.compile(source)?);
        Ok(self)
    }

    /// The same tokenizer with more ids that end a generation.
    #[must_use]
    pub fn with_stop_ids(mut self, ids: &[u32]) -> Self {
        for id in ids {
            if !self.eos_token_ids.contains(id) {
                self.eos_token_ids.push(*id);
            }
        }
        self
    }

    /// The same tokenizer for a model whose embedding has this many rows: a text with a token beyond
    /// them is refused.
    #[must_use]
    pub fn with_embedding_rows(mut self, rows: usize) -> Self {
        self.embedding_rows = Some(rows);
        self
    }

    /// The first of some ids that the model has no embedding for: its token, itself, and the rows of
    /// the embedding.
    pub fn beyond_embedding(&self, ids: &[u32]) -> Option<(String, u32, usize)> {
        let rows = self.embedding_rows?;
        let id = *ids.iter().find(|id| **id as usize >= rows)?;
        Some((self.id_to_token(id).unwrap_or_default(), id, rows))
    }

    /// SHA-256 of everything that ids depend on, in hexadecimal: the file, the special tokens, the
    /// templates, and today's date where a template writes it.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(&self.base_fingerprint);
        // Rows that were tokenised for a larger embedding may have ids that this one lacks.
        let largest = self.tokenizer.get_vocab(true).into_values().max();
        let rows = self.embedding_rows;
        if let Some(rows) = rows.filter(|rows| largest.is_some_and(|id| id as usize >= *rows)) {
            hash.update((rows as u64).to_le_bytes());
        }
        for template in [&self.template, &self.tool_use_template] {
            hash.update([u8::from(template.is_some())]);
            if let Some(template) = template {
                hash.update((template.source().len() as u64).to_le_bytes());
                hash.update(template.source());
                if template.source().contains("strftime_now") {
                    hash.update(chrono::Local::now().format("%Y-%m-%d").to_string());
                }
            }
        }
        crate::hex(&hash.finalize())
    }

    /// Texts like `<|im_end|>` that the chat template writes and the vocabulary lacks. Where turns
    /// do not end in a token either, the template belongs to another family of models.
    pub fn foreign_markers(&self) -> &[String] {
        &self.foreign_markers
    }

    fn find_foreign_markers(&self) -> Vec<String> {
        let turns = [
            Message::new(Role::System, "system"),
            Message::new(Role::User, "question"),
            Message::new(Role::Assistant, "answer"),
        ];
        // Some templates know no system prompt. One that wants other turns shows its markers when
        // rows are rendered.
        let chats = [&turns[..], &turns[1..]].map(|turns| Conversation::new(turns.to_vec()));
        let render = |chat| self.template()?.render(chat, true).ok();
        let text = chats.iter().find_map(render).unwrap_or_default();
        crate::findings::unknown_markers(&text, self)
    }

    fn compile(&self, source: &str) -> Result<ChatTemplate, DataError> {
        Ok(ChatTemplate::with_tokens(source, self.tokens.clone())?)
    }

    fn find_ends(&mut self) -> Result<(), DataError> {
        let ends = ends::find(self)?;
        self.end_of_turn = ends.end_of_turn;
        self.turn_ends = ends.tokens;
        self.generation_prompt = self.find_generation_prompt();
        self.foreign_markers = self.find_foreign_markers();
        for id in ends.stop_ids {
            if !self.eos_token_ids.contains(&id) {
                self.eos_token_ids.push(id);
            }
        }
        Ok(())
    }

    /// The chat template, if the model has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The chat template for a conversation: the one for tools where it has tools.
    pub fn template_for(&self, conversation: &Conversation) -> Option<&ChatTemplate> {
        let tool_use = self.tool_use_template.as_ref();
        tool_use
            .filter(|_| conversation.tools.is_some())
            .or(self.template())
    }

    /// Text of the BOS token.
    pub fn bos_token(&self) -> Option<&str> {
        text(&self.bos)
    }

    /// Text of the EOS token.
    pub fn eos_token(&self) -> Option<&str> {
        text(&self.eos)
    }

    /// Whether plain text gets a BOS.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// How the chat template ends an assistant turn; `None` without a template, or when the turn
    /// ends in no token of the vocabulary's own kind.
    pub fn end_of_turn(&self) -> Option<&EndOfTurn> {
        self.end_of_turn.as_ref()
    }

    /// Texts of all tokens that are known to end an answer: the end-of-turn token, EOS, those of the
    /// configuration, and those of turns that the template ends in another way.
    pub fn turn_ends(&self) -> &[String] {
        &self.turn_ends
    }

    /// Texts of the tokens that were added to the vocabulary, special or not.
    pub fn added_tokens(&self) -> &[String] {
        &self.added_tokens
    }

    /// What the chat template writes for the model to answer after, such as
    /// `<|im_start|>assistant\n`; `None` where it writes nothing or that is not known.
    pub fn generation_prompt(&self) -> Option<&str> {
        self.generation_prompt.as_deref()
    }

    /// Ids that end a generation: the configuration's, EOS, and the end-of-turn token.
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.eos_token_ids
    }

    /// Size of the vocabulary, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The id of a token's text.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The text of a token, as the vocabulary spells it.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// Encodes a rendered chat: special tokens in the text are recognised, none is added.
    ///
    /// # Errors
    /// The tokenizer library's reason.
    pub fn encode_rendered(&self, text: &str) -> Result<Encoded, Source> {
        match &self.words {
            Some(words) => words.encode(&self.tokenizer, text),
            None => words::whole(&self.tokenizer, text),
        }
    }

    /// Encodes plain text, with a BOS if the model wants one and the text does not begin with it.
    ///
    /// # Errors
    /// The tokenizer library's reason.
    pub fn encode_text(&self, text: &str) -> Result<Encoded, Source> {
        let mut encoded = self.encode_rendered(text)?;
        if let Some((_, id)) = self.bos.as_ref().filter(|_| self.add_bos)
            && encoded.ids.first() != Some(id)
        {
            encoded.ids.insert(0, *id);
            encoded.offsets.insert(0, (0, 0));
        }
        Ok(encoded)
    }

    /// Renders a conversation and encodes it, ready for the model to answer.
    ///
    /// # Errors
    /// [`DataError::Template`] (also without a chat template), [`DataError::Tokenizer`], and
    /// [`DataError::BeyondEmbedding`].
    pub fn encode_chat(&self, conversation: &Conversation) -> Result<Vec<u32>, DataError> {
        let template = self
            .template_for(conversation)
            .ok_or(TemplateError::Missing)?;
        let (_, rendered) = crate::supervise::render_chat(template, conversation, true)?;
        let encoded = self
            .encode_rendered(&rendered)
            .map_err(tokenizer_error("encoding a conversation"))?;
        self.check_ids(&encoded.ids)?;
        Ok(encoded.ids)
    }

    /// Refuses ids that the model has no embedding for.
    ///
    /// # Errors
    /// [`DataError::BeyondEmbedding`].
    pub fn check_ids(&self, ids: &[u32]) -> Result<(), DataError> {
        match self.beyond_embedding(ids) {
            None => Ok(()),
            Some((token, id, rows)) => Err(DataError::BeyondEmbedding { token, id, rows }),
        }
    }

    /// The text of ids.
    ///
    /// # Errors
    /// The tokenizer library's reason.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, Source> {
        self.tokenizer.decode(ids, skip_special_tokens)
    }

    /// A decoder for tokens that arrive one by one.
    pub fn stream(&self, skip_special_tokens: bool) -> TokenStream<'_> {
        TokenStream::new(self, skip_special_tokens)
    }

    fn find_generation_prompt(&self) -> Option<String> {
        let template = self.template.as_ref()?;
        let chat = Conversation::new(vec![Message::new(Role::User, "question")]);
        let without = template.render(&chat, false).ok()?;
        let with = template.render(&chat, true).ok()?;
        let prompt = with.strip_prefix(&without)?;
        (!prompt.is_empty()).then(|| prompt.to_owned())
    }
}

impl std::fmt::Debug for ChatTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .field("add_bos", &self.add_bos)
            .field("end_of_turn", &self.end_of_turn)
            .field("eos_token_ids", &self.eos_token_ids)
            .finish_non_exhaustive()
    }
}

fn text(token: &Option<(String, u32)>) -> Option<&str> {
    token.as_ref().map(|(text, _)| text.as_str())
}

fn tokenizer_error(what: &'static str) -> impl Fn(Source) -> DataError {
    move |source| DataError::Tokenizer {
        what: what.to_owned(),
        source,
    }
}

fn find_token(
    tokenizer: &Tokenizer,
    role: &'static str,
    token: Option<String>,
) -> Result<Option<(String, u32)>, DataError> {
    let Some(token) = token.filter(|token| !token.is_empty()) else {
        return Ok(None);
    };
    match tokenizer.token_to_id(&token) {
        Some(id) => Ok(Some((token, id))),
        None => Err(DataError::SpecialToken { role, token }),
    }
}

/// Whether the file's own post-processor puts this token first.
fn begins_with(tokenizer: &Tokenizer, id: u32) -> Result<bool, DataError> {
    let encoding = tokenizer
        .encode("a", true)
        .map_err(tokenizer_error("encoding a probe"))?;
    Ok(encoding.get_ids().first() == Some(&id))
}
