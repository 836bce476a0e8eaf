//! Files on disk: models as Hugging Face directories or GGUF files, adapters as PEFT directories.
//!
//! Nothing in a file is trusted: every length is checked against the file before it is used, and
//! a malformed file is one clear error. Nothing here runs code from a file; pickles are refused.
//!
//! | file | module |
//! | --- | --- |
//! | any model, behind one face | [`ModelSource`] |
//! | `config.json` + `*.safetensors` | [`HfDir`], [`HfDirWriter`], [`TokenizerFiles`] |
//! | weights that bitsandbytes quantised, in such a directory | [`bnb`] |
//! | `*.gguf` | [`gguf`] |
//! | one safetensors file | [`SafetensorsFile`], [`SafetensorsWriter`] |
//! | `adapter_config.json` + `adapter_model.safetensors` | [`PeftDir`], [`PeftConfig`] |
#![cfg_attr(feature = "hub", doc = "| models by name, from the hub | [`hub`] |")]
//! | the head of a model card (`README.md`) | [`CardHead`] |
//! | tokenised rows | [`TokenFile`], [`TokenFileWriter`] |
//! | files and directories that appear whole or not at all | [`AtomicFile`], [`AtomicDir`] |
//! | a place for tests between their operations | [`fault`] |
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod atomic;
mod atomic_dir;
pub mod bnb;
mod checkpoint;
mod disk;
pub mod dtype;
mod error;
pub mod fault;
pub mod gguf;
mod hf_dir;
mod hf_writer;
#[cfg(feature = "hub")]
pub mod hub;
mod json;
mod mapped;
mod model_card;
mod peft_config;
mod peft_dir;
mod peft_find;
mod peft_names;
mod peft_tokens;
mod peft_whole;
mod peft_wrapped;
mod safetensors_file;
mod safetensors_writer;
mod tensor;
mod token_file;
mod tokenizer_files;
mod wrapped;

pub use atomic::{AtomicFile, Existing, remove_partials, sync_directory, write_file};
pub use atomic_dir::{AtomicDir, IsOurs};
pub use backdraft_arch::ModulePattern;
pub use backdraft_arch::TokenTable;
pub use checkpoint::ModelSource;
pub use disk::free_bytes;
pub use dtype::Dtype;
pub use error::{FormatError, Result};
pub use hf_dir::HfDir;
pub use hf_writer::HfDirWriter;
pub use model_card::CardHead;
pub use peft_config::{PeftConfig, PeftConfigError, TargetModules};
pub use peft_dir::{AdapterTensors, LoraPair, PeftDir, PeftModule, PeftOutline, PeftWriteOptions};
pub use peft_find::{adapter_in, trained_model_in};
pub use peft_tokens::{TokenRows, TrainableTokens};
pub use peft_whole::WholeTensor;
pub use safetensors_file::{SafetensorsError, SafetensorsFile};
pub use safetensors_writer::SafetensorsWriter;
pub use tensor::{RawTensor, TensorInfo};
pub use token_file::{StoredAnswers, StoredRow, TokenFile, TokenFileWriter};
pub use tokenizer_files::{DeclaredFlags, DeclaredToken, TokenizerFiles};
pub use wrapped::AdapterPrefix;
