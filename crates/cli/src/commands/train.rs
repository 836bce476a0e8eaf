//! `train`: adapt a model as a recipe says.

use std::path::PathBuf;
use std::sync::Arc;

use backdraft_model::Llama;
use backdraft_train::memory::SystemMemory;
use backdraft_train::recipe::Recipe;
use backdraft_train::report::RunSummary;
use backdraft_train::run::{Watch, prepare};
use burn::train::Interrupter;
use burn::train::renderer::default_renderer;
use clap::Args;

use crate::commands::Context;
use crate::error::CliError;
use crate::reporter::{self, NoDashboard, PlainReporter};
use crate::session;

/// Train an adapter as a recipe says
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft train recipe.toml
  backdraft train recipe.toml --set train.learning_rate=1e-4 --set lora.rank=32
  backdraft train recipe.toml --max-steps 5 --output-dir trial --force")]
pub(crate) struct TrainArgs {
    /// The recipe; `backdraft init` writes one
    #[arg(value_name = "RECIPE")]
    pub(crate) recipe: PathBuf,

    /// Change a value of the recipe for this run; may be given again
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<String>,

    /// Stop after this many optimiser steps [same as --set train.max_steps=N]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_steps: Option<u64>,

    /// Where the run's files go [same as --set output_dir=DIR]
    #[arg(long, value_name = "DIR")]
    pub(crate) output_dir: Option<String>,

    /// Replace the run that the output directory holds
    #[arg(long)]
    pub(crate) force: bool,

    /// Plain lines instead of the dashboard, also on a terminal
    #[arg(long)]
    pub(crate) plain: bool,
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
        let device = context
            .global
            .device
            .map(|device| format!("device={}", device.name()));
        self.set
            .iter()
            .cloned()
            .chain(max_steps)
            .chain(output_dir)
            .chain(device)
            .collect()
    }
}

/// A directory called `1e3` or `true` is still a name.
fn quote(text: &str) -> String {
    toml::Value::from(text).to_string()
}

pub(crate) fn run(args: &TrainArgs, context: Context) -> Result<(), CliError> {
    let recipe = Recipe::load(&args.recipe, &args.overrides(context))?;
    let dashboard = context.output.is_terminal() && !args.plain;
    train(recipe, context, dashboard, args.force).map(|_| ())
}

/// Trains as `recipe` says and tells the user of it; also what `quickstart` does.
pub(crate) fn train(
    recipe: Recipe,
    context: Context,
    dashboard: bool,
    force: bool,
) -> Result<(RunSummary, Llama), CliError> {
    let output = context.output;
    let path = session::find_model(&recipe.model, output)?;
    output.progress(format!("reading {} and the data", path.display()));
    let (model, output_dir) = (recipe.model.clone(), recipe.output_dir.clone());
    let rows_per_step = recipe.train.rows_per_step();
    let run = prepare(recipe, &path, &session::device(), &mut |_| ())?;
    let interrupter = Interrupter::default();
    let watch = Watch {
        reporter: Box::new(PlainReporter::new(
            output,
            output_dir,
            rows_per_step,
            dashboard,
        )),
        renderer: if dashboard {
            default_renderer(interrupter.clone(), None)
        } else {
            Box::new(NoDashboard)
        },
        interrupter,
        force,
        memory: Arc::new(SystemMemory),
    };
    let (summary, trained) = run.train(watch)?;
    output.record(&summary)?;
    output.line(reporter::summary(&summary, model))?;
    Ok((summary, trained))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use backdraft_train::recipe::{Length, Recipe};

    use super::*;
    use crate::args::{DeviceArg, Global};
    use crate::output::Output;

    #[test]
    fn flags_win_over_overrides_and_the_recipe() {
        let args = TrainArgs {
            recipe: "recipe.toml".into(),
            set: vec!["train.max_steps=3".into(), "seed=7".into()],
            max_steps: Some(5),
            output_dir: Some("1e3".into()),
            force: false,
            plain: false,
        };
        let global = Global {
            device: Some(DeviceArg::Cpu),
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
        assert_eq!(recipe.device.name(), "cpu");
    }
}
