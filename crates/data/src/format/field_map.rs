//! Other names for the fields of a format.

use serde_json::{Map, Value};

use super::field::FieldError;
use super::suggest::suggest_for;
use super::{Format, field};
use crate::conversation::Record;
use crate::error::DataError;

/// Which of a file's own names stands for which field of a format.
///
/// `{"instruction": "question", "output": "answer"}` reads `question` as `instruction`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldMap {
    /// Pairs of the format's name and the file's.
    pairs: Vec<(String, String)>,
}

impl FieldMap {
    /// A map for rows of `format`, from pairs of the format's name and the file's.
    ///
    /// # Errors
    /// [`DataError::Option`] for a name that the format does not have, and for one given twice.
    pub fn new<'a>(
        format: Format,
        pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, DataError> {
        let mut map = Self::default();
        for (ours, theirs) in pairs {
            let error = |expected: String, actual: String| DataError::Option {
                option: "fields",
                expected,
                actual,
            };
            if !format.fields().contains(&ours) {
                let names = format.fields().join(", ");
                return Err(error(
                    format!("names of format \"{format}\" ({names})"),
                    format!("\"{ours}\""),
                ));
            }
            let twice = |(a, b): &(String, String)| a == ours || b == theirs;
            if map.pairs.iter().any(twice) {
                return Err(error(
                    "each name once".to_owned(),
                    format!("{ours} = {theirs} beside another of these names"),
                ));
            }
            map.pairs.push((ours.to_owned(), theirs.to_owned()));
        }
        Ok(map)
    }

    /// Whether every field has the format's own name.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The pairs of the format's name and the file's.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(ours, theirs)| (&**ours, &**theirs))
    }

    /// Whether a field of the file is one that `format` reads.
    pub fn reads(&self, format: Format, name: &str) -> bool {
        let mut pairs = self.pairs();
        match pairs.find(|(_, theirs)| *theirs == name) {
            Some(_) => true,
            None => {
                let is_renamed = self.pairs().any(|(ours, _)| ours == name);
                let is_ours = format.fields().contains(&name)
                    || format == Format::Sharegpt && name == "conversation";
                is_ours && !is_renamed
            }
        }
    }

    /// Reads a row whose fields have the file's names; errors name them so too.
    ///
    /// # Errors
    /// As [`Format::read`].
    pub fn read(&self, format: Format, row: Value) -> Result<Record, FieldError> {
        if self.is_empty() {
            let unknown = unknown_keys(format, &row);
            return format.read(row).map_err(|error| match unknown {
                Some(keys) => with_suggestion(error, format, &keys),
                None => error,
            });
        }
        let Value::Object(row) = row else {
            return format.read(row);
        };
        let found = row.keys().cloned().collect::<Vec<_>>();
        let mut renamed = row;
        rename(&mut renamed, self.pairs());
        format
            .read(Value::Object(renamed))
            .map_err(|error| self.in_their_words(error, &found))
    }

    /// As [`Format::unread`], by the file's names.
    pub fn unread(&self, format: Format, row: &Value) -> Vec<String> {
        let Value::Object(row) = row else {
            return Vec::new();
        };
        if self.is_empty() {
            return format.unread(row);
        }
        let mut renamed = row.clone();
        rename(&mut renamed, self.pairs());
        let mut unread = format.unread(&renamed);
        // What has the format's name but is not meant was taken away above.
        let hidden = self.pairs().map(|(ours, _)| ours);
        let hidden = hidden.filter(|ours| row.contains_key(*ours) && !self.names(ours));
        unread.extend(hidden.map(str::to_owned));
        unread
    }

    /// Whether a name of the file stands for a field.
    fn names(&self, theirs: &str) -> bool {
        self.pairs().any(|(_, other)| other == theirs)
    }

    fn in_their_words(&self, mut error: FieldError, keys: &[String]) -> FieldError {
        let end = error.field.find(['[', '.']).unwrap_or(error.field.len());
        let pair = self
            .pairs
            .iter()
            .find(|(ours, _)| *ours == error.field[..end]);
        if let Some((_, theirs)) = pair {
            error.field.replace_range(..end, theirs);
        }
        if error.found.starts_with("no such key") && end == error.field.len() {
            let row = keys.iter().map(|key| (key.clone(), Value::Null)).collect();
            error.found = field::missing(&row);
        }
        error
    }
}

/// The keys of a row that does not fit the format.
fn unknown_keys(format: Format, row: &Value) -> Option<Vec<String>> {
    let row = row.as_object().filter(|row| !format.fits(row))?;
    Some(row.keys().cloned().collect())
}

/// Says which keys are probably meant by the one that is missing.
fn with_suggestion(mut error: FieldError, format: Format, keys: &[String]) -> FieldError {
    let keys: Vec<&str> = keys.iter().map(|key| &**key).collect();
    if error.found.starts_with("no such key")
        && let Some(line) = suggest_for(format, &keys)
    {
        error
            .found
            .push_str("; name yours under [data] of a recipe: ");
        error.found.push_str(&line);
    }
    error
}

/// Gives fields the format's names: pairs of the format's name and the file's.
pub(super) fn rename<'a>(
    row: &mut Map<String, Value>,
    pairs: impl Iterator<Item = (&'a str, &'a str)>,
) {
    let found: Vec<(&str, Option<Value>)> = pairs
        .map(|(ours, theirs)| (ours, row.shift_remove(theirs)))
        .collect();
    for (ours, value) in found {
        // What has the format's name but is not meant must not be read.
        row.shift_remove(ours);
        if let Some(value) = value {
            row.insert(ours.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::Instruction;
    use serde_json::json;

    #[test]
    fn reads_other_names_and_errs_in_them() {
        let pairs = [("instruction", "question"), ("output", "answer")];
        let map = FieldMap::new(Format::Alpaca, pairs).unwrap();
        let read = |row| map.read(Format::Alpaca, row);
        let expected = Record::Instruction(Instruction {
            instruction: "q".into(),
            output: "a".into(),
            ..Instruction::default()
        });
        assert_eq!(
            read(json!({"question": "q", "answer": "a", "output": "not meant"})).unwrap(),
            expected
        );
        assert_eq!(
            read(json!({"question": 1, "answer": "a"}))
                .unwrap_err()
                .to_string(),
            "field `question`: expected a string, found the number 1"
        );
        assert_eq!(
            read(json!({"question": "q", "output": "a"}))
                .unwrap_err()
                .to_string(),
            "field `answer`: expected a string, found no such key (the keys are `question`, `output`)"
        );
        let map = FieldMap::new(Format::Messages, [("messages", "dialog")]).unwrap();
        let row = json!({"dialog": [{"role": "x"}]});
        let error = map.read(Format::Messages, row).unwrap_err();
        assert_eq!(error.field, "dialog[0].role");
    }

    #[test]
    fn refuses_names_that_the_format_lacks() {
        let error = |pairs: &[(&str, &str)]| {
            FieldMap::new(Format::Alpaca, pairs.iter().copied())
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            error(&[("question", "q")]),
            "fields: expected names of format \"alpaca\" (instruction, output, input, system, history), found \"question\""
        );
        assert_eq!(
            error(&[("output", "a"), ("input", "a")]),
            "fields: expected each name once, found input = a beside another of these names"
        );
    }
}
