//! A learning-rate range test: a run whose learning rate rises until the loss diverges.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use backdraft_journal::report::{ReplanReport, Reporter, StepReport};
use backdraft_journal::tuning::{RangePoint, RangeTest, Watchdog};
use backdraft_recipe::schedule::ScheduleKind;
use backdraft_recipe::{EvalMetric, Length, Recipe, Warmup};
use burn::train::Interrupter;
use burn::train::renderer::MetricsRenderer;

use crate::control::Control;
use crate::data::RunData;
use crate::error::TrainError;
use crate::run::{self, Base, Start, Watch};

/// The rates of a range test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RangeSettings {
    /// That of the first step, above 0.
    pub min: f64,
    /// That of the last one, above `min`.
    pub max: f64,
    /// Optimiser steps.
    pub steps: usize,
}

impl RangeSettings {
    /// The recipe of the test: that of a run, but for the rates, its length, and what it leaves.
    fn of(self, recipe: &Recipe, output_dir: PathBuf) -> Recipe {
        let mut recipe = recipe.clone();
        recipe.output_dir = output_dir;
        recipe.data.eval = None;
        recipe.data.eval_sets.clear();
        let train = &mut recipe.train;
        // Groups keep their share of the rate.
        let share = self.max / train.learning_rate;
        for group in &mut train.groups {
            group.learning_rate = group.learning_rate.map(|rate| rate * share);
        }
        train.learning_rate = self.max;
        train.lr_scheduler = ScheduleKind::RangeTest { lr_start: self.min };
        train.warmup = Warmup::Steps(0);
        train.length = Length::MaxSteps(self.steps);
        train.eval_steps = None;
        train.early_stopping_patience = None;
        train.early_stopping_min_improvement = None;
        train.early_stopping_metric = EvalMetric::default();
        train.early_stopping_eval = None;
        train.save_steps = 0;
        train.sample_rows = 0;
        recipe
    }
}

/// Takes note of the steps, ends the run where there is nothing more to see, and passes on what the user should hear.
struct Ramp {
    points: Arc<Mutex<Vec<RangePoint>>>,
    watchdog: Watchdog,
    control: Control,
    told: Box<dyn Reporter>,
}

impl Reporter for Ramp {
    fn step(&mut self, report: &StepReport) {
        let point = RangePoint {
            learning_rate: report.learning_rate,
            loss: report.loss,
        };
        let mut points = self.points.lock().unwrap_or_else(PoisonError::into_inner);
        points.push(point);
        if self.watchdog.sees_the_end(report.loss) {
            self.control.stop();
        }
        self.told.step(report);
    }

    fn replanned(&mut self, report: &ReplanReport) {
        self.told.replanned(report);
    }

    fn adapting(&mut self, what: &str) {
        self.told.adapting(what);
    }

    fn warn(&mut self, message: &str) {
        self.told.warn(message);
    }
}

/// Trains `recipe` over a copy of `base`, from the state that a run of it would begin in, with a learning rate that rises by the
/// same factor at each step, until the loss has diverged; `base` and `data` are as they were, and nothing stays in
/// `output_dir`. `told` hears of its steps. None where a signal ended it.
///
/// # Errors
/// What ends a run, but for a loss that is no number: that is a result.
pub fn range_test(
    base: &Base,
    (recipe, mut data): (&Recipe, RunData),
    (settings, output_dir): (RangeSettings, PathBuf),
    told: Box<dyn Reporter>,
    (control, renderer): (&Control, Box<dyn MetricsRenderer>),
) -> Result<Option<RangeTest>, TrainError> {
    let recipe = settings.of(recipe, output_dir.clone());
    let schedule = recipe.train.schedule(settings.steps);
    data.eval = None;
    data.eval_sets.clear();
    let control = control.of_another_run();
    let points = Arc::new(Mutex::new(Vec::new()));
    let ramp = Ramp {
        points: points.clone(),
        watchdog: Watchdog::new(settings.steps),
        control: control.clone(),
        told,
    };
    let watch = Watch {
        reporter: Box::new(ramp),
        renderer,
        interrupter: Interrupter::default(),
        memory: None,
        control: control.clone(),
        start: Start::New { force: true },
    };
    let trained = base.run(recipe, data)?.train(watch);
    let broke_off = match trained {
        Ok(_) => None,
        Err(TrainError::NotFinite { step, .. }) => Some(schedule.at(step - 1)),
        Err(error) => return Err(error),
    };
    run::clear(&output_dir)?;
    if control.signalled() {
        return Ok(None);
    }
    let points = std::mem::take(&mut *points.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Some(RangeTest::of(points, settings.steps, broke_off)))
}
