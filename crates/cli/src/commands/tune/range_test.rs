//! A learning-rate range test, and what it says.

use std::path::Path;

use backdraft_formats::{Existing, write_file};
use backdraft_journal::report_html;
use backdraft_recipe::Recipe;
use backdraft_train::control::Control;
use backdraft_train::lock::RunLock;
use backdraft_train::tune::{RangeSettings, range_test};
use serde_json::json;

use super::TuneArgs;
use super::bench::Bench;
use super::reporter::RangeReporter;
use crate::commands::Context;
use crate::error::CliError;
use crate::reporter::NoDashboard;
use crate::shell::CommandLine;
use crate::signals;

/// The page.
const PAGE: &str = "range_test.html";

pub(super) fn run(
    recipe: &Recipe,
    args: &TuneArgs,
    directory: &Path,
    context: Context,
) -> Result<(), CliError> {
    let output = context.output;
    let trial = directory.join("range-test");
    let recipe = Recipe {
        output_dir: trial.clone(),
        ..recipe.clone()
    };
    let mut bench = Bench::new(&recipe, output)?;
    let (base, data) = bench.ready(&recipe)?;
    let control = Control::default();
    signals::guard(&control)?;
    let settings = RangeSettings {
        min: args.min_lr,
        max: args.max_lr,
        steps: args.range_steps as usize,
    };
    output.progress(format!(
        "learning-rate range test: {} steps from {:e} to {:e}",
        settings.steps, settings.min, settings.max
    ));
    let told = RangeReporter {
        output,
        steps: settings.steps,
    };
    let found = range_test(
        &base,
        (&recipe, data),
        (settings, trial.clone()),
        Box::new(told),
        (&control, Box::new(NoDashboard)),
    )?;
    // Its lock's file lies there; a folder that holds anything else stays.
    let _ = std::fs::remove_file(trial.join(RunLock::FILE));
    let _ = std::fs::remove_dir(&trial);
    let Some(found) = found else {
        return Err(CliError::interrupted());
    };
    let page = directory.join(PAGE);
    let html = report_html::range_page(&found, &recipe.model);
    write_file(&page, html.as_bytes(), Existing::Replace)?;
    let mut record = serde_json::to_value(&found).map_err(CliError::internal)?;
    record["report"] = json!(page);
    output.record("range_test", &record)?;
    for sentence in &found.evidence {
        output.line(sentence)?;
    }
    if let Some(rate) = found.recommended {
        let rate = |factor: f64| format!("{:e}", rate * factor);
        let command = CommandLine::new("train")
            .path(&args.recipe)
            .flag("--set", format!("train.learning_rate={}", rate(1.0)));
        output.line(format!("Take it: `{command}`"))?;
        let around = format!(
            "sweep.train.learning_rate=[{}, {}, {}]",
            rate(0.3),
            rate(1.0),
            rate(3.0)
        );
        let command = CommandLine::new("tune")
            .path(&args.recipe)
            .flag("--set", around);
        output.line(format!("Or compare whole runs around it: `{command}`"))?;
    }
    output.line(format!("Wrote {}", page.display()))
}
