//! The trials of a `[sweep]`, one after the other, and what they say.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use backdraft_formats::{Existing, write_file};
use backdraft_journal::report::Reporter;
use backdraft_journal::report_html;
use backdraft_journal::text::with_causes;
use backdraft_journal::tuning::{Settings, Standing, TrialReport};
use backdraft_recipe::{Recipe, Sweep, SweepMethod};
use backdraft_train::TrainError;
use backdraft_train::control::Control;
use backdraft_train::data::{RunData, reads_the_same};
use backdraft_train::run::Base;
use backdraft_train::tune::{
    Content, Halving, Left, Next, StopAt, TuneState, by_base, note, train_trial,
};

use super::TuneArgs;
use super::bench::Bench;
use super::reporter::TrialReporter;
use super::table::table;
use crate::commands::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::reporter::NoDashboard;
use crate::shell::CommandLine;
use crate::signals;
use crate::tracker::{Ending, Tracking};

/// The page.
const PAGE: &str = "tune.html";

/// A sweep that goes on.
struct Sweeping<'a> {
    /// Without the sweep.
    recipe: &'a Recipe,
    directory: &'a Path,
    /// Of each trial, with its own directory.
    recipes: HashMap<String, Recipe>,
    state: TuneState,
    bench: Bench,
    control: Control,
    output: Output,
    /// When the time was last counted.
    counted: Instant,
}

pub(super) fn run(
    (recipe, sweep): (&Recipe, Sweep),
    args: &TuneArgs,
    directory: &Path,
    context: Context,
) -> Result<(), CliError> {
    let output = context.output;
    let counted = Instant::now();
    let method = sweep.method;
    let factor = sweep.reduction_factor;
    let sweep = Sweep {
        trials: by_base(sweep.trials),
        ..sweep
    };
    let state = begin(recipe, &sweep, args, directory)?;
    let recipes = recipes(sweep, &state);
    let Some(first) = state
        .trials
        .iter()
        .find_map(|trial| recipes.get(&trial.settings.to_string()))
    else {
        unreachable!("a sweep has a trial");
    };
    let bench = Bench::new(first, output)?;
    state.write(directory)?;
    let control = Control::default();
    signals::guard(&control)?;
    output.progress(format!(
        "{} trials by {method}: {}; in {}",
        state.trials.len(),
        state.keys.join(", "),
        directory.display()
    ));
    let mut sweeping = Sweeping {
        recipe,
        directory,
        recipes,
        state,
        bench,
        control,
        output,
        counted,
    };
    let halving = (method == SweepMethod::Halving).then(|| sweeping.halving(factor));
    let interrupted = sweeping.go(halving.transpose()?.as_ref())?;
    sweeping.conclude(args, interrupted)
}

/// A sweep that begins, or goes on where it stood.
fn begin(
    recipe: &Recipe,
    sweep: &Sweep,
    args: &TuneArgs,
    directory: &Path,
) -> Result<TuneState, CliError> {
    let new = TuneState::new(recipe, sweep, directory)?;
    if args.force {
        // Whatever is there, and whether it can be read or not.
        return Ok(new);
    }
    match TuneState::read(directory)? {
        Some(was) if args.resume => Ok(was.going_on_as(new, directory)?),
        Some(_) => Err(CliError::user(format!(
            "{}: the output directory already holds a sweep",
            directory.display()
        ))
        .hint(
            "add --resume to continue it, --force to replace it, or choose another --output-dir",
        )),
        None if args.resume => Err(CliError::user(format!(
            "{}: there is no sweep to continue",
            directory.display()
        ))
        .hint("leave --resume out to begin it")),
        None => Ok(new),
    }
}

/// The recipe of each trial by its settings: as `--set` gives it, but for where it writes and for answers that nobody reads.
fn recipes(sweep: Sweep, state: &TuneState) -> HashMap<String, Recipe> {
    let trials = sweep.trials.into_iter();
    let trials = trials.map(|trial| {
        let settings = Settings(trial.settings);
        let mut recipe = trial.recipe;
        recipe.train.sample_rows = 0;
        let place = state.trials.iter().find(|known| known.settings == settings);
        if let Some(known) = place {
            recipe.output_dir.clone_from(&known.output_dir);
        }
        let name = place.map_or_else(|| settings.to_string(), |known| known.settings.to_string());
        (name, recipe)
    });
    trials.collect()
}

impl Sweeping<'_> {
    /// Where the trials are compared on their way.
    fn halving(&mut self, factor: usize) -> Result<Halving, CliError> {
        let mut lengths = Vec::new();
        for trial in &self.state.trials {
            let recipe = &self.recipes[&trial.settings.to_string()];
            let steps = self.bench.rows(recipe)?.loader.steps_per_epoch();
            let total = recipe.train.length.total_steps(steps);
            lengths.push((total, recipe.train.eval_steps.unwrap_or(1)));
        }
        let halving = Halving::new(&lengths, factor);
        match halving.reductions() {
            0 => self.output.warn(
                "there are too few trials or evaluations to compare them on the way: each is trained to its end; a lower \
                 train.eval_steps or sweep.reduction_factor helps",
            ),
            rungs => {
                let steps: Vec<String> = (0..rungs).map(|rung| halving.step(0, rung).to_string()).collect();
                self.output.progress(format!(
                    "compared after {} of {} steps; {} trials go on then",
                    steps.join(", "),
                    halving.step(0, rungs),
                    (0..rungs).map(|rung| halving.keeps(rung).to_string()).collect::<Vec<_>>().join(", ")
                ));
            }
        }
        Ok(halving)
    }

    /// Trains until nothing is left; `true` where a signal ended it before.
    fn go(&mut self, halving: Option<&Halving>) -> Result<bool, CliError> {
        while let Some(next) = self.state.next(halving) {
            if self.control.should_stop() {
                return Ok(true);
            }
            self.train(next)?;
            let trial = &self.state.trials[next.index];
            let ended = trial.standing.is_over() || trial.steps >= next.until;
            if !ended {
                return Ok(true);
            }
            self.output.go_on(self.output.record("trial", trial));
            self.output
                .go_on(self.output.line(line(trial, &self.state)));
        }
        // Trials may have been dropped since the last one.
        self.write()?;
        Ok(false)
    }

    /// Trains one trial as far as it is to go now.
    fn train(&mut self, Next { index, until }: Next) -> Result<(), CliError> {
        let trial = &mut self.state.trials[index];
        let goes_on = trial.standing == Standing::Begun;
        trial.standing = Standing::Begun;
        let name = format!("trial {}", trial.trial);
        let recipe = self.recipes[&trial.settings.to_string()].clone();
        self.output.progress(format!(
            "{name} of {}: {}",
            self.state.trials.len(),
            self.state.trials[index].settings
        ));
        self.write()?;
        let before = self.bench.loads;
        let ready = self.bench.ready(&recipe);
        self.state.base_loads += self.bench.loads - before;
        let (base, data) = match ready {
            Ok(ready) => ready,
            // What is wrong before anything was read is wrong with all of them.
            Err(error) if before == 0 => return Err(error),
            Err(error) => {
                let trial = &mut self.state.trials[index];
                trial.standing = Standing::Failed;
                trial.reason = Some(with_causes(&error));
                return self.write();
            }
        };
        self.check_content(&recipe, &base, &data)?;
        let stop = StopAt {
            step: until,
            control: self.control.of_another_run(),
        };
        let tracking = Tracking::of(&recipe);
        let reporter: Box<dyn Reporter> = Box::new(TrialReporter {
            output: self.output,
            name,
            stop: stop.clone(),
        });
        let reporter = match &tracking {
            Some(tracking) => tracking.beside(reporter),
            None => reporter,
        };
        let left: Result<Left, TrainError> = train_trial(
            &base,
            (recipe.clone(), data),
            (goes_on, &stop),
            reporter,
            Box::new(NoDashboard),
        );
        let ending = match &left {
            Ok(left) if left.ended => Ending::Finished,
            Ok(_) => Ending::Stopped,
            Err(_) => Ending::Failed,
        };
        for note in tracking.map(|it| it.end(ending)).into_iter().flatten() {
            self.output.warn(note);
        }
        let measure = self.state.measure.clone();
        let trial = &mut self.state.trials[index];
        note(trial, (&recipe, &measure), left)?;
        self.write()
    }

    /// Refuses model and rows that are not those of the trials so far.
    fn check_content(
        &mut self,
        recipe: &Recipe,
        base: &Base,
        data: &RunData,
    ) -> Result<(), CliError> {
        if !reads_the_same(recipe, self.recipe) {
            return Ok(());
        }
        let content = Content {
            model: base.fingerprint().to_owned(),
            train: data.train.fingerprint(),
            eval: data.eval.as_ref().map(|eval| eval.fingerprint()),
            sets: data.set_fingerprints(),
        };
        Ok(self.state.check_content(content, self.directory)?)
    }

    /// Writes what is known.
    fn write(&mut self) -> Result<(), CliError> {
        let now = Instant::now();
        self.state.seconds += now.duration_since(self.counted).as_secs_f64();
        self.counted = now;
        Ok(self.state.write(self.directory)?)
    }

    /// Says what came of it.
    fn conclude(mut self, args: &TuneArgs, interrupted: bool) -> Result<(), CliError> {
        self.write()?;
        let output = self.output;
        let page = self.directory.join(PAGE);
        let report = self.state.report(page.clone(), interrupted);
        let html = report_html::tuning_page(&report, &self.recipe.model);
        write_file(&page, html.as_bytes(), Existing::Replace)?;
        output.go_on(output.record("tune", &report));
        output.go_on(output.line(table(&report).trim_end()));
        if let Some(found) = &report.ranking.recommendation {
            for sentence in &found.evidence {
                output.go_on(output.line(sentence));
            }
            let mut command = CommandLine::new("train").path(&args.recipe);
            for (key, value) in &found.settings.0 {
                command = command.flag("--set", format!("{key}={value}"));
            }
            output.go_on(output.line(format!("Take it: `{command}`")));
            if let Some(best) = report.ranking.trials.first() {
                let adapter = best.output_dir.join("adapter");
                output.go_on(output.line(format!("Or its adapter: {}", adapter.display())));
            }
        }
        output.go_on(output.line(format!(
            "{:.1} s, {:.1} s of them steps; wrote {}",
            report.seconds,
            report.step_seconds,
            page.display()
        )));
        if interrupted {
            let command = CommandLine::new("tune")
                .path(&args.recipe)
                .switch("--resume");
            output.progress(format!("interrupted: resume with `{command}`"));
            return Err(CliError::interrupted());
        }
        let failed = |trial: &&TrialReport| trial.standing == Standing::Failed;
        match report.ranking.trials.iter().find(failed) {
            Some(trial) if report.ranking.recommendation.is_none() => Err(CliError::user(format!(
                "no trial came to its end: {}",
                trial.reason.as_deref().unwrap_or_default()
            ))),
            _ => Ok(()),
        }
    }
}

/// A trial that was trained as far as it was to go.
fn line(trial: &TrialReport, state: &TuneState) -> String {
    let score = match (&trial.reason, trial.score) {
        (Some(reason), _) => format!("failed: {reason}"),
        (None, Some(score)) => format!(
            "{} {:.4} at step {}",
            state.measure.name, score.value, score.step
        ),
        (None, None) => format!("no {}", state.measure.name),
    };
    format!(
        "trial {} of {}: {}: {score} ({} of {} steps)",
        trial.trial,
        state.trials.len(),
        trial.settings,
        trial.steps,
        trial.total_steps
    )
}
