//! What cannot be written as GGUF.

/// Why a model or an adapter has no form as a GGUF file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufExportError {
    /// A family without an architecture in GGUF that is known here.
    #[error("models of type {actual:?} cannot be exported: no GGUF architecture is theirs here")]
    Family {
        /// The `model_type`.
        actual: String,
    },
    /// Something that llama.cpp would compute otherwise.
    #[error("{what} is {actual}, which GGUF files of this architecture cannot say; {hint}")]
    Feature {
        /// What it is about.
        what: &'static str,
        /// What the model has.
        actual: String,
        /// What to do.
        hint: &'static str,
    },
    /// A tensor that the architecture does not have.
    #[error("tensor {tensor} has no name in GGUF's architecture {architecture:?}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// The value of `general.architecture`.
        architecture: &'static str,
    },
    /// A tensorless model, or one whose embedding is missing.
    #[error("tensor {tensor} is missing")]
    TensorMissing {
        /// The tensor.
        tensor: &'static str,
    },
    /// A value that no type can hold.
    #[error("tensor {tensor} holds NaN or infinity: the training diverged, or the file is damaged")]
    NotFinite {
        /// The tensor.
        tensor: String,
    },
    /// A value that half precision cannot hold.
    #[error(
        "tensor {tensor} holds {actual}, which f16 cannot hold; export as bf16 or q8_0 instead"
    )]
    Overflow {
        /// The tensor.
        tensor: String,
        /// The value.
        actual: f32,
    },
    /// A `tokenizer.json` that is not one.
    #[error("tokenizer.json: {field} should be {expected}, but is {actual}")]
    Tokenizer {
        /// The field.
        field: String,
        /// What would be accepted.
        expected: &'static str,
        /// The value found, shortened.
        actual: String,
    },
    /// A way to split text that has no name in llama.cpp.
    #[error(
        "tokenizer.json splits text in a way that llama.cpp has no name for here (GPT-2, SmolLM, Llama 3, Qwen 2 and Tekken \
         have one): {actual}"
    )]
    PreTokenizer {
        /// The `pre_tokenizer`, shortened.
        actual: String,
    },
    /// A token beyond the embedding.
    #[error("the token {token:?} has the id {id}, but the embedding has {rows} rows")]
    TokenId {
        /// The token.
        token: String,
        /// Its id.
        id: u64,
        /// Rows of the embedding.
        rows: usize,
    },
    /// Two tokens of one id, or two ids of one token.
    #[error("the id {id} has the two tokens {first:?} and {second:?}")]
    TokenTwice {
        /// The id.
        id: usize,
        /// One token.
        first: String,
        /// The other.
        second: String,
    },
    /// A special token that the vocabulary lacks.
    #[error("the {name} {token:?} is not in the vocabulary")]
    SpecialToken {
        /// What it is, such as `eos_token`.
        name: &'static str,
        /// The token.
        token: String,
    },
    /// Metadata of a GGUF base that have no form here.
    #[error("the base's metadata cannot be taken over")]
    Base(#[from] super::error::GgufError),
}

impl GgufExportError {
    /// The error for a tensor that a type cannot hold.
    pub(super) fn unfit(tensor: &str, value: f32) -> Self {
        let tensor = tensor.to_owned();
        match value.is_finite() {
            true => Self::Overflow {
                tensor,
                actual: value,
            },
            false => Self::NotFinite { tensor },
        }
    }
}
