//! `[sweep]`: values of a recipe's keys to try, and the recipes that come of them.

mod outline;
mod range;

use backdraft_data::rng::SplitMix64;

use crate::Recipe;
use crate::keys::SWEEP;
use crate::problem::{Place, Problem, ProblemKind};
use crate::raw::{ALTERNATIVES, RawRecipe};
pub use outline::SweepMethod;
pub(crate) use outline::read;
use outline::{Axis, MOST_TRIALS, Outline};

/// What `tune` goes through.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    /// How the trials were chosen.
    pub method: SweepMethod,
    /// Which part of the trials goes on each time that halving looks at them, at least 2.
    pub reduction_factor: usize,
    /// The keys that it tries values of, in the order of the file.
    pub keys: Vec<String>,
    /// Its trials, at least one.
    pub trials: Vec<Trial>,
}

/// One setting of the keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// Value of each key as `--set` takes it, in the order of [`Sweep::keys`].
    pub settings: Vec<(String, String)>,
    /// The recipe with these values, as `--set` gives it.
    pub recipe: Recipe,
}

const TOO_MANY: &str = "at most 1000 trials";

impl Outline {
    /// The keys that it tries values of.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.axes.iter().map(|axis| axis.key.clone()).collect()
    }

    /// The trials over the rest of the recipe; `seed` is its own.
    pub(crate) fn expand(
        &self,
        rest: &RawRecipe<'_>,
        seed: u64,
        resolve: impl Fn(RawRecipe<'_>) -> Result<Recipe, Vec<Problem>>,
    ) -> Result<Sweep, Vec<Problem>> {
        self.check_alternatives()?;
        self.check_overrides(rest)?;
        let mut problems = Vec::new();
        let mut trials = Vec::new();
        for values in self.combinations(seed)? {
            let pairs = self.axes.iter().zip(values);
            let settings: Vec<(&Axis, String)> = pairs.collect();
            let texts = settings
                .iter()
                .map(|(axis, value)| format!("{}={value}", axis.key));
            let texts: Vec<String> = texts.collect();
            let mut raw = rest.clone();
            let mut order: Vec<usize> = (0..texts.len()).collect();
            // A schedule goes before its options.
            order.sort_by_key(|&i| &self.axes[i].key);
            for i in order {
                if let Err(problem) = raw.apply(&texts[i], self.axes[i].place.clone()) {
                    problems.push(problem);
                }
            }
            match resolve(raw) {
                Ok(recipe) => trials.push(Trial {
                    settings: settings
                        .into_iter()
                        .map(|(axis, value)| (axis.key.clone(), value))
                        .collect(),
                    recipe,
                }),
                Err(found) => problems.extend(found),
            }
        }
        if !problems.is_empty() {
            // What is wrong with a value is wrong in every trial that has it.
            let mut each: Vec<Problem> = Vec::new();
            problems.retain(|problem| {
                let new = !each.contains(problem);
                if new {
                    each.push(problem.clone());
                }
                new
            });
            problems.sort_by(|a, b| a.place.cmp(&b.place));
            return Err(problems);
        }
        Ok(Sweep {
            method: self.method,
            reduction_factor: self.reduction_factor,
            keys: self.keys(),
            trials,
        })
    }

    /// Refuses values given beside the file for what is tried.
    fn check_overrides(&self, rest: &RawRecipe<'_>) -> Result<(), Vec<Problem>> {
        let given = |axis: &&Axis| {
            let entry = rest.entries.get(&axis.key);
            entry.is_some_and(|entry| matches!(entry.place, Place::Override(_)))
        };
        let problem = |axis: &Axis| Problem {
            place: axis.place.clone(),
            kind: ProblemKind::Conflict {
                key: format!("{SWEEP}.{}", axis.key),
                other: format!("`--set {}=…`", axis.key),
                instead: "take one of the two out",
            },
        };
        let problems: Vec<Problem> = self.axes.iter().filter(given).map(problem).collect();
        match problems.is_empty() {
            true => Ok(()),
            false => Err(problems),
        }
    }

    /// Refuses two keys of which a recipe can have one.
    fn check_alternatives(&self) -> Result<(), Vec<Problem>> {
        for group in ALTERNATIVES {
            let mut both = self
                .axes
                .iter()
                .filter(|axis| group.contains(&axis.key.as_str()));
            if let (Some(one), Some(other)) = (both.next(), both.next()) {
                let kind = ProblemKind::Conflict {
                    key: format!("{SWEEP}.{}", other.key),
                    other: format!("`{SWEEP}.{}`", one.key),
                    instead: "keep the one you mean",
                };
                let place = other.place.clone();
                return Err(vec![Problem { place, kind }]);
            }
        }
        Ok(())
    }

    /// The value of each axis in each trial.
    fn combinations(&self, seed: u64) -> Result<Vec<Vec<String>>, Vec<Problem>> {
        let too_many = |count: usize| {
            let kind = ProblemKind::Value {
                key: SWEEP.to_owned(),
                expected: TOO_MANY,
                actual: count.to_string(),
            };
            let place = Place::Recipe;
            vec![Problem { place, kind }]
        };
        let all: Option<Vec<Vec<String>>> =
            self.axes.iter().map(|axis| axis.values.all()).collect();
        let count = all.as_ref().map(|all| {
            let counts = all.iter().map(Vec::len);
            counts.fold(1, usize::saturating_mul)
        });
        let Some(trials) = self.trials else {
            // Without draws every axis can be counted.
            let (all, count) = (all.unwrap_or_default(), count.unwrap_or_default());
            if count > MOST_TRIALS {
                return Err(too_many(count));
            }
            return Ok(grid(&all));
        };
        if trials > MOST_TRIALS {
            return Err(too_many(trials));
        }
        // Draws of a range may never repeat; of lists they must.
        let most = trials.min(count.unwrap_or(usize::MAX));
        let seed = self.seed.unwrap_or(seed);
        let mut drawn: Vec<Vec<String>> = Vec::new();
        let mut attempts = 0..1000 * MOST_TRIALS as u64;
        while drawn.len() < most
            && let Some(attempt) = attempts.next()
        {
            let mut random = SplitMix64::stream(seed, attempt);
            let mut uniform = || (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
            let axes = self.axes.iter();
            let values: Vec<String> = axes.map(|axis| axis.values.draw(uniform())).collect();
            if !drawn.contains(&values) {
                drawn.push(values);
            }
        }
        if drawn.len() < trials {
            let kind = ProblemKind::Value {
                key: "sweep.trials".to_owned(),
                expected: "at most as many trials as there are combinations; a grid tries them all",
                actual: format!("{trials} of {}", drawn.len()),
            };
            let place = Place::Recipe;
            return Err(vec![Problem { place, kind }]);
        }
        Ok(drawn)
    }
}

/// Every combination, the last axis changing first.
fn grid(axes: &[Vec<String>]) -> Vec<Vec<String>> {
    let mut combinations = vec![Vec::new()];
    for values in axes {
        let longer = combinations.iter().flat_map(|start: &Vec<String>| {
            values.iter().map(|value| {
                let mut next = start.clone();
                next.push(value.clone());
                next
            })
        });
        combinations = longer.collect();
    }
    combinations
}

#[cfg(test)]
mod tests;
