//! A diagnosis kept up to date while a run goes on.

use super::{Class, Diagnosis, EvalPoint, Series, TrainPoint, diagnose};

/// Looks in a row that must agree before another kind of verdict is shown. Whoever looks a hundred times
/// sees by chance what is not there; a chance does not last.
const LOOKS: usize = 3;

/// Takes in one point after the other and says what they mean.
///
/// It looks at the curve after an evaluation, after a loss that is no number, and else whenever the curve
/// has grown by a sixty-fourth, so that the cost of a point does not depend on how many there are. Another
/// kind of verdict is shown once three looks in a row have come to it; a loss that is no number at once.
#[derive(Clone, Debug)]
pub struct Monitor {
    train: Vec<TrainPoint>,
    eval: Vec<EvalPoint>,
    total_steps: usize,
    warmup_steps: usize,
    stopped_early: bool,
    shown: Diagnosis,
    /// Kind of the last looks and how many there were of it in a row.
    seen: (Class, usize),
    looked_at: usize,
}

impl Monitor {
    /// A run of which nothing is known yet.
    #[must_use]
    pub fn new(total_steps: usize, warmup_steps: usize) -> Self {
        let shown = diagnose(&Series {
            train: &[],
            eval: &[],
            total_steps,
            warmup_steps,
            stopped_early: false,
        });
        Self {
            train: Vec::new(),
            eval: Vec::new(),
            total_steps,
            warmup_steps,
            stopped_early: false,
            seen: (shown.verdict.class(), 0),
            shown,
            looked_at: 0,
        }
    }

    /// Takes in a training loss.
    pub fn train(&mut self, point: TrainPoint) -> &Diagnosis {
        self.train.push(point);
        let new = self.train.len().saturating_sub(self.looked_at);
        if !point.loss.is_finite() {
            return self.conclude();
        }
        if 64 * new >= self.train.len() {
            self.look();
        }
        &self.shown
    }

    /// Takes in an evaluation.
    pub fn eval(&mut self, point: EvalPoint) -> &Diagnosis {
        self.eval.push(point);
        self.look();
        &self.shown
    }

    /// What the curve means.
    #[must_use]
    pub const fn diagnosis(&self) -> &Diagnosis {
        &self.shown
    }

    /// Everything taken in so far.
    #[must_use]
    pub fn series(&self) -> Series<'_> {
        Series {
            train: &self.train,
            eval: &self.eval,
            total_steps: self.total_steps,
            warmup_steps: self.warmup_steps,
            stopped_early: self.stopped_early,
        }
    }

    /// Takes in that evaluation ended the run, since it no longer improved.
    pub const fn stop_early(&mut self) {
        self.stopped_early = true;
    }

    /// Looks at everything and shows what it sees, as at the end of a run.
    pub fn conclude(&mut self) -> &Diagnosis {
        self.shown = diagnose(&self.series());
        self.seen = (self.shown.verdict.class(), LOOKS);
        self.looked_at = self.train.len();
        &self.shown
    }

    fn look(&mut self) {
        let diagnosis = diagnose(&self.series());
        let class = diagnosis.verdict.class();
        let before = if self.seen.0 == class { self.seen.1 } else { 0 };
        self.seen = (class, before + 1);
        self.looked_at = self.train.len();
        if class == self.shown.verdict.class() || self.seen.1 >= LOOKS {
            self.shown = diagnosis;
        }
    }
}
