//! A diagnosis kept up to date while a run goes on.

use super::{Diagnosis, EvalPoint, Series, TrainPoint, diagnose};

/// Takes in one point after the other and says what they mean.
///
/// It looks at the curve again after an evaluation, after a loss that is no number, and else whenever
/// it has grown by a sixty-fourth: a verdict is never older than that share of the run, and the cost of a
/// point does not depend on how many there are.
#[derive(Clone, Debug)]
pub struct Monitor {
    train: Vec<TrainPoint>,
    eval: Vec<EvalPoint>,
    total_steps: usize,
    warmup_steps: usize,
    current: Diagnosis,
    looked_at: usize,
}

impl Monitor {
    /// A run of which nothing is known yet.
    #[must_use]
    pub fn new(total_steps: usize, warmup_steps: usize) -> Self {
        Self {
            train: Vec::new(),
            eval: Vec::new(),
            total_steps,
            warmup_steps,
            current: diagnose(&Series {
                train: &[],
                eval: &[],
                total_steps,
                warmup_steps,
            }),
            looked_at: 0,
        }
    }

    /// Takes in a training loss.
    pub fn train(&mut self, point: TrainPoint) -> &Diagnosis {
        self.train.push(point);
        let new = self.train.len().saturating_sub(self.looked_at);
        if !point.loss.is_finite() || 64 * new >= self.train.len() {
            self.look();
        }
        &self.current
    }

    /// Takes in an evaluation.
    pub fn eval(&mut self, point: EvalPoint) -> &Diagnosis {
        self.eval.push(point);
        self.look();
        &self.current
    }

    /// What the curve means.
    #[must_use]
    pub const fn diagnosis(&self) -> &Diagnosis {
        &self.current
    }

    /// Everything taken in so far.
    #[must_use]
    pub fn series(&self) -> Series<'_> {
        Series {
            train: &self.train,
            eval: &self.eval,
            total_steps: self.total_steps,
            warmup_steps: self.warmup_steps,
        }
    }

    /// Looks at everything again, as at the end of a run.
    pub fn look(&mut self) -> &Diagnosis {
        self.current = diagnose(&self.series());
        self.looked_at = self.train.len();
        &self.current
    }
}
