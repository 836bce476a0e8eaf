//! `tune`: find settings of a recipe, by a learning-rate range test or by the trials of its `[sweep]`.

mod bench;
mod range_test;
mod reporter;
mod sweep;
mod table;

use std::path::PathBuf;

use backdraft_recipe::Recipe;
use backdraft_train::lock::RunLock;
use clap::Args;

use crate::args::{self, DeviceArgs};
use crate::commands::Context;
use crate::error::CliError;

/// Find the learning rate and other settings of a recipe
///
/// Goes through the [sweep] of the recipe: every combination, draws, or successive halving. The base is read once, each
/// trial is a run as `train` makes it, and the end is a table, a page and a recommendation. A recipe without [sweep] gets a
/// learning-rate range test. Ctrl-C ends it with a checkpoint; --resume continues.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft tune recipe.toml
  backdraft tune recipe.toml --resume
  backdraft tune recipe.toml --range-test
  backdraft tune recipe.toml --set \"sweep.train.learning_rate=[1e-4, 3e-4, 1e-3]\"")]
pub(crate) struct TuneArgs {
    /// The recipe; its [sweep] says what to try
    #[arg(value_name = "RECIPE")]
    pub(crate) recipe: PathBuf,

    /// Continue a sweep that was stopped, or that has more trials now
    #[arg(long, conflicts_with = "force")]
    pub(crate) resume: bool,

    /// Replace the sweep in the output directory
    #[arg(long)]
    pub(crate) force: bool,

    /// Override a key of the recipe; repeatable
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<String>,

    /// Directory of the sweep [default: tune in the recipe's output_dir]
    #[arg(long, value_name = "DIR")]
    pub(crate) output_dir: Option<PathBuf>,

    /// Only a learning-rate range test [default: where the recipe has no [sweep]]
    #[arg(long, conflicts_with = "resume")]
    pub(crate) range_test: bool,

    /// Optimizer steps of the range test
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(10..))]
    pub(crate) range_steps: u32,

    /// Learning rate of its first step
    #[arg(long, value_name = "LR", default_value_t = 1e-6, value_parser = args::positive)]
    pub(crate) min_lr: f64,

    /// Learning rate of its last step
    #[arg(long, value_name = "LR", default_value_t = 0.1, value_parser = args::positive)]
    pub(crate) max_lr: f64,

    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

pub(crate) fn run(args: &TuneArgs, context: Context) -> Result<(), CliError> {
    let device = context
        .global
        .device
        .map(|device| format!("device={device}"));
    let overrides: Vec<String> = args.set.iter().cloned().chain(device).collect();
    let (recipe, sweep) = Recipe::load_sweep(&args.recipe, &overrides)?;
    let directory = match &args.output_dir {
        Some(directory) => std::path::absolute(directory).unwrap_or_else(|_| directory.clone()),
        None => recipe.output_dir.join("tune"),
    };
    match sweep {
        Some(sweep) if !args.range_test => {
            let _lock = RunLock::acquire(&directory)?;
            sweep::run((&recipe, sweep), args, &directory, context)
        }
        _ if args.resume => Err(CliError::usage(format!(
            "--resume continues a sweep, and {} has no [sweep]",
            args.recipe.display()
        ))),
        _ if args.min_lr >= args.max_lr => Err(CliError::usage("--min-lr is to be below --max-lr")),
        _ => {
            let _lock = RunLock::acquire(&directory)?;
            range_test::run(&recipe, args, &directory, context)
        }
    }
}
