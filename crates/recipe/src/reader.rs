//! Takes values out of a [`RawRecipe`] one by one and notes everything that is wrong with them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use toml::de::{DeValue, ValueDeserializer};

use crate::keys;
use crate::problem::{Place, Problem, ProblemKind};
use crate::raw::{Entry, RawRecipe};
use crate::{support, unknown};

/// A type that a key of a recipe can have.
///
/// `Default` stands in for a value that was wrong, so that reading goes on and finds the next problem;
/// a recipe with a problem is never handed out.
pub(crate) trait Value: DeserializeOwned + Default {
    /// What to say that the key takes.
    const EXPECTED: &'static str;
    /// The names the key takes, where it takes names.
    const NAMES: &'static [&'static str] = &[];
}

impl Value for bool {
    const EXPECTED: &'static str = "true or false";
}

impl Value for usize {
    const EXPECTED: &'static str = "a whole number, 0 or more";
}

impl Value for u64 {
    const EXPECTED: &'static str = "a whole number, 0 or more";
}

impl Value for f64 {
    const EXPECTED: &'static str = "a number";
}

impl Value for String {
    const EXPECTED: &'static str = "a string";
}

impl Value for Vec<String> {
    const EXPECTED: &'static str = "a list of names";
}

impl Value for BTreeMap<String, String> {
    const EXPECTED: &'static str = FIELDS;
}

/// What `fields` takes.
pub(crate) const FIELDS: &str =
    "a table of the format's names and yours, such as { instruction = \"question\" }";

impl Value for Vec<f64> {
    const EXPECTED: &'static str = "a list of numbers";
}

impl Value for Vec<usize> {
    const EXPECTED: &'static str = "a list of whole numbers";
}

/// Reads keys, remembers which ones, and collects problems.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    raw: RawRecipe<'a>,
    known: BTreeSet<String>,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(raw: RawRecipe<'a>, problems: Vec<Problem>) -> Self {
        Self {
            raw,
            known: BTreeSet::new(),
            problems,
        }
    }

    /// Whether the recipe gives the key.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.raw.entries.contains_key(key)
    }

    /// Where the key stands, or the recipe as a whole.
    pub(crate) fn place(&self, key: &str) -> Place {
        self.raw
            .entries
            .get(key)
            .map_or(Place::Recipe, |entry| entry.place.clone())
    }

    /// Problems found so far.
    pub(crate) fn problem_count(&self) -> usize {
        self.problems.len()
    }

    /// Whether somebody asked for the key.
    pub(crate) fn has_read(&self, key: &str) -> bool {
        self.known.contains(key)
    }

    /// Counts keys as read whose meaning hangs on a value that was wrong.
    pub(crate) fn ignore(&mut self, keys: impl IntoIterator<Item = String>) {
        self.known.extend(keys);
    }

    pub(crate) fn report(&mut self, place: Place, kind: ProblemKind) {
        self.problems.push(Problem { place, kind });
    }

    /// Notes a problem unless the last one says the same.
    pub(crate) fn report_once(&mut self, place: Place, kind: ProblemKind) {
        if self.problems.last().is_none_or(|last| last.kind != kind) {
            self.report(place, kind);
        }
    }

    /// Notes that the value of `key` is not what it takes.
    pub(crate) fn reject(&mut self, key: &str, expected: &'static str) {
        let actual = self.written(key);
        let kind = ProblemKind::Value {
            key: key.to_owned(),
            expected,
            actual,
        };
        self.report(self.place(key), kind);
    }

    pub(crate) fn conflict(&mut self, key: &str, other: impl Into<String>, instead: &'static str) {
        let kind = ProblemKind::Conflict {
            key: key.to_owned(),
            other: other.into(),
            instead,
        };
        self.report(self.place(key), kind);
    }

    fn written(&self, key: &str) -> String {
        self.raw
            .entries
            .get(key)
            .map_or_else(String::new, |entry| shorten(&entry.text))
    }

    /// The value of a key that may be left out.
    pub(crate) fn optional<T: Value>(&mut self, key: &str) -> Option<T> {
        self.optional_as(key, T::EXPECTED)
    }

    fn optional_as<T: Value>(&mut self, key: &str, expected: &'static str) -> Option<T> {
        self.known.insert(key.to_owned());
        let entry = self.raw.entries.get(key)?.clone();
        Some(self.decode(key, entry, expected))
    }

    /// The value of a key as it was written, for those who read it themselves.
    pub(crate) fn entry(&mut self, key: &str) -> Option<Entry<'a>> {
        self.known.insert(key.to_owned());
        self.raw.entries.get(key).cloned()
    }

    /// Reads a value that belongs to `key`, and notes what is wrong with it.
    pub(crate) fn decode<T: Value>(
        &mut self,
        key: &str,
        entry: Entry<'_>,
        expected: &'static str,
    ) -> T {
        if let Some(instead) = support::refusal(key, entry.value.get_ref()) {
            let actual = shorten(&entry.text);
            let kind = ProblemKind::Unsupported {
                key: key.to_owned(),
                actual,
                instead,
            };
            self.report(entry.place, kind);
            return T::default();
        }
        let is_text = matches!(entry.value.get_ref(), DeValue::String(_));
        let Entry { value, text, place } = entry;
        T::deserialize(ValueDeserializer::from(value)).unwrap_or_else(|_| {
            let (key, actual) = (key.to_owned(), shorten(&text));
            let kind = if is_text && !T::NAMES.is_empty() {
                name_problem(key, T::NAMES, actual)
            } else {
                ProblemKind::Value {
                    key,
                    expected,
                    actual,
                }
            };
            self.report(place, kind);
            T::default()
        })
    }

    /// The value of a key, or its default from the table of keys.
    pub(crate) fn value<T: Value>(&mut self, key: &str) -> T {
        self.value_as(key, T::EXPECTED)
    }

    fn value_as<T: Value>(&mut self, key: &str, expected: &'static str) -> T {
        if let Some(value) = self.optional_as(key, expected) {
            return value;
        }
        let default = keys::find(key).and_then(|key| key.default);
        let parsed = default.and_then(|default| ValueDeserializer::parse(default).ok());
        parsed
            .and_then(|parsed| T::deserialize(parsed).ok())
            .unwrap_or_default()
    }

    /// The value of a key without which a recipe means nothing.
    pub(crate) fn required<T: Value>(&mut self, key: &str) -> T {
        self.optional(key).unwrap_or_else(|| {
            self.missing(key);
            T::default()
        })
    }

    pub(crate) fn missing(&mut self, key: &str) {
        if let Some(doc) = keys::find(key) {
            let (meaning, example) = (doc.meaning, doc.example);
            let kind = ProblemKind::Missing {
                key: key.to_owned(),
                meaning,
                example,
            };
            self.report(Place::Recipe, kind);
        }
    }

    /// The value of a key, which must satisfy `valid`.
    pub(crate) fn checked<T: Value>(
        &mut self,
        key: &str,
        expected: &'static str,
        valid: impl Fn(&T) -> bool,
    ) -> T {
        let before = self.problems.len();
        let value = self.value_as(key, expected);
        if self.problems.len() == before && !valid(&value) {
            self.reject(key, expected);
        }
        value
    }

    /// A whole number of at least one.
    pub(crate) fn count(&mut self, key: &str) -> usize {
        self.checked(key, "a whole number, 1 or more", |count: &usize| *count > 0)
    }

    /// Strings of a list, each one of `T`'s names.
    pub(crate) fn list<T: Value>(&mut self, key: &str) -> Vec<T> {
        self.list_as(key, "a list of names")
    }

    /// As [`list`](Self::list), of a key that takes `expected`.
    pub(crate) fn list_as<T: Value>(&mut self, key: &str, expected: &'static str) -> Vec<T> {
        self.known.insert(key.to_owned());
        let Some(entry) = self.raw.entries.get(key).cloned() else {
            let default = keys::find(key).and_then(|key| key.default).unwrap_or("[]");
            let parsed = ValueDeserializer::parse(default).ok();
            return parsed
                .and_then(|parsed| Vec::<T>::deserialize(parsed).ok())
                .unwrap_or_default();
        };
        if support::refusal(key, entry.value.get_ref()).is_some() {
            self.decode::<T>(key, entry, expected);
            return Vec::new();
        }
        let DeValue::Array(items) = entry.value.into_inner() else {
            self.reject(key, expected);
            return Vec::new();
        };
        let mut names = Vec::new();
        for value in items {
            let text = match value.get_ref() {
                DeValue::String(name) => format!("\"{name}\""),
                _ => entry.text.clone(),
            };
            let item = Entry {
                value,
                text,
                place: entry.place.clone(),
            };
            names.push(self.decode(key, item, expected));
        }
        names
    }

    /// Every problem found, in the order of the file, with the keys nobody read.
    pub(crate) fn finish(mut self) -> Vec<Problem> {
        let entries = std::mem::take(&mut self.raw.entries);
        for (key, entry) in entries {
            if !self.known.contains(&key) {
                let problem = unknown::problem(key, entry.value.get_ref(), &entry.text);
                self.report(entry.place, problem);
            }
        }
        self.problems.sort_by(|a, b| a.place.cmp(&b.place));
        self.problems
    }
}

/// A name that is not among `expected`.
pub(crate) fn name_problem(
    key: String,
    expected: &'static [&'static str],
    actual: String,
) -> ProblemKind {
    let names = expected.iter().map(|name| (*name, (*name).to_owned()));
    let nearest = unknown::closest(actual.trim_matches(['"', '\'']), names);
    ProblemKind::Name {
        key,
        expected,
        actual,
        nearest,
    }
}

fn shorten(text: &str) -> String {
    const LONGEST: usize = 60;
    let line = text.lines().next().unwrap_or_default();
    if line.len() == text.len() && line.chars().count() <= LONGEST {
        return text.to_owned();
    }
    line.chars().take(LONGEST).chain("…".chars()).collect()
}
