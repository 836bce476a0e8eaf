//! `pprint`: Python's `pprint.pformat`.

use crate::args::Args;
use crate::compare;
use crate::error::Result;
use crate::meter::Meter;
use crate::render::Renderer;
use crate::repr;
use crate::unicode;
use crate::value::Value;

const WIDTH: usize = 80;

pub(super) fn pprint(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    args.bind::<0>("pprint", [], 0)?;
    let mut printer = Printer {
        meter: &renderer.meter,
        out: String::new(),
    };
    printer.format(&value, 0, 0, 1)?;
    Ok(printer.out.into())
}

struct Printer<'a> {
    meter: &'a Meter,
    out: String,
}

impl Printer<'_> {
    /// Writes a value at an indent, leaving room for what closes behind it.
    fn format(
        &mut self,
        value: &Value,
        indent: usize,
        allowance: usize,
        level: usize,
    ) -> Result<()> {
        self.meter.steps(1)?;
        let text = self.one_line(value)?;
        if text.chars().count() <= WIDTH.saturating_sub(indent + allowance) {
            self.push(&text)?;
            return Ok(());
        }
        match value {
            Value::Dict(dict) if !dict.is_empty() => {
                let mut pairs: Vec<_> = dict.iter().collect();
                pairs = self.by_key(pairs)?;
                self.push("{")?;
                let last = pairs.len() - 1;
                for (index, (key, value)) in pairs.into_iter().enumerate() {
                    self.begin(index, indent + 1)?;
                    let key = self.one_line(key)?;
                    self.push(&key)?;
                    self.push(": ")?;
                    let at = indent + key.chars().count() + 3;
                    let room = if index == last { allowance + 1 } else { 1 };
                    self.format(value, at, room, level + 1)?;
                }
                self.push("}")
            }
            Value::List(items) => self.items(items, ["[", "]"], indent, allowance, level),
            Value::Tuple(items) | Value::Group(items) => {
                let close = if items.len() == 1 { ",)" } else { ")" };
                self.items(items, ["(", close], indent, allowance, level)
            }
            Value::Str(text) if !text.is_empty() => self.text(text, indent, allowance, level),
            _ => self.push(&text),
        }
    }

    fn push(&mut self, text: &str) -> Result<()> {
        self.meter.grow(self.out.len(), text.len())?;
        self.out.push_str(text);
        Ok(())
    }

    fn begin(&mut self, index: usize, indent: usize) -> Result<()> {
        if index > 0 {
            self.push(",\n")?;
            self.push(&" ".repeat(indent))?;
        }
        Ok(())
    }

    fn items(
        &mut self,
        items: &[Value],
        [open, close]: [&str; 2],
        indent: usize,
        allowance: usize,
        level: usize,
    ) -> Result<()> {
        self.push(open)?;
        for (index, item) in items.iter().enumerate() {
            self.begin(index, indent + 1)?;
            let is_last = index + 1 == items.len();
            let room = if is_last { allowance + close.len() } else { 1 };
            self.format(item, indent + 1, room, level + 1)?;
        }
        self.push(close)
    }

    /// The value on one line, dictionaries in the order of their keys.
    fn one_line(&self, value: &Value) -> Result<String> {
        self.meter.steps(1)?;
        let joined = |items: &[Value]| -> Result<String> {
            let items: Result<Vec<String>> = items.iter().map(|item| self.one_line(item)).collect();
            Ok(items?.join(", "))
        };
        let text = match value {
            Value::Dict(dict) => {
                let mut parts = Vec::new();
                for (key, value) in self.by_key(dict.iter().collect())? {
                    parts.push(format!(
                        "{}: {}",
                        self.one_line(key)?,
                        self.one_line(value)?
                    ));
                }
                format!("{{{}}}", parts.join(", "))
            }
            Value::List(items) => format!("[{}]", joined(items)?),
            Value::Tuple(items) | Value::Group(items) => match items.len() {
                1 => format!("({},)", joined(items)?),
                _ => format!("({})", joined(items)?),
            },
            other => repr::repr(other, self.meter)?,
        };
        self.meter.bytes(text.len())?;
        Ok(text)
    }

    fn by_key<'v>(
        &self,
        pairs: Vec<(&'v Value, &'v Value)>,
    ) -> Result<Vec<(&'v Value, &'v Value)>> {
        compare::sort(pairs, &mut |a, b| {
            // Keys that Python cannot compare are in the order of their types.
            compare::less(a.0, b.0, self.meter).or_else(|_| Ok(a.0.type_name() < b.0.type_name()))
        })
    }

    /// A long string as several that stand one below the other.
    fn text(&mut self, text: &str, indent: usize, allowance: usize, level: usize) -> Result<()> {
        let (indent, allowance) = match level {
            1 => (indent + 1, allowance + 1),
            _ => (indent, allowance),
        };
        let chunks = self.chunks(text, indent, allowance)?;
        if let [chunk] = chunks.as_slice() {
            return self.push(chunk);
        }
        if level == 1 {
            self.push("(")?;
        }
        for (index, chunk) in chunks.iter().enumerate() {
            if index > 0 {
                self.push("\n")?;
                self.push(&" ".repeat(indent))?;
            }
            self.push(chunk)?;
        }
        if level == 1 {
            self.push(")")?;
        }
        Ok(())
    }

    fn chunks(&self, text: &str, indent: usize, allowance: usize) -> Result<Vec<String>> {
        let lines = keep_ends(text);
        let width = WIDTH.saturating_sub(indent);
        let mut chunks = Vec::new();
        for (index, line) in lines.iter().enumerate() {
            let is_last_line = index + 1 == lines.len();
            let quoted = repr::quoted(line);
            let room = if is_last_line {
                width.saturating_sub(allowance)
            } else {
                width
            };
            if quoted.chars().count() <= room {
                chunks.push(quoted);
                continue;
            }
            let parts = words_with_space(line);
            let mut current = String::new();
            for (at, part) in parts.iter().enumerate() {
                self.meter.steps(1 + current.len() / 8)?;
                let candidate = format!("{current}{part}");
                let is_last = is_last_line && at + 1 == parts.len();
                let room = if is_last {
                    width.saturating_sub(allowance)
                } else {
                    width
                };
                if repr::quoted(&candidate).chars().count() > room {
                    if !current.is_empty() {
                        chunks.push(repr::quoted(&current));
                    }
                    current = (*part).to_owned();
                } else {
                    current = candidate;
                }
            }
            if !current.is_empty() {
                chunks.push(repr::quoted(&current));
            }
        }
        Ok(chunks)
    }
}

fn keep_ends(text: &str) -> Vec<&str> {
    text.split_inclusive(unicode::is_line_end).collect()
}

/// Words with the white space behind them.
fn words_with_space(line: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = line;
    while !rest.is_empty() {
        let word = rest.find(unicode::is_space).unwrap_or(rest.len());
        let space = rest[word..].find(|c| !unicode::is_space(c));
        let end = space.map_or(rest.len(), |space| word + space);
        words.push(&rest[..end]);
        rest = &rest[end..];
    }
    words
}
