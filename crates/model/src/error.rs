//! Why a model cannot be loaded.

use std::path::PathBuf;

use backdraft_formats::FormatError;
use backdraft_lora::LoraConfigError;
use backdraft_lora::base::MatrixError;
use backdraft_quant::PinError;

use backdraft_arch::ConfigError;

/// Why a model or an adapter cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The configuration describes no model that can be loaded.
    #[error("{}: the model's configuration cannot be used", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ConfigError,
    },
    /// A file cannot be read.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The host's memory has no room for a layer that is to stay there.
    #[error("the base cannot stay in the host's memory")]
    Pin(#[from] PinError),
    /// The configuration asks for a tensor that is not there.
    #[error("{}: tensor `{tensor}` is missing, which the configuration asks for", path.display())]
    MissingTensor {
        /// The configuration.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error(
        "{}: tensor `{tensor}` has shape {actual:?}, but the configuration asks for {expected:?}",
        path.display()
    )]
    Shape {
        /// The configuration.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape by the configuration.
        expected: Vec<usize>,
        /// Its shape in the file.
        actual: Vec<usize>,
    },
    /// A tensor that the configuration has no place for.
    #[error("{}: tensor `{tensor}` has no place in the model the configuration describes", path.display())]
    UnexpectedTensor {
        /// The configuration.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// The checkpoint is in other codes than were asked for.
    #[error(
        "{} is stored in {actual} and cannot be kept in {expected}; ask for no quantisation to use it as it is",
        path.display()
    )]
    OtherCodes {
        /// The model.
        path: PathBuf,
        /// What was asked for.
        expected: String,
        /// What its weights are in.
        actual: String,
    },
    /// A weight in codes that a list of modules to leave alone names.
    #[error("{}: `{module}` is in codes, but {list} says that it is not quantised", path.display())]
    NotSkipped {
        /// The model.
        path: PathBuf,
        /// The module.
        module: String,
        /// Where the list stands.
        list: &'static str,
    },
    /// A matrix or vector cannot be read.
    #[error(transparent)]
    Matrix(#[from] MatrixError),
    /// An adapter's tensor does not fit the model.
    #[error(
        "the adapter does not fit this model: {module} has weight shape {expected:?}, but its factors \
         are {actual}; was it made for another base?"
    )]
    Adapter {
        /// The module.
        module: String,
        /// Shape of the module's weight.
        expected: [usize; 2],
        /// What the adapter holds.
        actual: String,
    },
    /// An adapter's module is no projection of the model.
    #[error(
        "the adapter does not fit this model: it adapts {module}, which is no projection of the \
         layers that the model has"
    )]
    AdapterModule {
        /// The module.
        module: String,
    },
    /// Rows of tokens that the model has no place for.
    #[error(
        "the adapter does not fit this model: {module} has rows and columns {expected:?}, but it has a row of {width} values \
         for token {last}; was it made for another base, or one with more tokens?"
    )]
    AdapterTokens {
        /// The module.
        module: &'static str,
        /// Rows and columns of the module's weight; no rows where the model ties its head.
        expected: [usize; 2],
        /// The adapter's last token.
        last: usize,
        /// Values of a row.
        width: usize,
    },
    /// A tensor that the adapter has whole, and the model not at all, or of another shape.
    #[error(
        "the adapter does not fit this model: it has the whole `{tensor}` as {actual:?}, {}; was it made for another base, or \
         one with more tokens?",
        match expected {
            Some(shape) => format!("which is {shape:?} in the model"),
            None => "which the model does not have".to_owned(),
        }
    )]
    AdapterTensor {
        /// The tensor.
        tensor: String,
        /// Its shape in the model, where that has one.
        expected: Option<Vec<usize>>,
        /// Its shape in the adapter.
        actual: Vec<usize>,
    },
    /// A tensor of the model that does not stand whole in an adapter.
    #[error(
        "the adapter has the whole `{tensor}`, which this version does not put in place of the base's: norms, embed_tokens, \
         lm_head and biases of projections are"
    )]
    NotWhole {
        /// The tensor.
        tensor: String,
    },
    /// An embedding apart from the head that it is in the model.
    #[error(
        "the adapter trains one of embed_tokens and lm_head without the other, or both apart, which in this model are one matrix \
         (PEFT's modules_to_save without ensure_weight_tying): they would come apart; train with ensure_weight_tying = True"
    )]
    Untied,
    /// A tensor that cannot be trained.
    #[error(
        "lora.modules_to_save: `{tensor}` is kept in {scheme}, and codes cannot be trained; name its module in \
         quantization.skip_modules, or take it out"
    )]
    WholeInCodes {
        /// The tensor.
        tensor: String,
        /// How it is kept.
        scheme: String,
    },
    /// A tensor that is to be trained in place of adapters, and cannot.
    #[error(
        "trainable: `{tensor}` is kept in {scheme}, and codes cannot be trained; load the model without load_in_4bit, \
         load_in_8bit and keep_blocks, from weights that are not quantized, or train adapters: trainable = \"adapter\""
    )]
    TrainedInCodes {
        /// The tensor.
        tensor: String,
        /// How it is kept.
        scheme: String,
    },
    /// An adapter of a model that scores texts, where tokens are to be predicted.
    #[error(
        "the adapter is of a reward model: its head (score.weight) scores answers, and predicts no tokens; `backdraft eval` takes it"
    )]
    Scores,
    /// An adapter without a head that scores texts, where texts are to be scored.
    #[error("the adapter has no head that scores answers (score.weight): it is of no reward model")]
    NoScore,
    /// The settings of an adapter do not fit the model.
    #[error(transparent)]
    Lora(#[from] LoraConfigError),
}
