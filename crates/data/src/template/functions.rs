//! Functions and filters that transformers adds to Jinja.

use std::ops::Range;

use chrono::NaiveDateTime;
use chrono::format::{Item, StrftimeItems};
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, State, Value};
use serde::Serialize;
use serde_json::Value as Json;
use serde_json::ser::{Formatter, Serializer};

/// The message of `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// Adds `raise_exception`, `strftime_now` and `tojson`.
///
/// `now` is fixed when the template is compiled, so that every row of a run sees one date.
pub(super) fn add(environment: &mut Environment<'_>, now: NaiveDateTime) {
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, "raise_exception")
                .with_source(Raised(message)))
        },
    );
    environment.add_function("strftime_now", move |format: &str| strftime(now, format));
    environment.add_filter("tojson", tojson);
}

/// The variable that asks for marks around what `{% generation %}` holds.
pub(super) const MARKS: &str = "backdraft_marks";
/// Noncharacters, which no text for interchange contains.
const BEGIN: char = '\u{FDD2}';
const END: char = '\u{FDD3}';

/// Adds the filter that `{% generation %}` becomes.
pub(super) fn add_generation(environment: &mut Environment<'_>) {
    environment.add_filter(
        super::source::GENERATION_FILTER,
        |state: &State<'_, '_>, text: String| match state.lookup(MARKS) {
            Some(marks) if marks.is_true() => format!("{BEGIN}{text}{END}"),
            _ => text,
        },
    );
}

/// Takes the marks out of a text; `None` if they do not come in pairs.
pub(super) fn unmark(marked: &str) -> Option<(String, Vec<Range<usize>>)> {
    let mut text = String::with_capacity(marked.len());
    let mut spans = Vec::new();
    let mut begin = None;
    for c in marked.chars() {
        match (c, begin) {
            (BEGIN, None) => begin = Some(text.len()),
            (END, Some(start)) => {
                spans.push(start..text.len());
                begin = None;
            }
            (BEGIN | END, _) => return None,
            _ => text.push(c),
        }
    }
    begin.is_none().then_some((text, spans))
}

fn strftime(now: NaiveDateTime, format: &str) -> Result<String, Error> {
    // chrono's `Display` fails without a reason on a bad specifier: refuse it here.
    let items: Vec<Item<'_>> = StrftimeItems::new(format).collect();
    let mut text = String::new();
    let written = std::fmt::Write::write_fmt(
        &mut text,
        format_args!("{}", now.format_with_items(items.iter())),
    );
    if items.contains(&Item::Error) || written.is_err() {
        let detail = format!("strftime_now: bad format {format:?}");
        return Err(Error::new(ErrorKind::InvalidOperation, detail));
    }
    Ok(text)
}

/// `json.dumps(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let mut json: Json = serde_json::to_value(value).map_err(cannot_dump)?;
    let ascii: bool = options
        .get::<Option<bool>>("ensure_ascii")?
        .unwrap_or(false);
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<(String, String)> = separators(&options)?;
    if options.get::<Option<bool>>("sort_keys")?.unwrap_or(false) {
        json.sort_all_objects();
    }
    options.assert_all_used()?;
    let item = if indent.is_some() { "," } else { ", " };
    let (item, key) = separators.unwrap_or_else(|| (item.to_owned(), ": ".to_owned()));
    let mut text = Vec::new();
    let python = Python {
        item,
        key,
        indent: indent.map(|width| width.min(64)),
        ascii,
        depth: 0,
        empty: true,
    };
    json.serialize(&mut Serializer::with_formatter(&mut text, python))
        .map_err(cannot_dump)?;
    String::from_utf8(text)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, "tojson").with_source(error))
}

fn separators(options: &Kwargs) -> Result<Option<(String, String)>, Error> {
    let Some(value) = options
        .get::<Option<Value>>("separators")?
        .filter(|value| !value.is_none())
    else {
        return Ok(None);
    };
    let parts: Vec<String> = value.try_iter()?.map(|part| part.to_string()).collect();
    match <[String; 2]>::try_from(parts) {
        Ok([item, key]) => Ok(Some((item, key))),
        Err(_) => Err(Error::new(
            ErrorKind::InvalidOperation,
            "tojson: separators must be two strings",
        )),
    }
}

fn cannot_dump(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::BadSerialization, "tojson").with_source(error)
}

/// Python's layout of JSON.
struct Python {
    item: String,
    key: String,
    indent: Option<usize>,
    ascii: bool,
    depth: usize,
    empty: bool,
}

impl Python {
    fn open<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        bracket: &[u8],
    ) -> std::io::Result<()> {
        self.depth += 1;
        self.empty = true;
        writer.write_all(bracket)
    }

    fn close<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        bracket: &[u8],
    ) -> std::io::Result<()> {
        self.depth -= 1;
        if !self.empty {
            self.line(writer)?;
        }
        self.empty = false;
        writer.write_all(bracket)
    }

    fn begin<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.empty = false;
        self.line(writer)
    }

    fn line<W: ?Sized + std::io::Write>(&self, writer: &mut W) -> std::io::Result<()> {
        match self.indent {
            Some(width) => write!(writer, "\n{:1$}", "", width * self.depth),
            None => Ok(()),
        }
    }
}

impl Formatter for Python {
    fn begin_array<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.begin(writer, first)
    }

    fn begin_object<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.begin(writer, first)
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }

    fn write_string_fragment<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> std::io::Result<()> {
        if !self.ascii {
            return writer.write_all(fragment.as_bytes());
        }
        let mut units = [0; 2];
        for c in fragment.chars() {
            if c.is_ascii() {
                write!(writer, "{c}")?;
            } else {
                for unit in c.encode_utf16(&mut units) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}
