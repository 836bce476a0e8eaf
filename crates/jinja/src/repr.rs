//! Values as text: Python's `str` and `repr`.

use std::fmt::Write;

use super::error::{Result, fail};
use super::meter::Meter;
use super::unicode;
use super::value::{Value, View};

/// How deeply a value may nest to be written: more than lists and dictionaries may, so that only
/// namespaces that hold themselves reach it.
const MAX_DEPTH: usize = 200;

/// `str(value)`.
pub(super) fn text(value: &Value, meter: &Meter) -> Result<String> {
    let mut out = String::new();
    write_text(&mut out, value, meter)?;
    Ok(out)
}

/// Appends `str(value)`.
pub(super) fn write_text(out: &mut String, value: &Value, meter: &Meter) -> Result<()> {
    match value {
        Value::Undefined(_) => Ok(()),
        Value::Str(text) | Value::Markup(text) => {
            meter.grow(out.len(), text.len())?;
            out.push_str(text);
            Ok(())
        }
        other => write_repr(out, other, meter, 0),
    }
}

/// `repr(value)`.
pub(super) fn repr(value: &Value, meter: &Meter) -> Result<String> {
    let mut out = String::new();
    write_repr(&mut out, value, meter, 0)?;
    Ok(out)
}

fn write_repr(out: &mut String, value: &Value, meter: &Meter, depth: usize) -> Result<()> {
    meter.steps(1)?;
    if depth > MAX_DEPTH {
        fail!("maximum recursion depth exceeded while getting the repr of an object");
    }
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(flag) => out.push_str(if *flag { "True" } else { "False" }),
        Value::Int(number) => {
            let _ = write!(out, "{number}");
        }
        Value::Float(number) => out.push_str(&float(*number)),
        Value::Str(text) => {
            meter.grow(out.len(), text.len())?;
            out.push_str(&quoted(text));
        }
        Value::Markup(text) => {
            meter.bytes(text.len())?;
            let _ = write!(out, "Markup({})", quoted(text));
        }
        Value::Bytes(bytes) => out.push_str(&quoted_bytes(bytes)),
        Value::List(items) => {
            out.push('[');
            write_items(out, items, meter, depth)?;
            out.push(']');
        }
        Value::Tuple(items) | Value::Group(items) => {
            out.push('(');
            write_items(out, items, meter, depth)?;
            out.push_str(if items.len() == 1 { ",)" } else { ")" });
        }
        Value::Dict(dict) => write_dict(out, dict, meter, depth)?,
        Value::View(view, dict) => {
            let (name, items): (_, Vec<Value>) = match view {
                View::Keys => ("dict_keys", dict.keys().cloned().collect()),
                View::Values => ("dict_values", dict.iter().map(|(_, v)| v.clone()).collect()),
                View::Items => ("dict_items", super::iterate::pairs(dict)?),
            };
            let _ = write!(out, "{name}([");
            write_items(out, &items, meter, depth)?;
            out.push_str("])");
        }
        Value::Range(range) => {
            let _ = write!(out, "range({}, {}", range.start, range.stop);
            match range.step {
                1 => out.push(')'),
                step => {
                    let _ = write!(out, ", {step})");
                }
            }
        }
        Value::Namespace(namespace) => {
            let dict = namespace.lock().clone();
            out.push_str("<Namespace ");
            write_dict(out, &dict, meter, depth)?;
            out.push('>');
        }
        Value::Loop(state) => {
            let _ = write!(
                out,
                "<LoopContext {}/{}>",
                state.index0() + 1,
                state.length()
            );
        }
        Value::Macro(template) => match template.name() {
            Some(name) => {
                let _ = write!(out, "<Macro {}>", quoted(name));
            }
            None => out.push_str("<Macro anonymous>"),
        },
        // Python writes an address, which no two runs share.
        Value::Iter(_)
        | Value::Function(_)
        | Value::Method(_)
        | Value::Cycler(_)
        | Value::Joiner(_) => {
            let _ = write!(out, "<{} object>", value.type_name());
        }
    }
    Ok(())
}

fn write_items(out: &mut String, items: &[Value], meter: &Meter, depth: usize) -> Result<()> {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        write_repr(out, item, meter, depth + 1)?;
    }
    Ok(())
}

fn write_dict(
    out: &mut String,
    dict: &super::dict::Dict,
    meter: &Meter,
    depth: usize,
) -> Result<()> {
    out.push('{');
    for (index, (key, value)) in dict.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        write_repr(out, key, meter, depth + 1)?;
        out.push_str(": ");
        write_repr(out, value, meter, depth + 1)?;
    }
    out.push('}');
    Ok(())
}

/// `repr` of a float: the shortest digits that read back as the same number.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    if number == 0.0 {
        return if number.is_sign_negative() {
            "-0.0"
        } else {
            "0.0"
        }
        .to_owned();
    }
    let scientific = format!("{number:e}");
    let exponent = scientific
        .rsplit_once('e')
        .and_then(|(_, exponent)| exponent.parse::<i32>().ok())
        .unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{number}");
        return if plain.contains('.') {
            plain
        } else {
            plain + ".0"
        };
    }
    let digits = scientific.split('e').next().unwrap_or_default();
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// `repr` of a string.
pub(super) fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if unicode::is_printable(c) => out.push(c),
            c => {
                let code = u32::from(c);
                let _ = match code {
                    0..=0xFF => write!(out, "\\x{code:02x}"),
                    0x100..=0xFFFF => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
    out
}

fn quoted_bytes(bytes: &[u8]) -> String {
    let quote = if bytes.contains(&b'\'') && !bytes.contains(&b'"') {
        '"'
    } else {
        '\''
    };
    let mut out = format!("b{quote}");
    for &byte in bytes {
        match byte {
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            byte if char::from(byte) == quote => {
                out.push('\\');
                out.push(quote);
            }
            0x20..=0x7E => out.push(char::from(byte)),
            byte => {
                let _ = write!(out, "\\x{byte:02x}");
            }
        }
    }
    out.push(quote);
    out
}

/// `ascii(value)` of a text that `repr` gave.
pub(super) fn ascii(repr: &str) -> String {
    let mut out = String::with_capacity(repr.len());
    for c in repr.chars() {
        let code = u32::from(c);
        let _ = match code {
            0..=0x7F => {
                out.push(c);
                Ok(())
            }
            0x80..=0xFF => write!(out, "\\x{code:02x}"),
            0x100..=0xFFFF => write!(out, "\\u{code:04x}"),
            _ => write!(out, "\\U{code:08x}"),
        };
    }
    out
}
