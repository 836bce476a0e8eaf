//! Decoder-only language models as Burn modules.
//!
//! [`CausalLm::load`] reads a Hugging Face directory or a GGUF file; the base weights stay frozen,
//! outside Burn's parameters, and [`CausalLm::with_lora`] puts trainable adapters on its projections.
//! Sequences are laid end to end without padding: see [`Tokens`].
//!
//! [`CausalLm::load_to_score`] puts a head with one row in place of the one that predicts tokens: see [`CausalLm::scores`].
//!
//! Two ways to train: [`CausalLm::loss`] under Burn's autodiff, or layer by layer with
//! [`DecoderLayer::forward_saving`](layers::DecoderLayer::forward_saving) and
//! [`DecoderLayer::backward`](layers::DecoderLayer::backward), which record no tape.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod cache;
mod causal_lm;
mod error;
mod load;
mod quantize;
mod score;
mod tokens;

pub mod decode;
pub mod generate;
pub mod layers;
pub mod rope;

pub use backdraft_arch::StoredShare;
pub use backdraft_arch::{ConfigError, ModelSpec, RopeConfig, RopeScaling};
pub use causal_lm::{BaseTensor, CausalLm, WholePlace};
pub use error::LoadError;
pub use load::{check, spec};
pub use quantize::{QuantizeError, QuantizeReport, quantize};
pub use tokens::{IGNORE_INDEX, Targets, Tokens};
