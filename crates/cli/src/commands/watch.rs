//! `watch`: the dashboard of a run of another process, or of one that has ended.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backdraft_journal::diagnosis::{Diagnosis, Monitor};
use backdraft_journal::records::{self, Record};
use backdraft_journal::run_files::{RunFiles, RunNote};
use backdraft_train::lock;
use clap::Args;
use serde_json::Value;

use crate::commands::Context;
use crate::dashboard::state::{Hands, Phase, State};
use crate::dashboard::{self, Shared};
use crate::error::CliError;
use crate::plain::{PlainLines, StepLine};
use crate::reporter::eval_lines;

/// Time between two looks at the files.
const LOOK: Duration = Duration::from_millis(500);

/// Show the dashboard of a run in another terminal, or of one that has ended
///
/// Without a terminal it prints the state of the run once.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  backdraft watch outputs")]
pub(crate) struct WatchArgs {
    /// The run's output directory
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
}

pub(crate) fn run(args: &WatchArgs, context: Context) -> Result<(), CliError> {
    let mut tail = Tail::open(&args.directory)?;
    tail.read()?;
    if context.output.is_terminal() {
        return show(tail);
    }
    context.output.record("status", &tail.to_json())?;
    context.output.line(tail.to_line())
}

fn show(tail: Tail) -> Result<(), CliError> {
    let shared = Shared::new(tail.state.clone());
    let mut terminal = ratatui::try_init()
        .map_err(|error| CliError::user("cannot draw in this terminal").because(error))?;
    let over = Arc::new(AtomicBool::new(false));
    let reader = std::thread::spawn({
        let (shared, over, mut tail) = (shared.clone(), over.clone(), tail);
        move || {
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(LOOK);
                // A file that is being replaced is there again the next time.
                if tail.read().unwrap_or(false) {
                    let mut state = shared.edit();
                    let (view, scroll, page) = (state.view, state.scroll, state.page);
                    let new = tail.state.log.len().saturating_sub(state.log.len());
                    state.clone_from(&tail.state);
                    // What is being read stays where it is.
                    let scroll = if scroll > 0 { scroll + new } else { 0 };
                    (state.view, state.scroll, state.page) = (view, scroll, page);
                }
            }
        }
    });
    dashboard::show(&mut terminal, &shared, None, || false);
    dashboard::leave(terminal);
    over.store(true, Ordering::Relaxed);
    // The reader has nothing to clean up; its panic would have been told.
    let _ = reader.join();
    Ok(())
}

/// The state of a run by its files, brought up to date by what was appended.
struct Tail {
    directory: PathBuf,
    state: State,
    monitor: Monitor,
    /// Bytes of whole lines that were taken in.
    read: u64,
}

impl Tail {
    fn open(directory: &Path) -> Result<Self, CliError> {
        let files = RunFiles::read(directory).map_err(|error| {
            CliError::from(error).hint("`watch` takes the output_dir of a run that has started")
        })?;
        let mut state = State::new(directory.display().to_string(), Hands::Watching);
        let warmup_steps = files.note.as_ref().map_or(0, |note| note.warmup_steps);
        if let Some(RunNote { info, .. }) = files.note {
            state.model = info.model;
            state.device = info.device;
            state.total_steps = info.total_steps;
            state.steps_per_epoch = info.steps_per_epoch.max(1);
            state.memory = info.memory;
        }
        let monitor = Monitor::new(state.total_steps, warmup_steps);
        Ok(Self {
            directory: directory.to_owned(),
            state,
            monitor,
            read: 0,
        })
    }

    /// Takes in what is new; whether anything is.
    fn read(&mut self) -> Result<bool, CliError> {
        let path = self.directory.join(records::FILE);
        let cannot =
            |error| CliError::user(format!("cannot read {}", path.display())).because(error);
        let mut file = File::open(&path).map_err(cannot)?;
        let length = file.metadata().map_err(cannot)?.len();
        if length < self.read {
            // A resumed run has cut off what it does again.
            *self = Self::open(&self.directory)?;
        }
        file.seek(SeekFrom::Start(self.read)).map_err(cannot)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(cannot)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n');
        let new = &bytes[..whole.map_or(0, |end| end + 1)];
        self.read += new.len() as u64;
        let text = String::from_utf8_lossy(new);
        for record in records::points(&text) {
            match record {
                Record::Train(point) => self.monitor.train(point),
                Record::Eval(point) => self.monitor.eval(point),
            };
        }
        for report in records::reports(&text) {
            self.state.log(&told(&report, self.state.total_steps));
            self.state.replay(std::slice::from_ref(&report));
        }
        let (phase, concluded) = self.phase();
        let changed = !new.is_empty() || phase != self.state.phase;
        self.state.phase = phase;
        if self.state.steps() > 0 {
            // A run that is over says what it concluded itself.
            self.state.diagnosis =
                Some(concluded.unwrap_or_else(|| self.monitor.diagnosis().clone()));
        }
        Ok(changed)
    }

    /// Whether the run goes on, and what it means where it does not.
    fn phase(&self) -> (Phase, Option<Diagnosis>) {
        if lock::is_held(&self.directory) {
            return (Phase::Training, None);
        }
        let Ok(RunFiles {
            summary, diagnosis, ..
        }) = RunFiles::read(&self.directory)
        else {
            return (Phase::Over("not finished"), None);
        };
        let done = self.state.steps() >= self.state.total_steps;
        let phase = match summary {
            _ if done => "finished",
            Some(summary) if summary.stopped_early => "stopped early",
            Some(summary) if summary.interrupted => "interrupted",
            _ => "not finished",
        };
        (Phase::Over(phase), Some(diagnosis))
    }

    fn verdict(&self) -> String {
        let diagnosis = self.state.diagnosis.as_ref();
        diagnosis.map_or_else(|| "no diagnosis yet".to_owned(), crate::reporter::explained)
    }

    fn phase_name(&self) -> &'static str {
        match self.state.phase {
            Phase::Over(why) => why,
            _ => "training",
        }
    }

    fn to_line(&self) -> String {
        let state = &self.state;
        let loss = state.points.last().map_or_else(
            || "no loss yet".to_owned(),
            |point| format!("loss {:.4} (smoothed {:.4})", point.loss, point.smoothed),
        );
        let eval = state.best.map_or_else(String::new, |(step, loss)| {
            format!(", best eval loss {loss:.4} after step {step}")
        });
        format!(
            "{}: {}, step {} of {}, {loss}{eval}; {}",
            state.output,
            self.phase_name(),
            state.steps(),
            state.total_steps,
            self.verdict()
        )
    }

    fn to_json(&self) -> Value {
        let state = &self.state;
        serde_json::json!({
            "phase": self.phase_name(),
            "step": state.steps(),
            "total_steps": state.total_steps,
            "loss": state.points.last().map(|point| point.loss),
            "smoothed_loss": state.points.last().map(|point| point.smoothed),
            "best_eval_loss": state.best.map(|(_, loss)| loss),
            "best_step": state.best.map(|(step, _)| step),
            "seconds_left": state.left(),
            "diagnosis": state.diagnosis,
        })
    }
}

fn told(report: &records::Report, total_steps: usize) -> String {
    match report {
        records::Report::Step(step) => {
            PlainLines::new(total_steps, 1).step_to_wrap(&StepLine::of(step, None))
        }
        records::Report::Eval(eval) => eval_lines(eval).join("\n"),
    }
}
