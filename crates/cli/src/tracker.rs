//! Tells a tracker's server of a run, on a thread of its own: the run never waits for it, and goes on without it.

mod client;
mod mlflow;
mod trackio;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use backdraft_formats::{Existing, FormatError, write_file};
use backdraft_journal::adaptation::AdaptationReport;
use backdraft_journal::diagnosis::{Diagnosis, Finding};
use backdraft_journal::records::Report;
use backdraft_journal::report::{
    EvalReport, ReplanReport, Reporter, RunInfo, RunSummary, StepReport,
};
use backdraft_journal::run_files;
use backdraft_recipe::{Recipe, TrackerKind, TrackerRecipe};
use backdraft_train::TrainError;
use serde::{Deserialize, Serialize};

use client::Failure;
use mlflow::Mlflow;
use trackio::Trackio;

/// Messages that wait for the thread, at most.
const QUEUE: usize = 1024;
/// Steps and evaluations that wait for the server, at most; the oldest give way.
const WAITING: usize = 20_000;
/// Steps and evaluations that are sent together.
const BATCH: usize = 64;
/// How often something is sent.
const INTERVAL: Duration = Duration::from_secs(2);
/// The longest pause after a server that did not answer.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long the end of a run waits for what has not been sent.
const PATIENCE: Duration = Duration::from_secs(10);

/// The numbers of a step or an evaluation.
#[derive(Clone, Debug)]
struct Numbers {
    step: usize,
    /// Milliseconds since 1970.
    at: u64,
    /// Finite ones by name.
    values: Vec<(String, f64)>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Finished,
    /// Somebody stopped it; it may be resumed.
    Stopped,
    Failed,
}

impl Ending {
    /// How a run ended that came to this.
    pub(crate) fn of<T>(result: &Result<(RunSummary, T), TrainError>) -> Self {
        match result {
            Ok((summary, _)) if summary.interrupted => Self::Stopped,
            Ok(_) => Self::Finished,
            Err(_) => Self::Failed,
        }
    }
}

enum Told {
    Begun,
    Numbers(Numbers),
    Ended(Ending),
}

/// What a server is told of the run as a whole.
#[derive(Clone, Debug)]
struct About {
    url: String,
    experiment: String,
    run_name: String,
    /// Keys of the recipe and their values.
    settings: Vec<(String, String)>,
    output_dir: PathBuf,
}

/// `tracker.json`: the run on the server, for whoever resumes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    kind: String,
    url: String,
    experiment: String,
    run_name: String,
    run_id: String,
}

impl About {
    fn of(recipe: &Recipe, tracker: &TrackerRecipe) -> Self {
        let name = recipe.output_dir.file_name();
        let name = name.map(|name| name.to_string_lossy().into_owned());
        Self {
            url: tracker.url.clone(),
            experiment: tracker.experiment.clone(),
            run_name: (tracker.run_name.clone())
                .or(name)
                .unwrap_or_else(|| "run".to_owned()),
            settings: settings(recipe),
            output_dir: recipe.output_dir.clone(),
        }
    }

    /// The run that the output directory's earlier process began at this server.
    fn known(&self, kind: TrackerKind) -> Option<Known> {
        let known: Option<Known> = run_files::read_json(&self.path()).ok()?;
        known.filter(|known| {
            known.kind == kind.name()
                && known.url == self.url
                && known.experiment == self.experiment
        })
    }

    fn note(&self, kind: TrackerKind, run_name: &str, run_id: &str) -> Result<(), FormatError> {
        let known = Known {
            kind: kind.name().to_owned(),
            url: self.url.clone(),
            experiment: self.experiment.clone(),
            run_name: run_name.to_owned(),
            run_id: run_id.to_owned(),
        };
        let path = self.path();
        let text = serde_json::to_vec_pretty(&known).map_err(FormatError::encode(&path))?;
        write_file(&path, &text, Existing::Replace)
    }

    fn path(&self) -> PathBuf {
        self.output_dir.join(run_files::TRACKER)
    }
}

/// The resolved recipe, key by key.
fn settings(recipe: &Recipe) -> Vec<(String, String)> {
    let mut settings = Vec::new();
    let Ok(table) = toml::Table::try_from(recipe) else {
        return settings;
    };
    let text = |value: &toml::Value| match value {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    for (key, value) in &table {
        match value {
            toml::Value::Table(section) => {
                let keys = section.iter();
                settings.extend(keys.map(|(name, value)| (format!("{key}.{name}"), text(value))));
            }
            value => settings.push((key.clone(), text(value))),
        }
    }
    settings
}

/// A server that takes runs. Everything may be asked again after a failure.
trait Server: Send {
    /// Begins the run, or goes on with it.
    fn open(&mut self) -> Result<(), Failure>;
    /// Sends numbers.
    fn send(&mut self, batch: &[Numbers]) -> Result<(), Failure>;
    /// Says how the run ended.
    fn close(&mut self, ending: Ending) -> Result<(), Failure>;
}

/// What the thread has to say.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    fn add(&self, note: String) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(note);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The thread that tells a server.
pub(crate) struct Tracking {
    queue: SyncSender<Told>,
    over: Receiver<()>,
    notes: Notes,
    patience: Duration,
}

impl Tracking {
    /// Starts the thread, where the recipe has a tracker.
    pub(crate) fn of(recipe: &Recipe) -> Option<Self> {
        let tracker = recipe.tracker.as_ref()?;
        let about = About::of(recipe, tracker);
        let server: Box<dyn Server> = match tracker.kind {
            TrackerKind::Mlflow => Box::new(Mlflow::new(about, |name| std::env::var(name).ok())),
            TrackerKind::Trackio => Box::new(Trackio::new(about, |name| std::env::var(name).ok())),
        };
        Some(Self::start(server, PATIENCE))
    }

    fn start(server: Box<dyn Server>, patience: Duration) -> Self {
        let (queue, told) = sync_channel(QUEUE);
        let (done, over) = sync_channel(1);
        let notes = Notes::default();
        let worker = Worker {
            server,
            notes: notes.clone(),
            waiting: VecDeque::new(),
            lost: 0,
            opened: false,
            failed: false,
            given_up: false,
            pause: INTERVAL,
        };
        thread::spawn(move || {
            worker.work(&told);
            // Nobody listens where the run has waited long enough.
            let _ = done.send(());
        });
        Self {
            queue,
            over,
            notes,
            patience,
        }
    }

    /// A reporter that tells the server too.
    pub(crate) fn beside(&self, inner: Box<dyn Reporter>) -> Box<dyn Reporter> {
        Box::new(TrackedReporter {
            inner,
            queue: self.queue.clone(),
            notes: self.notes.clone(),
            full: false,
        })
    }

    /// Says how the run ended, waits a little for what is on its way, and gives what there is to say.
    pub(crate) fn end(self, ending: Ending) -> Vec<String> {
        let until = Instant::now() + self.patience;
        let mut told = self.queue.try_send(Told::Ended(ending));
        while let Err(TrySendError::Full(message)) = told {
            if Instant::now() >= until {
                break;
            }
            thread::sleep(Duration::from_millis(20));
            told = self.queue.try_send(message);
        }
        let left = until.saturating_duration_since(Instant::now());
        let over = self.over.recv_timeout(left);
        let mut notes = self.notes.take();
        if over == Err(RecvTimeoutError::Timeout) {
            notes.push(format!(
                "the tracker did not take everything within {} s after the end of the run; metrics.jsonl has it all",
                self.patience.as_secs()
            ));
        }
        notes
    }
}

struct Worker {
    server: Box<dyn Server>,
    notes: Notes,
    waiting: VecDeque<Numbers>,
    /// Steps and evaluations that gave way.
    lost: usize,
    opened: bool,
    /// Whether it was said that the server does not answer.
    failed: bool,
    given_up: bool,
    pause: Duration,
}

impl Worker {
    fn work(mut self, told: &Receiver<Told>) {
        // A run that ends before it begins is nothing to tell of.
        if !matches!(told.recv(), Ok(Told::Begun)) {
            return;
        }
        let mut next = Instant::now();
        let mut ending = None;
        loop {
            let wait = next.saturating_duration_since(Instant::now());
            match told.recv_timeout(wait) {
                Ok(Told::Begun) => {}
                Ok(Told::Numbers(numbers)) => {
                    self.take(numbers);
                    if Instant::now() < next {
                        continue;
                    }
                }
                Ok(Told::Ended(how)) => ending = Some(how),
                Err(RecvTimeoutError::Timeout) => {}
                // Whoever ran is gone without a word.
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.given_up {
                if ending.is_some() {
                    return self.leave();
                }
                next = Instant::now() + LONGEST_PAUSE;
                continue;
            }
            match self.deliver(ending) {
                Ok(()) if ending.is_some() => return self.leave(),
                Ok(()) => {
                    self.pause = INTERVAL;
                    next = Instant::now() + INTERVAL;
                }
                Err(failure) => {
                    self.failure(&failure);
                    // At its end a run has no time for long pauses.
                    let pause = match ending {
                        Some(_) => INTERVAL / 4,
                        None => self.pause,
                    };
                    next = Instant::now() + pause;
                    self.pause = (2 * self.pause).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn take(&mut self, numbers: Numbers) {
        if self.given_up {
            self.lost += 1;
            return;
        }
        if self.waiting.len() == WAITING {
            self.waiting.pop_front();
            self.lost += 1;
        }
        self.waiting.push_back(numbers);
    }

    fn deliver(&mut self, ending: Option<Ending>) -> Result<(), Failure> {
        if !self.opened {
            self.server.open()?;
            self.opened = true;
        }
        while !self.waiting.is_empty() {
            let count = self.waiting.len().min(BATCH);
            self.server.send(&self.waiting.make_contiguous()[..count])?;
            self.waiting.drain(..count);
        }
        match ending {
            Some(ending) => self.server.close(ending),
            None => Ok(()),
        }
    }

    fn failure(&mut self, failure: &Failure) {
        if failure.is_final {
            self.given_up = true;
            self.lost += self.waiting.len();
            self.waiting.clear();
            self.notes.add(format!(
                "nothing more is sent to the tracker: {failure}; the run goes on, and metrics.jsonl has it all"
            ));
        } else if !self.failed {
            self.failed = true;
            self.notes.add(format!(
                "the tracker does not take what the run tells: {failure}; the run goes on, and it is tried again"
            ));
        }
    }

    fn leave(self) {
        if self.lost > 0 && !self.given_up {
            self.notes.add(format!(
                "{} steps and evaluations were not sent to the tracker; metrics.jsonl has them",
                self.lost
            ));
        }
    }
}

/// Tells a reporter and the thread.
struct TrackedReporter {
    inner: Box<dyn Reporter>,
    queue: SyncSender<Told>,
    notes: Notes,
    /// Whether it was said that the thread does not keep up.
    full: bool,
}

impl TrackedReporter {
    /// Never waits.
    fn send(&mut self, message: Told) {
        for note in self.notes.take() {
            self.inner.warn(&note);
        }
        let full = matches!(self.queue.try_send(message), Err(TrySendError::Full(_)));
        if full && !self.full {
            self.full = true;
            self.inner.warn(
                "the tracker is slower than the run: some steps are not sent to it; metrics.jsonl has them all",
            );
        }
    }

    fn numbers(&mut self, step: usize, mut values: Vec<(String, f64)>) {
        values.retain(|(_, value)| value.is_finite());
        self.send(Told::Numbers(Numbers {
            step,
            at: now(),
            values,
        }));
    }
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

impl Reporter for TrackedReporter {
    fn start(&mut self, info: &RunInfo) {
        self.inner.start(info);
        self.send(Told::Begun);
    }

    fn step(&mut self, report: &StepReport) {
        self.inner.step(report);
        self.numbers(report.step, report.scalars());
    }

    fn eval(&mut self, report: &EvalReport) {
        self.inner.eval(report);
        self.numbers(report.step, report.scalars());
    }

    fn diagnosis(&mut self, step: usize, diagnosis: &Diagnosis) {
        self.inner.diagnosis(step, diagnosis);
    }

    fn finding(&mut self, step: usize, finding: &Finding) {
        self.inner.finding(step, finding);
    }

    fn resumed(&mut self, step: usize, checkpoint: &Path, history: &[Report]) {
        self.inner.resumed(step, checkpoint, history);
    }

    fn stopped_early(&mut self, step: usize, best_step: usize) {
        self.inner.stopped_early(step, best_step);
    }

    fn saved(&mut self, step: usize, path: &Path) {
        self.inner.saved(step, path);
    }

    fn replanned(&mut self, report: &ReplanReport) {
        self.inner.replanned(report);
    }

    fn adapting(&mut self, what: &str) {
        self.inner.adapting(what);
    }

    fn adapted(&mut self, report: &AdaptationReport) {
        self.inner.adapted(report);
    }

    fn warn(&mut self, message: &str) {
        self.inner.warn(message);
    }
}
