//! Continuing many sequences at once, each from its own beginning to its own end.
//!
//! A [`Decoder`] holds a base model with any number of adapters and the sequences that are being continued. Sequences
//! are admitted and removed between any two steps. One step of all of them reads the base once: rows of different adapters
//! go through its products together, and only the adapters' terms are made for each one's rows.
//!
//! What a sequence becomes does not depend on who else is there. On the processor that holds to the last bit: passes
//! have at most 64 rows, whose products are summed row by row in one order
//! (`gemm/few_rows.rs` of the kernels), prompts are cut in the same places whoever else waits, and each sequence has
//! draws of its own. On a GPU, products of other sizes are other kernels, which round differently: where two tokens are
//! almost equally likely, a sequence may take the other one.

mod decoder;
mod pass;
mod sampling;

pub use decoder::{AdmitError, DecodeLimits, DecodeRequest, Decoder, Finish, Sampled, SequenceId};
pub use sampling::{GenerateConfig, Likely, SamplingConfig};
