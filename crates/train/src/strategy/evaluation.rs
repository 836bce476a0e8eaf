//! Rows held out, measured between steps.

use std::time::Instant;

use backdraft_journal::diagnosis::{AnswerPoint, EvalPoint};
use backdraft_journal::report::{AnswersReport, EvalReport, SetReport};
use burn::data::dataloader::{DataLoader, Progress};
use burn::tensor::TensorReadError;
use burn::train::{InferenceStep, LearnerEvent, TrainingItem};

use super::Loop;
use crate::checkpoint::{Best, SetStart};
use crate::early_stopping::{Progress as Patience, cost};
use crate::error::TrainError;
use crate::held_out::{HeldOut, Pass};
use crate::loader::EvalBatch;
use crate::metrics::EvalOutput;
use crate::objective::Objective;
use crate::trainee::Trainee;

/// What came of rows held out.
struct Measured {
    loss: f64,
    tokens: usize,
    answers: Option<AnswersReport>,
}

impl Measured {
    fn perplexity(&self) -> Option<f64> {
        self.answers.is_none().then(|| self.loss.exp())
    }
}

impl Loop<'_> {
    /// Whether it was the best evaluation so far.
    pub(super) fn evaluate(&mut self, step: usize) -> Result<bool, TrainError> {
        let began = Instant::now();
        let total_items = self.valid.num_items();
        self.valid_event(LearnerEvent::StartSplit {
            epoch_number: 1,
            total_items,
        });
        let model = self.trainee.clone().averaged();
        let valid = self.valid.clone();
        let told = |run: &mut Self, output, progress| {
            let item = TrainingItem::new(output, progress, Some(step), None);
            run.valid_event(LearnerEvent::ProcessedItem(item));
        };
        let found = self.measure(&model, valid.as_ref(), step, told)?;
        let Measured {
            loss: eval_loss,
            tokens,
            answers,
        } = found;
        self.valid_event(LearnerEvent::EndSplit(1));
        let sets = self.measure_sets(&model, step)?;
        let mut report = EvalReport {
            step,
            epoch: self.epoch(step),
            eval_loss,
            perplexity: found.perplexity(),
            tokens,
            best: false,
            seconds: 0.0,
            answers,
            sets,
        };
        let train = &self.plan.recipe.train;
        let (metric, decides) = (
            train.early_stopping_metric,
            train.early_stopping_eval.as_deref(),
        );
        // A set that the recipe names is measured.
        let (loss, of) = report.of_set(decides).unwrap_or((f64::NAN, None));
        let cost = cost(metric, loss, of);
        let so_far = self.outcome.best;
        let best = so_far.is_none_or(|best| cost < best.cost() || best.cost().is_nan());
        if best {
            let cost = (!metric.is_loss() || decides.is_some()).then_some(cost);
            self.outcome.best = Some(Best {
                eval_loss,
                cost,
                step,
            });
        }
        report.best = best;
        report.seconds = began.elapsed().as_secs_f64();
        self.record("eval", &report);
        self.plot(step, &report.scalars());
        self.tell(|reporter| reporter.eval(&report));
        if let Some(monitor) = &mut self.outcome.monitor {
            monitor.eval(EvalPoint {
                step,
                loss: eval_loss,
            });
        }
        let told = report.answers.as_ref();
        if let Some(point) = told.and_then(|answers| AnswerPoint::of(step, answers)) {
            self.outcome.answers.eval(point);
        }
        let rule = self.outcome.early_stopping.as_mut();
        let ends = rule.is_some_and(|rule| rule.observe(step, cost) == Patience::Stop);
        if ends && step < self.plan.total_steps {
            self.outcome.stopped_early = true;
            if let Some(monitor) = &mut self.outcome.monitor {
                monitor.stop_early();
            }
            let best_step = self.outcome.best.map_or(step, |best| best.step);
            self.tell(|reporter| reporter.stopped_early(step, best_step));
        }
        Ok(best)
    }

    /// The model over some rows held out; `told` hears of every pass.
    fn measure(
        &mut self,
        model: &Trainee,
        rows: &dyn DataLoader<EvalBatch>,
        step: usize,
        told: impl Fn(&mut Self, EvalOutput, Progress),
    ) -> Result<Measured, TrainError> {
        let device_error = |error: TensorReadError| TrainError::Device {
            step,
            message: error.to_string(),
        };
        let ranks = self.plan.ranks.as_ref();
        let mut passes = Vec::new();
        let mut batches = rows.iter();
        let mut number = 0;
        while let Some(batch) = batches.next() {
            let batch = batch.map_err(|error| TrainError::Learner {
                message: error.to_string(),
            })?;
            // Each process computes some of them, and all add what came of all in their order.
            if ranks.is_none_or(|ranks| ranks.evaluates(number)) {
                let output = InferenceStep::step(model, batch);
                passes.push(Pass::read(&output).map_err(device_error)?);
                told(self, output, batches.progress());
            }
            number += 1;
        }
        if let Some(ranks) = ranks {
            passes = ranks.in_turn(&passes)?;
        }
        let mut held_out = HeldOut::default();
        for pass in passes {
            held_out.add_pass(pass);
        }
        let objective = Objective::from(self.plan.recipe.objective);
        let device = model.model.device().inner();
        let (loss, answers) = held_out.finish(objective, &device).map_err(device_error)?;
        Ok(Measured {
            loss,
            tokens: held_out.tokens(),
            answers,
        })
    }

    /// The model over the further rows held out.
    fn measure_sets(&mut self, model: &Trainee, step: usize) -> Result<Vec<SetReport>, TrainError> {
        let plan = self.plan;
        let sets = plan.eval_sets.iter().map(|(name, rows)| {
            let found = self.measure(model, rows, step, |_, _, _| {})?;
            let mut starts = self.outcome.set_starts.iter();
            let start = starts.find(|start| start.name == *name);
            Ok(SetReport {
                name: name.clone(),
                eval_loss: found.loss,
                start_loss: start.map(|start| start.eval_loss),
                perplexity: found.perplexity(),
                tokens: found.tokens,
                answers: found.answers,
            })
        });
        sets.collect()
    }

    /// Measures the further rows held out before the first step: what they come to later is compared with that.
    pub(super) fn measure_start(&mut self) -> Result<(), TrainError> {
        if self.outcome.steps > 0 || self.saved.is_some() {
            return Ok(());
        }
        let model = self.trainee.clone();
        for set in self.measure_sets(&model, 0)? {
            self.plot(0, &set.scalars());
            self.outcome.set_starts.push(SetStart {
                name: set.name,
                eval_loss: set.eval_loss,
            });
        }
        Ok(())
    }
}
