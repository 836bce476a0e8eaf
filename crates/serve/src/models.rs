//! What is served, by name.

use std::sync::Arc;

use backdraft_data::ChatTokenizer;
use backdraft_model::CausalLm;

/// What prompts of a model are put into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompting {
    /// The tokenizer's chat template.
    ChatTemplate,
    /// Nothing: it was trained on prompts as they are.
    Nothing,
}

/// The base or the base with an adapter, as clients name it.
#[derive(Debug)]
pub struct Model {
    /// Its name.
    pub name: String,
    /// The model; all that are served together are clones of one base.
    pub model: CausalLm,
    /// With the chat template of the adapter.
    pub tokenizer: ChatTokenizer,
    /// What prompts are put into.
    pub prompting: Prompting,
}

/// What request handlers know of a model.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) tokenizer: Arc<ChatTokenizer>,
    pub(crate) prompting: Prompting,
    /// Tokens of the vocabulary.
    pub(crate) vocab_size: usize,
    /// Tokens of a prompt and its answer together, at most.
    pub(crate) context: usize,
}
