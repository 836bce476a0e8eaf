//! What can be wrong with a file on disk.

use std::path::PathBuf;

use crate::dtype::Dtype;
use crate::gguf::{GgufError, GgufExportError, GgufTokenizerError};
use crate::peft_config::PeftConfigError;
use crate::safetensors_file::SafetensorsError;

/// Anything that can go wrong while reading or writing a model, an adapter or one of their parts.
///
/// Every variant names the file; those about a tensor name the tensor. The message says what was
/// expected, what was found, and what to do where that is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The operating system refused an operation on a file.
    #[error("could not {action} {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried, as a verb phrase that fits before the path.
        action: &'static str,
        /// The system's own error.
        source: std::io::Error,
    },
    /// A JSON file that is not JSON.
    #[error("{} is not valid JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line and column of the first problem.
        source: serde_json::Error,
    },
    /// Contents of a file that have no form in JSON.
    #[error("{} cannot be written: its contents have no form in JSON", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// What has none.
        source: serde_json::Error,
    },
    /// A JSON file that is longer than any honest one.
    #[error("{} has {actual} bytes; a file of its kind has at most {expected}", path.display())]
    JsonTooLong {
        /// The file.
        path: PathBuf,
        /// The most bytes that are read.
        expected: u64,
        /// Its length.
        actual: u64,
    },
    /// A JSON file whose field has the wrong type or value.
    #[error("{}: `{field}` should be {expected}, but is {actual}", path.display())]
    JsonField {
        /// The file.
        path: PathBuf,
        /// The key, with dots where it is nested.
        field: String,
        /// What would be accepted.
        expected: &'static str,
        /// The value found, shortened.
        actual: String,
    },
    /// A path that leads to nothing.
    #[error("{} does not exist", path.display())]
    NotFound {
        /// The path as given.
        path: PathBuf,
    },
    /// A path that is neither a model directory nor a GGUF file.
    #[error("{} is not a model: expected a directory with config.json and *.safetensors, or a .gguf file; found {actual}", path.display())]
    NotAModel {
        /// The path as given.
        path: PathBuf,
        /// What is there instead.
        actual: String,
    },
    /// The only weights are in a format that can run code when it is loaded.
    #[error("{} holds its weights as a pickle ({file}), which can run code when loaded and is never read; get or convert it to safetensors (`save_pretrained` with `safe_serialization=True`)", path.display())]
    Pickle {
        /// The directory.
        path: PathBuf,
        /// The pickle file found.
        file: String,
    },
    /// A file of tokenised rows that this version did not write, or damaged.
    #[error("{}: expected {expected}, found {actual}; delete it, and it is made again", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        actual: String,
    },
    /// A malformed safetensors file.
    #[error("{} is not a sound safetensors file", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The rule that it breaks.
        source: SafetensorsError,
    },
    /// A malformed or unsupported GGUF file.
    #[error("{} cannot be read as GGUF", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// A model that has no form as GGUF.
    #[error("the model cannot be written as GGUF")]
    GgufExport {
        /// What has none.
        #[from]
        source: GgufExportError,
    },
    /// A GGUF file whose tokenizer cannot be rebuilt.
    #[error("the tokenizer in {} cannot be rebuilt", path.display())]
    GgufTokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufTokenizerError,
    },
    /// A shard name in an index that is not a plain file name.
    #[error("{}: the shard name {shard:?} of tensor {tensor} is not a plain *.safetensors file name; a shard must lie beside its index", path.display())]
    ShardName {
        /// The index file.
        path: PathBuf,
        /// The tensor whose entry it is.
        tensor: String,
        /// The name found.
        shard: String,
    },
    /// A shard that the index names, and that is not there.
    #[error("{}: the shard {shard} is missing ({tensors} tensors are in it); the download is incomplete", path.display())]
    ShardMissing {
        /// The index file.
        path: PathBuf,
        /// The file name.
        shard: String,
        /// How many tensors the index puts there.
        tensors: usize,
    },
    /// A tensor that the index promises in a shard that lacks it.
    #[error("{}: the index puts tensor {tensor} into {shard}, which does not hold it", path.display())]
    ShardTensorMissing {
        /// The index file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// A tensor that two shards hold.
    #[error("{}: tensor {tensor} is in both {first} and {second}", path.display())]
    ShardDuplicate {
        /// The index file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The first shard.
        first: String,
        /// The second shard.
        second: String,
    },
    /// A tensor that was asked for and is not there.
    #[error("{} has no tensor {tensor}", path.display())]
    TensorMissing {
        /// The file or directory.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor of a type that cannot be read as asked.
    #[error("{}: tensor {tensor} is {actual}, expected {expected}", path.display())]
    TensorDtype {
        /// The file or directory.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What would be accepted.
        expected: &'static str,
        /// The type found.
        actual: Dtype,
    },
    /// A vocabulary that cannot have the tokens that are wanted.
    #[error("{}: {reason}", path.display())]
    AddedTokens {
        /// The model.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A tensor of the wrong shape.
    #[error("{}: tensor {tensor} has shape {actual:?}, expected {expected}", path.display())]
    TensorShape {
        /// The file or directory.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What would be accepted.
        expected: String,
        /// The shape found.
        actual: Vec<usize>,
    },
    /// A tensor whose name does not belong in this kind of file.
    #[error("{}: tensor {tensor} is not expected here: {reason}", path.display())]
    TensorUnexpected {
        /// The file or directory.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why it does not belong.
        reason: &'static str,
    },
    /// A part of a weight in codes that is missing or does not fit the others.
    #[error("{}: {tensor} is part of a quantised weight: expected {expected}, found {actual}", path.display())]
    BnbState {
        /// The directory.
        path: PathBuf,
        /// The part.
        tensor: String,
        /// What would fit.
        expected: String,
        /// What is there.
        actual: String,
    },
    /// A weight in codes that was asked for as numbers.
    #[error("{}: tensor {tensor} is quantised ({actual}); this needs an unquantised model", path.display())]
    TensorQuantized {
        /// The file or directory.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// How it is stored.
        actual: String,
    },
    /// A model without the tokenizer that was asked for.
    #[error("{} has no tokenizer.json; save it with a fast tokenizer (`AutoTokenizer.from_pretrained(…).save_pretrained(…)`)", path.display())]
    TokenizerMissing {
        /// The model directory.
        path: PathBuf,
    },
    /// An `adapter_config.json` that asks for something not supported.
    #[error("{} cannot be used", path.display())]
    PeftConfig {
        /// The file.
        path: PathBuf,
        /// The field and its value.
        source: PeftConfigError,
    },
    /// A target that is already there, where nothing may be replaced.
    #[error("{} already exists and is not replaced", path.display())]
    TargetExists {
        /// The file or directory.
        path: PathBuf,
    },
    /// Something else where a directory is to be written.
    #[error(
        "{} is a file, where a directory is to be written; choose another name, or move it away",
        path.display()
    )]
    NotADirectory {
        /// The file.
        path: PathBuf,
    },
    /// A directory where a file is to be written.
    #[error(
        "{} is a directory, where a file is to be written; choose another name, or move it away",
        path.display()
    )]
    NotAFile {
        /// The directory.
        path: PathBuf,
    },
    /// A writer was given a tensor that it did not announce, gave twice, or never got.
    #[error("{}: {problem} tensor {tensor}", path.display())]
    WriteOrder {
        /// The file being written.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong about it.
        problem: &'static str,
    },
}

impl FormatError {
    /// For `map_err` on `std::io` results.
    pub fn io(
        path: impl Into<PathBuf>,
        action: &'static str,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            path,
            action,
            source,
        }
    }

    /// For `map_err` on what is to be written as JSON.
    pub fn encode(path: impl Into<PathBuf>) -> impl FnOnce(serde_json::Error) -> Self {
        let path = path.into();
        move |source| Self::Encode { path, source }
    }
}

/// The result of everything in this crate that touches a file.
pub type Result<T, E = FormatError> = std::result::Result<T, E>;
