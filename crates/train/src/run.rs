//! From a recipe to an adapter.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use backdraft_arch::QuantizationPlan;
use backdraft_data::{ChatTokenizer, PromptTemplate, RowSet, count};
use backdraft_formats::{Existing, ModelSource, PeftWriteOptions, remove_partials, write_file};
use backdraft_journal::adaptation::AdaptationReport;
use backdraft_journal::diagnosis::Monitor;
use backdraft_journal::records::{self, Record, Records};
use backdraft_journal::report::{ActivationReport, Reporter, RunInfo, RunSummary};
use backdraft_journal::tensorboard::EventWriter;
use backdraft_journal::text::{shown_computer, with_causes};
use backdraft_journal::{report_html, run_files, tensorboard};
use backdraft_kernels::adamw::AdamWParams;
use backdraft_kernels::device::{self, held, size_pages};
use backdraft_lora::{LoraConfig, TrainedOver};
use backdraft_model::CausalLm;
use backdraft_plan::cost::{CostModel, Roofline};
use backdraft_plan::memory::{self, Measured, Memory, MemoryWatch, Watcher, usable};
use backdraft_plan::tensors::PassShape;
use backdraft_plan::{
    ActivationPlan, ActivationPolicy, Activations, Planner, Prediction, Setup, StepShape,
};
use backdraft_recipe::no_effect::NoEffect;
use backdraft_recipe::{ByteSize, Recipe, RowBatching};
use burn::optim::SgdConfig;
use burn::tensor::Device;
use burn::train::renderer::MetricsRenderer;
use burn::train::{Interrupter, Learner, SupervisedTraining, TrainingStrategy};

use crate::adapt::{Adaptation, CalibrationRows};
use crate::calibrate::{self, CalibrationKey};
use crate::checkpoint::{self, Saved};
use crate::clear;
use crate::control::Control;
use crate::data::{RunData, data_error};
use crate::device::{DeviceFacts, dtype_on};
use crate::early_stopping::EarlyStopping;
use crate::error::TrainError;
use crate::loader::{EvalLoader, StepLoader};
use crate::lock::RunLock;
use crate::loss_scale::LossScale;
use crate::metrics::NoFiles;
use crate::objective::Objective;
use crate::optimizer::AdamW;
use crate::resume::{Resume, is_over};
use crate::samples::Questions;
use crate::strategy::{Outcome, Plan, StepStrategy};
use crate::trained_with::{Companions, Prompting, TrainedWith};
use crate::trainee::{Settings, Trainee};

/// Model and rows of a run, read and checked.
pub struct Run {
    recipe: Recipe,
    model: CausalLm,
    data: RunData,
    model_fingerprint: String,
    device: Device,
    watcher: Option<Watcher>,
    loss_scale: Option<LossScale>,
    /// Where precision is dealt out, or adapters start elsewhere than at zero.
    adaptation: Option<Adaptation>,
}

/// Reads the model of `recipe`, whose rows are `data`; `source` is where the model lies on disk.
///
/// # Errors
/// Anything that would stop the run, before the output directory is touched.
pub fn prepare(
    recipe: Recipe,
    source: ModelSource,
    data: RunData,
    device: &Device,
) -> Result<Run, TrainError> {
    let source = Arc::new(source);
    let check = &data.check;
    let is_foreign = !check.template_ends_turns && !check.foreign_markers.is_empty();
    if recipe.data.chat_template.is_some() && is_foreign {
        return Err(TrainError::ForeignTemplate {
            markers: check.foreign_markers.clone(),
        });
    }
    let longest = backdraft_model::spec(&source)?.max_position_embeddings;
    let rows = data.train.lengths();
    if rows.iter().any(|length| *length as usize > longest) {
        return Err(TrainError::TooLong {
            actual: recipe.max_seq_length,
            expected: longest,
        });
    }
    let lora = LoraConfig::from(&recipe.lora);
    let plan = recipe.quantization_plan();
    let dtype = dtype_on(recipe.dtype, device)?;
    let (model, watcher) = Watcher::watch(
        || CausalLm::load_as(&source, plan.as_ref(), (device, dtype)),
        |model| model.with_lora(&lora, recipe.seed),
    )?;
    Ok(Run {
        model_fingerprint: source.fingerprint()?,
        adaptation: adaptation(&recipe, &source, &data)?,
        recipe,
        model,
        data,
        device: device.clone(),
        watcher,
        loss_scale: (dtype == burn::tensor::DType::F16).then(LossScale::default),
    })
}

/// Adaptive precision, where `recipe` asks for it.
fn adaptation(
    recipe: &Recipe,
    source: &Arc<ModelSource>,
    data: &RunData,
) -> Result<Option<Adaptation>, TrainError> {
    if !Adaptation::is_asked(recipe) {
        return Ok(None);
    }
    let tokens = recipe.quantization.calibration_tokens;
    let pass = data.loader.largest_micro_batch().iter().sum();
    let rows = CalibrationRows::choose(&data.train, data.loader.clone(), tokens, pass);
    let rows = rows.map_err(data_error(Path::new("data.train")))?;
    Ok(Adaptation::of(recipe, source, rows))
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

impl Run {
    /// The model, with adapters.
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

    /// Trains, and leaves the adapter in `output_dir/adapter`.
    ///
    /// # Errors
    /// See [`TrainError`]; checkpoints that were written stay.
    pub fn train(mut self, mut watch: Watch) -> Result<(RunSummary, CausalLm), TrainError> {
        let began = Instant::now();
        let recipe_toml = self.recipe.to_toml()?;
        let adapted = self.adapt(&watch.start, watch.reporter.as_mut())?;
        let (activations, prediction) =
            self.activations(self.longest_pass(), watch.memory.clone())?;
        let memory = Memory::of(&prediction, self.model.num_trained());
        let data_fingerprint = self.data.train.fingerprint();
        let eval_fingerprint = self.data.eval.as_ref().map(RowSet::fingerprint);
        let mut notes = Vec::new();
        let allows_changes = matches!(&watch.start, Start::Resume(r) if r.allows_changes());
        let (_lock, from) = match watch.start {
            Start::New { force } => {
                let lock = RunLock::acquire(&self.recipe.output_dir)?;
                claim(&self.recipe.output_dir, force)?;
                (lock, None)
            }
            Start::Resume(resume) => {
                let eval = eval_fingerprint.as_deref();
                resume.check_content(&self.model_fingerprint, &data_fingerprint, eval)?;
                notes.extend(go_on(&resume)?);
                resume.into_parts()
            }
        };
        write_file(
            self.recipe.output_dir.join("recipe.toml"),
            recipe_toml.as_bytes(),
            Existing::Replace,
        )?;
        let skipped = self.recipe.output_dir.join(run_files::SKIPPED);
        let listed = self.data.check.write_skipped(&skipped);
        notes.extend(listed.err().map(|error| with_causes(&error)));
        if let Some(saved) = &from {
            let mut adapter = saved.adapter(&self.device)?;
            adapter.config = LoraConfig::from(&self.recipe.lora);
            self.model = self.model.with_adapter(&adapter)?;
        }
        let settings = &self.recipe.train;
        let mut loader = self.data.loader.clone();
        let steps_per_epoch = loader.steps_per_epoch();
        let total_steps = settings.length.total_steps(steps_per_epoch);
        if let Some(saved) = &from {
            let at = saved.state.loader;
            let restored = match loader.restore(at) {
                // Other batch sizes have other ends of steps.
                Err(_) if allows_changes => loader.seek(at),
                restored => restored,
            };
            restored.map_err(data_error(Path::new("data.train")))?;
        }
        let start = loader.state();
        let eval_rows = self.data.eval.clone().unwrap_or_default();
        let valid = EvalLoader::new(eval_rows, settings.micro_batch_size);

        let concluded = self.concluded(from.as_ref(), total_steps);
        if concluded.is_none() {
            // What an earlier process said of its end is true no more.
            let _ = fs::remove_file(self.recipe.output_dir.join(run_files::SUMMARY));
        }
        let mut reporter = watch.reporter;
        let warmup_steps = settings.warmup.steps(total_steps);
        let mut no_effect: Vec<NoEffect> = NoEffect::of_schedule(&settings.schedule(total_steps))
            .into_iter()
            .collect();
        notes.extend(no_effect.iter().map(ToString::to_string));
        let info = RunInfo {
            model: self.recipe.model.clone(),
            device: device_name(&self.device),
            base_params: self.model.num_base_params(),
            trained_params: self.model.num_trained(),
            base: self.model.stored(),
            memory,
            activations: ActivationReport {
                policy: self.recipe.activation_policy.to_string(),
                budget: activations.budget(),
                prediction,
            },
            train_data: self.data.check.train_report(),
            eval_data: self.data.eval_report(),
            total_steps,
            steps_per_epoch,
            logging_steps: settings.logging_steps,
        };
        reporter.start(&info);
        let computed_by = device_name(&self.device);
        let (mut outcome, history, more) =
            self.outcome(from.as_ref(), total_steps, &computed_by)?;
        notes.extend(more);
        if let Some(saved) = &from {
            let history: Vec<_> = records::reports(&history).collect();
            reporter.resumed(saved.state.step, &saved.path, &history);
        }
        let output_dir = self.recipe.output_dir.clone();
        let steps = outcome.steps;
        match EventWriter::create(&output_dir.join(tensorboard::DIRECTORY), steps) {
            Ok(writer) => outcome.tensorboard = Some(writer),
            Err(error) => notes.push(with_causes(&error)),
        }
        if concluded.is_none() {
            let noted = run_files::write_note(&output_dir, &info, warmup_steps);
            notes.extend(noted.err().map(|error| with_causes(&error)));
        }
        let asked = self.data.eval.as_ref().unwrap_or(&self.data.train);
        let questions = Questions::choose(asked, settings.sample_rows);
        if from.is_none() {
            let asked = questions.ask_before(&self.model, &self.data.tokenizer, &output_dir);
            notes.extend(asked.err().map(|error| with_causes(&error)));
        }
        for note in notes {
            reporter.warn(&note);
        }
        if let Some(report) = &adapted {
            reporter.adapted(report);
            outcome.note_adaptation(report);
        }
        outcome.reporter = Some(reporter);
        outcome.adaptation = self.adaptation.take();
        let resumed_from = outcome.steps;
        let strategy = StepStrategy {
            plan: Arc::new(Plan {
                recipe: self.recipe.clone(),
                recipe_toml,
                rows: self.data.train.clone(),
                steps_per_epoch,
                total_steps,
                evaluates: self.data.eval.is_some(),
                model_fingerprint: self.model_fingerprint.clone(),
                companions: self.companions(),
                data_fingerprint,
                eval_fingerprint,
                computed_by,
                start,
                control: watch.control,
            }),
            outcome: Arc::new(Mutex::new(outcome)),
        };
        let trainee = self.trainee(total_steps, activations.clone(), from.as_ref())?;
        let steps =
            StepLoader::new(self.data.train.clone(), loader, total_steps).after(resumed_from);
        let steps = Arc::new(match self.recipe.data.batching {
            RowBatching::Padded => steps.padded(self.pad_id()),
            RowBatching::PaddingFree | RowBatching::Packed => steps,
        });
        let result =
            SupervisedTraining::<Trainee>::new(&self.recipe.output_dir, steps, Arc::new(valid))
                .with_metric_logger(NoFiles)
                .with_training_strategy(TrainingStrategy::Custom(Arc::new(strategy.clone())))
                .num_epochs(1)
                .with_application_logger(None)
                .with_interrupter(watch.interrupter)
                .renderer(watch.renderer)
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
        let optimizer = result.model.optimizer().num_bytes();
        let gradients = 4 * result.model.model.num_trained();
        // A GPU's memory is its own; what the process holds beside it says little.
        let device_memory = held(&self.device).map(|bytes| bytes as usize);
        let watcher = self.watcher.take().filter(|_| device_memory.is_none());
        let measured = watcher.and_then(|watcher| watcher.measured(gradients, optimizer));
        self.adaptation = outcome.adaptation.take();
        let (model, adapter_step) = self.best(result.model.model, &mut outcome);
        let adapter = self.write_adapter(&model)?;
        // Of the passes that there were, not of the longest that could have been.
        let highest = activations.highest().unwrap_or(prediction);
        if let Some(Err(error)) = outcome.records.as_mut().map(Records::sync) {
            warn(&mut outcome, &with_causes(&error));
        }
        let complete = outcome.steps == total_steps || outcome.stopped_early;
        if complete
            && let Err(error) = questions.ask_after(&model, &self.data.tokenizer, &output_dir)
        {
            warn(&mut outcome, &with_causes(&error));
        }
        if let Some(concluded) = concluded {
            return Ok((concluded, model));
        }
        if outcome.steps > resumed_from && !outcome.had_gradient {
            let steps = outcome.steps - resumed_from;
            no_effect.push(NoEffect::NoGradient { steps });
        }
        no_effect.extend(untrained(&model, adapter_step));
        let summary = RunSummary {
            no_effect,
            memory: Memory::of(&highest, model.num_trained()),
            measured_memory: measured,
            device_memory,
            peak_memory: device_memory
                .or_else(|| measured.map_or_else(memory::peak_resident, Measured::peak)),
            resumed_from,
            adapter_step,
            ..summarise(&mut outcome, total_steps, adapter, began)
        };
        let reported = run_files::write_summary(&output_dir, &summary)
            .and_then(|()| report_html::write(&output_dir));
        if let Err(error) = reported {
            warn(&mut outcome, &format!("no report: {}", with_causes(&error)));
        }
        Ok((summary, model))
    }

    /// How the base is stored now.
    fn quantization(&self) -> Option<QuantizationPlan> {
        match &self.adaptation {
            Some(adaptation) => Some(adaptation.plan().clone()),
            None => self.recipe.quantization_plan(),
        }
    }

    /// Stores the base as the checkpoint has it, or measures and deals out anew; a report of the latter.
    fn adapt(
        &mut self,
        start: &Start,
        reporter: &mut dyn Reporter,
    ) -> Result<Option<AdaptationReport>, TrainError> {
        let Some(adaptation) = &mut self.adaptation else {
            return Ok(None);
        };
        let saved = match start {
            Start::New { .. } => None,
            Start::Resume(resume) => resume.from(),
        };
        if let Some(saved) = saved {
            let noted = TrainedWith::read(&saved.path.join("adapter"))?;
            if let Some(plan) = noted.and_then(|noted| noted.over.quantization) {
                adaptation.restore(&mut self.model, &plan)?;
            }
            return Ok(None);
        }
        let tokens = self.recipe.quantization.calibration_tokens as u64;
        reporter.adapting(&format!(
            "measuring {} of training rows",
            count(tokens, "token")
        ));
        // Whatever the measurement takes comes in the pages that steps will use.
        let element = self.model.dtype().size() as u64;
        let facts = DeviceFacts::of(&self.device, element);
        let step = self
            .recipe
            .setup(self.model.spec().clone(), facts.memory, facts.host);
        size_pages(&self.device, step.step().page_for(self.longest_pass()));
        let Some(adaptation) = &mut self.adaptation else {
            return Ok(None);
        };
        adaptation.begin(&mut self.model).map(Some)
    }

    /// What is known before the first step, the records so far, and what the user should hear.
    fn outcome(
        &self,
        from: Option<&Saved>,
        total_steps: usize,
        computed_by: &str,
    ) -> Result<(Outcome, String, Vec<String>), TrainError> {
        let train = &self.recipe.train;
        let mut monitor = Monitor::new(total_steps, train.warmup.steps(total_steps));
        let rule = train.early_stopping_patience.map(|patience| {
            EarlyStopping::new(
                patience,
                train.early_stopping_min_improvement.unwrap_or_default(),
            )
        });
        let path = self.recipe.output_dir.join(records::FILE);
        let Some(Saved {
            state, path: at, ..
        }) = from
        else {
            let outcome = Outcome {
                records: Some(Records::create(&path)?),
                early_stopping: rule,
                monitor: Some(monitor),
                ..Outcome::default()
            };
            return Ok((outcome, String::new(), Vec::new()));
        };
        let mut notes = Vec::new();
        let (records, text, note) = Records::resume(&path, &state.records, state.step)?;
        notes.extend(note);
        let before = shown_computer(&state.computed_by);
        if before != computed_by {
            notes.push(format!(
                "computed by {computed_by}, before by {before}: the last bits of what follows may differ from an \
                 uninterrupted run"
            ));
        }
        for record in records::points(&text) {
            match record {
                Record::Train(point) => monitor.train(point),
                Record::Eval(point) => monitor.eval(point),
            };
        }
        let rule = match (rule, &state.early_stopping) {
            (Some(rule), Some(seen)) => Some(rule.having_seen(seen)),
            (rule, _) => rule,
        };
        let stopped_early = rule.is_some_and(|rule| rule.is_spent()) && state.step < total_steps;
        if stopped_early {
            monitor.stop_early();
        }
        let outcome = Outcome {
            records: Some(records),
            steps: state.step,
            final_loss: state.final_loss,
            best: state.best,
            early_stopping: rule,
            stopped_early,
            effort: state.effort,
            monitor: Some(monitor),
            last_checkpoint: Some(at.clone()),
            ..Outcome::default()
        };
        Ok((outcome, text, notes))
    }

    /// What an earlier process said of the end of a run that it has brought to its end.
    fn concluded(&self, from: Option<&Saved>, total_steps: usize) -> Option<RunSummary> {
        let state = &from?.state;
        is_over(state, &self.recipe, total_steps).then(|| {
            run_files::read_summary(&self.recipe.output_dir)
                .ok()
                .flatten()
        })?
    }

    /// The model of the best evaluation and its step; the last one where nothing was evaluated.
    fn best(&mut self, model: CausalLm, outcome: &mut Outcome) -> (CausalLm, usize) {
        let last = outcome.steps;
        let Some(step) = outcome.best.map(|best| best.step).filter(|&s| s != last) else {
            return (model, last);
        };
        let path = checkpoint::path(&self.recipe.output_dir, step);
        let mut read = || -> Result<CausalLm, TrainError> {
            let mut adapter = Saved::open(&path)?.adapter(&self.device)?;
            adapter.config = LoraConfig::from(&self.recipe.lora);
            let mut model = model.clone().with_adapter(&adapter)?;
            if let Some(adaptation) = &mut self.adaptation {
                let noted = TrainedWith::read(&path.join("adapter"))?;
                if let Some(plan) = noted.and_then(|noted| noted.over.quantization) {
                    adaptation.restore(&mut model, &plan)?;
                }
            }
            Ok(model)
        };
        match read() {
            Ok(best) => (best, step),
            Err(error) => {
                let message = format!(
                    "the adapter holds step {last}, not step {step}, which was better: {}",
                    with_causes(&error)
                );
                warn(outcome, &message);
                (model, last)
            }
        }
    }

    /// A pass over the largest micro-batch that the data can make, every token supervised.
    fn longest_pass(&self) -> PassShape {
        PassShape::of_sequences(self.data.loader.largest_micro_batch())
    }

    /// What decides on the memory of a step.
    fn setup(&mut self, facts: &DeviceFacts) -> Setup {
        let spec = self.model.spec().clone();
        let setup = self.recipe.setup(spec, facts.memory, facts.host);
        let bytes: usize = self.model.stored().iter().map(|share| share.bytes).sum();
        let room = self.adaptation.as_ref();
        let room = room.map_or(0, |adaptation| adaptation.room(self.model.spec()));
        setup.with_base(bytes as u64 + room)
    }

    /// Who plans the passes, and what the longest one will need.
    ///
    /// # Errors
    /// No plan fits.
    fn activations(
        &mut self,
        pass: PassShape,
        watch: Option<Arc<dyn MemoryWatch>>,
    ) -> Result<(Activations, Prediction), TrainError> {
        let element = self.model.norm().weight().dtype().size() as u64;
        let facts = DeviceFacts::of(&self.device, element);
        let watch = watch.unwrap_or_else(|| facts.watch());
        let setup = self.setup(&facts);
        let mut step = setup.step();
        step.page = step.page_for(pass);
        size_pages(&self.device, step.page);
        // What the process holds already, the base apart: tokenizer, rows, the program itself.
        let held = memory::resident().unwrap_or(0) as u64;
        let overhead = match facts.capacity {
            None => held.saturating_sub(step.base + step.adapters),
            Some(_) => 0,
        };
        let budget = match (
            self.recipe.memory_budget,
            facts.capacity,
            watch.obtainable(),
        ) {
            (Some(ByteSize(budget)), ..) => budget,
            (None, Some(capacity), _) => usable(capacity),
            (None, None, Some(bytes)) => bytes.saturating_sub(overhead) / 16 * 15,
            (None, None, None) => u64::MAX,
        };
        let policy = self.recipe.activation_policy;
        let cost = self.cost(&step, (budget, facts.roofline), pass)?;
        let mut planner = Planner::new(step, policy, budget, cost);
        let planned = planner.plan(pass);
        let activations = Activations::new(planner, setup, watch, overhead);
        match planned {
            Ok(planned) => Ok((activations, planned.prediction)),
            Err(shortage) => Err(TrainError::OutOfMemory {
                step: 1,
                exhausted: activations
                    .exhausted(shortage)
                    .under(self.recipe.memory_budget.map(|bytes| bytes.0)),
            }),
        }
    }

    /// What recomputing costs: measured on a layer of the model where something will have to be recomputed.
    fn cost(
        &self,
        step: &StepShape,
        (budget, line): (u64, Roofline),
        pass: PassShape,
    ) -> Result<CostModel, TrainError> {
        let estimate = CostModel::Roofline(line);
        let all = ActivationPlan::keep_all(step.layers.len());
        let fits = step.predict(&all, pass, &estimate).peak.total() <= budget;
        let Some(shape) = step.layers.last() else {
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
        if let Some(known) = dir.as_deref().and_then(|dir| calibrate::cached(dir, &key)) {
            return Ok(CostModel::Measured(known, line));
        }
        let measured = calibrate::measure(&self.model, &step.sample(pass));
        let measured = measured.map_err(|error| TrainError::Device {
            step: 0,
            message: error.to_string(),
        })?;
        if let Some(dir) = dir {
            // Without it the next run measures again.
            let _ = calibrate::store(&dir, &key, &measured);
        }
        Ok(CostModel::Measured(measured, line))
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
            noted,
        }
    }

    fn trainee(
        &self,
        total_steps: usize,
        activations: Activations,
        from: Option<&Saved>,
    ) -> Result<Trainee, TrainError> {
        let train = &self.recipe.train;
        let params = AdamWParams {
            beta1: train.adam_beta1,
            beta2: train.adam_beta2,
            epsilon: train.adam_epsilon,
            weight_decay: train.weight_decay,
        };
        let mut optimizer = AdamW::new(params, self.recipe.state_precision());
        if let Some(saved) = from {
            optimizer.restore(&self.model, &saved.optimizer()?, saved.state.step as u64)?;
        }
        let saved_scale = from.and_then(|saved| saved.state.loss_scale);
        optimizer.scale_loss(self.loss_scale.map(|scale| saved_scale.unwrap_or(scale)));
        let settings = Settings {
            schedule: train.schedule(total_steps),
            max_grad_norm: train.max_grad_norm,
            dropout_seed: (self.recipe.lora.dropout > 0.0).then_some(self.recipe.seed),
            objective: Objective::NextToken,
            activations,
        };
        Ok(Trainee::new(self.model.clone(), optimizer, settings))
    }

    fn write_adapter(&self, model: &CausalLm) -> Result<PathBuf, TrainError> {
        let path = self.recipe.output_dir.join("adapter");
        let Some(adapter) = model.adapter() else {
            unreachable!("a trained model has an adapter");
        };
        let options = PeftWriteOptions {
            existing: Existing::Replace,
            companions: self.companions().files(self.quantization())?,
            ..Default::default()
        };
        adapter.write(&path, &self.recipe.model, &options)?;
        Ok(path)
    }
}

/// Whether the adapter of `step` changes nothing. Reads it from the device.
fn untrained(model: &CausalLm, step: usize) -> Option<NoEffect> {
    let mut adapters = model.adapters();
    let untrained =
        adapters.all(|(_, _, adapter)| adapter.changes_nothing().is_ok_and(|nothing| nothing));
    untrained.then_some(NoEffect::Untrained { step })
}

fn warn(outcome: &mut Outcome, message: &str) {
    if let Some(reporter) = &mut outcome.reporter {
        reporter.warn(message);
    }
}

fn summarise(
    outcome: &mut Outcome,
    total_steps: usize,
    adapter: PathBuf,
    began: Instant,
) -> RunSummary {
    let effort = outcome.effort;
    let per_second = |count: usize| count as f64 / effort.seconds.max(1e-9);
    RunSummary {
        steps: outcome.steps,
        total_steps,
        interrupted: outcome.interrupted,
        stopped_early: outcome.stopped_early,
        resumed_from: 0,
        seconds: began.elapsed().as_secs_f64(),
        reporting_seconds: outcome.reporting,
        tokens_per_second: per_second(effort.tokens),
        supervised_tokens_per_second: per_second(effort.supervised_tokens),
        final_loss: outcome.final_loss,
        best_eval_loss: outcome.best.map(|best| best.eval_loss),
        best_step: outcome.best.map(|best| best.step),
        diagnosis: outcome
            .monitor
            .as_mut()
            .map(|monitor| monitor.conclude().clone()),
        memory: Memory::default(),
        measured_memory: None,
        device_memory: None,
        peak_memory: None,
        no_effect: Vec::new(),
        adapter,
        adapter_step: outcome.steps,
    }
}

/// Whether a directory holds anything of a run.
pub(crate) fn holds_run(path: &Path) -> bool {
    !clear::held(path).is_empty()
}

/// Makes the output directory ready for a run that begins; one that holds a run is replaced only with
/// `force`.
fn claim(path: &Path, force: bool) -> Result<(), TrainError> {
    if let Some(path) = clear::users_recipe(path) {
        return Err(TrainError::RecipeInOutput { path });
    }
    if !force && !clear::held(path).is_empty() {
        return Err(TrainError::OutputExists {
            path: path.to_owned(),
        });
    }
    clear::clear(path)?;
    remove_partials(path)?;
    Ok(())
}

/// Where measured times are kept between runs.
fn calibration_dir() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("backdraft").join("calibration"))
}

/// Makes the output directory ready for a run that goes on, and says what the user should hear of it.
fn go_on(resume: &Resume) -> Result<Vec<String>, TrainError> {
    let output_dir = resume.output_dir();
    if resume.from().is_none() {
        // An adapter without checkpoints is a result that somebody may want.
        claim(output_dir, !output_dir.join("adapter").exists())?;
        let path = output_dir.display();
        return Ok(vec![format!(
            "{path} holds no checkpoint yet: the run starts over"
        )]);
    }
    let skipped = resume
        .skipped()
        .iter()
        .map(|error| format!("skipped a newer checkpoint: {}", with_causes(error)));
    let mut notes: Vec<String> = skipped.collect();
    let aside = resume.set_newer_aside()?;
    notes.extend(
        aside
            .iter()
            .map(|path| format!("renamed a newer checkpoint to {}", path.display())),
    );
    Ok(notes)
}
