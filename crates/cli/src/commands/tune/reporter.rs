//! What is said while a trial or a range test goes on: little, since there are many.

use std::path::Path;

use backdraft_journal::records::Report;
use backdraft_journal::report::{EvalReport, Reporter, StepReport};
use backdraft_train::tune::StopAt;

use crate::output::Output;
use crate::reporter::eval_lines;

/// Tells of evaluations and warnings, and ends the trial where it is to be left.
pub(super) struct TrialReporter {
    pub(super) output: Output,
    /// Such as `trial 3`.
    pub(super) name: String,
    pub(super) stop: StopAt,
}

impl Reporter for TrialReporter {
    fn step(&mut self, report: &StepReport) {
        self.stop.done(report.step);
    }

    fn eval(&mut self, report: &EvalReport) {
        for line in eval_lines(report) {
            self.output.progress(format!("  {line}"));
        }
    }

    fn resumed(&mut self, step: usize, _: &Path, _: &[Report]) {
        self.output.progress(format!("  resumed at step {step}"));
    }

    fn adapting(&mut self, what: &str) {
        self.output.progress(format!("  {what}"));
    }

    fn warn(&mut self, message: &str) {
        self.output.warn(format!("{}: {message}", self.name));
    }
}

/// Tells of every tenth of a range test.
pub(super) struct RangeReporter {
    pub(super) output: Output,
    pub(super) steps: usize,
}

impl Reporter for RangeReporter {
    fn step(&mut self, report: &StepReport) {
        if report.step.is_multiple_of(self.steps.div_ceil(10)) {
            self.output.progress(format!(
                "  step {} of {}: learning rate {:.1e}, loss {:.4}",
                report.step, self.steps, report.learning_rate, report.loss
            ));
        }
    }

    fn adapting(&mut self, what: &str) {
        self.output.progress(format!("  {what}"));
    }

    fn warn(&mut self, message: &str) {
        self.output.warn(message);
    }
}
