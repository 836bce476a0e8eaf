//! Llama as a Burn module.
//!
//! [`Llama::load`] reads a Hugging Face directory or a GGUF file; the base weights stay frozen,
//! outside Burn's parameters, and [`Llama::with_lora`] puts trainable adapters on its projections.
//! Sequences are laid end to end without padding: see [`Tokens`].
//!
//! Two ways to train: [`Llama::loss`] under Burn's autodiff, or layer by layer with
//! [`DecoderLayer::forward_saving`](layers::DecoderLayer::forward_saving) and
//! [`DecoderLayer::backward`](layers::DecoderLayer::backward), which record no tape.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod config;
mod error;
mod families;
mod load;
mod quantize;
mod tokens;

pub mod cache;
pub mod generate;
pub mod layers;
pub mod rope;

pub use config::{ConfigError, LlamaConfig};
pub use error::LoadError;
pub use families::llama::{BaseTensor, Llama, StoredShare};
pub use load::check;
pub use quantize::{QuantizeError, QuantizeReport, quantize};
pub use rope::{RopeConfig, RopeScaling};
pub use tokens::{IGNORE_INDEX, Targets, Tokens};
