//! Model families.

pub mod llama;
