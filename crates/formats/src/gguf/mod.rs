//! GGUF files, versions 2 and 3.
//!
//! [`GgufFile`] reads any file of the format, trusting none of its lengths; [`GgufLlama`] shows a
//! Llama among them in Hugging Face's terms.
//!
//! # Source
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>

mod bpe;
mod config;
mod dequantize;
mod error;
mod file;
mod ggml_type;
mod llama;
mod names;
mod reader;
mod rope_freqs;
mod sentencepiece;
#[cfg(test)]
mod testing;
mod tokenizer;
mod value;

pub use dequantize::dequantize;
pub use error::{GgufError, GgufTokenizerError};
pub use file::{GgufFile, GgufTensor};
pub use ggml_type::GgmlType;
pub use llama::GgufLlama;
pub use value::{GgufArray, GgufMetadata, GgufValue, ValueType};
