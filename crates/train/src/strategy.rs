//! The loop, counted in optimiser steps.
//!
//! burn-train's learner computes a step and applies it; this strategy decides when to log, evaluate,
//! save and stop, and stops before a gradient that is no number reaches the weights.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use backdraft_data::Example;
use backdraft_lora::TrainedOver;
use burn::data::dataloader::Progress;
use burn::optim::GradientsParams;
use burn::train::InferenceStep;
use burn::train::{
    EventProcessorTraining, Learner, LearnerEvent, SupervisedLearningStrategy,
    SupervisedTrainingEventProcessor, TrainLoader, TrainingComponents, TrainingItem, ValidLoader,
};

use crate::activation::StepFailure;
use crate::checkpoint::{self, Checkpoint, RunState};
use crate::error::TrainError;
use crate::loader::Step;
use crate::memory::{self, OutOfMemory};
use crate::metrics::{StepMetrics, StepOutput};
use crate::recipe::Recipe;
use crate::report::{EvalReport, ReplanReport, Reporter, StepReport};
use crate::run::Records;
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
    pub examples: Arc<Vec<Example>>,
    /// Optimiser steps in an epoch.
    pub steps_per_epoch: usize,
    /// Optimiser steps of the run.
    pub total_steps: usize,
    /// Whether there is evaluation data.
    pub evaluates: bool,
    /// The base, as it is noted beside adapters.
    pub trained_over: TrainedOver,
    /// Fingerprint of the training rows.
    pub data_fingerprint: String,
}

/// What came of a run.
#[derive(Default)]
pub struct Outcome {
    /// Hears of everything.
    pub reporter: Option<Box<dyn Reporter>>,
    /// `metrics.jsonl`.
    pub records: Option<Records>,
    /// Steps done.
    pub steps: usize,
    /// Loss of the last step.
    pub final_loss: Option<f64>,
    /// Lowest evaluation loss and its step.
    pub best: Option<(f64, usize)>,
    /// Tokens computed while training.
    pub tokens: usize,
    /// Supervised tokens among them.
    pub supervised_tokens: usize,
    /// Seconds of training, without evaluation and saving.
    pub seconds: f64,
    /// The newest checkpoint.
    pub last_checkpoint: Option<PathBuf>,
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
        let mut run = Loop {
            plan: &self.plan,
            outcome: &mut outcome,
            events: components.event_processor,
            learner,
            valid,
            began: Instant::now(),
        };
        run.start();
        let mut steps = train.iter();
        while let Some(step) = steps.next() {
            let progress = steps.progress();
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
            if components.interrupter.should_stop() {
                break;
            }
        }
        if let Err(error) = run.finish() {
            run.outcome.error.get_or_insert(error);
        }
        (run.learner.model(), run.events)
    }
}

struct Loop<'a> {
    plan: &'a Plan,
    outcome: &'a mut Outcome,
    events: SupervisedTrainingEventProcessor<Trainee>,
    learner: Learner<Trainee>,
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
    }

    fn step(&mut self, step: Step, progress: Progress) -> Result<(), TrainError> {
        let (rows, after) = (step.rows.clone(), step.after);
        let (number, tokens) = (step.number + 1, step.tokens());
        let supervised_tokens = step.supervised_tokens();
        let began = Instant::now();
        let lr = self.learner.model().learning_rate(step.number as u64);
        let (grads, item, metrics) = self.compute(step)?;
        let item = item.with_learning_rate(lr);
        let metrics = StepMetrics {
            learning_rate: lr,
            ..metrics
        };
        self.check_finite(number, &rows, &metrics)?;
        self.learner.optimizer_step(grads);
        let seconds = began.elapsed().as_secs_f64();

        self.outcome.steps = number;
        self.outcome.final_loss = Some(metrics.loss);
        self.outcome.tokens += tokens;
        self.outcome.supervised_tokens += supervised_tokens;
        self.outcome.seconds += seconds;
        let report = StepReport {
            step: number,
            epoch: self.epoch(number),
            loss: metrics.loss,
            grad_norm: metrics.grad_norm,
            learning_rate: lr,
            tokens,
            supervised_tokens,
            seconds,
            elapsed: self.began.elapsed().as_secs_f64(),
        };
        self.record(&report)?;
        self.tell(|reporter| reporter.step(&report));
        let item = TrainingItem::new(item.with_seconds(seconds), progress, Some(number), None);
        self.event(LearnerEvent::ProcessedItem(item));

        let train = &self.plan.recipe.train;
        let last = number == self.plan.total_steps;
        let due = |every: usize| every > 0 && number.is_multiple_of(every);
        if self.plan.evaluates && (last || train.eval_steps.is_some_and(due)) {
            self.evaluate(number)?;
        }
        if last || due(train.save_steps) {
            self.save(number, after)?;
        }
        Ok(())
    }

    /// Gradients and numbers of a step. Where memory runs out, the step is repeated from its start under a
    /// smaller budget; nothing of the attempt has reached the weights.
    fn compute(
        &mut self,
        step: Step,
    ) -> Result<(GradientsParams, StepOutput, StepMetrics), TrainError> {
        let number = step.number + 1;
        loop {
            let output = self.learner.train_step(step.clone());
            let failure = match (output.item.failure(), output.item.read()) {
                (Some(failure), _) => failure,
                (None, Ok(metrics)) => return Ok((output.grads, output.item, metrics)),
                (None, Err(error)) => {
                    let message = error.to_string();
                    if !memory::says_out_of_memory(&message) {
                        return Err(TrainError::Device {
                            step: number,
                            message,
                        });
                    }
                    StepFailure::OutOfMemory(OutOfMemory {
                        needed: 0,
                        obtainable: None,
                    })
                }
            };
            let lowered = self.learner.model().activations().lower(failure);
            let lowered = lowered.map_err(|exhausted| TrainError::OutOfMemory {
                step: number,
                exhausted,
            })?;
            let report = ReplanReport {
                step: number,
                budget_before: lowered.from,
                budget: lowered.to,
            };
            self.record(&report)?;
            self.tell(|reporter| reporter.replanned(&report));
        }
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
        Err(TrainError::NotFinite {
            step,
            what,
            value,
            file: self.plan.recipe.data.train.clone(),
            lines: rows
                .iter()
                .map(|&row| self.plan.examples[row].line)
                .collect(),
            last_good: self.outcome.last_checkpoint.clone(),
        })
    }

    fn evaluate(&mut self, step: usize) -> Result<(), TrainError> {
        let began = Instant::now();
        let total_items = self.valid.num_items();
        self.valid_event(LearnerEvent::StartSplit {
            epoch_number: 1,
            total_items,
        });
        let model = self.learner.model();
        let (mut sum, mut tokens) = (0.0, 0);
        let valid = self.valid.clone();
        let mut batches = valid.iter();
        while let Some(Ok(batch)) = batches.next() {
            let progress = batches.progress();
            let output = InferenceStep::step(&model, batch);
            let (nll, count) = output.read().map_err(|error| TrainError::Device {
                step,
                message: error.to_string(),
            })?;
            sum += nll;
            tokens += count;
            let item = TrainingItem::new(output, progress, Some(step), None);
            self.valid_event(LearnerEvent::ProcessedItem(item));
        }
        self.valid_event(LearnerEvent::EndSplit(1));
        let eval_loss = sum / tokens.max(1) as f64;
        let best = self.outcome.best.is_none_or(|(best, _)| eval_loss < best);
        if best {
            self.outcome.best = Some((eval_loss, step));
        }
        let report = EvalReport {
            step,
            epoch: self.epoch(step),
            eval_loss,
            perplexity: eval_loss.exp(),
            tokens,
            best,
            seconds: began.elapsed().as_secs_f64(),
        };
        self.record(&report)?;
        self.tell(|reporter| reporter.eval(&report));
        Ok(())
    }

    fn save(&mut self, step: usize, loader: backdraft_data::LoaderState) -> Result<(), TrainError> {
        let output_dir = &self.plan.recipe.output_dir;
        let trainee = self.learner.model();
        let Some(adapter) = trainee.model.adapter() else {
            unreachable!("a trained model has an adapter");
        };
        let state = RunState {
            version: 1,
            step,
            total_steps: self.plan.total_steps,
            loader,
            best: self.outcome.best,
            model_fingerprint: self.plan.trained_over.fingerprint.clone(),
            data_fingerprint: self.plan.data_fingerprint.clone(),
        };
        let path = checkpoint::path(output_dir, step);
        let parts = Checkpoint {
            adapter: &adapter,
            optimizer: trainee.optimizer().state(&trainee.model),
            state: &state,
            recipe: &self.plan.recipe_toml,
            base: &self.plan.trained_over,
        };
        checkpoint::write(&path, &parts)?;
        let keep = self.outcome.best.map(|(_, step)| step);
        checkpoint::prune(output_dir, self.plan.recipe.train.save_total_limit, keep)?;
        self.outcome.last_checkpoint = Some(path.clone());
        self.tell(|reporter| reporter.saved(step, &path));
        Ok(())
    }

    fn finish(&mut self) -> Result<(), TrainError> {
        self.event(LearnerEvent::EndSplit(1));
        self.event(LearnerEvent::EndEpoch(1));
        self.events.flush().map_err(|error| TrainError::Learner {
            message: error.to_string(),
        })
    }

    fn epoch(&self, step: usize) -> f64 {
        step as f64 / self.plan.steps_per_epoch as f64
    }

    fn record(&mut self, report: &impl serde::Serialize) -> Result<(), TrainError> {
        match &mut self.outcome.records {
            Some(records) => records.write(report),
            None => Ok(()),
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
