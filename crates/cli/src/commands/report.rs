//! `report`: make `report.html` again, or put several runs side by side.

use std::path::PathBuf;

use backdraft_formats::{Existing, write_file};
use backdraft_train::report_html;
use backdraft_train::run_files::RunFiles;
use clap::Args;

use crate::commands::Context;
use crate::error::CliError;

/// Write a run's report.html again, or one that compares several runs
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
            return Err(CliError::usage("several runs need a file for their report")
                .hint("add --out comparison.html"));
        }
    };
    let mut runs = Vec::new();
    for directory in &args.directories {
        runs.push(RunFiles::read(directory).map_err(|error| {
            CliError::from(error).hint("`report` takes the output_dir of a run that has begun")
        })?);
    }
    write_file(&path, report_html::page(&runs).as_bytes(), existing)?;
    context
        .output
        .record(&serde_json::json!({ "report": path, "runs": runs.len() }))?;
    context.output.line(format!("wrote {}", path.display()))
}
