//! From a file of rows to padding-free training batches.
//!
//! ```text
//! files ──source──▶ RawRow ──format──▶ Record ──template──▶ text + spans ──tokenizer──▶ ids, labels
//!                                                                                        │
//!        Batch ◀──batch── rows of a micro-batch ◀──loader, pack── TokenRows ◀──pipeline, cache
//! ```
//!
//! | module | noun |
//! |---|---|
//! | [`source`] | [`Source`]: files, folders and globs behind one streaming reader |
//! | [`conversation`] | [`Record`]: what one row says, whatever its format |
//! | [`mod@format`] | [`Format`]: how rows of each kind are read, told apart, and renamed |
//! | [`jsonl`] | the line reader with bounded memory |
//! | [`template`] | [`ChatTemplate`] (Jinja, as transformers sets it), [`BuiltinTemplate`] |
//! | [`prompt_template`] | [`PromptTemplate`] (placeholders from a recipe) |
//! | [`tokenizer`] | [`ChatTokenizer`]: ids, byte offsets, end-of-turn, streaming decoder |
//! | [`supervise`] | which tokens a row trains, by text offsets |
//! | [`options`], [`report`] | how rows are read, and what became of them |
//! | [`answers`] | [`Answers`]: which texts of a row are better than others |
//! | [`pipeline`] | [`tokenize()`]: all rows of all sources, on all cores |
//! | [`broken`] | [`BrokenRows`]: rows that cannot be used, by what is wrong with them |
//! | [`findings`] | [`Findings`]: what is wrong with rows that can be read |
//! | [`lengths`] | how long rows are |
//! | [`store`], [`cache`] | [`TokenRows`]: tokenised rows in memory or mapped from the disk |
//! | [`row_set`] | [`RowSet`]: the rows of a run, all or some of those stored |
//! | [`eval_split`] | which rows are kept for evaluation |
//! | [`pack`], [`loader`] | [`Loader`]: which rows share a micro-batch, and the seeded order |
//! | [`batch`] | [`Batch`]: documents laid end to end |
//! | [`preview`](mod@preview) | [`Preview`]: rows as the model sees them, as text and as a page |
//! | [`prompts`] | prompts and expected answers for generation scores |
//! | [`synthetic`] | the quickstart's generator and its exact scoring |
//! | [`score`] | exact match and first word of generated answers |
//!
//! Nothing here knows tensors, models or recipes, and nothing prints.
#![cfg_attr(test, allow(clippy::print_stdout, clippy::unwrap_used))]

pub mod answers;
pub mod batch;
pub mod broken;
pub mod cache;
pub mod conversation;
pub mod count;
pub mod error;
pub mod eval_split;
pub mod findings;
pub mod format;
pub mod jsonl;
pub mod lengths;
pub mod loader;
pub mod options;
pub mod pack;
pub mod pipeline;
pub mod preview;
pub mod prompt_template;
pub mod prompts;
pub mod report;
pub mod rng;
pub mod row_set;
pub mod score;
pub mod source;
pub mod store;
pub mod supervise;
pub mod synthetic;
pub mod template;
pub mod tokenizer;

pub use answers::{Answer, Answers, Comparisons, Margins};
pub use backdraft_jinja::{JinjaError, JinjaErrorKind};
pub use batch::Batch;
pub use broken::{BrokenKind, BrokenRows};
pub use cache::{Cached, tokenize_cached};
pub use conversation::{Conversation, Instruction, Message, Record, Role};
pub use count::count;
pub use error::{DataError, JsonFault, SpanError, TemplateError};
pub use eval_split::{EvalSplit, count_seen, split_fraction};
pub use findings::{Finding, Findings, RowPlace};
pub use format::{FieldMap, Format};
pub use loader::{Loader, LoaderOptions, LoaderState, MOST_VISITS, SourceShare};
pub use options::DataOptions;
pub use pack::{Batching, Density};
pub use pipeline::{
    Outcome, Overlong, RowSink, SkippedRow, TokenizeOptions, TokenizedRow, survey, tokenize,
};
pub use preview::{Preview, preview};
pub use prompt_template::PromptTemplate;
pub use prompts::{Prompt, load_prompts};
pub use report::{DataReport, LoadProgress};
pub use row_set::{RowCounts, RowSet};
pub use score::GenerationScores;
pub use source::{RowFormat, Source};
pub use store::TokenRows;
pub use supervise::{Supervision, Unseen};
pub use template::builtin::BuiltinTemplate;
pub use template::{ChatTemplate, NamedTokens};
pub use tokenizer::{ChatTokenizer, SpecialTokens, TokenStream};

/// The label of a position that is not trained.
pub const IGNORE_INDEX: i64 = -100;

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
