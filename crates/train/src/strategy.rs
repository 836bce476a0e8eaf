//! The loop, counted in optimiser steps.
//!
//! burn-train's learner computes a step and applies it; this strategy decides when to log, evaluate,
//! save and stop, and stops before a gradient that is no number reaches the weights.

mod evaluation;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use backdraft_comm::{Decision, Row};
use backdraft_data::{LoaderState, RowSet};
use backdraft_formats::ModelSource;
use backdraft_journal::adaptation::AdaptationReport;
use backdraft_journal::diagnosis::{
    AnswerMonitor, AnswerPoint, Class, Diagnosis, Finding, Monitor, TrainPoint,
};
use backdraft_journal::records::{Records, RecordsState};
use backdraft_journal::report::{AnswersReport, ReplanReport, Reporter, StepReport};
use backdraft_journal::tensorboard::EventWriter;
use backdraft_journal::text::with_causes;
use backdraft_kernels::device;
use backdraft_lora::{AdapterWeights, MergeError};
use backdraft_plan::StepFailure;
use backdraft_plan::memory::{self, OutOfMemory};
use backdraft_recipe::{KeptGradients, Recipe};
use burn::data::dataloader::Progress;
use burn::optim::GradientsParams;
use burn::train::{
    EventProcessorTraining, Interrupter, Learner, LearnerEvent, SupervisedLearningStrategy,
    SupervisedTrainingEventProcessor, TrainLoader, TrainOutput, TrainStep, TrainingComponents,
    TrainingItem, ValidLoader,
};

use crate::adapt::Adaptation;
use crate::checkpoint::{self, Best, Checkpoint, Effort, RunState, SetStart};
use crate::control::Control;
use crate::early_stopping::EarlyStopping;
use crate::error::TrainError;
use crate::loader::{EvalLoader, Step};
use crate::metrics::{StepMetrics, StepOutput};
use crate::ranks::{Ranks, checksum};
use crate::trained_with::Companions;
use crate::trainee::Trainee;

/// What the loop is told, and where it leaves what came of it.
#[derive(Clone)]
pub struct StepStrategy {
    /// What the loop is told.
    pub plan: Arc<Plan>,
    /// What came of it.
    pub outcome: Arc<Mutex<Outcome>>,
}

/// What the loop is told.
pub struct Plan {
    /// The checked recipe.
    pub recipe: Recipe,
    /// The recipe as it is saved.
    pub recipe_toml: String,
    /// The training rows, to name lines in errors.
    pub rows: RowSet,
    /// Optimiser steps in an epoch.
    pub steps_per_epoch: usize,
    /// Optimiser steps of the run.
    pub total_steps: usize,
    /// Whether there is evaluation data.
    pub evaluates: bool,
    /// Further rows held out, by name.
    pub eval_sets: Vec<(String, EvalLoader)>,
    /// Their fingerprints.
    pub set_fingerprints: BTreeMap<String, String>,
    /// Fingerprint of the base.
    pub model_fingerprint: String,
    /// The base.
    pub source: Arc<ModelSource>,
    /// What lies beside the factors of adapters, or the weights of models.
    pub companions: Companions,
    /// Fingerprint of the training rows.
    pub data_fingerprint: String,
    /// Fingerprint of the evaluation rows.
    pub eval_fingerprint: Option<String>,
    /// What computes, and with how many threads.
    pub computed_by: String,
    /// What adapters began with, where the base gave it up.
    pub principal: Option<AdapterWeights>,
    /// SHA-256 of what adapters began with, where answers are compared with it.
    pub start_fingerprint: Option<String>,
    /// Where data stands before the first step.
    pub start: LoaderState,
    /// What whoever watches asks for.
    pub control: Control,
    /// The processes that share the steps, where there are several.
    pub ranks: Option<Ranks>,
}

/// What came of a run.
#[derive(Default)]
pub struct Outcome {
    /// Hears of everything.
    pub reporter: Option<Box<dyn Reporter>>,
    /// `metrics.jsonl`.
    pub records: Option<Records>,
    /// The event file.
    pub tensorboard: Option<EventWriter>,
    /// Steps done.
    pub steps: usize,
    /// Loss of the last step.
    pub final_loss: Option<f64>,
    /// What came of its answers, where they are compared and this process took it.
    pub final_answers: Option<AnswersReport>,
    /// The best evaluation.
    pub best: Option<Best>,
    /// What the further rows held out came to before the first step.
    pub set_starts: Vec<SetStart>,
    /// When evaluation ends the run.
    pub early_stopping: Option<EarlyStopping>,
    /// Whether it did.
    pub stopped_early: bool,
    /// Whether somebody ended the run.
    pub interrupted: bool,
    /// Whether a step of this process had a gradient.
    pub had_gradient: bool,
    /// What the steps took.
    pub effort: Effort,
    /// Seconds of this process that telling of steps took, in the thread that computes.
    pub reporting: f64,
    /// What the curve means; nothing looks at it where absent.
    pub monitor: Option<Monitor>,
    /// What answers show, where they are compared.
    pub answers: AnswerMonitor,
    /// The newest checkpoint.
    pub last_checkpoint: Option<PathBuf>,
    /// Where precision is dealt out during the run.
    pub adaptation: Option<Adaptation>,
    /// Why the run ended before its time.
    pub error: Option<TrainError>,
}

impl SupervisedLearningStrategy<Trainee> for StepStrategy {
    fn fit(
        &self,
        components: TrainingComponents<Trainee>,
        learner: Learner<Trainee>,
        train: TrainLoader<Trainee>,
        valid: ValidLoader<Trainee>,
        _: usize,
    ) -> (Trainee, SupervisedTrainingEventProcessor<Trainee>) {
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = outcome.shown();
        // A step may change the model in place, which nobody else holds then.
        let trainee = learner.model();
        drop(learner);
        let mut run = Loop {
            plan: &self.plan,
            saved: outcome.last_checkpoint.is_some().then_some(outcome.steps),
            elapsed_before: outcome.effort.elapsed,
            shown,
            after: self.plan.start,
            records_fail: false,
            outcome: &mut outcome,
            events: components.event_processor,
            trainee,
            valid,
            began: Instant::now(),
        };
        run.start();
        if let Err(error) = run.measure_start() {
            run.outcome.error = Some(error);
        }
        // Patience may have ended just before the run was killed.
        let goes_on = run.outcome.error.is_none() && !run.outcome.stopped_early;
        let mut steps = goes_on.then(|| train.iter());
        while let Some(step) = steps.as_mut().and_then(Iterator::next) {
            let progress = Progress::new(
                run.outcome.steps + 1,
                self.plan.total_steps,
                Some("steps".to_owned()),
            );
            let done = match step {
                Ok(step) => run.step(step, progress),
                Err(error) => Err(TrainError::Learner {
                    message: error.to_string(),
                }),
            };
            if let Err(error) = done {
                run.outcome.error = Some(error);
                break;
            }
            if run.outcome.stopped_early {
                break;
            }
            match run.obey(&components.interrupter) {
                Ok(false) => {}
                Ok(true) => break,
                Err(error) => {
                    run.outcome.error = Some(error);
                    break;
                }
            }
        }
        if let Err(error) = run.finish() {
            run.outcome.error.get_or_insert(error);
        }
        (run.trainee, run.events)
    }
}

impl Outcome {
    /// Writes a report of adaptive precision to the records and the event file.
    pub(crate) fn note_adaptation(&mut self, report: &AdaptationReport) {
        if let Some(records) = &mut self.records {
            // Lines that cannot be written now come with the next.
            let _ = records.write("adaptation", report);
        }
        let mut scalars = vec![("quantization/nll", report.nll[1])];
        scalars.extend(report.kl.map(|kl| ("quantization/kl", kl[1])));
        scalars.extend(
            report
                .precision
                .as_ref()
                .map(|p| ("quantization/bits", p.bits)),
        );
        if let Some(writer) = &mut self.tensorboard {
            // A file that cannot be written to is given up at the next step, which says so.
            let _ = writer.scalars(report.step, &scalars);
        }
    }

    /// The kind of the present diagnosis.
    fn shown(&self) -> Option<Class> {
        let monitor = self.monitor.as_ref()?;
        Some(monitor.diagnosis().verdict.class())
    }
}

struct Loop<'a> {
    plan: &'a Plan,
    /// The step of the newest checkpoint.
    saved: Option<usize>,
    /// Seconds of the run before this process.
    elapsed_before: f64,
    /// Kind of the last diagnosis that was told.
    shown: Option<Class>,
    /// Where the data stands.
    after: LoaderState,
    /// Whether `metrics.jsonl` could not be written to last time.
    records_fail: bool,
    outcome: &'a mut Outcome,
    events: SupervisedTrainingEventProcessor<Trainee>,
    trainee: Trainee,
    valid: ValidLoader<Trainee>,
    began: Instant,
}

impl Loop<'_> {
    fn start(&mut self) {
        let split = LearnerEvent::StartSplit {
            epoch_number: 1,
            total_items: self.plan.total_steps,
        };
        self.event(split);
        if self.saved.is_some() {
            // A run may have been killed between writing a checkpoint and removing old ones.
            self.prune();
        }
    }

    fn step(&mut self, step: Step, progress: Progress) -> Result<(), TrainError> {
        let (rows, after) = (step.rows.clone(), step.after);
        let (number, tokens) = (step.number + 1, step.tokens);
        let supervised_tokens = step.supervised_tokens();
        let began = Instant::now();
        let lr = self.trainee.learning_rate(step.number as u64);
        let (grads, item, metrics) = self.compute(&step)?;
        self.check_finite(number, &rows, &metrics)?;
        match self.trainee.gradients() {
            KeptGradients::Whole => self.trainee.update(grads),
            // It was made layer by layer.
            KeptGradients::Released => {}
            KeptGradients::TwoPasses => self.release(&step)?,
        }
        let seconds = began.elapsed().as_secs_f64();

        let reporting = Instant::now();
        self.after = after;
        self.outcome.steps = number;
        self.outcome.final_loss = Some(metrics.loss);
        self.outcome.final_answers = metrics.answers;
        self.outcome.had_gradient |= metrics.grad_norm > 0.0;
        let effort = &mut self.outcome.effort;
        effort.tokens += tokens;
        effort.supervised_tokens += supervised_tokens;
        effort.seconds += seconds;
        let report = StepReport {
            step: number,
            epoch: self.epoch(number),
            loss: metrics.loss,
            penalized_loss: metrics.penalized_loss,
            grad_norm: metrics.grad_norm,
            learning_rate: lr,
            tokens,
            supervised_tokens,
            seconds,
            elapsed: self.elapsed(),
            answers: metrics.answers,
        };
        self.record("step", &report);
        self.plot(number, &report.scalars());
        self.tell(|reporter| reporter.step(&report));
        let item = TrainingItem::new(item, progress, Some(number), None);
        self.event(LearnerEvent::ProcessedItem(item));
        if let Some(monitor) = &mut self.outcome.monitor {
            monitor.train(TrainPoint {
                step: number,
                loss: report.loss,
                grad_norm: Some(report.grad_norm),
                learning_rate: lr,
            });
        }

        let answers = metrics.answers.as_ref();
        if let Some(point) = answers.and_then(|answers| AnswerPoint::of(number, answers)) {
            self.outcome.answers.step(point);
        }

        self.outcome.reporting += reporting.elapsed().as_secs_f64();
        self.adapt(number)?;

        let train = &self.plan.recipe.train;
        let last = number == self.plan.total_steps;
        let due = |every: usize| every > 0 && number.is_multiple_of(every);
        let save_due = due(train.save_steps);
        let evaluates = self.plan.evaluates && (last || train.eval_steps.is_some_and(due));
        let best = evaluates && self.evaluate(number)?;
        self.tell_diagnosis(number);
        let news = self.outcome.answers.news();
        self.tell_findings(number, &news);
        if last || best || save_due || self.outcome.stopped_early {
            self.save();
        }
        Ok(())
    }

    /// Deals out precision anew, where a point stands after this step. One that fails leaves everything as it was.
    ///
    /// # Errors
    /// The base cannot be stored again as it was.
    fn adapt(&mut self, step: usize) -> Result<(), TrainError> {
        let total = self.plan.total_steps;
        let mut adaptation = match self.outcome.adaptation.take() {
            Some(adaptation) if adaptation.is_due(step, total) && step < total => adaptation,
            other => {
                self.outcome.adaptation = other;
                return Ok(());
            }
        };
        self.tell(|reporter| reporter.adapting(&format!("step {step}: measuring precision anew")));
        let plan = adaptation.plan().clone();
        let found = adaptation.later(&mut self.trainee.model, step);
        let failed = found.as_ref().err().map(|error| with_causes(error));
        if let Some(message) = failed {
            self.tell(|reporter| {
                reporter.warn(&format!("step {step}: precision stays as it is: {message}"));
            });
            adaptation.restore(&mut self.trainee.model, &plan)?;
        }
        self.outcome.adaptation = Some(adaptation);
        if let Ok(Some(report)) = found {
            self.outcome.note_adaptation(&report);
            self.tell(|reporter| reporter.adapted(&report));
        }
        Ok(())
    }

    /// Gradients and numbers of a step; of one whose gradients are released, its numbers, after the update. Where memory runs out,
    /// the step is repeated from its start under a smaller budget, where scaled gradients overflow, under a smaller scale; nothing
    /// of the attempt has reached the weights.
    fn compute(
        &mut self,
        step: &Step,
    ) -> Result<(GradientsParams, StepOutput, StepMetrics), TrainError> {
        let number = step.number + 1;
        if let Some(ranks) = &self.plan.ranks {
            ranks.at_step(number)?;
        }
        loop {
            let output = self.attempt(step);
            let apart = self.plan.ranks.as_ref().and_then(Ranks::take_failure);
            if let Some(error) = apart {
                return Err(error.into());
            }
            let (failure, reason) = match (output.item.failure(), output.item.read()) {
                (Some(failure), _) => (failure, failure.to_string()),
                (None, Ok(metrics)) if metrics.overflows() && self.rescale(number) => continue,
                (None, Ok(metrics)) => return Ok((output.grads, output.item, metrics)),
                (None, Err(error)) => {
                    let message = error.to_string();
                    let reason = memory::says_out_of_memory(&message);
                    // Of a released step layers may have been updated.
                    let released = self.trainee.gradients() == KeptGradients::Released;
                    let Some(reason) = reason.filter(|_| !released) else {
                        return Err(TrainError::Device {
                            step: number,
                            message,
                        });
                    };
                    let failure = OutOfMemory {
                        needed: 0,
                        obtainable: None,
                    };
                    (StepFailure::OutOfMemory(failure), reason.to_owned())
                }
            };
            drop(output);
            self.replan(number, failure, reason)?;
        }
    }

    /// A step as far as nothing has to be known of its numbers: its gradients, or the norm of them, or the whole of it.
    fn attempt(&mut self, step: &Step) -> TrainOutput<StepOutput> {
        let item = match self.trainee.gradients() {
            KeptGradients::Whole => return TrainStep::step(&self.trainee, step.clone()),
            KeptGradients::Released => self.trainee.release(step),
            KeptGradients::TwoPasses => self.trainee.look_ahead(step),
        };
        TrainOutput {
            grads: GradientsParams::new(),
            item,
        }
    }

    /// The second pass of a step of two.
    ///
    /// # Errors
    /// No plan fits into the memory that there is by now.
    fn release(&mut self, step: &Step) -> Result<(), TrainError> {
        while let Some(failure) = self.trainee.release(step).failure() {
            self.replan(step.number + 1, failure, failure.to_string())?;
        }
        Ok(())
    }

    /// Plans passes for less memory.
    ///
    /// # Errors
    /// No plan fits.
    fn replan(
        &mut self,
        step: usize,
        failure: StepFailure,
        reason: String,
    ) -> Result<(), TrainError> {
        // The smaller plan's tensors may not fit into the pages of the larger one.
        device::recover(&self.trainee.model.device());
        let lowered = self.trainee.activations().lower(failure);
        let budget = self.plan.recipe.memory_budget;
        let lowered = lowered.map_err(|exhausted| TrainError::OutOfMemory {
            step,
            exhausted: exhausted.under(budget.map(|bytes| bytes.0)),
        })?;
        let report = ReplanReport {
            step,
            budget_before: lowered.from,
            budget: lowered.to,
            reason,
        };
        self.record("replanned", &report);
        self.tell(|reporter| reporter.replanned(&report));
        Ok(())
    }

    /// Halves the loss scale; `false` where there is none, or none above 1.
    fn rescale(&mut self, step: usize) -> bool {
        let mut optimizer = self.trainee.optimizer();
        let scale = optimizer.loss_scale();
        let Some((scale, next)) = scale.and_then(|scale| Some((scale, scale.after_overflow()?)))
        else {
            return false;
        };
        optimizer.scale_loss(Some(next));
        drop(optimizer);
        let (scale, next) = (scale.factor(), next.factor());
        self.tell(|reporter| {
            reporter.warn(&format!(
                "a gradient of step {step} overflows under a loss scale of {scale}; it is repeated under {next}"
            ));
        });
        true
    }

    /// Does what was asked for since the last step; `true` ends the run.
    ///
    /// # Errors
    /// Another process ended, or has come to other factors.
    fn obey(&mut self, interrupter: &Interrupter) -> Result<bool, TrainError> {
        let control = &self.plan.control;
        loop {
            let asked = self.asked(interrupter)?;
            if asked.save {
                self.save();
            }
            if self.outcome.steps == self.plan.total_steps {
                return Ok(false);
            }
            if asked.stop {
                self.outcome.interrupted = true;
                self.save();
                return Ok(true);
            }
            if !asked.pause {
                return Ok(false);
            }
            match self.plan.ranks {
                None => control.wait_while_paused(),
                Some(_) => Ranks::pause(),
            }
        }
    }

    /// What is asked for, of any of the processes that share the steps.
    fn asked(&self, interrupter: &Interrupter) -> Result<Decision, TrainError> {
        let control = &self.plan.control;
        if let Some(ranks) = &self.plan.ranks
            && ranks.asked_to_stop()?
        {
            control.signal();
        }
        let mine = Decision {
            stop: control.should_stop() || interrupter.should_stop(),
            save: control.take_save(),
            pause: control.paused(),
        };
        let Some(ranks) = &self.plan.ranks else {
            return Ok(mine);
        };
        let row = Row {
            step: self.outcome.steps as u64,
            checksum: self.checksum()?,
            stop: mine.stop,
            save: mine.save,
            pause: mine.pause,
            ..Row::default()
        };
        Ok(ranks.decide(&row)?)
    }

    fn checksum(&self) -> Result<u64, TrainError> {
        let optimizer = self.trainee.optimizer();
        let sum = checksum(&self.trainee.model, &optimizer);
        sum.map_err(|error| TrainError::Device {
            step: self.outcome.steps,
            message: error.to_string(),
        })
    }

    fn elapsed(&self) -> f64 {
        self.elapsed_before + self.began.elapsed().as_secs_f64()
    }

    fn check_finite(
        &self,
        step: usize,
        rows: &[usize],
        metrics: &StepMetrics,
    ) -> Result<(), TrainError> {
        if metrics.is_finite() {
            return Ok(());
        }
        let (what, value) = if metrics.loss.is_finite() {
            ("gradient norm", metrics.grad_norm)
        } else {
            ("loss", metrics.loss)
        };
        let mut places: BTreeMap<PathBuf, Vec<usize>> = BTreeMap::new();
        for place in rows.iter().filter_map(|&row| self.plan.rows.place(row)) {
            places.entry(place.path).or_default().push(place.line);
        }
        Err(TrainError::NotFinite {
            step,
            what,
            value,
            rows: places,
            last_good: self.outcome.last_checkpoint.clone(),
        })
    }

    /// Says what the curve means where that is something else than before.
    fn tell_diagnosis(&mut self, step: usize) {
        let class = self.outcome.shown();
        if class == self.shown {
            return;
        }
        self.shown = class;
        let monitor = self.outcome.monitor.as_ref();
        let Some(diagnosis) = monitor.map(|monitor| monitor.diagnosis().clone()) else {
            return;
        };
        self.record_diagnosis(step, &diagnosis);
        self.tell(|reporter| reporter.diagnosis(step, &diagnosis));
    }

    fn tell_findings(&mut self, step: usize, news: &[Finding]) {
        for finding in news {
            self.record("finding", &FindingRecord { step, finding });
            self.tell(|reporter| reporter.finding(step, finding));
        }
    }

    fn record_diagnosis(&mut self, step: usize, diagnosis: &Diagnosis) {
        self.record("diagnosis", &DiagnosisRecord { step, diagnosis });
    }

    /// Looks at the whole curve once more; what the run's end and its report say is what the records say last.
    fn conclude(&mut self) {
        let step = self.outcome.steps;
        let news = self.outcome.answers.conclude();
        self.tell_findings(step, &news);
        let Some(monitor) = &mut self.outcome.monitor else {
            return;
        };
        let before = monitor.diagnosis().clone();
        let concluded = monitor.conclude().clone();
        if concluded.verdict.class() != before.verdict.class() {
            self.tell_diagnosis(step);
        } else if concluded != before {
            self.record_diagnosis(step, &concluded);
        }
    }

    /// Writes a checkpoint of the present step, unless there is one. A disk that refuses does not end the
    /// run: the earlier checkpoints stay, and the next save tries again.
    fn save(&mut self) {
        let step = self.outcome.steps;
        if self.saved == Some(step) {
            return;
        }
        match self.write_checkpoint(step) {
            Ok(path) => {
                self.saved = Some(step);
                self.outcome.last_checkpoint = Some(path.clone());
                self.tell(|reporter| reporter.saved(step, &path));
                self.prune();
            }
            Err(error) => {
                let kept = match &self.outcome.last_checkpoint {
                    Some(path) => format!("{} stays the newest one", path.display()),
                    None => "there is none yet".to_owned(),
                };
                let message = format!(
                    "no checkpoint of step {step}: {}; {kept}, and the next save tries again",
                    with_causes(&error)
                );
                self.tell(|reporter| reporter.warn(&message));
            }
        }
    }

    fn write_checkpoint(&mut self, step: usize) -> Result<PathBuf, MergeError> {
        let elapsed = self.elapsed();
        self.outcome.effort.elapsed = elapsed;
        let records = match &mut self.outcome.records {
            Some(records) => records.sync()?,
            None => RecordsState::default(),
        };
        let trainee = &self.trainee;
        let averaged = trainee.optimizer().averaged(&trainee.model);
        let Some(adapter) = averaged.or_else(|| trainee.model.adapter()) else {
            unreachable!("a trained model has an adapter");
        };
        let adapter = match &self.plan.principal {
            Some(start) => adapter.since(start),
            None => adapter,
        };
        let state = RunState {
            version: RunState::VERSION,
            step,
            total_steps: self.plan.total_steps,
            loader: self.after,
            best: self.outcome.best,
            early_stopping: self.outcome.early_stopping,
            final_loss: self.outcome.final_loss,
            effort: self.outcome.effort,
            records,
            loss_scale: trainee.optimizer().loss_scale(),
            model_fingerprint: self.plan.model_fingerprint.clone(),
            data_fingerprint: self.plan.data_fingerprint.clone(),
            eval_fingerprint: self.plan.eval_fingerprint.clone(),
            set_fingerprints: self.plan.set_fingerprints.clone(),
            set_starts: self.outcome.set_starts.clone(),
            start_fingerprint: self.plan.start_fingerprint.clone(),
            computed_by: self.plan.computed_by.clone(),
        };
        let path = checkpoint::path(&self.plan.recipe.output_dir, step);
        let stored = match &self.outcome.adaptation {
            Some(adaptation) => Some(adaptation.plan().clone()),
            None => self.plan.companions.noted.over.quantization.clone(),
        };
        let parts = Checkpoint {
            adapter: &adapter,
            base: &self.plan.source,
            optimizer: trainee.optimizer().state(&trainee.model),
            state: &state,
            recipe: &self.plan.recipe_toml,
            model: &self.plan.recipe.model,
            companions: &self.plan.companions.over(stored),
        };
        checkpoint::write(&path, &parts)?;
        Ok(path)
    }

    fn prune(&mut self) {
        let recipe = &self.plan.recipe;
        let best = self.outcome.best.map(|best| best.step);
        let limit = recipe.train.save_total_limit;
        if let Err(error) = checkpoint::prune(&recipe.output_dir, limit, best) {
            let message = format!("old checkpoints stay: {}", with_causes(&error));
            self.tell(|reporter| reporter.warn(&message));
        }
    }

    fn finish(&mut self) -> Result<(), TrainError> {
        if self.outcome.error.is_none() && self.outcome.steps > 0 {
            // There is no next save that could try again.
            self.save();
        }
        self.conclude();
        self.event(LearnerEvent::EndSplit(1));
        self.event(LearnerEvent::EndEpoch(1));
        self.events.flush().map_err(|error| TrainError::Learner {
            message: error.to_string(),
        })
    }

    fn epoch(&self, step: usize) -> f64 {
        step as f64 / self.plan.steps_per_epoch as f64
    }

    /// A disk that is full does not end a run; what could not be written comes with the next line.
    fn record(&mut self, event: &str, report: &impl serde::Serialize) {
        let Some(records) = &mut self.outcome.records else {
            return;
        };
        let failed = records.write(event, report).err();
        if let Some(error) = failed.as_ref().filter(|_| !self.records_fail) {
            let message = format!(
                "{}; the lines are kept and written as soon as that works",
                with_causes(error)
            );
            self.tell(|reporter| reporter.warn(&message));
        }
        self.records_fail = failed.is_some();
    }

    /// An event file that cannot be written to is given up: `metrics.jsonl` has the same numbers.
    fn plot(&mut self, step: usize, scalars: &[(String, f64)]) {
        let Some(writer) = &mut self.outcome.tensorboard else {
            return;
        };
        let scalars: Vec<(&str, f64)> = scalars
            .iter()
            .map(|(name, value)| (&**name, *value))
            .collect();
        if let Err(error) = writer.scalars(step, &scalars) {
            self.outcome.tensorboard = None;
            let message = format!(
                "no more is written for TensorBoard: {}",
                with_causes(&error)
            );
            self.tell(|reporter| reporter.warn(&message));
        }
    }

    fn tell(&mut self, what: impl FnOnce(&mut dyn Reporter)) {
        if let Some(reporter) = &mut self.outcome.reporter {
            what(reporter.as_mut());
        }
    }

    /// A metric that fails to draw does not end a run.
    fn event(&mut self, event: LearnerEvent<crate::metrics::StepOutput>) {
        if let Err(error) = self.events.process_train(event) {
            self.tell(|reporter| reporter.warn(&error.to_string()));
        }
    }

    fn valid_event(&mut self, event: LearnerEvent<crate::metrics::EvalOutput>) {
        if let Err(error) = self.events.process_valid(event) {
            self.tell(|reporter| reporter.warn(&error.to_string()));
        }
    }
}

/// The line of `metrics.jsonl` for something that answers show.
#[derive(serde::Serialize)]
struct FindingRecord<'a> {
    step: usize,
    finding: &'a Finding,
}

/// The line of `metrics.jsonl` for another diagnosis.
#[derive(serde::Serialize)]
struct DiagnosisRecord<'a> {
    step: usize,
    diagnosis: &'a Diagnosis,
}
