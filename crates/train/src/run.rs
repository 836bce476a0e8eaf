//! From a recipe to an adapter.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use backdraft_data::{
    ChatTokenizer, DataOptions, Dataset, Format, LoadProgress, Loader, PromptTemplate,
    SpecialTokens, Supervision,
};
use backdraft_formats::{Existing, FormatError, ModelSource, PeftWriteOptions, write_file};
use backdraft_kernels::adamw::AdamWParams;
use backdraft_kernels::adamw8bit::Guard;
use backdraft_lora::{LoraConfig, TrainedOver};
use backdraft_model::{Llama, Tokens};
use backdraft_quant::{FourBitFormat, QuantizationPlan, Scheme};
use burn::optim::SgdConfig;
use burn::tensor::Device;
use burn::train::renderer::MetricsRenderer;
use burn::train::{Interrupter, Learner, SupervisedTraining, TrainingStrategy};

use crate::activation::cost::{Calibration, CalibrationKey, CostModel, Roofline};
use crate::activation::tensors::{MemoryModel, PassShape};
use crate::activation::{ActivationPlan, Activations, Planner, Prediction, Setup, StepShape};
use crate::error::TrainError;
use crate::loader::{EvalLoader, StepLoader};
use crate::memory::{self, Measured, Memory, MemoryWatch, Watcher};
use crate::metrics::{NoFiles, RunMetric};
use crate::optimizer::{AdamW, StatePrecision};
use crate::recipe::{
    ActivationPolicy, ByteSize, DataFormat, DataRecipe, LoraRecipe, Optimizer, QuantType, Recipe,
    TrainOn,
};
use crate::report::{ActivationReport, Reporter, RunInfo, RunSummary};
use crate::strategy::{Outcome, Plan, StepStrategy};
use crate::trainee::{Settings, Trainee};

/// Model and data of a run, read and checked.
pub struct Run {
    recipe: Recipe,
    model: Llama,
    tokenizer: ChatTokenizer,
    train: Dataset,
    eval: Option<Dataset>,
    model_fingerprint: String,
    device: Device,
    watcher: Option<Watcher>,
}

/// The tokenizer of a model.
///
/// # Errors
/// No tokenizer, or one that cannot be read.
pub fn tokenizer(source: &ModelSource) -> Result<ChatTokenizer, TrainError> {
    let files = source.tokenizer()?;
    let special = SpecialTokens {
        bos_token: files.bos_token,
        eos_token: files.eos_token,
        add_bos: files.add_bos_token,
        eos_token_ids: source.eos_token_ids()?,
    };
    let tokenizer = ChatTokenizer::new(
        &files.tokenizer_json,
        special,
        files.chat_template.as_deref(),
    )
    .map_err(data_error(source.path()))?;
    match &files.tool_use_template {
        Some(template) => tokenizer
            .with_tool_use_template(template)
            .map_err(data_error(source.path())),
        None => Ok(tokenizer),
    }
}

/// How rows become tokens, from a recipe.
///
/// # Errors
/// A prompt template that cannot be read.
pub fn data_options(data: &DataRecipe, max_seq_length: usize) -> Result<DataOptions, TrainError> {
    let template = data
        .prompt_template
        .as_deref()
        .map(PromptTemplate::parse)
        .transpose();
    Ok(DataOptions {
        format: match data.format {
            DataFormat::Messages => Format::Messages,
            DataFormat::Alpaca => Format::Alpaca,
            DataFormat::Text => Format::Text,
        },
        template: template.map_err(TrainError::PromptTemplate)?,
        supervision: match data.train_on {
            TrainOn::Responses => Supervision::Responses,
            TrainOn::Everything => Supervision::All,
        },
        max_seq_length,
    })
}

impl Recipe {
    /// How the base is quantised while it is loaded.
    #[must_use]
    pub fn quantization_plan(&self) -> Option<QuantizationPlan> {
        let recipe = &self.quantization;
        let scheme = match (self.load_in_4bit, self.load_in_8bit) {
            (false, false) => return None,
            (true, _) => Scheme::FourBit {
                format: match recipe.quant_type {
                    QuantType::Nf4 => FourBitFormat::Nf4,
                    QuantType::Fp4 => FourBitFormat::Fp4,
                },
                block_size: recipe.block_size,
                double_quant: recipe.double_quant,
            },
            (false, true) => Scheme::Int8,
        };
        Some(QuantizationPlan {
            scheme,
            skip_modules: recipe.skip_modules.clone(),
        })
    }

    /// How the optimiser's moments are kept.
    #[must_use]
    pub fn state_precision(&self) -> StatePrecision {
        match self.train.optimizer {
            Optimizer::Adamw => StatePrecision::F32,
            Optimizer::Adamw8bit => StatePrecision::Bits8(Guard::On),
        }
    }
}

impl From<&LoraRecipe> for LoraConfig {
    fn from(recipe: &LoraRecipe) -> Self {
        let targets = recipe.target_modules.iter();
        Self {
            rank: recipe.rank,
            alpha: recipe.alpha,
            dropout: recipe.dropout,
            use_rslora: recipe.use_rslora,
            target_modules: targets
                .filter_map(|target| target.name().parse().ok())
                .collect(),
            layers_to_transform: recipe.layers_to_transform.clone(),
        }
    }
}

/// Reads model and data of `recipe`; `model_path` is where the model lies on disk.
///
/// # Errors
/// Anything that would stop the run, before the output directory is touched.
pub fn prepare(
    recipe: Recipe,
    model_path: &Path,
    device: &Device,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Run, TrainError> {
    let source = ModelSource::open(model_path)?;
    let tokenizer = tokenizer(&source)?;
    let options = data_options(&recipe.data, recipe.max_seq_length)?;
    let mut load = |path: &Path| {
        backdraft_data::load(path, &options, &tokenizer, progress).map_err(data_error(path))
    };
    let train = load(&recipe.data.train)?;
    let eval = recipe.data.eval.as_deref().map(&mut load).transpose()?;
    let lora = LoraConfig::from(&recipe.lora);
    let plan = recipe.quantization_plan();
    let (model, watcher) = Watcher::watch(
        || Llama::load_quantized(&source, plan.as_ref(), device),
        |model| model.with_lora(&lora, recipe.seed),
    )?;
    let longest = model.config().max_position_embeddings;
    if train
        .examples
        .iter()
        .any(|row| row.input_ids.len() > longest)
    {
        return Err(TrainError::TooLong {
            actual: recipe.max_seq_length,
            expected: longest,
        });
    }
    Ok(Run {
        model_fingerprint: source.fingerprint()?,
        recipe,
        model,
        tokenizer,
        train,
        eval,
        device: device.clone(),
        watcher,
    })
}

/// Who watches a run, and what it may overwrite.
pub struct Watch {
    /// Hears of everything.
    pub reporter: Box<dyn Reporter>,
    /// Draws burn-train's metrics; nothing where absent.
    pub renderer: Box<dyn MetricsRenderer>,
    /// Stops the run after its present step.
    pub interrupter: Interrupter,
    /// Replace a run that the output directory holds.
    pub force: bool,
    /// Knows how much memory the run could have.
    pub memory: Arc<dyn MemoryWatch>,
}

impl Run {
    /// The model, with adapters.
    pub fn model(&self) -> &Llama {
        &self.model
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &ChatTokenizer {
        &self.tokenizer
    }

    /// Trains, and leaves the adapter in `output_dir/adapter`.
    ///
    /// # Errors
    /// See [`TrainError`]; checkpoints that were written stay.
    pub fn train(mut self, watch: Watch) -> Result<(RunSummary, Llama), TrainError> {
        let began = Instant::now();
        let recipe_toml = self.recipe.to_toml()?;
        let (activations, prediction) =
            self.activations(self.longest_pass(), watch.memory.clone())?;
        let memory = Memory::of(&prediction, self.model.num_trained());
        claim(&self.recipe.output_dir, watch.force)?;
        write_file(
            self.recipe.output_dir.join("recipe.toml"),
            recipe_toml.as_bytes(),
            Existing::Replace,
        )?;
        let settings = &self.recipe.train;
        let examples = Arc::new(std::mem::take(&mut self.train.examples));
        let data_fingerprint = Dataset {
            examples: examples.to_vec(),
            report: Default::default(),
        }
        .fingerprint();
        let (size, accumulation) = (settings.micro_batch_size, settings.grad_accumulation_steps);
        let loader = Loader::new(examples.len(), size, accumulation, self.recipe.seed, true)
            .map_err(data_error(&self.recipe.data.train))?;
        let steps_per_epoch = loader.steps_per_epoch();
        let total_steps = settings.length.total_steps(steps_per_epoch);
        let eval_examples = self.eval.as_ref().map_or(&[][..], |eval| &eval.examples);
        let valid = EvalLoader::new(eval_examples, settings.micro_batch_size)
            .map_err(data_error(&self.recipe.data.train))?;

        let mut reporter = watch.reporter;
        reporter.start(&RunInfo {
            model: self.recipe.model.clone(),
            device: format!("{:?}", self.device),
            base_params: self.model.num_base_params(),
            trained_params: self.model.num_trained(),
            base: self.model.stored(),
            memory,
            activations: ActivationReport {
                policy: self.recipe.activation_policy.to_string(),
                budget: activations.budget(),
                prediction,
            },
            train_data: self.train.report.clone(),
            eval_data: self.eval.as_ref().map(|eval| eval.report.clone()),
            total_steps,
            steps_per_epoch,
            logging_steps: settings.logging_steps,
        });
        let outcome = Outcome {
            reporter: Some(reporter),
            records: Some(Records::create(
                &self.recipe.output_dir.join("metrics.jsonl"),
            )?),
            ..Outcome::default()
        };
        let strategy = StepStrategy {
            plan: Arc::new(Plan {
                recipe: self.recipe.clone(),
                recipe_toml,
                examples: examples.clone(),
                steps_per_epoch,
                total_steps,
                evaluates: self.eval.is_some(),
                trained_over: self.trained_over(),
                data_fingerprint,
            }),
            outcome: Arc::new(Mutex::new(outcome)),
        };
        let trainee = self.trainee(total_steps, activations.clone());
        let steps = Arc::new(StepLoader::new(examples, loader, total_steps));
        let result =
            SupervisedTraining::<Trainee>::new(&self.recipe.output_dir, steps, Arc::new(valid))
                .with_metric_logger(NoFiles)
                .with_training_strategy(TrainingStrategy::Custom(Arc::new(strategy.clone())))
                .metric_train_numeric(RunMetric::loss())
                .metric_train_numeric(RunMetric::grad_norm())
                .metric_train_numeric(RunMetric::learning_rate())
                .metric_train_numeric(RunMetric::tokens_per_second())
                .metric_valid_numeric(RunMetric::loss())
                .metric_valid_numeric(RunMetric::perplexity())
                .num_epochs(1)
                .with_application_logger(None)
                .with_interrupter(watch.interrupter)
                .renderer(watch.renderer)
                // Our optimiser travels with the model; the learner's own is never used.
                .launch(Learner::new(trainee, SgdConfig::new().init(), 1.0));
        let interrupted = result.interrupted.is_some();
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
        let optimizer = result.model.optimizer().num_bytes();
        let model = result.model.model;
        let adapter = self.write_adapter(&model)?;
        // Of the passes that there were, not of the longest that could have been.
        let highest = activations.highest().unwrap_or(prediction);
        let gradients = 4 * model.num_trained();
        let measured = self
            .watcher
            .and_then(|watcher| watcher.measured(gradients, optimizer));
        let summary = RunSummary {
            memory: Memory::of(&highest, model.num_trained()),
            measured_memory: measured,
            peak_memory: measured.map_or_else(memory::peak_resident, Measured::peak),
            ..summarise(&outcome, total_steps, interrupted, adapter, began)
        };
        Ok((summary, model))
    }

    /// A pass over the longest rows of the data, every token supervised.
    fn longest_pass(&self) -> PassShape {
        let mut lengths: Vec<usize> = self
            .train
            .examples
            .iter()
            .map(|row| row.input_ids.len())
            .collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.truncate(self.recipe.train.micro_batch_size);
        PassShape::of_sequences(lengths)
    }

    /// What decides on the memory of a step.
    fn setup(&mut self) -> Setup {
        let train = &self.recipe.train;
        let setup = Setup {
            config: self.model.config().clone(),
            lora: LoraConfig::from(&self.recipe.lora),
            quantization: self.recipe.quantization_plan(),
            base: None,
            dense_element: 4,
            memory: MemoryModel::cpu(),
            optimizer: self.recipe.state_precision(),
            micro_batch_size: train.micro_batch_size,
            max_seq_length: self.recipe.max_seq_length,
            grad_accumulation_steps: train.grad_accumulation_steps,
        };
        setup.with_model(&mut self.model)
    }

    /// Who plans the passes, and what the longest one will need.
    ///
    /// # Errors
    /// No plan fits.
    fn activations(
        &mut self,
        pass: PassShape,
        watch: Arc<dyn MemoryWatch>,
    ) -> Result<(Activations, Prediction), TrainError> {
        let setup = self.setup();
        let step = setup.step();
        // What the process holds already, the base apart: tokenizer, rows, the program itself.
        let held = memory::resident().unwrap_or(0) as u64;
        let overhead = held.saturating_sub(step.base + step.adapters);
        let budget = match (self.recipe.memory_budget, watch.obtainable()) {
            (Some(ByteSize(budget)), _) => budget,
            (None, Some(bytes)) => bytes.saturating_sub(overhead) / 16 * 15,
            (None, None) => u64::MAX,
        };
        let policy = self.recipe.activation_policy;
        let cost = self.cost(&step, budget, pass)?;
        let mut planner = Planner::new(step, policy, budget, cost);
        let planned = planner.plan(pass);
        let activations = Activations::new(planner, setup, watch, overhead);
        match planned {
            Ok(planned) => Ok((activations, planned.prediction)),
            Err(shortage) => Err(TrainError::OutOfMemory {
                step: 1,
                exhausted: activations.exhausted(shortage),
            }),
        }
    }

    /// What recomputing costs: measured on a layer of the model where something will have to be recomputed.
    fn cost(
        &self,
        step: &StepShape,
        budget: u64,
        pass: PassShape,
    ) -> Result<CostModel, TrainError> {
        let line = Roofline::CPU;
        let estimate = CostModel::Roofline(line);
        let all = ActivationPlan::keep_all(step.layers.len());
        let fits = step.predict(&all, pass, &estimate).peak.total() <= budget;
        let (Some(layer), Some(shape)) = (self.model.layers.last(), step.layers.last()) else {
            return Ok(estimate);
        };
        if fits || self.recipe.activation_policy != ActivationPolicy::Smart {
            return Ok(estimate);
        }
        let key = CalibrationKey {
            device: format!("{:?}", self.device),
            layer: *shape,
            memory: step.memory,
            tokens: pass.tokens.next_power_of_two(),
        };
        let dir = calibration_dir();
        if let Some(known) = dir
            .as_deref()
            .and_then(|dir| Calibration::cached(dir, &key))
        {
            return Ok(CostModel::Measured(known, line));
        }
        // Of one sequence: few tokens are enough for the ratios between the tensors.
        let tokens = pass.longest.clamp(1, 2048) as usize;
        let sample = Tokens::from_sequences(&[vec![0; tokens]]);
        let context = self.model.context(&sample, None);
        let h = self.model.embed(&sample.input_ids).inner();
        let measured = Calibration::measure(layer, &h, &context, PassShape::of_sequences([tokens]));
        let measured = measured.map_err(|error| TrainError::Device {
            step: 0,
            message: error.to_string(),
        })?;
        if let Some(dir) = dir {
            // Without it the next run measures again.
            let _ = measured.store(&dir, &key);
        }
        Ok(CostModel::Measured(measured, line))
    }

    fn trained_over(&self) -> TrainedOver {
        TrainedOver {
            model: self.recipe.model.clone(),
            fingerprint: self.model_fingerprint.clone(),
            quantization: self.recipe.quantization_plan().as_ref().map(Into::into),
        }
    }

    fn trainee(&self, total_steps: usize, activations: Activations) -> Trainee {
        let train = &self.recipe.train;
        let params = AdamWParams {
            beta1: train.adam_beta1,
            beta2: train.adam_beta2,
            epsilon: train.adam_epsilon,
            weight_decay: train.weight_decay,
        };
        let optimizer = AdamW::new(params, self.recipe.state_precision());
        let settings = Settings {
            schedule: train.schedule(total_steps),
            max_grad_norm: train.max_grad_norm,
            dropout_seed: (self.recipe.lora.dropout > 0.0).then_some(self.recipe.seed),
            activations,
        };
        Trainee::new(self.model.clone(), optimizer, settings)
    }

    fn write_adapter(&self, model: &Llama) -> Result<PathBuf, TrainError> {
        let path = self.recipe.output_dir.join("adapter");
        let Some(adapter) = model.adapter() else {
            unreachable!("a trained model has an adapter");
        };
        let options = PeftWriteOptions {
            existing: Existing::Replace,
            companions: vec![(TrainedOver::FILE.to_owned(), self.trained_over().to_json())],
            ..Default::default()
        };
        adapter.write(&path, &self.recipe.model, &options)?;
        Ok(path)
    }
}

fn summarise(
    outcome: &Outcome,
    total_steps: usize,
    interrupted: bool,
    adapter: PathBuf,
    began: Instant,
) -> RunSummary {
    let per_second = |count: usize| count as f64 / outcome.seconds.max(1e-9);
    RunSummary {
        steps: outcome.steps,
        total_steps,
        interrupted,
        seconds: began.elapsed().as_secs_f64(),
        tokens_per_second: per_second(outcome.tokens),
        supervised_tokens_per_second: per_second(outcome.supervised_tokens),
        final_loss: outcome.final_loss,
        best_eval_loss: outcome.best.map(|(loss, _)| loss),
        best_step: outcome.best.map(|(_, step)| step),
        memory: Memory::default(),
        measured_memory: None,
        peak_memory: None,
        adapter,
    }
}

/// Makes the output directory; one that holds a run is replaced only with `force`.
fn claim(path: &Path, force: bool) -> Result<(), TrainError> {
    const PARTS: [&str; 4] = ["recipe.toml", "metrics.jsonl", "checkpoints", "adapter"];
    let held: Vec<PathBuf> = PARTS
        .iter()
        .map(|part| path.join(part))
        .filter(|part| part.exists())
        .collect();
    if !held.is_empty() && !force {
        return Err(TrainError::OutputExists {
            path: path.to_owned(),
        });
    }
    for part in held {
        let removed = if part.is_dir() {
            fs::remove_dir_all(&part)
        } else {
            fs::remove_file(&part)
        };
        removed.map_err(FormatError::io(&part, "remove"))?;
    }
    fs::create_dir_all(path).map_err(FormatError::io(path, "create"))?;
    Ok(())
}

/// Where measured times are kept between runs.
fn calibration_dir() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("backdraft").join("calibration"))
}

fn data_error(path: &Path) -> impl FnOnce(backdraft_data::DataError) -> TrainError + use<> {
    let path = path.to_owned();
    move |source| TrainError::Data {
        path,
        source: Box::new(source),
    }
}

/// `metrics.jsonl`: one object for each step and each evaluation.
pub struct Records {
    file: File,
    path: PathBuf,
}

impl Records {
    fn create(path: &Path) -> Result<Self, TrainError> {
        let file = File::create(path).map_err(FormatError::io(path, "create"))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// Appends one object.
    ///
    /// # Errors
    /// The system refuses.
    pub fn write(&mut self, report: &impl serde::Serialize) -> Result<(), TrainError> {
        let mut line = serde_json::to_vec(report).unwrap_or_default();
        line.push(b'\n');
        self.file
            .write_all(&line)
            .map_err(FormatError::io(&self.path, "append to"))?;
        Ok(())
    }
}
