//! From a file of rows to padding-free training batches.
//!
//! ```text
//! JSONL line ──format──▶ Record ──template──▶ text + spans ──tokenizer──▶ ids, labels (Example)
//!                                                                            │
//!                          Batch ◀──batch── rows of a micro-batch ◀──loader──┘
//! ```
//!
//! | module | noun |
//! |---|---|
//! | [`conversation`] | [`Record`]: what one row says, whatever its format |
//! | [`mod@format`] | [`Format`]: alpaca, messages and text rows |
//! | [`jsonl`] | the line reader with bounded memory |
//! | [`template`] | [`ChatTemplate`] (Jinja, as transformers sets it) |
//! | [`prompt_template`] | [`PromptTemplate`] (placeholders from a recipe) |
//! | [`tokenizer`] | [`ChatTokenizer`]: ids, byte offsets, end-of-turn, streaming decoder |
//! | [`supervise`] | which tokens a row trains, by text offsets |
//! | [`dataset`] | [`Dataset`]: the tokenised file and its report |
//! | [`prompts`] | prompts and expected answers for generation scores |
//! | [`loader`] | [`Loader`]: the seeded order, counted in optimiser steps |
//! | [`batch`] | [`Batch`]: documents laid end to end |
//! | [`synthetic`] | the quickstart's generator and its exact scoring |
//! | [`score`] | exact match and first word of generated answers |
//!
//! Nothing here knows tensors, models or recipes, and nothing prints.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod batch;
pub mod conversation;
pub mod dataset;
pub mod error;
pub mod findings;
pub mod format;
pub mod jsonl;
pub mod lengths;
pub mod loader;
pub mod pipeline;
pub mod prompt_template;
pub mod prompts;
pub mod rng;
pub mod score;
pub mod source;
pub mod supervise;
pub mod synthetic;
pub mod template;
pub mod tokenizer;

pub use batch::Batch;
pub use conversation::{Conversation, Instruction, Message, Record, Role};
pub use dataset::{DataOptions, DataReport, Dataset, Example, LoadProgress, load};
pub use error::{DataError, SpanError, TemplateError};
pub use format::Format;
pub use loader::{Loader, LoaderState};
pub use prompt_template::PromptTemplate;
pub use prompts::{Prompt, load_prompts};
pub use score::GenerationScores;
pub use source::Source;
pub use supervise::Supervision;
pub use template::ChatTemplate;
pub use tokenizer::{ChatTokenizer, SpecialTokens, TokenStream};

/// The label of a position that is not trained.
pub const IGNORE_INDEX: i64 = -100;
