//! The dashboard in the terminal: a thread that draws [`State`], fed by the run's reports and by
//! burn-train's renderer interface.

mod chart;
pub(crate) mod keys;
mod log;
mod panels;
pub(crate) mod state;
mod text;
mod ticks;
pub(crate) mod view;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backdraft_journal::adaptation::AdaptationReport;
use backdraft_journal::diagnosis::{Diagnosis, Finding};
use backdraft_journal::records::Report;
use backdraft_journal::report::{EvalReport, ReplanReport, Reporter, RunInfo, StepReport};
use backdraft_plan::memory;
use backdraft_train::control::Control;
use burn::train::LearnerSummary;
use burn::train::logger::{EvaluationProgressLogger, TrainingProgressLogger};
use burn::train::metric::MetricDefinition;
use burn::train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining,
};
use ratatui::DefaultTerminal;

use crate::error::{CliError, INTERRUPTED};
use crate::reporter::PlainReporter;
use keys::Key;
use state::{Phase, State};

/// Time between two looks at the keyboard, and between two pictures at most.
const TICK: Duration = Duration::from_millis(100);
/// Time between two pictures where nothing happens.
const IDLE: Duration = Duration::from_secs(1);

/// The state that the run writes and the drawing thread reads.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    state: Arc<Mutex<State>>,
    changed: Arc<AtomicBool>,
}

impl Shared {
    pub(crate) fn new(state: State) -> Self {
        Self {
            state: Arc::new(Mutex::new(state)),
            changed: Arc::new(AtomicBool::new(true)),
        }
    }

    /// The state, to change it.
    pub(crate) fn edit(&self) -> MutexGuard<'_, State> {
        self.changed.store(true, Ordering::Relaxed);
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a key means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    None,
    /// Leave the dashboard; the run of another process continues.
    Leave,
    /// End the program at once.
    Abort,
}

/// Does what a key asks for.
pub(crate) fn press(key: Key, state: &mut State, control: Option<&Control>) -> Action {
    use state::View;
    match (key, control) {
        (Key::Tab | Key::Right, _) => state.turn(1),
        (Key::BackTab | Key::Left, _) => state.turn(state.views().len() - 1),
        (Key::Char(digit @ '1'..='5'), _) => {
            let view = state.views().get(digit as usize - '1' as usize);
            state.view = view.copied().unwrap_or(state.view);
        }
        (Key::Up, _) if state.view == View::Log => state.scroll_by(1),
        (Key::Down, _) if state.view == View::Log => state.scroll_by(-1),
        (Key::PageUp, _) if state.view == View::Log => state.scroll_by(state.page.cast_signed()),
        (Key::PageDown, _) if state.view == View::Log => state.scroll_by(-state.page.cast_signed()),
        (Key::Home, _) if state.view == View::Log => state.scroll_by(isize::MAX),
        (Key::End, _) if state.view == View::Log => state.scroll = 0,
        (Key::Interrupt, Some(control)) => {
            if control.signalled() {
                return Action::Abort;
            }
            control.signal_flag().store(true, Ordering::Relaxed);
            state.phase = Phase::Stopping;
        }
        (Key::Char('p'), Some(control)) => {
            control.toggle_pause();
            state.phase = if control.paused() {
                Phase::Paused
            } else {
                Phase::Training
            };
        }
        (Key::Char('s'), Some(control)) => {
            control.save();
            state.log("will save a checkpoint after this step");
        }
        (Key::Char('q'), Some(control)) => {
            control.stop();
            state.phase = Phase::Stopping;
        }
        (Key::Char('q') | Key::Escape | Key::Interrupt, None) => return Action::Leave,
        _ => {}
    }
    Action::None
}

/// The dashboard of a run of this process.
pub(crate) struct Dashboard {
    shared: Shared,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Dashboard {
    /// Takes the terminal and draws from now on, until this is dropped or `hangup` is set.
    pub(crate) fn start(
        shared: Shared,
        control: Control,
        hangup: Arc<AtomicBool>,
    ) -> Result<Self, CliError> {
        let mut terminal = ratatui::try_init()
            .map_err(|error| CliError::user("cannot draw in this terminal").because(error))?;
        let over = Arc::new(AtomicBool::new(false));
        let (ends, drawn) = (over.clone(), shared.clone());
        let thread = std::thread::Builder::new()
            .name("dashboard".to_owned())
            .spawn(move || {
                let done = || ends.load(Ordering::Relaxed) || hangup.load(Ordering::Relaxed);
                let action = show(&mut terminal, &drawn, Some(&control), done);
                leave(terminal);
                if action == Action::Abort {
                    std::process::exit(i32::from(INTERRUPTED));
                }
            })
            .map_err(CliError::internal)?;
        Ok(Self {
            shared,
            over,
            thread: Some(thread),
        })
    }

    /// What burn-train draws on.
    pub(crate) fn renderer(&self) -> Box<dyn MetricsRenderer> {
        Box::new(Renderer(self.shared.clone()))
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has restored the terminal and said why.
            let _ = thread.join();
        }
    }
}

/// Draws and reads keys until `done`, or until the terminal is gone; a run goes on without one.
pub(crate) fn show(
    terminal: &mut DefaultTerminal,
    shared: &Shared,
    control: Option<&Control>,
    done: impl Fn() -> bool,
) -> Action {
    let Ok(keys) = keys::listen() else {
        return Action::None;
    };
    let mut drawn: Option<Instant> = None;
    let mut size = None;
    while !done() {
        let now = terminal.size().ok();
        let idle = drawn.is_none_or(|at| at.elapsed() >= IDLE);
        if shared.changed.swap(false, Ordering::Relaxed) || idle || now != size {
            size = now;
            let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            if control.is_some() {
                state.resident = memory::resident();
            }
            if let Some(size) = size {
                view::settle(&mut state, size);
            }
            let picture = state.clone();
            drop(state);
            if terminal.draw(|frame| view::draw(frame, &picture)).is_err() {
                return Action::None;
            }
            drawn = Some(Instant::now());
        }
        match keys.recv_timeout(TICK) {
            Ok(key) => {
                let action = press(key, &mut shared.edit(), control);
                if action != Action::None {
                    return action;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Action::None,
        }
    }
    Action::None
}

/// Gives the terminal back; one that is gone needs nothing.
pub(crate) fn leave(mut terminal: DefaultTerminal) {
    let _ = terminal.show_cursor();
    let _ = ratatui::try_restore();
    // Dropped, it would say on standard error that the cursor cannot be shown, and panic since that is
    // gone too.
    std::mem::forget(terminal);
}

/// Tells the dashboard of the run.
pub(crate) struct DashboardReporter {
    shared: Shared,
    lines: PlainReporter,
}

impl DashboardReporter {
    /// `lines` writes the log into the same state.
    pub(crate) fn new(shared: Shared, lines: PlainReporter) -> Self {
        Self { shared, lines }
    }
}

impl Reporter for DashboardReporter {
    fn start(&mut self, info: &RunInfo) {
        self.shared.edit().start(info);
        self.lines.start(info);
    }

    fn step(&mut self, report: &StepReport) {
        self.shared.edit().step(report);
        self.lines.step(report);
    }

    fn eval(&mut self, report: &EvalReport) {
        self.shared.edit().eval(report);
        self.lines.eval(report);
    }

    fn replanned(&mut self, report: &ReplanReport) {
        self.lines.replanned(report);
    }

    fn adapting(&mut self, what: &str) {
        self.lines.adapting(what);
    }

    fn adapted(&mut self, report: &AdaptationReport) {
        self.lines.adapted(report);
    }

    fn diagnosis(&mut self, step: usize, diagnosis: &Diagnosis) {
        self.shared.edit().diagnosis = Some(diagnosis.clone());
        self.lines.diagnosis(step, diagnosis);
    }

    fn finding(&mut self, step: usize, finding: &Finding) {
        self.lines.finding(step, finding);
    }

    fn resumed(&mut self, step: usize, checkpoint: &Path, history: &[Report]) {
        self.shared.edit().replay(history);
        self.lines.resumed(step, checkpoint, history);
    }

    fn stopped_early(&mut self, step: usize, best_step: usize) {
        self.lines.stopped_early(step, best_step);
    }

    fn saved(&mut self, step: usize, path: &Path) {
        self.lines.saved(step, path);
    }

    fn warn(&mut self, message: &str) {
        self.lines.warn(message);
    }
}

/// What burn-train says of its progress. The numbers come with the reports, which know more of them.
struct Renderer(Shared);

impl MetricsRendererTraining for Renderer {
    fn update_train(&mut self, _: MetricState) {}
    fn update_valid(&mut self, _: MetricState) {}

    /// The summary is printed when the terminal is free again.
    fn on_train_end(
        &mut self,
        _: Option<LearnerSummary>,
    ) -> Result<(), Box<dyn core::error::Error>> {
        Ok(())
    }
}

impl MetricsRendererEvaluation for Renderer {
    fn update_test(&mut self, _: EvaluationName, _: MetricState) {}
}

impl TrainingProgressLogger for Renderer {
    fn start(&mut self, _: usize, _: usize, _: Option<usize>, _: Option<&str>) {}
    fn update_epoch(&mut self, _: usize) {}

    fn start_split(&mut self, split: &str, total_items: usize) {
        if split != "train" {
            self.0.edit().phase = Phase::Evaluating(0, total_items);
        }
    }

    fn update_split(&mut self, items_processed: usize) {
        let mut state = self.0.edit();
        if let Phase::Evaluating(done, _) = &mut state.phase {
            *done = items_processed;
        }
    }

    fn end_split(&mut self) {
        let mut state = self.0.edit();
        if matches!(state.phase, Phase::Evaluating(..)) {
            state.phase = Phase::Training;
        }
    }

    fn end(&mut self) {}
    fn log_event_training(&mut self, _: String) {}
}

impl EvaluationProgressLogger for Renderer {
    fn start_global_progress(&mut self, _: usize) {}
    fn start_test(&mut self, _: &str, _: usize) {}
    fn update_test_progress(&mut self, _: usize) {}
    fn end_test(&mut self) {}
    fn end_global_progress(&mut self) {}
    fn log_event_evaluation(&mut self, _: String) {}
}

impl MetricsRenderer for Renderer {
    fn manual_close(&mut self) {}
    fn register_metric(&mut self, _: MetricDefinition) {}
}

#[cfg(test)]
mod tests;
