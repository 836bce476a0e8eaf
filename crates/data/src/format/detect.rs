//! The format of a source, judged by its first rows.

use serde_json::{Map, Value};

use super::suggest::suggest;
use super::{Format, field_map};
use crate::error::DataError;
use crate::source::{DecompressLimits, RowReader, Source};

/// Rows that are looked at.
pub const ROWS: usize = 64;

/// What a source looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detected {
    /// Its format.
    pub format: Format,
    /// Rows that say so.
    pub rows: usize,
}

impl std::fmt::Display for Detected {
    /// `format "alpaca" (all of the first 64 rows have instruction and output)`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fields = match self.format {
            Format::Alpaca => "instruction and output",
            Format::Messages => "messages",
            Format::Sharegpt => "conversations",
            Format::PromptCompletion => "prompt and completion",
            Format::Text => "text",
            Format::Preference => "chosen and rejected",
            Format::Unpaired => "prompt, completion and label",
        };
        let Self { format, rows } = self;
        match rows {
            1 => write!(f, "format \"{format}\" (the first row has {fields})"),
            _ => write!(
                f,
                "format \"{format}\" (the first {rows} rows have {fields})"
            ),
        }
    }
}

/// Judges a source by its first [`ROWS`] rows: all must fit one format and no other.
///
/// Up to `skip` of them may be broken, fit none or another than those before, and are passed over. `names` are pairs of a
/// format's name for a field and the file's, as [`FieldMap`](super::FieldMap) has them.
///
/// # Errors
/// [`DataError::Detect`] with what is unclear, [`DataError::NoRows`], [`DataError::TooManyBadRows`],
/// and errors of reading.
pub fn detect(source: &Source, names: &[(&str, &str)], skip: usize) -> Result<Detected, DataError> {
    let mut bad = 0;
    let mut reader = RowReader::new(&source.files, DecompressLimits::default());
    let mut detected: Option<Detected> = None;
    while detected.is_none_or(|detected| detected.rows < ROWS) {
        let Some(row) = reader.next() else { break };
        let read = row.and_then(|row| {
            let (path, line) = (source.files[row.file].path.clone(), row.line);
            let value = row.body.into_value(&path, line)?;
            Ok((path, line, judge(value, names)))
        });
        let (path, line, judged) = match read {
            Err(error) if error.is_about_a_row() && bad < skip => {
                bad += 1;
                continue;
            }
            Err(error) => return Err(error.beyond(skip)),
            Ok(read) => read,
        };
        let format = match judged {
            Ok(format) => format,
            Err(Unclear::None(_)) if bad < skip => {
                bad += 1;
                continue;
            }
            Err(Unclear::None(mut problem)) => {
                // The key may be among what is not read.
                for note in reader.notes() {
                    problem.push_str("; ");
                    problem.push_str(note);
                }
                return Err(unclear(path, line, problem).beyond(skip));
            }
            Err(Unclear::Several(problem)) => return Err(unclear(path, line, problem)),
        };
        match &mut detected {
            None => detected = Some(Detected { format, rows: 1 }),
            Some(before) if before.format == format => before.rows += 1,
            Some(_) if bad < skip => bad += 1,
            Some(before) => {
                let problem = format!(
                    "the rows before it look like \"{}\", this one like \"{format}\"",
                    before.format
                );
                return Err(unclear(path, line, problem));
            }
        }
    }
    detected.ok_or_else(|| DataError::NoRows {
        path: source.spec.clone().into(),
    })
}

/// Why a row's format is not known.
enum Unclear {
    /// It fits none.
    None(String),
    /// It fits several.
    Several(String),
}

/// The only format that a row fits.
fn judge(value: Value, names: &[(&str, &str)]) -> Result<Format, Unclear> {
    let mut row = match value {
        Value::Object(row) => row,
        other => {
            let found = super::field::describe(&other);
            let problem = format!("the row is {found}, not an object");
            return Err(Unclear::None(problem));
        }
    };
    field_map::rename(&mut row, names.iter().copied());
    let fits: Vec<Format> = Format::ALL
        .into_iter()
        .filter(|format| format.fits(&row))
        .collect();
    match fits.as_slice() {
        [format] => Ok(*format),
        [] => {
            let keys: Vec<String> = row
                .keys()
                .take(8)
                .map(|key| format!("`{}`", super::field::shorten(key)))
                .collect();
            if let Some(problem) = wrong_layout(&row) {
                return Err(Unclear::None(problem));
            }
            let keys = keys.join(", ");
            let example = suggest(&row).map_or_else(String::new, |line| {
                format!(", under [data] of a recipe: {line}")
            });
            Err(Unclear::None(format!(
                "no format has the keys {keys}; name yours in `fields`{example}"
            )))
        }
        several => {
            let names: Vec<String> = several
                .iter()
                .map(|format| format!("\"{format}\""))
                .collect();
            Err(Unclear::Several(format!(
                "its keys fit {}",
                names.join(" and ")
            )))
        }
    }
}

/// What is wrong with a row that is a part of one, or holds several.
fn wrong_layout(row: &Map<String, Value>) -> Option<String> {
    let has = |a, b| row.contains_key(a) && row.contains_key(b);
    if has("role", "content") || has("from", "value") {
        return Some(
            "the row is one message; put the messages of a chat into a list under one key, such as \
             `messages`"
                .to_owned(),
        );
    }
    let holds_rows = |value: &Value| {
        let first = value.as_array().and_then(|list| list.first());
        let first = first.and_then(Value::as_object);
        first.is_some_and(|first| Format::ALL.iter().any(|format| format.fits(first)))
    };
    let (key, _) = row.iter().find(|(_, value)| holds_rows(value))?;
    Some(format!(
        "`{}` is a list of rows; write that list to a file by itself",
        super::field::shorten(key)
    ))
}

fn unclear(path: std::path::PathBuf, line: usize, problem: String) -> DataError {
    DataError::Detect {
        path,
        line,
        problem,
        expected: Format::ALL.map(|format| format!("\"{format}\"")).join(", "),
    }
}
