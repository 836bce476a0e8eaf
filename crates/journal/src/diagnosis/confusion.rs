//! How often a diagnosis is right, class by class.

use std::fmt;

use super::corpus::{Corpus, Specimen};
use super::{Class, diagnose};

const CLASSES: usize = Class::ALL.len();

/// Counts of what curves are against what they were taken for.
///
/// `Display` writes Markdown: a table with a line for each class, with its recall and precision, and the
/// overall accuracy below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confusion {
    /// `counts[truth][verdict]`.
    counts: [[usize; CLASSES]; CLASSES],
}

impl Confusion {
    /// Diagnoses every specimen.
    pub fn of<'a>(specimens: impl IntoIterator<Item = &'a Specimen>) -> Self {
        let mut confusion = Self::default();
        for specimen in specimens {
            let verdict = diagnose(&specimen.series()).verdict;
            confusion.add(specimen.truth, verdict.class());
        }
        confusion
    }

    /// Diagnoses the curves that `seeds` make, `per_class` of every class and seed.
    pub fn on_seeds(seeds: impl IntoIterator<Item = u64>, per_class: usize) -> Self {
        let mut confusion = Self::default();
        for seed in seeds {
            confusion.merge(&Self::of(&Corpus::generate(seed, per_class).specimens));
        }
        confusion
    }

    /// The same of trials of a few steps, see [`Corpus::brief`].
    pub fn of_brief_runs(seeds: impl IntoIterator<Item = u64>, per_class: usize) -> Self {
        let mut confusion = Self::default();
        for seed in seeds {
            confusion.merge(&Self::of(&Corpus::brief(seed, per_class).specimens));
        }
        confusion
    }

    fn merge(&mut self, other: &Self) {
        let counts = self.counts.iter_mut().flatten();
        for (count, more) in counts.zip(other.counts.iter().flatten()) {
            *count += more;
        }
    }

    /// Counts one curve.
    pub fn add(&mut self, truth: Class, verdict: Class) {
        self.counts[truth.index()][verdict.index()] += 1;
    }

    /// Curves of class `truth` taken for `verdict`.
    #[must_use]
    pub const fn count(&self, truth: Class, verdict: Class) -> usize {
        self.counts[truth.index()][verdict.index()]
    }

    /// All curves.
    #[must_use]
    pub fn total(&self) -> usize {
        self.counts.iter().flatten().sum()
    }

    /// Share of all curves with the right verdict; NaN without curves.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        let right: usize = (0..CLASSES).map(|i| self.counts[i][i]).sum();
        right as f64 / self.total() as f64
    }

    /// Share of the curves of `class` that were recognised; NaN without such curves.
    #[must_use]
    pub fn recall(&self, class: Class) -> f64 {
        let i = class.index();
        self.counts[i][i] as f64 / self.counts[i].iter().sum::<usize>() as f64
    }

    /// Share of the verdicts `class` that were right; NaN if there was none.
    #[must_use]
    pub fn precision(&self, class: Class) -> f64 {
        let i = class.index();
        let given: usize = self.counts.iter().map(|row| row[i]).sum();
        self.counts[i][i] as f64 / given as f64
    }
}

impl fmt::Display for Confusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| curve ↓ verdict → |")?;
        for class in Class::ALL {
            write!(f, " {class} |")?;
        }
        writeln!(f, " recall | precision |")?;
        writeln!(f, "| --- |{}", " ---: |".repeat(CLASSES + 2))?;
        let made = |class: &Class| self.counts[class.index()].iter().any(|count| *count > 0);
        for truth in Class::ALL.into_iter().filter(made) {
            write!(f, "| {truth} |")?;
            for verdict in Class::ALL {
                match self.count(truth, verdict) {
                    0 => write!(f, " · |")?,
                    count => write!(f, " {count} |")?,
                }
            }
            let (recall, precision) = (self.recall(truth), self.precision(truth));
            writeln!(f, " {} | {} |", Percent(recall), Percent(precision))?;
        }
        let accuracy = Percent(self.accuracy());
        write!(f, "\n{} curves, accuracy {accuracy}", self.total())
    }
}

struct Percent(f64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_nan() {
            write!(f, "–")
        } else {
            write!(f, "{:.1} %", 100.0 * self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_table() {
        let mut confusion = Confusion::default();
        for (verdict, count) in [(Class::Healthy, 3), (Class::Stuck, 1)] {
            for _ in 0..count {
                confusion.add(Class::Healthy, verdict);
            }
        }
        confusion.add(Class::Stuck, Class::Stuck);
        assert_eq!(confusion.total(), 5);
        assert_eq!(confusion.accuracy(), 0.8);
        assert_eq!(confusion.recall(Class::Healthy), 0.75);
        assert_eq!(confusion.precision(Class::Stuck), 0.5);
        assert!(confusion.recall(Class::Diverged).is_nan());
        let text = confusion.to_string();
        let line = "| healthy | · | 3 | · | · | · | 1 | · | · | · | 75.0 % | 100.0 % |";
        assert!(text.contains(line), "{text}");
        assert!(text.ends_with("5 curves, accuracy 80.0 %"), "{text}");
        assert!(text.lines().take(4).all(|l| l.matches('|').count() == 13));
    }
}
