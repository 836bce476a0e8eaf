//! A base that is read once, and the runs that are made over it.

use std::sync::Arc;

use backdraft_arch::lora_targets::match_adapted;
use backdraft_arch::{BaseHome, QuantizationPlan};
use backdraft_formats::ModelSource;
use backdraft_kernels::device;
use backdraft_model::CausalLm;
use backdraft_plan::memory::Watcher;
use backdraft_plan::tensors::PassShape;
use backdraft_recipe::{GROUPS, KeptGradients, Recipe};
use burn::tensor::{DType, Device};

use super::{KnownReferences, Run, adapt, budget};
use crate::data::RunData;
use crate::device::{DeviceFacts, dtype_on};
use crate::error::TrainError;
use crate::loss_scale::LossScale;
use crate::preflight;
use crate::tokens;

/// A base in memory, without adapters. Runs of several recipes go over it, one after the other, each as if it had read the
/// base itself; what one of them does to the base (`lora.init = "pissa"`, adaptive precision) is its own.
#[derive(Clone)]
pub struct Base {
    /// Of whose model it is.
    model_name: String,
    added_tokens: Vec<String>,
    /// The seed of a head that scores texts, where there is one.
    score_seed: Option<u64>,
    source: Arc<ModelSource>,
    model: CausalLm,
    kept: Kept,
    fingerprint: String,
    device: Device,
    watcher: Option<Watcher>,
}

/// How a base is kept in memory.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kept {
    plan: Option<QuantizationPlan>,
    dtype: DType,
    home: BaseHome,
}

impl Kept {
    /// What `recipe` says, once it is known to fit its model and rows; bits that it leaves to the memory become a number.
    pub(super) fn settle(
        recipe: &mut Recipe,
        source: &ModelSource,
        data: &RunData,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let check = &data.check;
        let is_foreign = !check.template_ends_turns && !check.foreign_markers.is_empty();
        if recipe.data.chat_template.is_some() && is_foreign {
            return Err(TrainError::ForeignTemplate {
                markers: check.foreign_markers.clone(),
            });
        }
        let spec = recipe.shaped(backdraft_model::spec(source)?);
        let longest = spec.max_position_embeddings;
        if data.train.longest_text() > longest {
            return Err(TrainError::TooLong {
                actual: recipe.max_seq_length,
                expected: longest,
            });
        }
        let lora = recipe.trained(&spec)?;
        match_adapted(GROUPS, &recipe.train.group_rates(), &lora, &spec)?;
        let dtype = dtype_on(recipe.dtype, device)?;
        let longest = PassShape::of_texts(data.loader.largest_micro_batch(), spec.scores);
        let facts = DeviceFacts::of(device, dtype.size() as u64);
        budget::settle_bits(recipe, &spec, &facts, longest)?;
        let plan = adapt::stored_plan(recipe, source, &spec)?;
        let home = recipe.base;
        Ok(Self { plan, dtype, home })
    }
}

impl Base {
    /// Reads the base that `recipe` asks for, whose rows are `data`; `source` as in [`prepare`](super::prepare).
    ///
    /// # Errors
    /// As [`prepare`](super::prepare).
    pub fn load(
        recipe: &Recipe,
        source: ModelSource,
        data: &RunData,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let kept = Kept::settle(&mut recipe.clone(), &source, data, device)?;
        Self::read(recipe, Arc::new(source), kept, device)
    }

    pub(super) fn read(
        recipe: &Recipe,
        source: Arc<ModelSource>,
        kept: Kept,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let score_seed = score_seed(recipe);
        if kept.home == BaseHome::Host {
            preflight::stored_on_host(&source, kept.plan.as_ref(), kept.dtype)?;
        }
        let load = || {
            let place = (device, kept.dtype);
            match score_seed {
                Some(seed) => {
                    let how = (kept.home, seed);
                    CausalLm::load_to_score(&source, kept.plan.as_ref(), place, how)
                }
                None => CausalLm::load_to_train(&source, kept.plan.as_ref(), place, kept.home),
            }
        };
        let (model, watcher) = Watcher::watch(load, Ok)?;
        Ok(Self {
            model_name: recipe.model.clone(),
            added_tokens: recipe.tokens.add.clone(),
            score_seed,
            fingerprint: source.fingerprint()?,
            source,
            model,
            kept,
            device: device.clone(),
            watcher,
        })
    }

    /// Fingerprint of the model's files.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Whether a run of `recipe` over `data` has this base, on the same device.
    ///
    /// # Errors
    /// A recipe that does not fit its model or rows.
    pub fn serves(&self, recipe: &Recipe, data: &RunData) -> Result<bool, TrainError> {
        if recipe.model != self.model_name
            || recipe.tokens.add != self.added_tokens
            || score_seed(recipe) != self.score_seed
        {
            return Ok(false);
        }
        let kept = Kept::settle(&mut recipe.clone(), &self.source, data, &self.device)?;
        Ok(kept == self.kept)
    }

    /// A run over a copy of the base, which shares its weights.
    ///
    /// # Errors
    /// As [`prepare`](super::prepare); [`TrainError::OtherBase`] where this base does not [serve](Self::serves) the recipe.
    pub fn run(&self, mut recipe: Recipe, data: RunData) -> Result<Run, TrainError> {
        if !self.serves(&recipe, &data)? {
            return Err(TrainError::OtherBase {
                model: self.model_name.clone(),
            });
        }
        Kept::settle(&mut recipe, &self.source, &data, &self.device)?;
        self.clone().adapted(recipe, data)
    }

    /// The run of a settled recipe, which has the base for itself.
    pub(super) fn adapted(self, recipe: Recipe, data: RunData) -> Result<Run, TrainError> {
        let Self {
            source,
            model,
            kept,
            fingerprint,
            device,
            watcher,
            ..
        } = self;
        let lora = recipe.trained(model.spec())?;
        let (model, watcher) = Watcher::again(watcher, || -> Result<CausalLm, TrainError> {
            let rows = tokens::start(&recipe, &model, (&*source, &data.tokenizer))?;
            let model = model.with_lora(&lora, recipe.seed)?.with_tokens(&rows)?;
            match model.tokens().first().filter(|_| model.trains_base()) {
                Some(apart) => Err(TrainError::TokensNotTrained {
                    module: apart.table().path(),
                }),
                None => Ok(model),
            }
        })?;
        check_dtype(&recipe, kept.dtype, &device)?;
        Ok(Run {
            model_fingerprint: fingerprint,
            adaptation: adapt::adaptation(&recipe, &source, &data, kept.plan.as_ref())?,
            principal: None,
            start: None,
            known: KnownReferences::default(),
            ranks: None,
            tokenizer_files: tokens::files(&recipe, &source)?,
            source,
            recipe,
            model,
            loaded: kept.plan,
            data,
            device,
            watcher,
            loss_scale: (kept.dtype == DType::F16).then(LossScale::default),
        })
    }
}

/// Whether what the recipe trains the base by can be had in the type that is computed in.
///
/// # Errors
/// It cannot.
fn check_dtype(recipe: &Recipe, dtype: DType, device: &Device) -> Result<(), TrainError> {
    let on_gpu = device::gpu(device).is_some();
    let bare = !recipe.train.master_weights.are_kept();
    let key = match dtype {
        DType::BF16 => return Ok(()),
        _ if bare && (dtype == DType::F16 || on_gpu) => "train.master_weights = \"none\"",
        DType::F16 if recipe.train.gradients == KeptGradients::Released => {
            "train.gradients = \"released\""
        }
        _ => return Ok(()),
    };
    Err(TrainError::NeedsBf16 { key })
}

/// The seed that the head of a reward model starts from; `None` where nothing is scored.
fn score_seed(recipe: &Recipe) -> Option<u64> {
    recipe.objective.scores().then_some(recipe.seed)
}
