//! Model families.

pub(crate) mod llama;
