//! The values of `data.train`, `data.eval` and `data.eval_sets`: where rows come from.

use std::collections::BTreeMap;

use backdraft_data::source::DataFile;
use serde::{Serialize, Serializer};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::bases::{Bases, is_hub_id};
use crate::data_format::DataFormat;
use crate::problem::{Place, ProblemKind};
use crate::raw::Entry;
use crate::reader::Reader;

/// One source of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceRecipe {
    /// A file, a folder or a glob as an absolute path, or a hub data set (`org/name[:split]`).
    pub path: String,
    /// How often an epoch visits each of its rows, above 0.
    pub weight: f64,
    /// How often the whole run visits each of its rows, in place of a weight.
    pub epochs: Option<f64>,
    /// Which part of the rows of an epoch are its rows, in place of a weight; above 0 and below 1.
    pub share: Option<f64>,
    /// Shape of its rows; `None` is `data.format`.
    pub format: Option<DataFormat>,
    /// Its names for the fields of the format; `None` is `data.fields`.
    pub fields: Option<BTreeMap<String, String>>,
}

/// A table where the source says more than its path.
impl Serialize for SourceRecipe {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Table<'a> {
            path: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            weight: Option<f64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            epochs: Option<f64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            share: Option<f64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            format: Option<DataFormat>,
            #[serde(skip_serializing_if = "Option::is_none")]
            fields: &'a Option<BTreeMap<String, String>>,
        }
        let Self {
            path,
            weight,
            epochs,
            share,
            format,
            fields,
        } = self;
        let is_plain = self.is_visited_once() && format.is_none() && fields.is_none();
        if is_plain {
            return path.serialize(serializer);
        }
        Table {
            path,
            weight: (epochs.is_none() && share.is_none()).then_some(*weight),
            epochs: *epochs,
            share: *share,
            format: *format,
            fields,
        }
        .serialize(serializer)
    }
}

/// The sources of a key, at least one.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sources(pub Vec<SourceRecipe>);

impl Serialize for Sources {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [only] => only.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

/// Rows held out.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum EvalRecipe {
    /// This share of the training rows, above 0 and below 1.
    Fraction(f64),
    /// Rows of their own.
    Sources(Sources),
}

const TRAIN: &str = "data.train";
const EVAL: &str = "data.eval";
const EXPECTED: &str = r#"a path, a hub data set (org/name:split), a table { path = "…", weight = 0.5 }, or a list of these"#;
const EVAL_EXPECTED: &str =
    "a path or a list of them as data.train does, or a share of the training rows such as 0.05";
const EVAL_SETS: &str = "data.eval_sets";
const EVAL_SETS_EXPECTED: &str = "a table of names and sources as in data.train, such as { general = \"general.jsonl\" }; a name has letters, digits, - and _, and is not eval";
const TABLE_KEYS: [&str; 6] = ["path", "weight", "epochs", "share", "format", "fields"];

pub(crate) fn train(reader: &mut Reader<'_>, bases: &Bases<'_>) -> Sources {
    match reader.entry(TRAIN) {
        Some(entry) => sources(reader, TRAIN, EXPECTED, entry, bases),
        None => {
            reader.missing(TRAIN);
            Sources::default()
        }
    }
}

pub(crate) fn eval(reader: &mut Reader<'_>, bases: &Bases<'_>) -> Option<EvalRecipe> {
    let entry = reader.entry(EVAL)?;
    if let DeValue::Float(number) = entry.value.get_ref() {
        let share = number.as_str().parse().unwrap_or(f64::NAN);
        if !(share > 0.0 && share < 1.0) {
            reader.reject(EVAL, EVAL_EXPECTED);
        }
        return Some(EvalRecipe::Fraction(share));
    }
    let sources = sources(reader, EVAL, EVAL_EXPECTED, entry, bases);
    Some(EvalRecipe::Sources(sources))
}

/// Rows held out beside those of `data.eval`, each set under its name.
pub(crate) fn eval_sets(reader: &mut Reader<'_>, bases: &Bases<'_>) -> BTreeMap<String, Sources> {
    let Some(Entry { value, place, .. }) = reader.entry(EVAL_SETS) else {
        return BTreeMap::new();
    };
    let DeValue::Table(table) = value.into_inner() else {
        reader.reject(EVAL_SETS, EVAL_SETS_EXPECTED);
        return BTreeMap::new();
    };
    if !reader.has(EVAL) {
        let instead = "name the rows that decide which step is the best one in data.eval";
        reader.conflict(EVAL_SETS, "a missing `data.eval`", instead);
    }
    let mut sets = BTreeMap::new();
    for (name, value) in table {
        let name = name.into_inner().into_owned();
        if !is_set_name(&name) {
            reader.reject(EVAL_SETS, EVAL_SETS_EXPECTED);
            continue;
        }
        let key = format!("{EVAL_SETS}.{name}");
        let entry = Entry {
            text: String::new(),
            value,
            place: place.clone(),
        };
        sets.insert(name, sources(reader, &key, EXPECTED, entry, bases));
    }
    sets
}

/// Whether a set can be told from others by this name, wherever it is told.
fn is_set_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    !name.is_empty() && name != "eval" && name.len() <= 64 && name.chars().all(fits)
}

fn sources(
    reader: &mut Reader<'_>,
    key: &str,
    expected: &'static str,
    entry: Entry<'_>,
    bases: &Bases<'_>,
) -> Sources {
    let Entry { value, place, .. } = entry;
    let items = match value.into_inner() {
        DeValue::Array(items) if !items.is_empty() => {
            items.into_iter().map(Spanned::into_inner).collect()
        }
        other => vec![other],
    };
    let mut sources = Vec::new();
    for item in items {
        let source = match item {
            DeValue::String(path) if !path.is_empty() => plain(&path, &place, bases),
            DeValue::Table(item) => table(reader, key, item, &place, bases),
            _ => {
                reader.reject(key, expected);
                continue;
            }
        };
        sources.push(source);
    }
    Sources(sources)
}

fn plain(path: &str, place: &Place, bases: &Bases<'_>) -> SourceRecipe {
    SourceRecipe {
        path: locate(path, place, bases),
        weight: 1.0,
        epochs: None,
        share: None,
        format: None,
        fields: None,
    }
}

fn table(
    reader: &mut Reader<'_>,
    key: &str,
    table: DeTable<'_>,
    place: &Place,
    bases: &Bases<'_>,
) -> SourceRecipe {
    let mut source = plain("", place, bases);
    let mut path = None;
    for (name, value) in table {
        let name = name.into_inner().into_owned();
        let text = match value.get_ref() {
            DeValue::String(text) => format!("\"{text}\""),
            DeValue::Integer(number) => number.as_str().to_owned(),
            DeValue::Float(number) => number.as_str().to_owned(),
            _ => "this".to_owned(),
        };
        let entry = Entry {
            value,
            text,
            place: place.clone(),
        };
        let full = format!("{key}.{name}");
        match name.as_str() {
            "path" => path = Some(reader.decode::<String>(&full, entry, "a path")),
            "weight" => source.weight = number(reader, &full, entry, VISITS),
            "epochs" => source.epochs = Some(number(reader, &full, entry, VISITS)),
            "share" => source.share = Some(number(reader, &full, entry, SHARE)),
            "format" => source.format = Some(reader.decode(&full, entry, "a name in quotes")),
            "fields" => source.fields = Some(reader.decode(&full, entry, crate::reader::FIELDS)),
            _ => {
                let names = TABLE_KEYS.iter().map(|known| (*known, *known));
                let nearest =
                    crate::unknown::closest(&name, names).map(|near| format!("{key}.{near}"));
                let kind = ProblemKind::UnknownKey { key: full, nearest };
                reader.report(place.clone(), kind);
            }
        }
    }
    match path.filter(|path| !path.is_empty()) {
        Some(path) => source.path = locate(&path, place, bases),
        None => {
            let kind = ProblemKind::Missing {
                key: format!("{key}.path"),
                meaning: "A file, a folder, a glob or a hub data set.",
                example: r#""train.jsonl""#,
            };
            reader.report_once(place.clone(), kind);
        }
    }
    source
}

/// What a number of a source has to be: in words, and up to which.
type Range = (&'static str, f64);

const VISITS: Range = ("a number above 0, at most 1000", 1000.0);
const SHARE: Range = ("a number above 0, below 1", 1.0 - f64::EPSILON);

fn number(reader: &mut Reader<'_>, key: &str, entry: Entry<'_>, (expected, most): Range) -> f64 {
    let (text, place) = (entry.text.clone(), entry.place.clone());
    let value = reader.decode(key, entry, expected);
    if !(value > 0.0 && value <= most) {
        let kind = ProblemKind::Value {
            key: key.to_owned(),
            expected,
            actual: text,
        };
        reader.report_once(place, kind);
    }
    value
}

/// A path becomes absolute, a hub data set stays as it is.
fn locate(spec: &str, place: &Place, bases: &Bases<'_>) -> String {
    let path = bases.of(place).join(spec);
    let (repository, _) = spec.split_once(':').unwrap_or((spec, ""));
    let is_path = path.exists()
        || spec.starts_with(['.', '/'])
        || spec.contains(['*', '?', '['])
        || DataFile::by_name(path.as_path()).is_some();
    match path.to_str() {
        _ if !is_path && is_hub_id(repository) => spec.to_owned(),
        Some(path) => path.to_owned(),
        None => spec.to_owned(),
    }
}

impl SourceRecipe {
    /// Whether an epoch visits each row once, as far as the source says.
    #[must_use]
    pub fn is_visited_once(&self) -> bool {
        self.weight == 1.0 && self.epochs.is_none() && self.share.is_none()
    }

    /// Whether the source is a hub data set.
    #[must_use]
    pub fn is_hub(&self) -> bool {
        !std::path::Path::new(&self.path).is_absolute()
    }
}
