//! From a recipe to an adapter, or to a model.

mod adapt;
mod base;
mod begin;
mod budget;
mod conclude;
mod frozen;
pub(crate) mod going_on;
mod precompute;
mod principal;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use backdraft_arch::QuantizationPlan;
use backdraft_comm::Fingerprints;
use backdraft_data::{ChatTokenizer, PromptTemplate, RowSet, count};
use backdraft_formats::{AdapterPrefix, ModelSource};
use backdraft_journal::report::{ActivationReport, Reporter, RunSummary, Silent};
use backdraft_kernels::cross_entropy::Penalty;
use backdraft_kernels::device;
use backdraft_lora::base::blocks_plan;
use backdraft_lora::{AdapterWeights, TrainedOver};
use backdraft_model::{CausalLm, LoadError};
use backdraft_plan::Activations;
use backdraft_plan::memory::{Memory, MemoryWatch, Watcher};
use backdraft_recipe::{KeyPrefix, Recipe, RowBatching};
use burn::optim::SgdConfig;
use burn::tensor::Device;
use burn::train::renderer::MetricsRenderer;
use burn::train::{Interrupter, Learner, SupervisedTraining, TrainingStrategy};

use crate::adapt::Adaptation;
use crate::checkpoint::Saved;
use crate::clear;
use crate::control::Control;
use crate::data::RunData;
use crate::deal::Deal;
use crate::error::TrainError;
use crate::known::Known;
use crate::loader::{EvalLoader, StepLoader};
use crate::loss_scale::LossScale;
use crate::metrics::NoFiles;
use crate::objective::Objective;
use crate::optimizer::{Optimizer, Rates, Rule};
use crate::ranks::{Blocks, Ranks};
use crate::resume::Resume;
use crate::strategy::{Outcome, Plan, StepStrategy};
use crate::trained_with::{Companions, Prompting, TrainedWith};
use crate::trainee::{Settings, Trainee};
pub use base::Base;
use base::Kept;
use begin::Begun;
use frozen::FrozenStart;
pub use precompute::log_likelihoods;

/// Model and rows of a run, read and checked.
pub struct Run {
    recipe: Recipe,
    model: CausalLm,
    /// How the base was loaded.
    loaded: Option<QuantizationPlan>,
    data: RunData,
    model_fingerprint: String,
    device: Device,
    watcher: Option<Watcher>,
    loss_scale: Option<LossScale>,
    /// Where precision is dealt out, or adapters start elsewhere than at zero.
    adaptation: Option<Adaptation>,
    source: Arc<ModelSource>,
    /// The tokenizer's files, where it has tokens that the base's does not have.
    tokenizer_files: Vec<(String, Vec<u8>)>,
    /// What adapters began with, where the base gave it up.
    principal: Option<AdapterWeights>,
    /// What adapters began with, where answers are compared with it.
    start: Option<FrozenStart>,
    known: KnownReferences,
    /// The processes that share the steps.
    ranks: Option<Ranks>,
}

/// Log-likelihoods under the reference that are known before the first step.
#[derive(Default)]
struct KnownReferences {
    train: Option<Known>,
    eval: Option<Known>,
    /// Of the further rows held out, in their order.
    sets: Vec<Known>,
}

/// Reads the model of `recipe`, whose rows are `data`; `source` is where the model lies on disk, with the recipe's tokens
/// ([`with_tokens`](crate::tokens::with_tokens)).
///
/// # Errors
/// Anything that would stop the run, before the output directory is touched.
pub fn prepare(
    mut recipe: Recipe,
    source: ModelSource,
    data: RunData,
    device: &Device,
) -> Result<Run, TrainError> {
    let source = Arc::new(source);
    let kept = Kept::settle(&mut recipe, &source, &data, device)?;
    Base::read(&recipe, source, kept, device)?.adapted(recipe, data)
}

/// How a recipe has a model kept; `None` where nothing is in codes but what the files have so.
///
/// # Errors
/// Blocks to keep that the model does not have.
pub fn quantization(
    recipe: &Recipe,
    source: &ModelSource,
) -> Result<Option<QuantizationPlan>, LoadError> {
    match recipe.quantization.keep_blocks {
        true => Ok(Some(blocks_plan(source)?)),
        false => Ok(recipe.quantization_plan()),
    }
}

/// A device as people name it, and what its results depend on: `cpu, 2 threads`.
fn device_name(device: &Device) -> String {
    if let Some(gpu) = device::gpu(device) {
        return gpu.name;
    }
    format!(
        "cpu, {}",
        count(rayon::current_num_threads() as u64, "thread")
    )
}

/// Who watches a run, and what it may overwrite.
pub struct Watch {
    /// Hears of everything.
    pub reporter: Box<dyn Reporter>,
    /// Draws burn-train's metrics; nothing where absent.
    pub renderer: Box<dyn MetricsRenderer>,
    /// Stops the run after its present step.
    pub interrupter: Interrupter,
    /// Knows how much memory the run could have; `None` asks the system, and nobody about a GPU.
    pub memory: Option<Arc<dyn MemoryWatch>>,
    /// What whoever watches asks of the run while it goes on.
    pub control: Control,
    /// Where the run begins.
    pub start: Start,
}

/// Where a run begins.
#[derive(Debug)]
pub enum Start {
    /// At the beginning.
    New {
        /// Replace a run that the output directory holds.
        force: bool,
    },
    /// Where another one was stopped.
    Resume(Box<Resume>),
}

impl Start {
    /// The checkpoint to go on from.
    pub(crate) fn from(&self) -> Option<&Saved> {
        match self {
            Self::New { .. } => None,
            Self::Resume(resume) => resume.from(),
        }
    }

    /// Whether there is one.
    pub(crate) fn goes_on(&self) -> bool {
        self.from().is_some()
    }
}

impl Run {
    /// The model, with adapters or trained tensors of its own.
    pub fn model(&self) -> &CausalLm {
        &self.model
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &ChatTokenizer {
        &self.data.tokenizer
    }

    /// Scales the loss, beginning with `scale`, as a run in f16 does anyway.
    pub fn scale_loss(&mut self, scale: LossScale) {
        self.loss_scale = Some(scale);
    }

    /// Shares the steps with other processes, which all call this with the same recipe, model and rows.
    ///
    /// # Errors
    /// Fewer blocks than processes; something that is done by one process alone; others that have another model or other
    /// rows.
    pub fn share(&mut self, ranks: Ranks) -> Result<(), TrainError> {
        let (blocks, processes) = (self.recipe.train.gradient_blocks, ranks.size());
        if blocks < processes {
            return Err(TrainError::FewBlocks { blocks, processes });
        }
        if processes > 1 && self.adaptation.is_some() {
            return Err(TrainError::NotShared {
                what: "dealing out precision",
            });
        }
        let eval = self.data.eval.as_ref().map(RowSet::fingerprint);
        let sets = self.data.set_fingerprints().into_iter();
        let sets: Vec<String> = sets
            .map(|(name, print)| format!("{name}: {print}"))
            .collect();
        ranks.agree(
            &Fingerprints::new()
                .with("model", &self.model_fingerprint)
                .with("data.train", &self.data.train.fingerprint())
                .with("data.eval", &eval.unwrap_or_default())
                .with("data.eval_sets", &sets.join(", "))
                .with("computed by", &device_name(&self.device)),
        )?;
        self.ranks = Some(ranks);
        Ok(())
    }

    /// The blocks of a step, where there are several or several processes have them.
    ///
    /// # Errors
    /// None: nobody is asked.
    fn blocks(&self) -> Result<Option<Blocks>, TrainError> {
        let count = self.recipe.train.gradient_blocks;
        let ranks = match &self.ranks {
            Some(ranks) => ranks.clone(),
            None if count == 1 => return Ok(None),
            None => Ranks::alone()?,
        };
        Ok(Some(Blocks::new(count, ranks)))
    }

    /// Trains, and leaves the adapter in `output_dir/adapter`, or the model in `output_dir/model` where no adapter is made.
    ///
    /// # Errors
    /// See [`TrainError`]; checkpoints that were written stay.
    pub fn train(mut self, mut watch: Watch) -> Result<(RunSummary, CausalLm), TrainError> {
        let began = Instant::now();
        let recipe_toml = self.recipe.to_toml()?;
        let mut notes = Vec::new();
        match watch.start.from() {
            None => notes = self.start_from_adapter()?,
            // What is known needs no reference.
            Some(_) if self.recipe.objective.precomputes_reference() => {}
            Some(saved) => self.read_start_again(saved)?,
        }
        let adapted = self.adapt(&watch.start, watch.reporter.as_mut())?;
        if !watch.start.goes_on() {
            self.start_principal()?;
        }
        let (activations, prediction) = self.activations(self.longest_pass(), watch.memory)?;
        let memory = Memory::of(&prediction, self.model.num_trained());
        let (mut run, mut begun) = self.begin(watch.start, &recipe_toml)?;
        begun.notes.extend(notes);
        let planned = ActivationReport {
            policy: run.recipe.activation_policy.to_string(),
            budget: activations.budget(),
            prediction,
        };
        let mut told = run.tell(&mut begun, watch.reporter, memory, planned)?;
        if let Some(report) = &adapted {
            told.outcome.note_adaptation(report);
        }
        let mut nobody = Silent;
        let reporter = told.outcome.reporter.as_deref_mut();
        run.precompute(begun.from.as_ref(), reporter.unwrap_or(&mut nobody))?;
        let companions = run.companions();
        told.outcome.adaptation = run.adaptation.take();
        let strategy = StepStrategy {
            plan: Arc::new(Plan {
                recipe: run.recipe.clone(),
                recipe_toml,
                rows: run.data.train.clone(),
                steps_per_epoch: begun.steps_per_epoch,
                total_steps: begun.total_steps,
                evaluates: run.data.eval.is_some(),
                model_fingerprint: run.model_fingerprint.clone(),
                source: run.source.clone(),
                companions,
                data_fingerprint: begun.data_fingerprint.clone(),
                eval_fingerprint: begun.eval_fingerprint.clone(),
                eval_sets: run.set_loaders(),
                set_fingerprints: begun.set_fingerprints.clone(),
                computed_by: told.computed_by.clone(),
                principal: run.principal.clone(),
                start_fingerprint: run.start_fingerprint(begun.from.as_ref()),
                start: begun.start,
                control: watch.control,
                ranks: run.ranks.clone(),
            }),
            outcome: Arc::new(Mutex::new(std::mem::take(&mut told.outcome))),
        };
        let trainee = run.trainee(&begun, activations.clone())?;
        if trainee.model.trains_base() {
            // What was loaded would stay beside what is trained.
            run.model = run.model.emptied();
        }
        let (trainee, outcome) = run.steps(
            &begun,
            strategy,
            trainee,
            (watch.interrupter, watch.renderer),
        )?;
        told.outcome = outcome;
        run.adaptation = told.outcome.adaptation.take();
        // Of the passes that there were, not of the longest that could have been.
        let highest = activations.highest().unwrap_or(prediction);
        run.conclude(trainee, begun, told, &highest, began)
    }

    /// Goes through the steps with burn-train's learner.
    ///
    /// # Errors
    /// What ended the run before its time.
    fn steps(
        &self,
        begun: &Begun,
        strategy: StepStrategy,
        trainee: Trainee,
        (interrupter, renderer): (Interrupter, Box<dyn MetricsRenderer>),
    ) -> Result<(Trainee, Outcome), TrainError> {
        let rows = self.data.train.clone();
        let steps = StepLoader::new(rows, begun.loader.clone(), begun.total_steps)
            .after(begun.resumed_from())
            .comparing(self.deal())
            .knowing(self.known.train.clone());
        let steps = Arc::new(match self.recipe.data.batching {
            RowBatching::Padded => steps.padded(self.pad_id()),
            RowBatching::PaddingFree | RowBatching::Packed => steps,
        });
        let eval_rows = self.data.eval.clone().unwrap_or_default();
        let valid =
            EvalLoader::new(eval_rows, self.recipe.train.micro_batch_size).comparing(self.deal());
        let valid = valid.knowing(self.known.eval.clone());
        let result =
            SupervisedTraining::<Trainee>::new(&self.recipe.output_dir, steps, Arc::new(valid))
                .with_metric_logger(NoFiles)
                .with_training_strategy(TrainingStrategy::Custom(Arc::new(strategy.clone())))
                .num_epochs(1)
                .with_application_logger(None)
                .with_interrupter(interrupter)
                .renderer(renderer)
                // Our optimiser travels with the model; the learner's own is never used.
                .launch(Learner::new(trainee, SgdConfig::new().init(), 1.0));
        let mut outcome = strategy
            .outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = outcome.error.take() {
            return Err(error);
        }
        if let Some(error) = result.error {
            return Err(TrainError::Learner {
                message: error.to_string(),
            });
        }
        Ok((result.model, std::mem::take(&mut outcome)))
    }

    /// The further rows held out, as they are evaluated.
    fn set_loaders(&self) -> Vec<(String, EvalLoader)> {
        let size = self.recipe.train.micro_batch_size;
        let sets = self.data.eval_sets.iter().enumerate();
        sets.map(|(at, set)| {
            let loader = EvalLoader::new(set.rows.clone(), size).comparing(self.deal());
            let loader = loader.knowing(self.known.sets.get(at).cloned());
            (set.name.clone(), loader)
        })
        .collect()
    }

    /// How answers are dealt out, where they are compared.
    fn deal(&self) -> Option<Deal> {
        let objective = Objective::from(self.recipe.objective);
        objective.compares().then_some(Deal {
            objective,
            max_seq_length: self.recipe.max_seq_length,
        })
    }

    /// What fills padded rows; nothing looks at it.
    fn pad_id(&self) -> u32 {
        let tokenizer = &self.data.tokenizer;
        let eos = tokenizer.eos_token();
        eos.and_then(|eos| tokenizer.token_to_id(eos)).unwrap_or(0)
    }

    /// What lies beside the factors of the adapter.
    fn companions(&self) -> Companions {
        let tokenizer = &self.data.tokenizer;
        let over = TrainedOver {
            model: self.recipe.model.clone(),
            fingerprint: self.model_fingerprint.clone(),
            quantization: self.quantization(),
        };
        let stops = tokenizer.eos_token_ids();
        let rows = (&self.data.formats[..], tokenizer.template().is_some());
        let noted = TrainedWith::new(&self.recipe, over, rows, stops);
        let prompt_template = (noted.prompt_template.as_deref())
            .filter(|_| noted.prompting == Prompting::PromptTemplate)
            .and_then(|template| PromptTemplate::parse(template).ok())
            .map(|template| {
                let bos = tokenizer.bos_token().filter(|_| tokenizer.add_bos());
                template.to_chat_template(bos)
            });
        // The base's own lies with the base.
        let named = self.recipe.data.chat_template.as_ref();
        let named = named.and_then(|_| Some(tokenizer.template()?.source()));
        Companions {
            chat_template: prompt_template.or_else(|| named.map(str::to_owned)),
            prefix: match self.recipe.lora.key_prefix {
                KeyPrefix::Auto => self.source.adapter_prefix(),
                KeyPrefix::Text => AdapterPrefix::Text,
            },
            tokenizer: self.tokenizer_files.clone(),
            noted,
        }
    }

    fn trainee(&self, begun: &Begun, activations: Activations) -> Result<Trainee, TrainError> {
        let train = &self.recipe.train;
        let from = begun.from.as_ref();
        let rule = Rule::of_recipe(&self.recipe);
        let mut optimizer = Optimizer::new(rule)
            .with_rates(Rates::of_recipe(train))
            .with_mean(train.ema_decay)
            .with_rounding((!train.master_weights.are_kept()).then_some(self.recipe.seed));
        let mut model = self.model.clone();
        if let Some(saved) = from {
            optimizer.restore(&mut model, &saved.optimizer()?, saved.state.step as u64)?;
        }
        if !train.master_weights.are_kept() {
            // A mean of them that a checkpoint has in their place keeps its digits: the optimiser has it by now.
            model.drop_masters();
        }
        let saved_scale = from.and_then(|saved| saved.state.loss_scale);
        optimizer.scale_loss(self.loss_scale.map(|scale| saved_scale.unwrap_or(scale)));
        let settings = Settings {
            schedule: train.schedule(begun.total_steps),
            max_grad_norm: train.max_grad_norm,
            dropout_seed: (self.recipe.lora.dropout > 0.0).then_some(self.recipe.seed),
            objective: self.recipe.objective.into(),
            penalty: train.penalizes().then_some(Penalty {
                label_smoothing: train.label_smoothing_factor as f32,
                z_loss: train.z_loss as f32,
            }),
            neftune: (train.neftune_noise_alpha > 0.0)
                .then_some((train.neftune_noise_alpha, self.recipe.seed)),
            activations,
            blocks: self.blocks()?,
            gradients: train.gradients,
        };
        // Before the optimiser takes the factors.
        let reference = self.reference()?;
        Ok(Trainee::new(model, optimizer, settings).compared_with(reference))
    }
}

/// Removes what a run left in a directory, and nothing else.
///
/// # Errors
/// The system refuses.
pub fn clear(path: &Path) -> Result<(), TrainError> {
    Ok(clear::clear(path)?)
}

/// Whether a directory holds anything of a run.
pub(crate) fn holds_run(path: &Path) -> bool {
    !clear::held(path).is_empty()
}
