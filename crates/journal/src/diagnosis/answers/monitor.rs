//! Findings kept up to date while a run goes on.

use super::{AnswerPoint, Finding, Kind, findings};

/// Looks in a row that must agree before something is told, as for [`Monitor`](crate::diagnosis::Monitor).
const LOOKS: usize = 3;

/// Takes in one point after the other and says what they show that was not told before.
#[derive(Clone, Debug, Default)]
pub struct AnswerMonitor {
    steps: Vec<AnswerPoint>,
    evals: Vec<AnswerPoint>,
    told: Vec<Kind>,
    /// Looks in a row that have found each kind.
    seen: [usize; Kind::ALL.len()],
    looked_at: usize,
}

impl AnswerMonitor {
    /// Takes in the pairs of a step.
    pub fn step(&mut self, point: AnswerPoint) {
        self.steps.push(point);
    }

    /// Takes in those of an evaluation.
    pub fn eval(&mut self, point: AnswerPoint) {
        self.evals.push(point);
    }

    /// What is found and was not told yet. Looks whenever there is a sixty-fourth more, so that the cost of a step does not
    /// depend on how many there are.
    pub fn news(&mut self) -> Vec<Finding> {
        let all = self.steps.len() + self.evals.len();
        let new = all - self.looked_at;
        if new == 0 || 64 * new < all {
            return Vec::new();
        }
        self.looked_at = all;
        let found = findings(&self.steps, &self.evals);
        for (kind, seen) in Kind::ALL.iter().zip(&mut self.seen) {
            let is_there = found.iter().any(|finding| finding.kind() == *kind);
            *seen = if is_there { *seen + 1 } else { 0 };
        }
        let sure = |finding: &Finding| self.seen[finding.kind() as usize] >= LOOKS;
        let sure: Vec<Finding> = found.into_iter().filter(sure).collect();
        self.untold(sure)
    }

    /// The same at the end of a run, where one look is enough.
    pub fn conclude(&mut self) -> Vec<Finding> {
        let found = findings(&self.steps, &self.evals);
        self.untold(found)
    }

    fn untold(&mut self, found: Vec<Finding>) -> Vec<Finding> {
        let told = self.told.clone();
        let new = found.into_iter().filter(|it| !told.contains(&it.kind()));
        let new: Vec<Finding> = new.collect();
        self.told.extend(new.iter().map(Finding::kind));
        new
    }
}
