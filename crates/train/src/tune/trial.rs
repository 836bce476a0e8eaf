//! One trial: a run over the sweep's base, which may be stopped and resumed on its way.

use std::fs;

use backdraft_journal::records::{self, Report};
use backdraft_journal::report::Reporter;
use backdraft_journal::text::with_causes;
use backdraft_journal::tuning::{Measure, Score, Standing, TrialReport};
use backdraft_recipe::{Recipe, Trial};
use burn::train::Interrupter;
use burn::train::renderer::MetricsRenderer;

use crate::control::Control;
use crate::data::RunData;
use crate::early_stopping::cost;
use crate::error::TrainError;
use crate::resume::Resume;
use crate::run::{Base, Start, Watch};

/// Steps at the end of a trial that it is judged by where nothing is held out, as a share of those done.
const LAST: usize = 10;

/// The trials of a sweep, those over the same base one after the other.
#[must_use]
pub fn by_base(trials: Vec<Trial>) -> Vec<Trial> {
    let mut groups: Vec<Vec<Trial>> = Vec::new();
    for trial in trials {
        let same = |group: &&mut Vec<Trial>| same_base(&group[0].recipe, &trial.recipe);
        match groups.iter_mut().find(same) {
            Some(group) => group.push(trial),
            None => groups.push(vec![trial]),
        }
    }
    groups.into_iter().flatten().collect()
}

/// Whether two recipes say the same of the base; a base that differs all the same is found when it is asked.
fn same_base(one: &Recipe, other: &Recipe) -> bool {
    one.model == other.model
        && one.tokens.add == other.tokens.add
        && one.dtype == other.dtype
        && one.load_in_4bit == other.load_in_4bit
        && one.load_in_8bit == other.load_in_8bit
        && one.quantization == other.quantization
}

/// What the trials of a recipe are compared by.
#[must_use]
pub fn measure(recipe: &Recipe) -> Measure {
    let metric = recipe.train.early_stopping_metric;
    match recipe.data.eval {
        Some(_) => Measure {
            name: {
                let set = recipe.train.early_stopping_eval.as_deref();
                let metric = metric.name().replace('_', " ");
                format!("{} {metric}", set.unwrap_or("eval"))
            },
            higher_is_better: metric.higher_is_better(),
            held_out: true,
        },
        None => Measure {
            name: "train loss".to_owned(),
            higher_is_better: false,
            held_out: false,
        },
    }
}

/// Ends a run after a step, with a checkpoint.
#[derive(Clone, Debug)]
pub struct StopAt {
    /// The step.
    pub step: usize,
    /// That of the run.
    pub control: Control,
}

impl StopAt {
    /// To be told of every step.
    pub fn done(&self, step: usize) {
        if step >= self.step {
            self.control.stop();
        }
    }
}

/// Where a trial was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// Steps of the whole run.
    pub total_steps: usize,
    /// Whether nothing is left to do.
    pub ended: bool,
}

/// Trains `recipe` over `base` in its output directory, from the newest checkpoint there if `goes_on`, until `stop` or its own
/// end; `reporter` is to tell `stop` of every step.
///
/// # Errors
/// What ends a run; see [`note`].
pub fn train_trial(
    base: &Base,
    (mut recipe, data): (Recipe, RunData),
    (goes_on, stop): (bool, &StopAt),
    reporter: Box<dyn Reporter>,
    renderer: Box<dyn MetricsRenderer>,
) -> Result<Left, TrainError> {
    let mut start = Start::New { force: true };
    if goes_on && recipe.output_dir.exists() {
        let resume = Resume::find(&recipe.output_dir, &[])?;
        // Without a checkpoint it begins again.
        if let Some(state) = resume.state() {
            let total_steps = state.total_steps;
            if (stop.step..total_steps).contains(&state.step) {
                // Killed just before that was noted.
                let ended = false;
                return Ok(Left { total_steps, ended });
            }
            recipe = resume.recipe(None, &[])?;
            start = Start::Resume(Box::new(resume));
        }
    }
    let run = base.run(recipe, data)?;
    let watch = Watch {
        reporter,
        renderer,
        interrupter: Interrupter::default(),
        memory: None,
        control: stop.control.clone(),
        start,
    };
    let (summary, _) = run.train(watch)?;
    Ok(Left {
        total_steps: summary.total_steps,
        ended: summary.stopped_early || summary.steps == summary.total_steps,
    })
}

/// Takes note of what came of a trial; `recipe` is its own.
///
/// # Errors
/// Those that are not the trial's: a disk that refuses, a directory that another process has.
pub fn note(
    trial: &mut TrialReport,
    (recipe, measure): (&Recipe, &Measure),
    result: Result<Left, TrainError>,
) -> Result<(), TrainError> {
    let text = fs::read_to_string(trial.output_dir.join(records::FILE)).unwrap_or_default();
    let reports: Vec<Report> = records::reports(&text).collect();
    let steps = reports.iter().filter_map(|report| match report {
        Report::Step(step) => Some(step),
        Report::Eval(_) => None,
    });
    let steps: Vec<_> = steps.collect();
    trial.steps = steps.last().map_or(0, |step| step.step);
    trial.step_seconds = steps.iter().map(|step| step.seconds).sum();
    if measure.held_out {
        trial.scores = reports
            .iter()
            .filter_map(|it| score(it, recipe, measure))
            .collect();
    } else {
        let losses = &steps[steps.len() - steps.len().div_ceil(LAST)..];
        let value = losses.iter().map(|step| step.loss).sum::<f64>() / losses.len() as f64;
        let step = trial.steps;
        trial.scores.retain(|score| score.step < step);
        trial
            .scores
            .extend(value.is_finite().then_some(Score { step, value }));
    }
    trial.score = measure.best(&trial.scores, trial.steps);
    match result {
        Ok(left) => {
            trial.total_steps = left.total_steps;
            trial.standing = match left.ended {
                true => Standing::Finished,
                false => Standing::Begun,
            };
        }
        Err(error) if is_of_the_trial(&error) => {
            trial.standing = Standing::Failed;
            trial.reason = Some(with_causes(&error));
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// An evaluation by the measure, where it is a number.
fn score(report: &Report, recipe: &Recipe, measure: &Measure) -> Option<Score> {
    let Report::Eval(eval) = report else {
        return None;
    };
    let metric = recipe.train.early_stopping_metric;
    let (loss, answers) = eval.of_set(recipe.train.early_stopping_eval.as_deref())?;
    let cost = cost(metric, loss, answers);
    let score = Score {
        step: eval.step,
        // Its own inverse.
        value: measure.cost(cost),
    };
    cost.is_finite().then_some(score)
}

/// Whether another trial may fare better.
fn is_of_the_trial(error: &TrainError) -> bool {
    !matches!(
        error,
        TrainError::OutputExists { .. }
            | TrainError::RecipeInOutput { .. }
            | TrainError::OutputIsFile { .. }
            | TrainError::OutputDir { .. }
            | TrainError::Locked { .. }
            | TrainError::NothingToResume { .. }
            | TrainError::NoGoodCheckpoint { .. }
            | TrainError::Checkpoint(_)
            | TrainError::Changed { .. }
            | TrainError::Format(_)
            | TrainError::Ranks(_)
    )
}
