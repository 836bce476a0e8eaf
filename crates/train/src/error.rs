//! Why a run does not start, or ends.

use std::path::PathBuf;

use backdraft_data::DataError;
use backdraft_formats::FormatError;
use backdraft_lora::LoraConfigError;
use backdraft_model::LoadError;

/// Why a run does not start, or ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The output directory holds a run already.
    #[error("{}: the output directory already holds a run", path.display())]
    OutputExists {
        /// The directory.
        path: PathBuf,
    },
    /// The loss or the gradient is no number any more.
    #[error(
        "step {step}: the {what} is {value}; its rows are lines {lines:?} of {}", file.display()
    )]
    NotFinite {
        /// The optimiser step, counted from 1.
        step: usize,
        /// `loss` or `gradient norm`.
        what: &'static str,
        /// NaN or an infinity.
        value: f64,
        /// The training file.
        file: PathBuf,
        /// Its lines that the step consisted of.
        lines: Vec<usize>,
        /// The last checkpoint before it.
        last_good: Option<PathBuf>,
    },
    /// Rows that hold nothing to learn were all there was.
    #[error("{}: {source}", path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<DataError>,
    },
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A file cannot be read or written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The settings of the adapter do not fit.
    #[error(transparent)]
    Lora(#[from] LoraConfigError),
    /// The recipe cannot be written down.
    #[error(transparent)]
    Recipe(#[from] crate::recipe::RecipeError),
    /// The prompt template of the recipe.
    #[error("data.prompt_template: {0}")]
    PromptTemplate(#[source] backdraft_data::TemplateError),
    /// A row is longer than the model can take.
    #[error(
        "max_seq_length = {actual} is longer than the model's max_position_embeddings = {expected}"
    )]
    TooLong {
        /// What the recipe says.
        actual: usize,
        /// What the model was made for.
        expected: usize,
    },
    /// A step needs more memory than there is, whatever is recomputed.
    #[error(
        "step {step}: it needs {:.2} GiB of memory at least, and may use {:.2} GiB",
        gib(exhausted.needed),
        gib(exhausted.budget)
    )]
    OutOfMemory {
        /// The optimiser step, counted from 1.
        step: usize,
        /// What is missing, and what to change.
        exhausted: crate::activation::Exhausted,
    },
    /// A number could not be read from the device.
    #[error("step {step}: the device failed: {message}")]
    Device {
        /// The optimiser step, counted from 1.
        step: usize,
        /// What the device said.
        message: String,
    },
    /// burn-train stopped the run.
    #[error("the run was stopped by an error: {message}")]
    Learner {
        /// What it said.
        message: String,
    },
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1u32 << 30)
}
