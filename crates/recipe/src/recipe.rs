//! What a run does, every value resolved.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use backdraft_arch::{
    AdapterStart, BaseHome, Bias, DeviceChoice, FourBitFormat, ModuleNames, ModulePattern,
    Precision, Trainable,
};
use backdraft_data::{BuiltinTemplate, Overlong, Supervision};
use backdraft_plan::ActivationPolicy;
use serde::Serialize;

use crate::bases::Origin;
use crate::data_format::DataFormat;
use crate::eval_metric::EvalMetric;
use crate::groups::GroupRecipe;
use crate::names::{DType, KeptGradients, KeyPrefix, MasterWeights, Optimizer, RowBatching};
use crate::objective::ObjectiveRecipe;
use crate::precision::Bits;
use crate::problem::{Problem, RecipeError};
use crate::raw::RawRecipe;
use crate::resolve::resolve;
use crate::schedule::{LrSchedule, ScheduleKind, warmup_steps_from_ratio};
use crate::size::ByteSize;
use crate::sources::{EvalRecipe, Sources};
use crate::sweep::{self, Sweep};
use crate::template::{Choices, template};
use crate::tokens::TokensRecipe;
use crate::tracker::TrackerRecipe;

/// A checked recipe with every value resolved. Paths are absolute where the recipe was loaded from a file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Recipe {
    /// A hub id (`org/name`), or the path of a directory or `.gguf` file.
    pub model: String,
    /// Directory that receives the adapter or the model, checkpoints and logs.
    pub output_dir: PathBuf,
    /// Seed of the row order, the adapter's start and dropout; fits in 63 bits, as TOML's integers do.
    pub seed: u64,
    /// Number format of the computation.
    pub dtype: DType,
    /// Whether the frozen projections are kept in 4 bits.
    pub load_in_4bit: bool,
    /// Whether the frozen projections are kept in 8 bits.
    pub load_in_8bit: bool,
    /// Longest row in tokens; longer ones are cut.
    pub max_seq_length: usize,
    /// What the forward pass keeps for the backward pass.
    pub activation_policy: ActivationPolicy,
    /// Memory that a step may use under `smart`, base included; `None` is what is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_budget: Option<ByteSize>,
    /// Whether activations may wait in the host's memory under `smart`.
    pub activation_offloading: bool,
    /// Where the matrices of the base's layers stay.
    pub base: BaseHome,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Adapters, or tensors of the base in their place.
    pub trainable: Trainable,
    /// `[quantization]`
    pub quantization: QuantizationRecipe,
    /// `[lora]`; as it is by default where no adapter is made.
    #[serde(skip_serializing_if = "LoraRecipe::is_unused")]
    pub lora: LoraRecipe,
    /// `[tokens]`
    #[serde(skip_serializing_if = "TokensRecipe::is_empty")]
    pub tokens: TokensRecipe,
    /// `[objective]`
    pub objective: ObjectiveRecipe,
    /// `[data]`
    pub data: DataRecipe,
    /// `[train]`
    pub train: TrainRecipe,
    /// `[tracker]`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracker: Option<TrackerRecipe>,
    /// Keys that `[sweep]` names: [`Sweep`] has their values, and a run the recipe's own.
    #[serde(skip)]
    pub swept: Vec<String>,
}

/// `[quantization]`: how the base is kept, where `load_in_4bit`, `load_in_8bit` or `keep_blocks` say so.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QuantizationRecipe {
    /// What 4-bit codes stand for.
    pub quant_type: FourBitFormat,
    /// Values that share a scale: 64 or 128.
    pub block_size: usize,
    /// Whether the scales are quantised too.
    pub double_quant: bool,
    /// Modules that stay as they are.
    pub skip_modules: Vec<String>,
    /// Keep the blocks that a GGUF file has, instead of dequantising or quantising anything.
    pub keep_blocks: bool,
    /// Mean bits of a quantised weight, dealt out by measurement; `None` gives every matrix the same, unless `base_memory` does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<Bits>,
    /// What the base may take, in place of `bits`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_memory: Option<ByteSize>,
    /// A file that says how each projection is stored at the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<PathBuf>,
    /// What may be dealt out, each once.
    pub formats: Vec<Precision>,
    /// Shares of the run after which it is dealt out, rising, from 0 to below 1.
    pub adapt_at: Vec<f64>,
    /// Tokens of training rows that are measured.
    pub calibration_tokens: usize,
}

/// `[lora]`: the adapter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoraRecipe {
    /// Directory of the adapter to go on from, whose settings the other keys have; `None` is a fresh one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
    /// Columns of each adapter matrix, at least 1.
    pub rank: usize,
    /// Numerator of the adapter's scaling, above 0.
    pub alpha: f64,
    /// Share of the adapter's inputs set to zero in training, in `[0, 1)`.
    pub dropout: f64,
    /// Scale by `alpha / √rank` instead of `alpha / rank`.
    pub use_rslora: bool,
    /// Train the lengths of rows too.
    pub use_dora: bool,
    /// Modules with an adapter; of a list at least one, each once.
    pub target_modules: ModuleNames,
    /// Modules that are left out, whatever else names them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<ModuleNames>,
    /// Where the factors start.
    pub init: AdapterStart,
    /// Biases of the base to train.
    pub bias: Bias,
    /// Modules of the base to train whole: those whose paths end in one of these texts, each once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
    /// What the matrices are called in its file.
    pub key_prefix: KeyPrefix,
    /// Layers with adapters, counted from 0, each once; `None` is all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers_to_transform: Option<Vec<usize>>,
    /// Ranks of modules that have another one: the first pattern that a module's path ends in.
    #[serde(skip_serializing_if = "ModulePattern::is_empty")]
    pub rank_pattern: ModulePattern<usize>,
    /// The same of alphas.
    #[serde(skip_serializing_if = "ModulePattern::is_empty")]
    pub alpha_pattern: ModulePattern<f64>,
    /// Tokens of the vocabulary whose rows are trained, each once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trainable_tokens: Vec<String>,
    /// Whether no adapter is made, so that nothing of this is written.
    #[serde(skip)]
    pub unused: bool,
}

impl LoraRecipe {
    /// Whether no adapter is made.
    const fn is_unused(&self) -> bool {
        self.unused
    }
}

/// `[data]`: the rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataRecipe {
    /// Rows to learn from.
    pub train: Sources,
    /// What sources are mixed by, 1 or more: each is visited by its rows to the power of 1 / this; `None` is as they say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mixing_temperature: Option<f64>,
    /// Rows held out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<EvalRecipe>,
    /// Further rows held out, each set under its name; only beside `eval`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub eval_sets: BTreeMap<String, Sources>,
    /// Shape of a row.
    pub format: DataFormat,
    /// Other names for the fields of the format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fields: Option<BTreeMap<String, String>>,
    /// A template for chats; `None` is the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<ChatTemplateRecipe>,
    /// Text around an alpaca row; `None` is the model's chat template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_template: Option<String>,
    /// Tokens that count in the loss.
    pub train_on: Supervision,
    /// What becomes of rows that are too long.
    pub overlong: Overlong,
    /// Tokens that parts of a split row have in common, 1 or more and below the maximum length; only where rows are split.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_overlap: Option<usize>,
    /// Which rows share a micro-batch.
    pub batching: RowBatching,
    /// Broken rows that may be passed over.
    pub skip_bad_rows: usize,
    /// Where tokenised rows are kept.
    pub cache: CacheRecipe,
}

/// A chat template other than the model's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum ChatTemplateRecipe {
    /// One that this program has.
    Builtin(BuiltinTemplate),
    /// A file with Jinja text.
    File(PathBuf),
}

/// Where tokenised rows are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheRecipe {
    /// In the user's cache folder.
    Auto,
    /// In memory only.
    Off,
    /// In this folder.
    Folder(PathBuf),
}

impl Serialize for CacheRecipe {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => "auto".serialize(serializer),
            Self::Off => "off".serialize(serializer),
            Self::Folder(path) => path.serialize(serializer),
        }
    }
}

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// Times through the training rows, above 0; may be fractional.
    Epochs(f64),
    /// Optimiser steps, at least 1.
    MaxSteps(usize),
}

impl Length {
    /// Optimiser steps of a run whose epoch has `steps_per_epoch`; a started step counts, as in transformers.
    #[must_use]
    pub fn total_steps(self, steps_per_epoch: usize) -> usize {
        match self {
            Self::Epochs(epochs) => (epochs * steps_per_epoch as f64).ceil() as usize,
            Self::MaxSteps(steps) => steps,
        }
    }
}

/// How long the learning rate rises.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum Warmup {
    /// Optimiser steps.
    #[serde(rename = "warmup_steps")]
    Steps(usize),
    /// Share of the run, in `[0, 1]`.
    #[serde(rename = "warmup_ratio")]
    Ratio(f64),
}

impl Warmup {
    /// Steps of warm-up in a run of `total_steps`; a ratio is rounded up.
    #[must_use]
    pub fn steps(self, total_steps: usize) -> usize {
        match self {
            Self::Steps(steps) => steps,
            Self::Ratio(ratio) => warmup_steps_from_ratio(ratio, total_steps),
        }
    }
}

/// `[train]`: the run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainRecipe {
    /// Rows in one forward and backward pass.
    pub micro_batch_size: usize,
    /// Passes per optimiser step.
    pub grad_accumulation_steps: usize,
    /// Sums that a step's gradient is added up from, at most one of each pass.
    pub gradient_blocks: usize,
    /// How long a step keeps gradients.
    #[serde(skip_serializing_if = "KeptGradients::is_whole")]
    pub gradients: KeptGradients,
    /// What of the base's trained tensors is kept beside what computes.
    #[serde(skip_serializing_if = "MasterWeights::are_kept")]
    pub master_weights: MasterWeights,
    /// Length of the run, written as `epochs` or `max_steps`.
    #[serde(flatten)]
    pub length: Length,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Shape of the learning-rate curve.
    pub lr_scheduler: ScheduleKind,
    /// Rise of the learning rate, written as `warmup_steps` or `warmup_ratio`.
    #[serde(flatten)]
    pub warmup: Warmup,
    /// The optimiser.
    pub optimizer: Optimizer,
    /// Learning rate of B over that of A (LoRA+), above 0.
    pub loraplus_lr_ratio: f64,
    /// Share of each target that is spread over the vocabulary, in `[0, 1)`.
    pub label_smoothing_factor: f64,
    /// What the square of logsumexp counts in the loss.
    pub z_loss: f64,
    /// NEFTune's alpha; 0 is no noise.
    pub neftune_noise_alpha: f64,
    /// What each layer learns by, over the one above it, in `(0, 1]`.
    pub layer_lr_decay: f64,
    /// Share of the past in a running mean of the factors, in `(0, 1)`, where one is evaluated and saved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Share of the past in momentum, in `[0, 1)`; given exactly where the optimiser is SGD or Muon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// β₁ of AdamW and Lion, in `[0, 1)`.
    pub adam_beta1: f64,
    /// β₂ of AdamW and Lion, in `[0, 1)`.
    pub adam_beta2: f64,
    /// AdamW's ε, above 0.
    pub adam_epsilon: f64,
    /// Largest global norm of the gradients; 0 leaves them as they are.
    pub max_grad_norm: f64,
    /// Steps between log lines.
    pub logging_steps: usize,
    /// Steps between evaluations; given exactly where `data.eval` is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_steps: Option<usize>,
    /// Evaluations without an improvement after which the run ends; `None` runs to the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping_patience: Option<usize>,
    /// Which evaluation is the best one.
    #[serde(skip_serializing_if = "EvalMetric::is_loss")]
    pub early_stopping_metric: EvalMetric,
    /// The set of `data.eval_sets` that tells which evaluation is the best one; `None` is `data.eval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping_eval: Option<String>,
    /// What counts as an improvement, in units of the metric; given exactly where the patience is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping_min_improvement: Option<f64>,
    /// Steps between checkpoints.
    pub save_steps: usize,
    /// Checkpoints kept.
    pub save_total_limit: usize,
    /// Rows answered before and after the run.
    pub sample_rows: usize,
    /// Modules with rates of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupRecipe>,
}

impl TrainRecipe {
    /// Rows of one optimiser step.
    #[must_use]
    pub const fn rows_per_step(&self) -> usize {
        self.micro_batch_size
            .saturating_mul(self.grad_accumulation_steps)
    }

    /// Learning rate and weight decay of modules, where they have their own: the first group that a module's path ends in.
    #[must_use]
    pub fn group_rates(&self) -> ModulePattern<(Option<f64>, Option<f64>)> {
        let rates = self.groups.iter().map(|group| {
            let rates = (group.learning_rate, group.weight_decay);
            (group.modules.clone(), rates)
        });
        // Each was compiled when it was read.
        ModulePattern::new(rates).unwrap_or_default()
    }

    /// Whether more than the nll is minimised.
    #[must_use]
    pub const fn penalizes(&self) -> bool {
        self.label_smoothing_factor > 0.0 || self.z_loss > 0.0
    }

    /// The learning-rate curve of a run of `total_steps`.
    #[must_use]
    pub fn schedule(&self, total_steps: usize) -> LrSchedule {
        LrSchedule {
            kind: self.lr_scheduler,
            warmup_steps: self.warmup.steps(total_steps),
            total_steps,
            peak_lr: self.learning_rate,
        }
    }
}

impl Recipe {
    /// Reads and checks a recipe file.
    ///
    /// Each of `overrides` is `section.key=value`. Relative paths in the file are resolved against its
    /// directory, those in overrides against the working directory.
    ///
    /// # Errors
    /// [`RecipeError::Read`] if the file cannot be read, [`RecipeError::Invalid`] with every problem it has.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, RecipeError> {
        let (recipe, _) = Self::load_from(path, overrides, (Origin::User, Sweeps::Leave))?;
        Ok(recipe)
    }

    /// As [`Self::load`], with what its `[sweep]` tries.
    ///
    /// # Errors
    /// As [`Self::load`]; the problems of every trial's recipe are among them, at the line of the key.
    pub fn load_sweep(
        path: &Path,
        overrides: &[String],
    ) -> Result<(Self, Option<Sweep>), RecipeError> {
        Self::load_from(path, overrides, (Origin::User, Sweeps::Expand))
    }

    /// As [`Self::load`], of the copy that a run has written of its own: settings that were taken over from an adapter
    /// stand there, and it is not asked again.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_stored(path: &Path, overrides: &[String]) -> Result<Self, RecipeError> {
        let (recipe, _) = Self::load_from(path, overrides, (Origin::Run, Sweeps::Leave))?;
        Ok(recipe)
    }

    fn load_from(
        path: &Path,
        overrides: &[String],
        reading: (Origin, Sweeps),
    ) -> Result<(Self, Option<Sweep>), RecipeError> {
        if let Some(language) = other_language(path) {
            let path = path.to_owned();
            return Err(RecipeError::Language { path, language });
        }
        let read_error = |source| RecipeError::Read {
            path: path.to_owned(),
            source,
        };
        let text = std::fs::read_to_string(path).map_err(read_error)?;
        let absolute = std::path::absolute(path).map_err(read_error)?;
        let base = absolute.parent().unwrap_or(&absolute);
        let working_dir = std::env::current_dir().map_err(read_error)?;
        Self::read(&text, path, (base, &working_dir), overrides, reading)
    }

    /// Checks a recipe given as text; relative paths are resolved against `base`.
    ///
    /// # Errors
    /// [`RecipeError::Invalid`] with every problem it has.
    pub fn from_toml(text: &str, base: &Path, overrides: &[String]) -> Result<Self, RecipeError> {
        let bases = (base, base);
        Self::read(
            text,
            Path::new("recipe.toml"),
            bases,
            overrides,
            (Origin::User, Sweeps::Leave),
        )
        .map(|(recipe, _)| recipe)
    }

    /// As [`Self::from_toml`], of what a run has written: see [`Self::load_stored`].
    ///
    /// # Errors
    /// As [`Self::from_toml`].
    pub fn from_stored(text: &str, base: &Path) -> Result<Self, RecipeError> {
        let bases = (base, base);
        let read = Self::read(
            text,
            Path::new("recipe.toml"),
            bases,
            &[],
            (Origin::Run, Sweeps::Leave),
        );
        read.map(|(recipe, _)| recipe)
    }

    fn read(
        text: &str,
        path: &Path,
        (base, working_dir): (&Path, &Path),
        overrides: &[String],
        (origin, sweeps): (Origin, Sweeps),
    ) -> Result<(Self, Option<Sweep>), RecipeError> {
        let invalid = |problems| RecipeError::Invalid {
            path: path.to_owned(),
            problems,
        };
        let mut raw = RawRecipe::parse(text).map_err(invalid)?;
        let mut problems: Vec<Problem> = overrides
            .iter()
            .filter_map(|text| raw.apply_override(text).err())
            .collect();
        let written = raw.take_sweep();
        let bases = (base, working_dir);
        if written.is_empty() {
            let recipe = resolve(raw, problems, bases, origin).map_err(invalid)?;
            return Ok((recipe, None));
        }
        let outline = sweep::read(written, &raw, &mut problems);
        let mut recipe = resolve(raw.clone(), problems, bases, origin).map_err(invalid)?;
        recipe.swept = outline.keys();
        if sweeps == Sweeps::Leave {
            return Ok((recipe, None));
        }
        let resolve = |raw: RawRecipe<'_>| resolve(raw, Vec::new(), bases, origin);
        let sweep = outline
            .expand(&raw, recipe.seed, resolve)
            .map_err(invalid)?;
        Ok((recipe, Some(sweep)))
    }

    /// The resolved recipe as TOML, every value written out; reading it back gives the same recipe.
    ///
    /// # Errors
    /// [`RecipeError::Encode`] if a path is not UTF-8.
    pub fn to_toml(&self) -> Result<String, RecipeError> {
        toml::to_string(self).map_err(|source| RecipeError::Encode { source })
    }

    /// The commented recipe that `init` writes: the given choices, every other key at its default.
    #[must_use]
    pub fn template(choices: &Choices) -> String {
        template(choices)
    }
}

/// What becomes of a `[sweep]`, once it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sweeps {
    /// Its trials.
    Expand,
    /// Nothing: a run has the recipe's own values.
    Leave,
}

/// The language that a file's name speaks of, where it is not that of recipes.
fn other_language(path: &Path) -> Option<&'static str> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "yml" | "yaml" => Some("YAML"),
        "json" => Some("JSON"),
        "jsonl" => Some("a file of rows"),
        "py" => Some("Python"),
        _ => None,
    }
}
