//! Python's `str.format`, as Jinja's sandbox runs it.

use std::sync::Arc;

use super::args::Args;
use super::attribute;
use super::error::{JinjaError, Result, fail};
use super::meter::Meter;
use super::repr;
use super::spec;
use super::value::Value;

/// How deeply a specification may hold fields of its own; Python's own limit.
const MAX_DEPTH: usize = 2;

/// Counts fields without a number.
#[derive(Clone, Copy, PartialEq)]
enum Numbering {
    Unknown,
    Automatic(usize),
    Manual,
}

struct Formatter<'a> {
    args: &'a Args,
    meter: &'a Meter,
    numbering: Numbering,
}

/// `source.format(*args, **kwargs)`.
pub(super) fn format(source: &str, args: &Args, meter: &Meter) -> Result<String> {
    let mut formatter = Formatter {
        args,
        meter,
        numbering: Numbering::Unknown,
    };
    formatter.format(source, MAX_DEPTH)
}

impl Formatter<'_> {
    fn format(&mut self, source: &str, depth: usize) -> Result<String> {
        self.meter.bytes(source.len())?;
        if depth == 0 {
            fail!("Max string recursion exceeded");
        }
        let mut out = String::new();
        let mut rest = source;
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if rest.starts_with(brace) {
                out.push_str(brace);
                rest = &rest[1..];
            } else if brace == "}" {
                fail!("Single '}}' encountered in format string");
            } else if rest.is_empty() {
                fail!("Single '{{' encountered in format string");
            } else {
                let Some(end) = field_end(rest) else {
                    fail!("expected '}}' before end of string");
                };
                let text = self.field(&rest[..end], depth)?;
                self.meter.bytes(text.len())?;
                out.push_str(&text);
                rest = &rest[end + 1..];
            }
        }
        out.push_str(rest);
        Ok(out)
    }

    /// One field, without its braces.
    fn field(&mut self, field: &str, depth: usize) -> Result<String> {
        let name_end = name_end(field);
        let (name, tail) = field.split_at(name_end);
        let (conversion, spec) = match tail.strip_prefix('!') {
            Some(tail) => {
                let Some(conversion) = tail.chars().next() else {
                    fail!("end of string while looking for conversion specifier");
                };
                let after = &tail[conversion.len_utf8()..];
                match (after.strip_prefix(':'), after.is_empty()) {
                    (Some(spec), _) => (Some(conversion), spec),
                    (None, true) => (Some(conversion), ""),
                    (None, false) => fail!("expected ':' after conversion specifier"),
                }
            }
            None => (None, tail.strip_prefix(':').unwrap_or_default()),
        };
        let value = self.value(name)?;
        let value = match conversion {
            None => value,
            Some('s') => repr::text(&value, self.meter)?.into(),
            Some('r') => repr::repr(&value, self.meter)?.into(),
            Some('a') => repr::ascii(&repr::repr(&value, self.meter)?).into(),
            Some(other) => fail!("Unknown conversion specifier {other}"),
        };
        let spec = match spec.contains(['{', '}']) {
            true => self.format(spec, depth - 1)?,
            false => spec.to_owned(),
        };
        spec::format(&value, &spec, self.meter)
    }

    fn value(&mut self, name: &str) -> Result<Value> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(end);
        let mut value = self.first(first)?;
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                let (attribute, after) = after.split_at(end);
                if attribute.is_empty() {
                    fail!("Empty attribute in format string");
                }
                value = attribute::get(&value, &Arc::from(attribute))?;
                rest = after;
            } else if let Some(after) = rest.strip_prefix('[') {
                let Some(end) = after.find(']') else {
                    fail!("Missing ']' in format string");
                };
                let key = &after[..end];
                let key = match key.parse::<i128>() {
                    Ok(index) if key.bytes().all(|b| b.is_ascii_digit()) => Value::Int(index),
                    _ if key.is_empty() => fail!("Empty attribute in format string"),
                    _ => key.into(),
                };
                value = attribute::item(&value, &key)?;
                rest = &after[end + 1..];
            } else {
                fail!("Only '.' or '[' may follow ']' in format field specifier");
            }
        }
        Ok(value)
    }

    fn first(&mut self, name: &str) -> Result<Value> {
        let index = if name.is_empty() {
            let index = match self.numbering {
                Numbering::Unknown => 0,
                Numbering::Automatic(next) => next,
                Numbering::Manual => fail!(
                    "cannot switch from manual field specification to automatic field numbering"
                ),
            };
            self.numbering = Numbering::Automatic(index + 1);
            index
        } else if name.bytes().all(|b| b.is_ascii_digit()) {
            if matches!(self.numbering, Numbering::Automatic(_)) {
                fail!("cannot switch from automatic field numbering to manual field specification");
            }
            self.numbering = Numbering::Manual;
            name.parse().unwrap_or(usize::MAX)
        } else {
            let mut keywords = self.args.keywords.iter();
            return match keywords.find(|(known, _)| &**known == name) {
                Some((_, value)) => Ok(value.clone()),
                None => Err(JinjaError::runtime(repr::quoted(name))),
            };
        };
        match self.args.positional.get(index) {
            Some(value) => Ok(value.clone()),
            None => fail!("Replacement index {index} out of range for positional args tuple"),
        }
    }
}

/// Where a field ends: its specification may hold fields itself.
fn field_end(text: &str) -> Option<usize> {
    let mut depth = 1;
    let mut in_brackets = false;
    for (at, c) in text.char_indices() {
        match c {
            '[' if depth == 1 => in_brackets = true,
            ']' => in_brackets = false,
            '{' if !in_brackets => depth += 1,
            '}' if !in_brackets => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// Where a field's name ends: at its conversion or specification.
fn name_end(field: &str) -> usize {
    let mut in_brackets = false;
    for (at, c) in field.char_indices() {
        match c {
            '[' => in_brackets = true,
            ']' => in_brackets = false,
            '!' | ':' if !in_brackets => return at,
            _ => {}
        }
    }
    field.len()
}
