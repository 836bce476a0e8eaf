//! How often findings about answers are right, one by one: a run may have several.

use std::fmt;

use super::corpus::PairRun;
use super::{Kind, findings};

/// Runs by what they have and what was found, for each kind of finding.
///
/// `Display` writes Markdown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PairConfusion {
    /// `counts[kind][has it][was found]`.
    counts: [[[usize; 2]; 2]; Kind::ALL.len()],
}

impl PairConfusion {
    /// Looks at the runs that `seeds` make, `per_seed` of each.
    pub fn on_seeds(seeds: impl IntoIterator<Item = u64>, per_seed: usize) -> Self {
        let mut confusion = Self::default();
        for run in seeds
            .into_iter()
            .flat_map(|seed| PairRun::generate(seed, per_seed))
        {
            confusion.add(&run);
        }
        confusion
    }

    fn add(&mut self, run: &PairRun) {
        let found: Vec<Kind> = findings(&run.steps, &run.evals)
            .iter()
            .map(super::Finding::kind)
            .collect();
        for (i, kind) in Kind::ALL.iter().enumerate() {
            let cell = [&run.truth, &found].map(|kinds| usize::from(kinds.contains(kind)));
            self.counts[i][cell[0]][cell[1]] += 1;
        }
    }

    /// Runs with `kind`, or without, where it was found, or not.
    #[must_use]
    pub const fn count(&self, kind: Kind, has_it: bool, was_found: bool) -> usize {
        self.counts[kind as usize][has_it as usize][was_found as usize]
    }

    /// Share of the runs with `kind` where it was found; NaN without such runs.
    #[must_use]
    pub fn recall(&self, kind: Kind) -> f64 {
        let [missed, found] = self.counts[kind as usize][1];
        found as f64 / (missed + found) as f64
    }

    /// Share of the findings of `kind` that were right; NaN if there was none.
    #[must_use]
    pub fn precision(&self, kind: Kind) -> f64 {
        let [[_, wrong], [_, right]] = self.counts[kind as usize];
        right as f64 / (wrong + right) as f64
    }
}

impl fmt::Display for PairConfusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| finding | there, found | there, missed | not there, found | not there | recall | precision |"
        )?;
        write!(f, "| --- |{}", " ---: |".repeat(6))?;
        for kind in Kind::ALL {
            let [[calm, wrong], [missed, found]] = self.counts[kind as usize];
            write!(
                f,
                "\n| {} | {found} | {missed} | {wrong} | {calm} | {:.1} % | {:.1} % |",
                kind.name(),
                100.0 * self.recall(kind),
                100.0 * self.precision(kind)
            )?;
        }
        Ok(())
    }
}
