//! From an output directory, empty or with a checkpoint, to the place where the steps begin.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use backdraft_arch::spec::SCORE_MODULE;
use backdraft_data::{Loader, LoaderState, RowSet};
use backdraft_formats::{Existing, remove_partials, write_file};
use backdraft_journal::diagnosis::{AnswerMonitor, AnswerPoint, Monitor};
use backdraft_journal::records::{self, Record, Records, Report};
use backdraft_journal::report::{ActivationReport, Reporter, RunInfo, RunSummary};
use backdraft_journal::tensorboard::EventWriter;
use backdraft_journal::text::{shown_computer, with_causes};
use backdraft_journal::{run_files, tensorboard};
use backdraft_model::LoadError;
use backdraft_plan::memory::Memory;
use backdraft_recipe::no_effect::NoEffect;

use super::{Run, Start, device_name};
use crate::checkpoint::Saved;
use crate::clear;
use crate::data::data_error;
use crate::early_stopping::EarlyStopping;
use crate::error::TrainError;
use crate::lock::RunLock;
use crate::resume::{Resume, is_over};
use crate::samples::Questions;
use crate::strategy::Outcome;

/// An output directory that is ours, and where the run in it stands.
pub(super) struct Begun {
    /// Held until the run is over.
    _lock: RunLock,
    /// The checkpoint that it goes on from.
    pub(super) from: Option<Saved>,
    pub(super) loader: Loader,
    pub(super) start: LoaderState,
    pub(super) steps_per_epoch: usize,
    pub(super) total_steps: usize,
    pub(super) data_fingerprint: String,
    pub(super) eval_fingerprint: Option<String>,
    pub(super) set_fingerprints: BTreeMap<String, String>,
    /// What an earlier process said of the end, where the run has been brought to its end.
    pub(super) concluded: Option<RunSummary>,
    /// What the user should hear.
    pub(super) notes: Vec<String>,
}

/// What was told before the first step, and what is known there.
pub(super) struct Told {
    pub(super) outcome: Outcome,
    pub(super) questions: Questions,
    pub(super) no_effect: Vec<NoEffect>,
    /// The device, as the records have it.
    pub(super) computed_by: String,
}

impl Begun {
    /// Steps that were done before.
    pub(super) fn resumed_from(&self) -> usize {
        self.from.as_ref().map_or(0, |saved| saved.state.step)
    }
}

impl Run {
    /// Locks and claims the output directory, or goes on from its checkpoint.
    ///
    /// # Errors
    /// A directory that somebody else uses or that holds another run; a checkpoint of other files.
    pub(super) fn begin(
        mut self,
        start: Start,
        recipe_toml: &str,
    ) -> Result<(Self, Begun), TrainError> {
        let data_fingerprint = self.data.train.fingerprint();
        let eval_fingerprint = self.data.eval.as_ref().map(RowSet::fingerprint);
        let set_fingerprints = self.data.set_fingerprints();
        let mut notes = Vec::new();
        let allows_changes = matches!(&start, Start::Resume(r) if r.allows_changes());
        let (lock, from) = match start {
            Start::New { force } => {
                let lock = RunLock::acquire(&self.recipe.output_dir)?;
                claim(&self.recipe.output_dir, force)?;
                (lock, None)
            }
            Start::Resume(resume) => {
                let eval = eval_fingerprint.as_deref();
                resume.check_content(&self.model_fingerprint, &data_fingerprint, eval)?;
                resume.check_sets(&set_fingerprints)?;
                resume.check_blocks(self.loaded.as_ref())?;
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
            let adapter = self.adapter_of(saved)?;
            if self.model.spec().scores
                && !adapter
                    .config
                    .modules_to_save
                    .iter()
                    .any(|it| it == SCORE_MODULE)
            {
                return Err(LoadError::NoScore.into());
            }
            self.model = self.model.with_adapter(&adapter)?;
        }
        let mut loader = self.data.loader.clone();
        let steps_per_epoch = loader.steps_per_epoch();
        let total_steps = self.recipe.train.length.total_steps(steps_per_epoch);
        if let Some(saved) = &from {
            let at = saved.state.loader;
            let restored = match loader.restore(at) {
                // Other batch sizes have other ends of steps.
                Err(_) if allows_changes => loader.seek(at),
                restored => restored,
            };
            restored.map_err(data_error(Path::new("data.train")))?;
        }
        let concluded = self.concluded(from.as_ref(), total_steps);
        if concluded.is_none() {
            // What an earlier process said of its end is true no more.
            let _ = fs::remove_file(self.recipe.output_dir.join(run_files::SUMMARY));
        }
        let begun = Begun {
            _lock: lock,
            from,
            start: loader.state(),
            loader,
            steps_per_epoch,
            total_steps,
            data_fingerprint,
            eval_fingerprint,
            set_fingerprints,
            concluded,
            notes,
        };
        Ok((self, begun))
    }

    /// Says what begins, opens the records, and lets the base answer some rows.
    ///
    /// # Errors
    /// Records that cannot be written, or are not those of the checkpoint.
    pub(super) fn tell(
        &mut self,
        begun: &mut Begun,
        mut reporter: Box<dyn Reporter>,
        memory: Memory,
        activations: ActivationReport,
    ) -> Result<Told, TrainError> {
        let settings = &self.recipe.train;
        let total_steps = begun.total_steps;
        let mut notes = std::mem::take(&mut begun.notes);
        let warmup_steps = settings.warmup.steps(total_steps);
        let no_effect: Vec<NoEffect> = NoEffect::of_schedule(&settings.schedule(total_steps))
            .into_iter()
            .collect();
        notes.extend(no_effect.iter().map(ToString::to_string));
        let info = RunInfo {
            model: self.recipe.model.clone(),
            device: device_name(&self.device),
            base_params: self.model.num_base_params(),
            trained_params: self.model.num_trained(),
            full: self.model.trains_base(),
            base: self.model.stored(),
            memory,
            activations,
            train_data: self.data.check.train_report(),
            eval_data: self.data.eval_report(),
            total_steps,
            steps_per_epoch: begun.steps_per_epoch,
            logging_steps: settings.logging_steps,
        };
        reporter.start(&info);
        let computed_by = device_name(&self.device);
        let from = begun.from.as_ref();
        let (mut outcome, history, more) = self.outcome(from, total_steps, &computed_by)?;
        notes.extend(more);
        if let Some(saved) = from {
            let history: Vec<_> = records::reports(&history).collect();
            reporter.resumed(saved.state.step, &saved.path, &history);
        }
        let output_dir = &self.recipe.output_dir;
        match EventWriter::create(&output_dir.join(tensorboard::DIRECTORY), outcome.steps) {
            Ok(writer) => outcome.tensorboard = Some(writer),
            Err(error) => notes.push(with_causes(&error)),
        }
        if begun.concluded.is_none() {
            let noted = run_files::write_note(output_dir, &info, warmup_steps);
            notes.extend(noted.err().map(|error| with_causes(&error)));
        }
        let asked = self.data.eval.as_ref().unwrap_or(&self.data.train);
        let questions = Questions::choose(asked, settings.sample_rows);
        if from.is_none() {
            let asked = questions.ask_before(&self.model, &self.data.tokenizer, output_dir);
            notes.extend(asked.err().map(|error| with_causes(&error)));
        }
        for note in notes {
            reporter.warn(&note);
        }
        outcome.reporter = Some(reporter);
        Ok(Told {
            outcome,
            questions,
            no_effect,
            computed_by,
        })
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
        let mut answers = AnswerMonitor::default();
        for report in records::reports(&text) {
            match &report {
                Report::Step(step) => {
                    // What the step before showed was told before this one.
                    answers.news();
                    let told = step.answers.as_ref();
                    let point = told.and_then(|told| AnswerPoint::of(step.step, told));
                    point.into_iter().for_each(|point| answers.step(point));
                }
                Report::Eval(eval) => {
                    let told = eval.answers.as_ref();
                    let point = told.and_then(|told| AnswerPoint::of(eval.step, told));
                    point.into_iter().for_each(|point| answers.eval(point));
                }
            }
        }
        answers.news();
        let steps = records::reports(&text).filter_map(|report| match report {
            Report::Step(step) => Some(step),
            Report::Eval(_) => None,
        });
        let outcome = Outcome {
            final_answers: steps.last().and_then(|step| step.answers),
            records: Some(records),
            steps: state.step,
            final_loss: state.final_loss,
            best: state.best,
            set_starts: state.set_starts.clone(),
            early_stopping: rule,
            stopped_early,
            effort: state.effort,
            monitor: Some(monitor),
            answers,
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

/// Makes the output directory ready for a run that goes on, and says what the user should hear of it.
fn go_on(resume: &Resume) -> Result<Vec<String>, TrainError> {
    let output_dir = resume.output_dir();
    if resume.from().is_none() {
        // A result without checkpoints may be what somebody wants.
        let has_result = ["adapter", "model"].map(|part| output_dir.join(part).exists());
        claim(output_dir, !has_result.contains(&true))?;
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
