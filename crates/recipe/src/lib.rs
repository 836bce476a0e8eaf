//! The recipe of a training run: TOML in, one checked [`Recipe`] out, or every problem at once.
//!
//! `raw` reads keys and values with their lines, `resolve` (with `sources` for rows, `modules` and `adapter` for adapters, `groups` for their rates, `trainable` for what is trained in their place) turns them into a [`Recipe`], `keys` is the
//! table of keys with defaults and documentation, `support` lists values that are refused by name, `foreign` the keys of other
//! trainers, and `unknown` says what becomes of them. `names` and `data_format` are values that people write by name, `precision` turns
//! what is said of bits into a number.
//! `sweep` reads what `tune` tries. `objective` is what a run minimises (`dpo_losses` its losses of pairs), [`schedule`] the curve of the
//! learning rate, [`no_effect`] why a run would train nothing.
//!
//! Start reading at `keys`.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod adapter;
mod bases;
mod data_format;
mod difference;
mod dpo_losses;
mod eval_metric;
mod foreign;
mod groups;
mod kept;
mod keys;
mod mixing;
mod modules;
mod names;
pub mod no_effect;
mod objective;
mod page;
mod precision;
mod problem;
mod raw;
mod reader;
mod recipe;
mod resolve;
pub mod schedule;
mod scheduler;
mod setup;
mod size;
mod sources;
mod support;
mod sweep;
mod template;
mod tokens;
mod tracker;
mod trainable;
mod unknown;
mod whole;

pub use backdraft_arch::{Bias, Trainable};
pub use backdraft_plan::ActivationPolicy;
pub use data_format::DataFormat;
pub use difference::{Difference, covers, is_key_or_section};
pub use dpo_losses::{DpoLoss, DpoLosses};
pub use eval_metric::EvalMetric;
pub use foreign::Foreign;
pub use groups::{GROUPS, GroupRecipe};
pub use keys::{KEYS, Key, SECTIONS, find as find_key};
pub use names::{
    DType, KeptGradients, KeyPrefix, MasterWeights, Optimizer, RowBatching, TokenInit,
};
pub use objective::{ObjectiveKind, ObjectiveRecipe, ReferenceStart};
pub use page::page;
pub use precision::{AUTO_TIME, BaseTooSmall, Bits};
pub use problem::{Place, Problem, ProblemKind, RecipeError};
pub use recipe::{
    CacheRecipe, ChatTemplateRecipe, DataRecipe, Length, LoraRecipe, QuantizationRecipe, Recipe,
    TrainRecipe, Warmup,
};
pub use setup::bytes_of;
pub use size::{ByteSize, ByteSizeError};
pub use sources::{EvalRecipe, SourceRecipe, Sources};
pub use sweep::{Sweep, SweepMethod, Trial};
pub use template::Choices;
pub use tokens::TokensRecipe;
pub use tracker::{TrackerKind, TrackerRecipe};
pub use unknown::{foreign as foreign_key, nearest as nearest_key};

#[cfg(test)]
mod tests;
