//! GGUF files, versions 2 and 3.
//!
//! [`GgufFile`] reads any file of the format, trusting none of its lengths; [`GgufModel`] shows a decoder of a
//! supported architecture among them in Hugging Face's terms. [`GgufExport`] is the way back: names, row orders, metadata and
//! the mixture of types are llama.cpp's, and the bytes of blocks too.
//!
//! # Source
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>

mod adapter;
mod architectures;
mod base_vocabulary;
mod bpe;
mod config;
mod decoder;
mod dequantize;
mod entry;
mod error;
mod export;
mod export_error;
mod family;
mod file;
mod file_type;
mod gemma4;
mod ggml_type;
mod keys;
mod model;
mod names;
mod order;
mod quantize;
mod qwen35;
mod reader;
mod rope_freqs;
mod sentencepiece;
mod split;
#[cfg(test)]
mod testing;
mod tokenizer;
mod value;
mod vocabulary;
mod writer;

pub use adapter::write_gguf_adapter;
pub use base_vocabulary::base_vocabulary;
pub use decoder::{GgufDecoder, GgufDeltaNets, GgufFactors, GgufGemma, GgufRope};
pub use dequantize::dequantize;
pub use entry::{Entry, EntryValue};
pub use error::{GgufError, GgufTokenizerError};
pub use export::{ExportSource, ExportTensor, GgufExport, GgufFiles};
pub use export_error::GgufExportError;
pub use file::{GgufFile, GgufTensor};
pub use file_type::GgufFileType;
pub use ggml_type::GgmlType;
pub use model::GgufModel;
pub use quantize::{quantize, quantized_bytes};
pub use value::{GgufArray, GgufMetadata, GgufValue, ValueType};
pub use vocabulary::{VocabularyOptions, vocabulary};
pub use writer::{GgufWriter, TensorPlan, WrittenFile};
