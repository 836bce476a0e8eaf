//! `cargo xtask ci`: the project's checks, in named stages.

mod deny;
mod here;
mod licence;
mod stage;

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;

use stage::{Outcome, STAGES, Stage};

/// Which stages to run, and how.
#[derive(Args)]
pub(crate) struct CiArgs {
    /// Stages to run, in the order of `--list`; without names, those marked with a star.
    stages: Vec<String>,
    /// Show the stages, and what this machine covers, and run nothing.
    #[arg(long)]
    list: bool,
    /// Run the stages that follow a failed one.
    #[arg(long)]
    keep_going: bool,
    /// Fail where a tool or a device that a stage needs is missing, in place of skipping the stage.
    #[arg(long)]
    require_tools: bool,
}

/// One row of the summary.
struct Row {
    stage: &'static str,
    took: Duration,
    result: anyhow::Result<Outcome>,
}

/// Runs the stages; the exit code says whether all of them passed.
pub(crate) fn run(args: &CiArgs) -> anyhow::Result<ExitCode> {
    let chosen = choose(&args.stages)?;
    env::set_current_dir(root()).context("the folder of the workspace")?;
    if args.list {
        list();
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = Vec::new();
    for stage in chosen {
        println!("\n== {}: {}", stage.name, stage.what);
        let start = Instant::now();
        let result = (stage.run)();
        let row = Row {
            stage: stage.name,
            took: start.elapsed(),
            result,
        };
        println!("-- {}", row.line());
        let failed = row.fails(args.require_tools);
        rows.push(row);
        if failed && !args.keep_going {
            break;
        }
    }
    Ok(summary(&rows, args.require_tools))
}

/// The stages of these names, in the order of the list.
fn choose(names: &[String]) -> anyhow::Result<Vec<&'static Stage>> {
    for name in names {
        if !STAGES.iter().any(|stage| stage.name == name) {
            let known: Vec<&str> = STAGES.iter().map(|stage| stage.name).collect();
            bail!("there is no stage {name}; stages are {}", known.join(", "));
        }
    }
    let chosen = STAGES.iter().filter(|stage| {
        let named = names.iter().any(|name| name == stage.name);
        named || (names.is_empty() && stage.by_default)
    });
    Ok(chosen.collect())
}

fn list() {
    for stage in STAGES {
        let star = if stage.by_default { '*' } else { ' ' };
        println!("{star} {:12} {}", stage.name, stage.what);
    }
    println!("\nOn this machine:");
    for line in here::lines() {
        println!("  {line}");
    }
}

impl Row {
    fn line(&self) -> String {
        let state = match &self.result {
            Ok(Outcome::Passed) => "passed".to_owned(),
            Ok(Outcome::Skipped(reason)) => format!("SKIPPED: {reason}"),
            Err(error) => format!("FAILED: {error:#}"),
        };
        let seconds = self.took.as_secs();
        let time = format!("{}:{:02}", seconds / 60, seconds % 60);
        format!("{:12} {time:>6}  {state}", self.stage)
    }

    fn fails(&self, require_tools: bool) -> bool {
        match &self.result {
            Ok(Outcome::Passed) => false,
            Ok(Outcome::Skipped(_)) => require_tools,
            Err(_) => true,
        }
    }
}

fn summary(rows: &[Row], require_tools: bool) -> ExitCode {
    println!("\nstage          time");
    for row in rows {
        println!("{}", row.line());
    }
    let failed = rows.iter().filter(|row| row.fails(require_tools)).count();
    let skipped = rows
        .iter()
        .filter(|row| matches!(row.result, Ok(Outcome::Skipped(_))))
        .count();
    if skipped > 0 {
        println!("{skipped} of {} stages checked NOTHING", rows.len());
    }
    if failed > 0 {
        println!("{failed} of {} stages failed", rows.len());
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The folder of the workspace.
pub(crate) fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// Cargo without what `cargo run` told this program about itself: some build scripts look at those variables, and
/// their crates and all that use them would be compiled again.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let about_us = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"];
        let about_us = about_us.iter().any(|prefix| text.starts_with(prefix))
            || ["CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE"].contains(&text);
        if about_us {
            command.env_remove(&name);
        }
    }
    command
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn names(given: &[&str]) -> anyhow::Result<Vec<&'static str>> {
        let given: Vec<String> = given.iter().map(|name| (*name).to_owned()).collect();
        Ok(choose(&given)?.iter().map(|stage| stage.name).collect())
    }

    #[test]
    fn stages_run_in_the_order_of_the_list_whatever_their_names_order() {
        assert_eq!(names(&["test", "fmt"]).unwrap(), ["fmt", "test"]);
        let all = names(&[]).unwrap();
        assert!(all.contains(&"test") && !all.contains(&"unit"), "{all:?}");
    }

    #[test]
    fn an_unknown_stage_is_an_error_that_names_the_known_ones() {
        let error = names(&["lint"]).unwrap_err().to_string();
        assert!(
            error.contains("lint") && error.contains("clippy-gpu"),
            "{error}"
        );
    }

    #[test]
    fn what_is_skipped_fails_only_where_tools_are_required() {
        let row = |result| Row {
            stage: "typos",
            took: Duration::from_secs(61),
            result,
        };
        let skipped = row(Ok(Outcome::Skipped("not installed".to_owned())));
        assert_eq!(
            skipped.line(),
            "typos          1:01  SKIPPED: not installed"
        );
        assert!(!skipped.fails(false) && skipped.fails(true));
        assert!(!row(Ok(Outcome::Passed)).fails(true));
        assert!(row(Err(anyhow::anyhow!("no"))).fails(false));
    }

    #[test]
    fn nested_cargo_is_not_told_which_package_runs() {
        let command = cargo();
        let removed = command.get_envs().filter(|(_, value)| value.is_none());
        let removed: Vec<_> = removed.filter_map(|(name, _)| name.to_str()).collect();
        assert!(removed.contains(&"CARGO_MANIFEST_DIR"), "{removed:?}");
        assert!(!removed.contains(&"CARGO_TARGET_DIR"), "{removed:?}");
    }
}
