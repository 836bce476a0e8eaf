//! Keys and values of tokens already seen.
//!
//! They lie in pages of 32 tokens in one pool for each layer. Sequences begin and end all the time; with pages a token's
//! keys and values are written once and never moved, memory is given back as soon as a sequence ends, and samples of one
//! prompt share its pages. A buffer for each sequence would have to be as long as the sequence may become, or be copied
//! as it grows. A DeltaNet keeps no keys and values but a state of fixed size for each sequence.

mod pages;
mod pool;
mod states;

pub(crate) use pages::{PAGE, Pages, Table, pages_for};
pub(crate) use pool::{LayerPool, Pool};
pub(crate) use states::{LayerStates, Slot};
