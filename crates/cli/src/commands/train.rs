//! `train`: adapt a model as a recipe says.

use std::path::{Path, PathBuf};

use backdraft_arch::DeviceChoice;
use backdraft_comm::Start as Among;
use backdraft_data::RowSet;
use backdraft_data::count::group;
use backdraft_formats::ModelSource;
use backdraft_journal::report::{Reporter, RunSummary};
use backdraft_model::CausalLm;
use backdraft_recipe::Recipe;
use backdraft_train::control::Control;
use backdraft_train::data::{self, RunData};
use backdraft_train::preflight;
use backdraft_train::ranks::{Ranks, alone_through_nccl};
use backdraft_train::resume::Resume;
use backdraft_train::run::{Start, Watch, prepare};
use burn::tensor::Device;
use burn::train::Interrupter;
use clap::Args;

use crate::args::DeviceArgs;
use crate::commands::{self, Context};
use crate::dashboard::state::{Hands, State};
use crate::dashboard::{self, Dashboard, DashboardReporter};
use crate::data_summary;
use crate::devices::{self, Devices};
use crate::error::CliError;
use crate::output::Output;
use crate::ranks::Shared;
use crate::reporter::{self, NoDashboard, PlainReporter};
use crate::session::{self, Loading, quote};
use crate::shell::CommandLine;
use crate::signals;
use crate::tracker::{Ending, Tracking};

/// Fine-tune a LoRA or QLoRA adapter from a recipe
///
/// On a terminal a dashboard shows the run: 1 to 4 or Tab change the view, p pauses, s saves a checkpoint, q stops
/// after the current step with a checkpoint (exit code 0). Ctrl-C does the same with exit code 130; a second one ends
/// the program at once.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft train recipe.toml
  backdraft train recipe.toml --set train.learning_rate=1e-4 --set lora.rank=32
  backdraft train recipe.toml --max-steps 5 --output-dir trial --force
  backdraft train recipe.toml --adapter outputs --output-dir further
  backdraft train recipe.toml --devices 0,1
  backdraft train recipe.toml --device cpu --devices 2
  backdraft train --resume outputs
  backdraft train --resume outputs --max-steps 500 --allow-change train")]
pub(crate) struct TrainArgs {
    /// The recipe; `backdraft init` writes one
    #[arg(value_name = "RECIPE", required_unless_present = "resume")]
    pub(crate) recipe: Option<PathBuf>,

    /// Resume a run that was stopped: its output directory or one of its checkpoints [default: the recipe's
    /// output_dir, else outputs]
    #[arg(long, value_name = "DIR", num_args = 0..=1, conflicts_with = "force")]
    pub(crate) resume: Option<Option<PathBuf>>,

    /// With --resume: accept that this key (or section) differs from the run's recipe; repeatable
    #[arg(long, value_name = "KEY", requires = "resume")]
    pub(crate) allow_change: Vec<String>,

    /// Override a key of the recipe for this run; repeatable
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<String>,

    /// Train this adapter further: a PEFT directory, or the output directory of a run [same as --set lora.adapter=DIR]
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    pub(crate) adapter: Option<String>,

    /// Stop after this many optimizer steps [same as --set train.max_steps=N]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_steps: Option<u64>,

    /// Output directory of the run [same as --set output_dir=DIR]
    #[arg(long, value_name = "DIR")]
    pub(crate) output_dir: Option<String>,

    /// Skip up to this many bad rows [same as --set data.skip_bad_rows=N]
    #[arg(long, value_name = "N")]
    pub(crate) skip_bad_rows: Option<u64>,

    /// Replace the run in the output directory
    #[arg(long)]
    pub(crate) force: bool,

    /// Print plain lines instead of the dashboard, on a terminal too
    #[arg(long)]
    pub(crate) plain: bool,

    #[command(flatten)]
    pub(crate) device: DeviceArgs,

    /// Share the run among several processes on this machine, up to train.gradient_blocks: a number on the processor
    /// (--device cpu --devices 2), or GPUs, a process on each: their number, a list (0,1) or all
    #[arg(long, value_name = "N|GPUS")]
    pub(crate) devices: Option<Devices>,
}

impl TrainArgs {
    /// All overrides of the recipe, flags last so that they win.
    pub(crate) fn overrides(&self, context: Context) -> Vec<String> {
        let max_steps = self
            .max_steps
            .map(|steps| format!("train.max_steps={steps}"));
        let output_dir = self
            .output_dir
            .as_deref()
            .map(|dir| format!("output_dir={}", quote(dir)));
        let adapter = self
            .adapter
            .as_deref()
            .map(|dir| format!("lora.adapter={}", quote(dir)));
        let skip_bad_rows = self
            .skip_bad_rows
            .map(|rows| format!("data.skip_bad_rows={rows}"));
        let device = context
            .global
            .device
            .map(|device| format!("device={device}"));
        self.set
            .iter()
            .cloned()
            .chain(max_steps)
            .chain(output_dir)
            .chain(adapter)
            .chain(skip_bad_rows)
            .chain(device)
            .collect()
    }
}

pub(crate) fn run(args: &TrainArgs, context: Context) -> Result<(), CliError> {
    let among = Among::from_env()?;
    if devices::led(args.devices.as_ref(), &among, context.global.device)? {
        return Ok(());
    }
    let shared = Shared::join(&among, context.output)?;
    let Some(shared) = &shared else {
        return run_among(args, context, None);
    };
    let output = match shared.ranks.rank() {
        0 => context.output,
        _ => context.output.quiet(),
    };
    let context = Context { output, ..context };
    shared.work(|| run_among(args, context, Some(shared)))
}

fn run_among(args: &TrainArgs, context: Context, shared: Option<&Shared>) -> Result<(), CliError> {
    let dashboard = context.output.is_terminal() && !args.plain;
    let overrides = args.overrides(context);
    let (recipe, start) = match (&args.resume, &args.recipe) {
        (Some(resume), recipe) => {
            let mut at = place(resume.as_deref(), recipe.as_deref(), &overrides)?;
            if let Some(shared) = shared {
                at = shared.resumed(&at)?;
            }
            let resume = Resume::find(&at, &args.allow_change)?;
            let recipe = resume.recipe(recipe.as_deref(), &overrides)?;
            if let Some(summary) = resume.finished(&recipe)? {
                return finished(&summary, &recipe, context.output);
            }
            (recipe, Start::Resume(Box::new(resume)))
        }
        (None, Some(recipe)) => {
            let force = args.force;
            (Recipe::load(recipe, &overrides)?, Start::New { force })
        }
        (None, None) => return Err(CliError::usage("there is no recipe")),
    };
    let mut recipe = recipe;
    if let Some(shared) = shared {
        let from = match &start {
            Start::Resume(resume) => resume.state().map_or(0, |state| state.step),
            Start::New { .. } => 0,
        };
        shared.agree(&mut recipe, from)?;
    }
    train_among(recipe, context, dashboard, start, shared).map(|_| ())
}

/// Says again what came out of a run that has nothing left to do, and leaves its files alone.
fn finished(summary: &RunSummary, recipe: &Recipe, output: Output) -> Result<(), CliError> {
    let step = group(summary.steps as u64);
    output.warn(format!(
        "nothing to resume: the run has finished at step {step}. To train further, raise its length: --set \
         train.max_steps=N --allow-change train"
    ));
    output.record("summary", summary)?;
    let model = recipe.model.clone();
    let text = reporter::summary(summary, model, &recipe.output_dir, output.columns());
    output.line(text.trim_end())
}

/// Refuses what is known to be wrong before rows are read or weights are loaded, and opens the device.
pub(crate) fn preflight(
    recipe: &Recipe,
    start: &Start,
    device: DeviceChoice,
    output: Output,
) -> Result<Device, CliError> {
    preflight::output_dir(&recipe.output_dir, start)?;
    preflight::sources(&recipe.data)?;
    let device = session::open_device(device, output)?;
    let shape = session::shape(&recipe.model, output)?;
    preflight::adapter(recipe, &shape.spec, start)?;
    let plan = shape.plan(recipe)?;
    let place = (&device, shape.quantized);
    preflight::model(recipe, &shape.spec, plan.as_ref(), place)?;
    // What a file has dense is the file's own list.
    if let Some(plan) = plan.filter(|plan| !plan.keeps_blocks()) {
        let paths = shape.spec.projections();
        let paths: Vec<String> = paths.map(|(layer, target)| target.path(layer)).collect();
        commands::warn_unmatched(&plan, &paths, output);
    }
    Ok(device)
}

/// Directory of the run to resume.
fn place(
    resume: Option<&Path>,
    recipe: Option<&Path>,
    overrides: &[String],
) -> Result<PathBuf, CliError> {
    match (resume, recipe) {
        (Some(path), None) if path.is_file() => Err(CliError::usage(format!(
            "--resume takes a directory, and {} is a file",
            path.display()
        ))
        .hint(format!(
            "`{}` takes the output_dir of that recipe",
            CommandLine::new("train").path(path).switch("--resume")
        ))),
        (Some(path), _) => Ok(path.to_owned()),
        (None, Some(recipe)) => Ok(Recipe::load(recipe, overrides)?.output_dir),
        (None, None) => Ok(PathBuf::from("outputs")),
    }
}

/// Trains as `recipe` says and tells the user of it; also what `quickstart` does.
pub(crate) fn train(
    recipe: Recipe,
    context: Context,
    dashboard: bool,
    start: Start,
) -> Result<(RunSummary, CausalLm), CliError> {
    train_among(recipe, context, dashboard, start, None)
}

/// The same, sharing the steps with other processes.
fn train_among(
    recipe: Recipe,
    context: Context,
    dashboard: bool,
    start: Start,
    shared: Option<&Shared>,
) -> Result<(RunSummary, CausalLm), CliError> {
    let output = context.output;
    if !recipe.swept.is_empty() {
        output.progress(format!(
            "[sweep] is for `backdraft tune`; this run has the recipe's own {}",
            recipe.swept.join(", ")
        ));
    }
    let device = shared.map_or(recipe.device, |shared| shared.device(recipe.device));
    let device = preflight(&recipe, &start, device, output)?;
    let source = session::open_trained(&recipe, output)?;
    if let Start::Resume(resume) = &start {
        resume.check_model(&source.fingerprint()?)?;
    }
    let read = || check_data(&recipe, &source, output);
    let data = match shared {
        Some(shared) => shared.after_rank_0(read)?,
        None => read()?,
    };
    if let Start::Resume(resume) = &start {
        let eval = data.eval.as_ref().map(RowSet::fingerprint);
        resume.check_rows(&data.train.fingerprint(), eval.as_deref())?;
        resume.check_sets(&data.set_fingerprints())?;
    }
    let through_nccl = shared.is_none() && alone_through_nccl()?;
    output.progress(format!("loading {}", source.path().display()));
    let (model, output_dir) = (recipe.model.clone(), recipe.output_dir.clone());
    let batch = (
        recipe.train.micro_batch_size,
        recipe.train.grad_accumulation_steps,
    );
    let tells = shared.is_none_or(|shared| shared.ranks.rank() == 0);
    let tracking = tells.then(|| Tracking::of(&recipe)).flatten();
    let mut run = prepare(recipe, source, data, &device)?;
    if let Some(shared) = shared {
        shared.connect(&device, output)?;
        run.share(shared.ranks.clone())?;
    } else if through_nccl {
        let ranks = Ranks::alone()?;
        output.progress(ranks.connect(&device, "the store")?.to_string());
        run.share(ranks)?;
    }
    let control = Control::default();
    let hangup = signals::guard(&control)?;
    let shared = dashboard.then(|| {
        let output = output_dir.display().to_string();
        dashboard::Shared::new(State::new(output, Hands::Own))
    });
    let start_dashboard = |shared: dashboard::Shared| {
        let started = Dashboard::start(shared.clone(), control.clone(), hangup);
        started.map(|dashboard| (shared, dashboard))
    };
    // A terminal that cannot be drawn on is no reason not to train.
    let (shared, dashboard) = match shared.map(start_dashboard).transpose() {
        Ok(started) => started.unzip(),
        Err(error) => {
            output.warn(format!("no dashboard, plain lines instead: {error}"));
            (None, None)
        }
    };
    let lines = PlainReporter::new(output, output_dir.clone(), batch, shared.clone());
    let reporter: Box<dyn Reporter> = match &shared {
        Some(shared) => Box::new(DashboardReporter::new(shared.clone(), lines)),
        None => Box::new(lines),
    };
    let reporter = match &tracking {
        Some(tracking) => tracking.beside(reporter),
        None => reporter,
    };
    let watch = Watch {
        reporter,
        renderer: match &dashboard {
            Some(dashboard) => dashboard.renderer(),
            None => Box::new(NoDashboard),
        },
        interrupter: Interrupter::default(),
        control: control.clone(),
        start,
        memory: None,
    };
    let trained = run.train(watch);
    // The terminal is free again before anything is printed.
    drop(dashboard);
    let notes = tracking.map(|tracking| tracking.end(Ending::of(&trained)));
    for note in notes.into_iter().flatten() {
        output.warn(note);
    }
    let (summary, trained) = trained?;
    // All results are on the disk: nothing that cannot be printed makes the run a failure.
    output.go_on(output.record("summary", &summary));
    let text = reporter::summary(&summary, model, &output_dir, output.columns());
    output.go_on(output.line(text.trim_end()));
    if summary.interrupted && control.signalled() {
        return Err(CliError::interrupted());
    }
    Ok((summary, trained))
}

/// Tokenises the rows of a recipe and says what was found.
pub(crate) fn check_data(
    recipe: &Recipe,
    model: &ModelSource,
    output: Output,
) -> Result<RunData, CliError> {
    let tokenizer = data::tokenizer_of(&recipe.data, model)?;
    let sources = session::find_data(&recipe.data, output)?;
    output.progress("reading the data");
    let mut shown = Loading::new(output);
    let data = data::load(recipe, &sources, tokenizer, &mut |progress| {
        shown.show(progress);
    })?;
    for problem in data
        .check
        .cache
        .iter()
        .filter_map(|cache| cache.problem.as_ref())
    {
        output.warn(format!(
            "tokenised rows are not kept for the next run: {problem}"
        ));
    }
    output.go_on(output.record("data", &data.check));
    output.go_on(output.line(data_summary::text(&data.check, output.columns())));
    Ok(data)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use backdraft_recipe::{Length, Recipe};

    use super::*;

    use crate::args::Global;

    #[test]
    fn flags_win_over_overrides_and_the_recipe() {
        let args = TrainArgs {
            recipe: Some("recipe.toml".into()),
            resume: None,
            allow_change: Vec::new(),
            set: vec!["train.max_steps=3".into(), "seed=7".into()],
            max_steps: Some(5),
            output_dir: Some("1e3".into()),
            adapter: None,
            skip_bad_rows: Some(2),
            force: false,
            plain: false,
            device: DeviceArgs::default(),
            devices: None,
        };
        let global = Global {
            device: Some(DeviceChoice::Cpu),
            ..Global::default()
        };
        let context = Context {
            global,
            output: Output::new(false),
        };
        let text = "model = \"a/b\"\n[data]\ntrain = \"t.jsonl\"\n[train]\nepochs = 2\n";
        let recipe = Recipe::from_toml(text, Path::new("/r"), &args.overrides(context)).unwrap();
        assert_eq!(recipe.train.length, Length::MaxSteps(5));
        assert_eq!(recipe.seed, 7);
        assert_eq!(recipe.output_dir, Path::new("/r/1e3"));
        assert_eq!(recipe.device, DeviceChoice::Cpu);
        assert_eq!(recipe.data.skip_bad_rows, 2);
    }
}
