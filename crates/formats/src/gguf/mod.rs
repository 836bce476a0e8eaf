//! GGUF files, versions 2 and 3.
//!
//! [`GgufFile`] reads any file of the format, trusting none of its lengths; [`GgufModel`] shows a decoder of a
//! supported architecture among them in Hugging Face's terms.
//!
//! # Source
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>

mod architectures;
mod bpe;
mod config;
mod dequantize;
mod error;
mod file;
mod ggml_type;
mod model;
mod names;
mod quantize;
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
pub use model::GgufModel;
pub use quantize::{quantize, quantized_bytes};
pub use value::{GgufArray, GgufMetadata, GgufValue, ValueType};
