//! `tojson`: Python's `json.dumps` without HTML escapes, as transformers sets it.

use std::fmt::Write;

use super::args::Args;
use super::compare;
use super::dict::Dict;
use super::error::{Result, fail};
use super::iterate;
use super::meter::Meter;
use super::render::Renderer;
use super::repr;
use super::value::Value;

struct Writer<'a> {
    meter: &'a Meter,
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
    out: String,
}

/// `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let bound = args.bind("tojson", names, 0)?;
    let meter = &renderer.meter;
    let indent = match bound.value(1) {
        Value::None => None,
        Value::Str(text) => Some(text.to_string()),
        other => {
            let width = super::args::integer(&other, "tojson")?.max(0);
            let width = usize::try_from(width).unwrap_or(usize::MAX);
            meter.bytes(width)?;
            Some(" ".repeat(width))
        }
    };
    let item = if indent.is_some() { "," } else { ", " };
    let (item, key) = match bound.value(2) {
        Value::None => (item.to_owned(), ": ".to_owned()),
        pair => {
            let pair = iterate::collect(&pair, meter)?;
            match pair.as_slice() {
                [Value::Str(item), Value::Str(key)] => (item.to_string(), key.to_string()),
                _ => fail!("tojson: separators must be two strings"),
            }
        }
    };
    let mut writer = Writer {
        meter,
        ascii: bound.truth_or(0, false),
        indent,
        item,
        key,
        sort_keys: bound.truth_or(3, false),
        out: String::new(),
    };
    writer.value(&value, 1)?;
    Ok(writer.out.into())
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<()> {
        self.meter.steps(1)?;
        match value {
            Value::None => self.out.push_str("null"),
            Value::Bool(flag) => self.out.push_str(if *flag { "true" } else { "false" }),
            Value::Int(number) => {
                let _ = write!(self.out, "{number}");
            }
            Value::Float(number) => self.out.push_str(&float(*number)),
            Value::Str(text) | Value::Markup(text) => self.text(text)?,
            Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
                self.out.push('[');
                for (index, item) in items.iter().enumerate() {
                    self.begin(index, depth)?;
                    self.value(item, depth + 1)?;
                }
                self.close(']', items.is_empty(), depth)?;
            }
            Value::Dict(dict) => self.dict(dict, depth)?,
            other => fail!(
                "Object of type {} is not JSON serializable",
                other.type_name()
            ),
        }
        Ok(())
    }

    fn dict(&mut self, dict: &Dict, depth: usize) -> Result<()> {
        let mut pairs: Vec<(&Value, &Value)> = dict.iter().collect();
        if self.sort_keys {
            let meter = self.meter;
            pairs = compare::sort(pairs, &mut |a, b| compare::less(a.0, b.0, meter))?;
        }
        self.out.push('{');
        for (index, (key, value)) in pairs.into_iter().enumerate() {
            self.begin(index, depth)?;
            match key {
                Value::Str(key) | Value::Markup(key) => self.text(key)?,
                Value::None => self.out.push_str("\"null\""),
                Value::Bool(flag) => {
                    let _ = write!(self.out, "\"{flag}\"");
                }
                Value::Int(number) => {
                    let _ = write!(self.out, "\"{number}\"");
                }
                Value::Float(number) => {
                    let _ = write!(self.out, "\"{}\"", float(*number));
                }
                other => fail!(
                    "keys must be str, int, float, bool or None, not {}",
                    other.type_name()
                ),
            }
            self.out.push_str(&self.key);
            self.value(value, depth + 1)?;
        }
        self.close('}', dict.is_empty(), depth)
    }

    /// What stands before an item.
    fn begin(&mut self, index: usize, depth: usize) -> Result<()> {
        if index > 0 {
            self.meter.bytes(self.item.len())?;
            self.out.push_str(&self.item);
        }
        self.line(depth)
    }

    fn close(&mut self, bracket: char, is_empty: bool, depth: usize) -> Result<()> {
        if !is_empty {
            self.line(depth - 1)?;
        }
        self.out.push(bracket);
        Ok(())
    }

    fn line(&mut self, depth: usize) -> Result<()> {
        if let Some(indent) = &self.indent {
            self.meter.bytes(indent.len().saturating_mul(depth))?;
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<()> {
        self.meter.bytes(text.len())?;
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || self.ascii && !(' '..='~').contains(&c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
        Ok(())
    }
}

fn float(number: f64) -> String {
    match number {
        number if number.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        number => repr::float(number),
    }
}
