//! `[sweep]` from TOML: its own settings, and the keys with their values.

use std::collections::BTreeMap;

use backdraft_arch::named;
use toml::de::{DeTable, DeValue};

use super::range::Range;
use crate::EvalMetric;
use crate::keys::{KEYS, SCHEDULER, SWEEP};
use crate::problem::{Place, Problem, ProblemKind};
use crate::raw::{Entry, RawRecipe};
use crate::reader::{Reader, Value};
use crate::unknown::{closest, nearest};

/// Names that are settings of its own.
const OWN: [&str; 3] = ["method", "trials", "reduction_factor"];
/// A number is a setting of its own, a list or a range values to try.
const SEED: &str = "seed";
const SWEPT: &str =
    "a list of values to try, or a range such as { min = 1e-5, max = 1e-3, scale = \"log\" }";
pub(super) const MOST_TRIALS: usize = 1000;

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

/// `[sweep]` as written.
pub(crate) struct Outline {
    pub(super) method: SweepMethod,
    pub(super) trials: Option<usize>,
    pub(super) seed: Option<u64>,
    pub(super) reduction_factor: usize,
    pub(super) axes: Vec<Axis>,
}

/// A key and its values.
pub(super) struct Axis {
    pub(super) key: String,
    pub(super) place: Place,
    pub(super) values: Values,
}

/// What is tried of a key.
pub(super) enum Values {
    List(Vec<String>),
    Range(Range),
}

impl Values {
    /// All of them, where they can be counted.
    pub(super) fn all(&self) -> Option<Vec<String>> {
        match self {
            Self::List(values) => Some(values.clone()),
            Self::Range(range) => range.values(),
        }
    }

    /// The one that a uniform draw from `[0, 1)` stands for.
    pub(super) fn draw(&self, uniform: f64) -> String {
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
        "data.eval" | "train.early_stopping_metric" | "train.early_stopping_eval" => {
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
