//! A recipe as written: keys and values with the place where each stands, not yet judged.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::keys::{SCHEDULER, SECTIONS, SWEEP};
use crate::problem::{Place, Problem, ProblemKind};
use crate::unknown::is_section_of_others;

/// One value of a recipe.
#[derive(Debug, Clone)]
pub(crate) struct Entry<'a> {
    pub(crate) value: Spanned<DeValue<'a>>,
    /// The value as written.
    pub(crate) text: String,
    pub(crate) place: Place,
}

/// Keys that exclude each other: giving one beside the file takes the others out of it.
pub(crate) const ALTERNATIVES: [&[&str]; 2] = [
    &["train.epochs", "train.max_steps"],
    &["train.warmup_steps", "train.warmup_ratio"],
];

/// The values of a recipe by dotted key, whether the file or an override gave them.
#[derive(Debug, Clone, Default)]
pub(crate) struct RawRecipe<'a> {
    pub(crate) entries: BTreeMap<String, Entry<'a>>,
}

impl<'a> RawRecipe<'a> {
    /// Reads the TOML of a recipe. Repairs nothing: text that is not TOML gives every place where it is not.
    pub(crate) fn parse(text: &'a str) -> Result<Self, Vec<Problem>> {
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let problems = errors.iter().map(|error| syntax_problem(text, error));
            let mut problems: Vec<Problem> = problems.collect();
            problems.sort_by(|a, b| a.place.cmp(&b.place));
            return Err(problems);
        }
        let mut raw = Self::default();
        raw.flatten("", table.into_inner(), text);
        Ok(raw)
    }

    fn flatten(&mut self, prefix: &str, table: DeTable<'a>, text: &str) {
        for (key, value) in table {
            let path = join(prefix, key.get_ref());
            let (key_span, value_span) = (key.span(), value.span());
            match value.into_inner() {
                DeValue::Table(table) if is_table(&path, &table) => {
                    self.flatten(&path, table, text);
                }
                value => {
                    let entry = Entry {
                        text: text.get(value_span.clone()).unwrap_or_default().to_owned(),
                        value: Spanned::new(value_span, value),
                        place: Place::Line(line_of(text, &key_span)),
                    };
                    self.entries.insert(path, entry);
                }
            }
        }
    }

    /// Puts `section.key=value` in the place of what the file says.
    ///
    /// The value is TOML; what is not TOML is taken as a string, so that names need no quotes.
    pub(crate) fn apply_override(&mut self, text: &'a str) -> Result<(), Problem> {
        self.apply(text, Place::Override(text.to_owned()))
    }

    /// The same, of something that stands at `place`.
    pub(crate) fn apply(&mut self, text: &'a str, place: Place) -> Result<(), Problem> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => (key.trim(), value.trim()),
            _ => {
                return Err(Problem {
                    place,
                    kind: ProblemKind::Override,
                });
            }
        };
        let (parsed, written) = match DeValue::parse(value) {
            Ok(parsed) => (parsed, value.to_owned()),
            Err(_) => {
                let name = Spanned::new(0..value.len(), DeValue::String(value.into()));
                (name, format!("\"{value}\""))
            }
        };
        let span = parsed.span();
        self.forget_alternatives(key);
        match parsed.into_inner() {
            DeValue::Table(table) if is_table(key, &table) => {
                for (name, option) in table {
                    let entry = Entry {
                        text: value.get(option.span()).unwrap_or_default().to_owned(),
                        value: option,
                        place: place.clone(),
                    };
                    self.entries.insert(join(key, name.get_ref()), entry);
                }
            }
            parsed => {
                let entry = Entry {
                    value: Spanned::new(span, parsed),
                    text: written,
                    place,
                };
                self.entries.insert(key.to_owned(), entry);
            }
        }
        Ok(())
    }

    /// Takes `[sweep]` out, its keys without the section's name; a value in its place has the name `""`.
    pub(crate) fn take_sweep(&mut self) -> BTreeMap<String, Entry<'a>> {
        let entries = std::mem::take(&mut self.entries).into_iter();
        let (swept, rest): (Vec<_>, Vec<_>) =
            entries.partition(|(path, _)| in_sweep(path).is_some());
        self.entries = rest.into_iter().collect();
        let named = swept.into_iter();
        named
            .map(|(path, entry)| (in_sweep(&path).unwrap_or_default().to_owned(), entry))
            .collect()
    }

    fn forget_alternatives(&mut self, key: &str) {
        let from_file = |entry: &Entry<'_>| matches!(entry.place, Place::Line(_));
        for group in ALTERNATIVES.iter().filter(|group| group.contains(&key)) {
            self.entries
                .retain(|path, entry| !group.contains(&path.as_str()) || !from_file(entry));
        }
        if key == SCHEDULER {
            self.entries.retain(|path, _| !path.starts_with(SCHEDULER));
        }
    }
}

/// Whether a table is read key by key.
fn is_table(path: &str, table: &DeTable<'_>) -> bool {
    let names = table.keys().map(|name| name.get_ref().as_ref());
    let is_section = |path: &str| SECTIONS.contains(&path);
    is_section(path)
        || path == SCHEDULER
        || in_sweep(path).is_some_and(|path| path.is_empty() || is_section(path))
        || is_section_of_others(path, names)
}

/// The name of a key within `[sweep]`; `""` for the section itself.
fn in_sweep(path: &str) -> Option<&str> {
    match path.strip_prefix(SWEEP)? {
        "" => Some(""),
        rest => rest.strip_prefix('.'),
    }
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}.{name}")
    }
}

fn line_of(text: &str, span: &Range<usize>) -> usize {
    let before = text.as_bytes().get(..span.start).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

fn syntax_problem(text: &str, error: &toml::de::Error) -> Problem {
    let place = error
        .span()
        .map_or(Place::Recipe, |span| Place::Line(line_of(text, &span)));
    let mut message = error.message().to_owned();
    // A path of Windows', most likely.
    let line = |place: &Place| match place {
        Place::Line(line) => text.lines().nth(line.saturating_sub(1)),
        Place::Override(_) | Place::Recipe => None,
    };
    if line(&place).is_some_and(|line| line.contains('"') && line.contains('\\')) {
        message.push_str(
            "; in double quotes a backslash begins an escape: write a path with /, or between single quotes",
        );
    }
    Problem {
        place,
        kind: ProblemKind::Syntax { message },
    }
}
