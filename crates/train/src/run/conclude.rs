//! What a run leaves: its adapter or its model, its summary, its report.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use backdraft_formats::{Existing, PeftWriteOptions};
use backdraft_journal::adaptation::PrecisionSummary;
use backdraft_journal::records::{self, Records};
use backdraft_journal::report::RunSummary;
use backdraft_journal::text::with_causes;
use backdraft_journal::{report_html, run_files};
use backdraft_kernels::device::held;
use backdraft_model::CausalLm;
use backdraft_plan::Prediction;
use backdraft_plan::memory::{self, Measured, Memory};
use backdraft_recipe::no_effect::NoEffect;

use super::Run;
use super::begin::{Begun, Told};
use crate::checkpoint::{self, Saved};
use crate::error::TrainError;
use crate::strategy::Outcome;
use crate::trainee::Trainee;

impl Run {
    /// Writes the adapter, or the model, and says what came of the run; `highest` is the largest pass that was planned.
    ///
    /// # Errors
    /// An adapter or a model that cannot be written.
    pub(super) fn conclude(
        mut self,
        trainee: Trainee,
        begun: Begun,
        told: Told,
        highest: &Prediction,
        began: Instant,
    ) -> Result<(RunSummary, CausalLm), TrainError> {
        let Told {
            mut outcome,
            questions,
            mut no_effect,
            ..
        } = told;
        let total_steps = begun.total_steps;
        let resumed_from = begun.resumed_from();
        let output_dir = self.recipe.output_dir.clone();
        let optimizer = trainee.optimizer().num_bytes();
        let gradients = 4 * trainee.model.num_trained();
        // A GPU's memory is its own; what the process holds beside it says little.
        let device_memory = held(&self.device).map(|bytes| bytes as usize);
        let watcher = self.watcher.take().filter(|_| device_memory.is_none());
        let measured = watcher.and_then(|watcher| watcher.measured(gradients, optimizer));
        let measured = measured.map(|measured| match trainee.model.trains_base() {
            // As many bytes as their gradients.
            true => measured.with_trained(gradients),
            false => measured,
        });
        let (model, adapter_step) = self.best(trainee.averaged().model, &mut outcome);
        let adapter = self.write_result(&model)?;
        if let Some(Err(error)) = outcome.records.as_mut().map(Records::sync) {
            warn(&mut outcome, &with_causes(&error));
        }
        let complete = outcome.steps == total_steps || outcome.stopped_early;
        if complete
            && let Err(error) = questions.ask_after(&model, &self.data.tokenizer, &output_dir)
        {
            warn(&mut outcome, &with_causes(&error));
        }
        if let Some(concluded) = begun.concluded {
            return Ok((concluded, model));
        }
        if outcome.steps > resumed_from && !outcome.had_gradient {
            let steps = outcome.steps - resumed_from;
            no_effect.push(NoEffect::NoGradient { steps });
        }
        no_effect.extend(untrained(&model, adapter_step));
        let records = fs::read_to_string(output_dir.join(records::FILE)).unwrap_or_default();
        let points: Vec<_> = records::adaptations(&records).collect();
        let summary = RunSummary {
            no_effect,
            precision: PrecisionSummary::of(&points),
            memory: Memory::of(highest, model.num_trained()),
            measured_memory: measured,
            device_memory,
            peak_memory: device_memory
                .or_else(|| measured.map_or_else(memory::peak_resident, Measured::peak)),
            resumed_from,
            adapter_step,
            full: model.trains_base(),
            ..summarise(&mut outcome, total_steps, adapter, began)
        };
        let reported = run_files::write_summary(&output_dir, &summary)
            .and_then(|()| report_html::write(&output_dir));
        if let Err(error) = reported {
            warn(&mut outcome, &format!("no report: {}", with_causes(&error)));
        }
        Ok((summary, model))
    }

    /// The model of the best evaluation and its step; the last one where nothing was evaluated.
    fn best(&mut self, model: CausalLm, outcome: &mut Outcome) -> (CausalLm, usize) {
        let last = outcome.steps;
        let Some(step) = outcome.best.map(|best| best.step).filter(|&s| s != last) else {
            return (model, last);
        };
        let path = checkpoint::path(&self.recipe.output_dir, step);
        let mut read = || -> Result<CausalLm, TrainError> {
            let saved = Saved::open(&path)?;
            let adapter = self.adapter_of(&saved)?;
            let mut model = model.clone().with_adapter(&adapter)?;
            self.store_as_in(&saved, &mut model)?;
            Ok(model)
        };
        match read() {
            Ok(best) => (best, step),
            Err(error) => {
                let message = format!(
                    "the result holds step {last}, not step {step}, which was better: {}",
                    with_causes(&error)
                );
                warn(outcome, &message);
                (model, last)
            }
        }
    }

    fn write_result(&self, model: &CausalLm) -> Result<PathBuf, TrainError> {
        let output_dir = &self.recipe.output_dir;
        let Some(adapter) = model.adapter() else {
            unreachable!("a trained model has an adapter");
        };
        let companions = self.companions();
        if model.trains_base() {
            let path = output_dir.join("model");
            let options = companions.model(false, Existing::Replace);
            adapter.write_model(&self.source, &path, &options)?;
            return Ok(path);
        }
        let path = output_dir.join("adapter");
        let adapter = match &self.principal {
            Some(start) => adapter.since(start),
            None => adapter,
        };
        let options = PeftWriteOptions {
            existing: Existing::Replace,
            prefix: companions.prefix,
            companions: companions.over(self.quantization()).files()?,
            ..Default::default()
        };
        adapter.write(&path, &self.recipe.model, &options)?;
        Ok(path)
    }
}

/// Whether the adapter of `step` changes nothing. Reads it from the device. Of a base that has given up its own tensors nobody
/// can tell.
fn untrained(model: &CausalLm, step: usize) -> Option<NoEffect> {
    if model.trains_base() {
        return None;
    }
    let mut adapters = model.adapters();
    let untrained =
        adapters.all(|(_, _, adapter)| adapter.changes_nothing().is_ok_and(|nothing| nothing));
    let mut tables = model.table_adapters();
    let untrained = untrained
        && tables.all(|(_, adapter)| adapter.changes_nothing().is_ok_and(|nothing| nothing));
    let untrained = untrained && model.clone().whole_changes_nothing();
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
        final_answers: outcome.final_answers,
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
        precision: None,
        no_effect: Vec::new(),
        adapter,
        full: false,
        adapter_step: outcome.steps,
    }
}
