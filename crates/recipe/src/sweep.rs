//! `[sweep]`: values of a recipe's keys to try, and the recipes that come of them.

mod range;

use std::collections::BTreeMap;

use backdraft_arch::named;
use backdraft_data::rng::SplitMix64;
use toml::de::{DeTable, DeValue};

use crate::keys::{KEYS, SCHEDULER, SWEEP};
use crate::problem::{Place, Problem, ProblemKind};
use crate::raw::{ALTERNATIVES, Entry, RawRecipe};
use crate::reader::{Reader, Value};
use crate::unknown::{closest, nearest};
use crate::{EvalMetric, Recipe};
use range::Range;

named! {
    /// How the settings of a sweep are chosen, and how far each is trained.
    SweepMethod {
        /// Every combination of the values.
        #[default]
        Grid = "grid",
        /// Draws.
        Random = "random",
        /// Successive halving: all of them for a part of the steps, the best for the rest.
        Halving = "halving",
    }
}

impl Value for SweepMethod {
    const EXPECTED: &'static str = "a name in quotes";
    const NAMES: &'static [&'static str] = Self::NAMES;
}

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

/// Names in `[sweep]` that are settings of its own.
const OWN: [&str; 3] = ["method", "trials", "reduction_factor"];
/// A number is a setting of its own, a list or a range values to try.
const SEED: &str = "seed";
const SWEPT: &str =
    "a list of values to try, or a range such as { min = 1e-5, max = 1e-3, scale = \"log\" }";
const MOST_TRIALS: usize = 1000;
const TOO_MANY: &str = "at most 1000 trials";

/// `[sweep]` as written.
pub(crate) struct Outline {
    method: SweepMethod,
    trials: Option<usize>,
    seed: Option<u64>,
    reduction_factor: usize,
    axes: Vec<Axis>,
}

/// A key and its values.
struct Axis {
    key: String,
    place: Place,
    values: Values,
}

enum Values {
    List(Vec<String>),
    Range(Range),
}

impl Values {
    /// All of them, where they can be counted.
    fn all(&self) -> Option<Vec<String>> {
        match self {
            Self::List(values) => Some(values.clone()),
            Self::Range(range) => range.values(),
        }
    }

    /// The one that a uniform draw from `[0, 1)` stands for.
    fn draw(&self, uniform: f64) -> String {
        match self {
            Self::List(values) => values[(uniform * values.len() as f64) as usize].clone(),
            Self::Range(range) => range.draw(uniform),
        }
    }
}

/// Reads the section, whose keys have no prefix, beside the rest of the recipe.
pub(crate) fn read(
    written: BTreeMap<String, Entry<'_>>,
    rest: &RawRecipe<'_>,
    problems: &mut Vec<Problem>,
) -> Outline {
    let is_own = |name: &str, entry: &Entry<'_>| {
        let tries = matches!(entry.value.get_ref(), DeValue::Array(_) | DeValue::Table(_));
        OWN.contains(&name) || name == SEED && !tries
    };
    let mut own = RawRecipe::default();
    let mut axes = Vec::new();
    for (name, entry) in written {
        if name.is_empty() {
            let kind = ProblemKind::Section {
                key: SWEEP.to_owned(),
            };
            problems.push(Problem {
                place: entry.place,
                kind,
            });
        } else if is_own(&name, &entry) {
            own.entries.insert(format!("{SWEEP}.{name}"), entry);
        } else {
            axes.push((name, entry));
        }
    }
    // In the order of the file.
    axes.sort_by(|(_, a), (_, b)| a.place.cmp(&b.place));
    let mut reader = Reader::new(own, std::mem::take(problems));
    let axes = axes.into_iter();
    let axes: Vec<Axis> = axes
        .filter_map(|(key, entry)| axis(&mut reader, key, entry, rest))
        .collect();
    let outline = settings(&mut reader, axes);
    *problems = reader.finish();
    outline
}

/// What is set beside the axes.
fn settings(reader: &mut Reader<'_>, axes: Vec<Axis>) -> Outline {
    let before = reader.problem_count();
    let method: SweepMethod = reader.value("sweep.method");
    let knows_method = reader.problem_count() == before;
    let trials = reader
        .has("sweep.trials")
        .then(|| reader.count("sweep.trials"));
    let factor = |factor: &usize| *factor >= 2;
    let expected = "a whole number, 2 or more";
    let reduction_factor = reader.checked("sweep.reduction_factor", expected, factor);
    let seed = reader.optional("sweep.seed");
    if knows_method {
        let draws = method == SweepMethod::Random || trials.is_some();
        let only = [
            ("sweep.trials", method != SweepMethod::Grid),
            ("sweep.seed", draws),
            ("sweep.reduction_factor", method == SweepMethod::Halving),
        ];
        for (key, applies) in only {
            if reader.has(key) && !applies {
                let other = format!("sweep.method = \"{method}\"");
                reader.conflict(key, other, "take one of the two out");
            }
        }
        if method == SweepMethod::Random && trials.is_none() {
            reader.missing("sweep.trials");
        }
        for axis in axes.iter().filter(|_| !draws) {
            if axis.values.all().is_none() {
                let kind = ProblemKind::Missing {
                    key: format!("{SWEEP}.{}.steps", axis.key),
                    meaning: "How many values of the range there are; only draws (sweep.trials) go without.",
                    example: "5",
                };
                reader.report(axis.place.clone(), kind);
            }
        }
    }
    if axes.is_empty() && reader.problem_count() == 0 {
        let kind = ProblemKind::Missing {
            key: "sweep.train.learning_rate".to_owned(),
            meaning: "A key of the recipe with values to try, this or another one.",
            example: "[1e-4, 3e-4, 1e-3]",
        };
        reader.report(Place::Recipe, kind);
    }
    Outline {
        method,
        trials,
        seed,
        reduction_factor,
        axes,
    }
}

/// A key and its values; notes what is wrong with either.
fn axis(
    reader: &mut Reader<'_>,
    key: String,
    entry: Entry<'_>,
    rest: &RawRecipe<'_>,
) -> Option<Axis> {
    let Entry { value, text, place } = entry;
    let in_sweep = format!("{SWEEP}.{key}");
    let option = key
        .strip_prefix(SCHEDULER)
        .is_some_and(|rest| rest.starts_with('.'));
    if !option && !KEYS.iter().any(|known| known.path == key) {
        let own = closest(&key, OWN.into_iter().map(|own| (own, own.to_owned())));
        let nearest = own.or_else(|| nearest(&key));
        let nearest = nearest.map(|nearest| format!("{SWEEP}.{nearest}"));
        let kind = ProblemKind::UnknownKey {
            key: in_sweep,
            nearest,
        };
        reader.report(place, kind);
        return None;
    }
    let refused = match key.as_str() {
        "output_dir" => Some("each trial has a directory of its own; take it out"),
        "device" => Some("a sweep computes in one place; take it out"),
        "data.eval" | "train.early_stopping_metric" => {
            Some("trials are compared by it; take it out, or make a sweep of each")
        }
        key if key.starts_with("objective.") && compared_by_loss(rest) => Some(
            "losses of other objectives do not compare; name what does with train.early_stopping_metric",
        ),
        _ => None,
    };
    if let Some(instead) = refused {
        let kind = ProblemKind::Conflict {
            key: in_sweep,
            other: "other trials".to_owned(),
            instead,
        };
        reader.report(place, kind);
        return None;
    }
    let mut reject = |expected| {
        let kind = ProblemKind::Value {
            key: in_sweep.clone(),
            expected,
            actual: text.lines().next().unwrap_or_default().to_owned(),
        };
        reader.report(place.clone(), kind);
    };
    let start = value.span().start;
    let values = match value.into_inner() {
        DeValue::Array(items) => {
            let written = |span: std::ops::Range<usize>| {
                let text = text.get(span.start - start..span.end - start);
                text.unwrap_or_default().to_owned()
            };
            let mut values: Vec<String> = Vec::new();
            for item in items.iter() {
                let value = written(item.span());
                if !values.contains(&value) {
                    values.push(value);
                }
            }
            if values.is_empty() {
                reject("at least one value to try");
                return None;
            }
            Values::List(values)
        }
        DeValue::Table(table) => Values::Range(range(reader, (&in_sweep, &place), &table)?),
        _ => {
            reject(SWEPT);
            return None;
        }
    };
    Some(Axis { key, place, values })
}

/// Whether the recipe judges evaluations by what is minimised.
fn compared_by_loss(rest: &RawRecipe<'_>) -> bool {
    let metric = rest.entries.get("train.early_stopping_metric");
    metric.is_none_or(|entry| entry.value.get_ref().as_str() == Some(EvalMetric::Loss.name()))
}

/// A range; notes everything that is wrong with it.
fn range(
    reader: &mut Reader<'_>,
    (key, place): (&str, &Place),
    table: &DeTable<'_>,
) -> Option<Range> {
    const NAMES: [&str; 4] = ["min", "max", "scale", "steps"];
    let before = reader.problem_count();
    let mut wrong = |name: &str, expected, actual: &str| {
        let kind = ProblemKind::Value {
            key: format!("{key}.{name}"),
            expected,
            actual: actual.to_owned(),
        };
        reader.report(place.clone(), kind);
    };
    let number = |value: &DeValue<'_>| -> Option<f64> {
        match value {
            DeValue::Integer(number) => {
                Some(i64::from_str_radix(number.as_str(), number.radix()).ok()? as f64)
            }
            DeValue::Float(number) => number.as_str().parse().ok(),
            _ => None,
        }
        .filter(|number: &f64| number.is_finite())
    };
    let (mut ends, mut log, mut steps) = ([None; 2], false, None);
    let mut whole = true;
    let mut unknown = Vec::new();
    for (name, value) in table {
        let (name, value) = (name.get_ref().as_ref(), value.get_ref());
        match name {
            "min" | "max" => {
                let end = number(value);
                whole &= matches!(value, DeValue::Integer(_));
                if end.is_none() {
                    wrong(name, "a number", "this");
                }
                ends[usize::from(name == "max")] = Some(end.unwrap_or_default());
            }
            "scale" => match value.as_str() {
                Some("linear") => log = false,
                Some("log") => log = true,
                other => wrong(
                    name,
                    "\"linear\" or \"log\"",
                    &format!("{:?}", other.unwrap_or("this")),
                ),
            },
            "steps" => match number(value) {
                Some(count)
                    if count >= 2.0 && count <= MOST_TRIALS as f64 && count.fract() == 0.0 =>
                {
                    steps = Some(count as usize);
                }
                _ => wrong(name, "a whole number from 2 to 1000", "this"),
            },
            _ => unknown.push(name.to_owned()),
        }
    }
    for name in unknown {
        let near = closest(&name, NAMES.into_iter().map(|known| (known, known)));
        let kind = ProblemKind::UnknownKey {
            key: format!("{key}.{name}"),
            nearest: near.map(|near| format!("{key}.{near}")),
        };
        reader.report(place.clone(), kind);
    }
    for (end, name) in ends.iter().zip(NAMES) {
        if end.is_none() {
            let kind = ProblemKind::Missing {
                key: format!("{key}.{name}"),
                meaning: "An end of the range.",
                example: "1e-4",
            };
            reader.report(place.clone(), kind);
        }
    }
    if reader.problem_count() > before {
        return None;
    }
    let [Some(min), Some(max)] = ends else {
        return None;
    };
    let mut reject = |expected| {
        let kind = ProblemKind::Value {
            key: key.to_owned(),
            expected,
            actual: format!("{{ min = {min:?}, max = {max:?} }}"),
        };
        reader.report(place.clone(), kind);
    };
    if min >= max {
        reject("a range whose min is below its max");
        return None;
    }
    if log && min <= 0.0 {
        reject("a range whose min is above 0, where its scale is \"log\"");
        return None;
    }
    Some(Range {
        min,
        max,
        log,
        whole,
        steps,
    })
}

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
