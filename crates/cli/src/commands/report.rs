//! `report`: `report.html` of a run again, or a comparison of several runs.

use std::path::PathBuf;

use backdraft_formats::{Existing, write_file};
use backdraft_journal::report_html;
use backdraft_journal::run_files::RunFiles;
use clap::Args;

use crate::commands::Context;
use crate::error::CliError;

/// Rebuild a run's report.html, or compare several runs
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft report outputs
  backdraft report outputs trial --out comparison.html")]
pub(crate) struct ReportArgs {
    /// Output directories of runs
    #[arg(value_name = "DIR", required = true)]
    pub(crate) directories: Vec<PathBuf>,

    /// The file to write [default: report.html in the directory; required for several]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,

    /// Replace the file that --out names
    #[arg(long)]
    pub(crate) force: bool,
}

pub(crate) fn run(args: &ReportArgs, context: Context) -> Result<(), CliError> {
    let existing = if args.force || args.out.is_none() {
        Existing::Replace
    } else {
        Existing::Refuse
    };
    let path = match (&args.out, args.directories.as_slice()) {
        (Some(path), _) => path.clone(),
        (None, [directory]) => directory.join(report_html::FILE),
        (None, _) => {
            return Err(
                CliError::usage("a comparison of several runs needs a file to write")
                    .hint("add --out comparison.html"),
            );
        }
    };
    let mut runs = Vec::new();
    for directory in &args.directories {
        runs.push(RunFiles::read(directory).map_err(|error| {
            CliError::from(error).hint("`report` takes the output_dir of a run that has started")
        })?);
    }
    write_file(&path, report_html::page(&runs).as_bytes(), existing)?;
    context.output.record(
        "report",
        &serde_json::json!({ "report": path, "runs": runs.len() }),
    )?;
    context.output.line(format!("Wrote {}", path.display()))
}
