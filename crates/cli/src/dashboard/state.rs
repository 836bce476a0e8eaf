//! Everything the dashboard shows, as plain data: what is drawn is a function of this and nothing else.

use std::collections::VecDeque;

use backdraft_journal::diagnosis::Diagnosis;
use backdraft_journal::records::Report;
use backdraft_journal::report::{
    AnswersReport, Estimate, EvalReport, RunInfo, SetReport, StepReport,
};
use backdraft_plan::memory::Memory;

/// Lines of the log that are kept.
const LOG_LINES: usize = 500;
/// Weight of the past in the smoothed loss.
const SMOOTHING: f64 = 0.9;

/// A part of the dashboard that fills its middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    /// Train and eval loss, with the numbers of the last step.
    Loss,
    /// Rewards, margin and accuracy of answers that are compared.
    Answers,
    /// Learning rate, gradient norm and throughput.
    Rates,
    /// Where the memory goes.
    Memory,
    /// The last lines of the log.
    Log,
}

impl View {
    /// In the order of their keys.
    pub(crate) const ALL: [Self; 4] = [Self::Loss, Self::Rates, Self::Memory, Self::Log];
    /// The same of a run that compares answers.
    pub(crate) const COMPARING: [Self; 5] = [
        Self::Loss,
        Self::Answers,
        Self::Rates,
        Self::Memory,
        Self::Log,
    ];

    /// What the user calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Answers => "answers",
            Self::Rates => "rates",
            Self::Memory => "memory",
            Self::Log => "log",
        }
    }
}

/// What the run is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Before the first step.
    Starting,
    /// Computing steps.
    Training,
    /// Computing the loss of the held-out rows: batches done, and all of them.
    Evaluating(usize, usize),
    /// Waiting for the user.
    Paused,
    /// Ending after the present step.
    Stopping,
    /// No process computes; why not.
    Over(&'static str),
}

/// What the user may do from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hands {
    /// Everything: it is this process's run.
    Own,
    /// Look: the run goes on elsewhere, or no more.
    Watching,
}

/// A step as it is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    pub(crate) step: usize,
    pub(crate) loss: f64,
    /// The loss without its noise.
    pub(crate) smoothed: f64,
    pub(crate) learning_rate: f64,
    pub(crate) grad_norm: f64,
    pub(crate) tokens_per_second: f64,
    pub(crate) answers: Option<AnswersReport>,
}

impl Point {
    /// A number of its answers; NaN where there is none.
    pub(crate) fn of_answers(&self, number: fn(&AnswersReport) -> Option<Estimate>) -> f64 {
        let found = self.answers.as_ref().and_then(number);
        found.map_or(f64::NAN, |found| found.mean)
    }
}

/// What is shown.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) model: String,
    pub(crate) output: String,
    pub(crate) device: String,
    pub(crate) total_steps: usize,
    pub(crate) steps_per_epoch: usize,
    /// Predicted, by kind.
    pub(crate) memory: Memory,
    /// Measured, of this process; `None` where nobody knows.
    pub(crate) resident: Option<usize>,
    pub(crate) points: Vec<Point>,
    pub(crate) eval: Vec<(usize, f64)>,
    pub(crate) best: Option<(usize, f64)>,
    /// Further sets of rows held out, as of the last evaluation.
    pub(crate) sets: Vec<SetReport>,
    /// Seconds since the run began.
    pub(crate) elapsed: f64,
    /// Seconds that a step takes, over the last ones.
    pub(crate) step_seconds: f64,
    pub(crate) phase: Phase,
    pub(crate) diagnosis: Option<Diagnosis>,
    pub(crate) log: VecDeque<String>,
    /// Lines at the end of the log that are scrolled away; 0 follows it.
    pub(crate) scroll: usize,
    /// Lines that a page key scrolls by.
    pub(crate) page: usize,
    pub(crate) view: View,
    pub(crate) hands: Hands,
    /// Sum of weights of the smoothed loss so far, which starts with no past.
    weight: f64,
    sum: f64,
}

impl State {
    pub(crate) fn new(output: String, hands: Hands) -> Self {
        Self {
            model: String::new(),
            output,
            device: String::new(),
            total_steps: 0,
            steps_per_epoch: 1,
            memory: Memory::default(),
            resident: None,
            points: Vec::new(),
            eval: Vec::new(),
            best: None,
            sets: Vec::new(),
            elapsed: 0.0,
            step_seconds: 0.0,
            phase: Phase::Starting,
            diagnosis: None,
            log: VecDeque::new(),
            scroll: 0,
            page: 1,
            view: View::Loss,
            hands,
            weight: 0.0,
            sum: 0.0,
        }
    }

    pub(crate) fn start(&mut self, info: &RunInfo) {
        self.model.clone_from(&info.model);
        self.device.clone_from(&info.device);
        self.total_steps = info.total_steps;
        self.steps_per_epoch = info.steps_per_epoch.max(1);
        self.memory = info.memory;
    }

    pub(crate) fn step(&mut self, report: &StepReport) {
        if report.loss.is_finite() {
            self.sum = SMOOTHING * self.sum + (1.0 - SMOOTHING) * report.loss;
            self.weight = SMOOTHING * self.weight + (1.0 - SMOOTHING);
        }
        self.points.push(Point {
            step: report.step,
            loss: report.loss,
            smoothed: self.sum / self.weight.max(f64::MIN_POSITIVE),
            learning_rate: report.learning_rate,
            grad_norm: report.grad_norm,
            tokens_per_second: report.tokens as f64 / report.seconds.max(1e-9),
            answers: report.answers,
        });
        self.elapsed = report.elapsed;
        self.step_seconds = match self.points.len() {
            1 => report.seconds,
            _ => 0.9 * self.step_seconds + 0.1 * report.seconds,
        };
        if !matches!(self.phase, Phase::Stopping | Phase::Paused) {
            self.phase = Phase::Training;
        }
    }

    pub(crate) fn eval(&mut self, report: &EvalReport) {
        self.eval.push((report.step, report.eval_loss));
        if report.best {
            self.best = Some((report.step, report.eval_loss));
        }
        self.sets.clone_from(&report.sets);
    }

    /// Takes in what came before.
    pub(crate) fn replay(&mut self, history: &[Report]) {
        for report in history {
            match report {
                Report::Step(report) => self.step(report),
                Report::Eval(report) => self.eval(report),
            }
        }
    }

    pub(crate) fn log(&mut self, text: &str) {
        for line in text.lines() {
            if self.log.len() == LOG_LINES {
                self.log.pop_front();
            }
            self.log.push_back(line.to_owned());
            // What is being read stays where it is.
            if self.scroll > 0 {
                self.scroll += 1;
            }
        }
    }

    /// Moves through the log, up where `lines` is positive.
    pub(crate) fn scroll_by(&mut self, lines: isize) {
        self.scroll = self.scroll.saturating_add_signed(lines).min(self.log.len());
    }

    /// The views that there are.
    pub(crate) fn views(&self) -> &'static [View] {
        match self.points.iter().any(|point| point.answers.is_some()) {
            true => &View::COMPARING,
            false => &View::ALL,
        }
    }

    /// Goes to the view `by` places further, round and round.
    pub(crate) fn turn(&mut self, by: usize) {
        let views = self.views();
        let at = views.iter().position(|view| *view == self.view);
        self.view = views[(at.unwrap_or(0) + by) % views.len()];
    }

    /// Steps done.
    pub(crate) fn steps(&self) -> usize {
        self.points.last().map_or(0, |point| point.step)
    }

    /// Seconds until the last step; `None` while nothing is known.
    pub(crate) fn left(&self) -> Option<f64> {
        let steps = self.total_steps.saturating_sub(self.steps());
        (!self.points.is_empty()).then_some(steps as f64 * self.step_seconds)
    }
}
