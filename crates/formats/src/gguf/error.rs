//! What can be wrong with a GGUF file.

use super::value::ValueType;

/// Why a GGUF file cannot be read or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The first four bytes are something else.
    #[error("it does not begin with \"GGUF\" but with {actual:02x?}")]
    Magic {
        /// The bytes found, at most four.
        actual: Vec<u8>,
    },
    /// A version of the format that is not read.
    #[error(
        "it is GGUF version {actual}, versions 2 and 3 are read; convert it with a current tool"
    )]
    Version {
        /// The version found.
        actual: u32,
    },
    /// A file written on, or for, a big-endian machine.
    #[error("it is big-endian; only little-endian files are read")]
    BigEndian,
    /// The file ends before something that it promises.
    #[error(
        "the file ends inside {what}: {expected} bytes needed at byte {offset}, {actual} left; it is truncated or damaged"
    )]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where in the file.
        offset: u64,
        /// Bytes needed.
        expected: u64,
        /// Bytes left.
        actual: u64,
    },
    /// A count that the rest of the file cannot hold.
    #[error(
        "it claims {actual} {what}, but at most {expected} fit into the rest of the file; it is truncated or damaged"
    )]
    Count {
        /// What is counted.
        what: &'static str,
        /// The most that fit.
        expected: u64,
        /// The number claimed.
        actual: u64,
    },
    /// A name or string that is not UTF-8.
    #[error("{what} is not valid UTF-8")]
    Utf8 {
        /// Which string.
        what: String,
        /// Where it stops being UTF-8.
        source: std::str::Utf8Error,
    },
    /// Two metadata entries of one key.
    #[error("the metadata key {key} appears twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// Two tensors of one name.
    #[error("tensor {tensor} appears twice")]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
    },
    /// A metadata type that the format does not define.
    #[error("the metadata key {key} has the unknown type {actual}")]
    ValueType {
        /// The key.
        key: String,
        /// The type's number.
        actual: u32,
    },
    /// A boolean that is neither 0 nor 1.
    #[error("the metadata key {key} is a boolean with the value {actual}")]
    Bool {
        /// The key.
        key: String,
        /// The value found.
        actual: u8,
    },
    /// An array of arrays.
    #[error("the metadata key {key} is an array of arrays, which is not supported")]
    NestedArray {
        /// The key.
        key: String,
    },
    /// A metadata value of another type than its meaning needs.
    #[error("the metadata key {key} should be {expected}, but is {actual}")]
    KeyType {
        /// The key.
        key: String,
        /// What would be accepted.
        expected: &'static str,
        /// The type found.
        actual: ValueType,
    },
    /// A metadata number outside what its meaning allows.
    #[error("the metadata key {key} should be {expected}, but is {actual}")]
    KeyValue {
        /// The key.
        key: String,
        /// What would be accepted.
        expected: &'static str,
        /// The value found.
        actual: String,
    },
    /// A metadata key that must be there and is not.
    #[error("the metadata key {key} is missing")]
    KeyMissing {
        /// The key.
        key: String,
    },
    /// An alignment that is not a power of two, or absurdly large.
    #[error("general.alignment should be a power of two of at most 1 MiB, but is {actual}")]
    Alignment {
        /// The value found.
        actual: u32,
    },
    /// A tensor with too many dimensions.
    #[error("tensor {tensor} has {actual} dimensions, at most 4 are allowed")]
    Dimensions {
        /// The tensor.
        tensor: String,
        /// The number found.
        actual: u32,
    },
    /// A tensor type that this program does not decode.
    #[error(
        "tensor {tensor} has the type {actual}, which is not supported; F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K are"
    )]
    TensorType {
        /// The tensor.
        tensor: String,
        /// The type's name, or its number.
        actual: String,
    },
    /// A shape whose size overflows.
    #[error("tensor {tensor} has the impossible shape {shape:?}")]
    ShapeOverflow {
        /// The tensor.
        tensor: String,
        /// The shape, outermost first.
        shape: Vec<u64>,
    },
    /// Rows that are not whole blocks.
    #[error(
        "tensor {tensor} has rows of {actual} elements, which blocks of {expected} do not divide"
    )]
    RowLength {
        /// The tensor.
        tensor: String,
        /// Elements per block.
        expected: usize,
        /// Elements per row.
        actual: usize,
    },
    /// A tensor that does not begin at a multiple of the alignment.
    #[error(
        "tensor {tensor} begins at byte {offset} of the data, which is not a multiple of the alignment {alignment}"
    )]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// Where it claims to begin.
        offset: u64,
        /// The file's alignment.
        alignment: u32,
    },
    /// A tensor that reaches past the end of the file.
    #[error(
        "tensor {tensor} needs bytes {start}..{end}, but the file has {actual}; it is truncated: fetch or copy it again"
    )]
    OutOfBounds {
        /// The tensor.
        tensor: String,
        /// Its first byte in the file.
        start: u64,
        /// One past its last byte.
        end: u64,
        /// Bytes in the file.
        actual: u64,
    },
    /// Two tensors that share bytes.
    #[error("tensors {first} and {second} overlap")]
    Overlap {
        /// The one that begins first.
        first: String,
        /// The other.
        second: String,
    },
    /// Not the first part of a model in several files.
    #[error(
        "it is part {number} of {parts} of a split model; name the first, whose name ends in {expected:?} and beside which the \
         others lie"
    )]
    Split {
        /// The number of parts.
        parts: u64,
        /// Which one it is, counted from 1.
        number: String,
        /// How the name of the first part ends.
        expected: String,
    },
    /// Parts that do not belong together.
    #[error(
        "{key} is {actual} in {part}, expected {expected}; the parts are not those of one model"
    )]
    SplitPart {
        /// The metadata key, or what is counted.
        key: &'static str,
        /// The file.
        part: String,
        /// What would fit.
        expected: u64,
        /// What is there.
        actual: u64,
    },
    /// A model of an architecture that is not supported.
    #[error("its architecture is {actual:?}; supported are {expected}")]
    Architecture {
        /// The value of `general.architecture`.
        actual: String,
        /// Those that are supported.
        expected: &'static str,
    },
    /// An active feature that the model code does not have.
    #[error("it uses {key} = {actual}, which is not supported")]
    Feature {
        /// The metadata key.
        key: String,
        /// Its value.
        actual: String,
    },
    /// A tensor that the architecture does not have.
    #[error(
        "tensor {tensor} does not belong to a model of the architecture {architecture:?} with {layers} layers"
    )]
    UnknownTensor {
        /// The tensor.
        tensor: String,
        /// The value of `general.architecture`.
        architecture: &'static str,
        /// Its layers, by the metadata.
        layers: u64,
    },
    /// A tensor that every model of the architecture has.
    #[error(
        "tensor {tensor} is missing; the file is damaged, or was not converted as llama.cpp does it"
    )]
    TensorMissing {
        /// The tensor.
        tensor: String,
    },
    /// A tensor whose shape disagrees with the metadata.
    #[error("tensor {tensor} has shape {actual:?}, the metadata needs {expected}")]
    TensorShape {
        /// The tensor.
        tensor: String,
        /// What the metadata needs.
        expected: String,
        /// The shape found, outermost first.
        actual: Vec<usize>,
    },
}

/// Why the tokenizer of a GGUF file cannot be rebuilt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufTokenizerError {
    /// A metadata key is missing or has the wrong type.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// A kind of tokenizer that is not supported.
    #[error(
        "tokenizer.ggml.model is {actual:?}; \"gpt2\" (byte-level BPE), \"llama\" (SentencePiece BPE) and \"gemma4\" (the same with \
         merges) are supported"
    )]
    Model {
        /// The value found.
        actual: String,
    },
    /// A way to split text that is not supported.
    #[error("tokenizer.ggml.pre is {actual:?}; supported are {expected}")]
    PreTokenizer {
        /// The value found; empty where the key is missing.
        actual: String,
        /// The names that are known.
        expected: &'static str,
    },
    /// A list that is not as long as the vocabulary.
    #[error("{key} has {actual} entries, the vocabulary has {expected}")]
    Length {
        /// The metadata key.
        key: &'static str,
        /// The size of the vocabulary.
        expected: usize,
        /// The length found.
        actual: usize,
    },
    /// Two ids for one token.
    ///
    /// # Source
    /// llama.cpp asserts that no token has two (`llama_vocab::impl::load`); its issue 25739 is about published files of Gemma 4.
    #[error(
        "the token {token:?} has the two ids {first} and {second}, and llama.cpp refuses such a file too (some of Gemma 4 in q4_0 are so): \
         take another file of the model, or its safetensors directory"
    )]
    DuplicateToken {
        /// The token.
        token: String,
        /// Its first id.
        first: u32,
        /// Its second id.
        second: u32,
    },
    /// A merge that is not two tokens with a space between.
    #[error("merge {index} is {actual:?}, expected two tokens with one space between")]
    Merge {
        /// Its place in the list.
        index: usize,
        /// The text found.
        actual: String,
    },
    /// A merge of or into something that is no token.
    #[error("merge {index} needs {token:?}, which is not in the vocabulary")]
    MergeToken {
        /// Its place in the list.
        index: usize,
        /// The token that is missing.
        token: String,
    },
    /// A token too long to be one.
    #[error("token {id} has {actual} bytes, at most {expected} are allowed")]
    TokenLength {
        /// Its id.
        id: u32,
        /// The most allowed.
        expected: usize,
        /// Its length.
        actual: usize,
    },
    /// A special token's id outside the vocabulary.
    #[error("{key} is {actual}, but the vocabulary has {expected} tokens")]
    TokenId {
        /// The metadata key.
        key: &'static str,
        /// The size of the vocabulary.
        expected: usize,
        /// The id found.
        actual: u64,
    },
}
