//! Python's `format % values`.

use super::dict::Dict;
use super::error::{Result, fail};
use super::html;
use super::meter::Meter;
use super::repr;
use super::spec;
use super::value::Value;

#[derive(Default)]
struct Conversion {
    left: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
}

/// Where the values come from.
struct Values<'a> {
    positional: Vec<&'a Value>,
    next: usize,
    mapping: Option<&'a Dict>,
    /// Whether values may be left over.
    lenient: bool,
}

impl<'a> Values<'a> {
    fn of(value: &'a Value) -> Self {
        let (positional, mapping) = match value {
            Value::Tuple(items) | Value::Group(items) => (items.iter().collect(), None),
            Value::Dict(dict) => (vec![value], Some(&**dict)),
            _ => (vec![value], None),
        };
        let subscripted = matches!(
            value,
            Value::List(_) | Value::Range(_) | Value::Undefined(_)
        );
        Self {
            positional,
            next: 0,
            lenient: mapping.is_some() || subscripted,
            mapping,
        }
    }

    fn next(&mut self) -> Result<&'a Value> {
        let Some(value) = self.positional.get(self.next) else {
            fail!("not enough arguments for format string");
        };
        self.next += 1;
        Ok(value)
    }
}

/// `format % values`.
pub(super) fn format(format: &Value, values: &Value, meter: &Meter) -> Result<Value> {
    let escapes = matches!(format, Value::Markup(_));
    let source = format.as_str().unwrap_or_default();
    meter.bytes(source.len())?;
    let mut values = Values::of(values);
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        conversion(&mut out, &mut rest, &mut values, escapes, meter)?;
    }
    out.push_str(rest);
    if values.next < values.positional.len() && !values.lenient {
        fail!("not all arguments converted during string formatting");
    }
    Ok(match escapes {
        true => Value::Markup(out.into()),
        false => out.into(),
    })
}

/// One conversion, behind its `%`.
fn conversion(
    out: &mut String,
    rest: &mut &str,
    values: &mut Values<'_>,
    escapes: bool,
    meter: &Meter,
) -> Result<()> {
    if let Some(after) = rest.strip_prefix('%') {
        out.push('%');
        *rest = after;
        return Ok(());
    }
    let mut named = None;
    if let Some(inner) = rest.strip_prefix('(') {
        let Some(mapping) = values.mapping else {
            fail!("format requires a mapping");
        };
        let Some(end) = closing(inner) else {
            fail!("incomplete format key");
        };
        let key = &inner[..end];
        *rest = &inner[end + 1..];
        match mapping.get_str(key) {
            Some(value) => named = Some(value),
            None => fail!("{}", repr::quoted(key)),
        }
    }
    let mut spec = Conversion::default();
    flags(&mut spec, rest);
    spec.width = match number(rest, values, named.is_some())? {
        Some(width) => {
            spec.left |= width < 0;
            usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX)
        }
        None => 0,
    };
    if let Some(after) = rest.strip_prefix('.') {
        *rest = after;
        let precision = number(rest, values, named.is_some())?.unwrap_or(0).max(0);
        spec.precision = Some(usize::try_from(precision).unwrap_or(usize::MAX));
    }
    *rest = rest.trim_start_matches(['h', 'l', 'L']);
    let Some(kind) = rest.chars().next() else {
        fail!("incomplete format");
    };
    *rest = &rest[kind.len_utf8()..];
    meter.bytes(spec.width.saturating_mul(2))?;
    let value = match named {
        Some(value) => value,
        None => values.next()?,
    };
    write(out, kind, value, &spec, escapes, meter)
}

/// The place of the parenthesis that closes the one before a text.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 1;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

fn flags(spec: &mut Conversion, rest: &mut &str) {
    while let Some(flag) = rest.chars().next() {
        match flag {
            '-' => spec.left = true,
            '+' => spec.plus = true,
            ' ' => spec.space = true,
            '#' => spec.alternate = true,
            '0' => spec.zero = true,
            _ => break,
        }
        *rest = &rest[1..];
    }
}

/// A width or precision: digits, or `*` for the next value.
fn number(rest: &mut &str, values: &mut Values<'_>, named: bool) -> Result<Option<i128>> {
    if let Some(after) = rest.strip_prefix('*') {
        *rest = after;
        if named {
            fail!("* wants int");
        }
        return match values.next()?.as_index() {
            Some(number) => Ok(Some(number)),
            None => fail!("* wants int"),
        };
    }
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let (digits, after) = rest.split_at(end);
    *rest = after;
    if digits.is_empty() {
        return Ok(None);
    }
    Ok(Some(digits.parse().unwrap_or(i128::from(u64::MAX))))
}

fn write(
    out: &mut String,
    kind: char,
    value: &Value,
    spec: &Conversion,
    escapes: bool,
    meter: &Meter,
) -> Result<()> {
    let (negative, prefix, body) = match kind {
        's' | 'r' | 'a' => {
            let text = match kind {
                's' if escapes => html::escape(value, meter)?,
                's' => repr::text(value, meter)?,
                'r' => repr::repr(value, meter)?,
                _ => repr::ascii(&repr::repr(value, meter)?),
            };
            let text = match spec.precision {
                Some(precision) => text.chars().take(precision).collect(),
                None => text,
            };
            pad(out, "", &text, spec, false);
            return Ok(());
        }
        'c' => {
            let text = match (value.as_str(), value.as_index()) {
                (Some(text), _) if text.chars().count() == 1 => text.to_owned(),
                (None, Some(code)) => match u32::try_from(code).ok().and_then(char::from_u32) {
                    Some(c) => c.to_string(),
                    None => fail!("%c arg not in range(0x110000)"),
                },
                _ => fail!("%c requires int or char"),
            };
            pad(out, "", &text, spec, false);
            return Ok(());
        }
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => integer(kind, value, spec)?,
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => float(kind, value, spec)?,
        other => fail!(
            "unsupported format character '{other}' (0x{:x})",
            u32::from(other)
        ),
    };
    meter.bytes(body.len())?;
    let sign = match (negative, spec.plus, spec.space) {
        (true, _, _) => "-",
        (false, true, _) => "+",
        (false, false, true) => " ",
        _ => "",
    };
    pad(out, &format!("{sign}{prefix}"), &body, spec, true);
    Ok(())
}

type Parts = (bool, &'static str, String);

fn integer(kind: char, value: &Value, spec: &Conversion) -> Result<Parts> {
    let number = match (value, value.as_index()) {
        (_, Some(number)) => number,
        (Value::Float(number), None) if matches!(kind, 'd' | 'i' | 'u') => {
            super::filters::numbers::truncated(*number)?
        }
        _ if matches!(kind, 'd' | 'i' | 'u') => fail!(
            "%{kind} format: a real number is required, not {}",
            value.type_name()
        ),
        _ => fail!(
            "%{kind} format: an integer is required, not {}",
            value.type_name()
        ),
    };
    let magnitude = number.unsigned_abs();
    let (prefix, digits) = match kind {
        'x' => ("0x", format!("{magnitude:x}")),
        'X' => ("0X", format!("{magnitude:X}")),
        'o' => ("0o", format!("{magnitude:o}")),
        _ => ("", magnitude.to_string()),
    };
    let precision = match spec.precision {
        Some(precision) if precision > 60_000 => fail!("precision too big"),
        precision => precision.unwrap_or(0),
    };
    let prefix = if spec.alternate { prefix } else { "" };
    Ok((number < 0, prefix, format!("{digits:0>precision$}")))
}

fn float(kind: char, value: &Value, spec: &Conversion) -> Result<Parts> {
    let Some(number) = value.as_float() else {
        fail!("must be real number, not {}", value.type_name());
    };
    let precision = match spec.precision {
        Some(precision) if precision > 60_000 => fail!("precision too big"),
        precision => precision.unwrap_or(6),
    };
    let magnitude = number.abs();
    let text = match kind.to_ascii_lowercase() {
        'e' => spec::exponential(magnitude, precision, spec.alternate),
        'f' => spec::fixed(magnitude, precision, spec.alternate),
        _ => spec::general(magnitude, precision, spec.alternate, false),
    };
    let text = match kind.is_ascii_uppercase() {
        true => text.to_uppercase(),
        false => text,
    };
    Ok((number.is_sign_negative() && !number.is_nan(), "", text))
}

fn pad(out: &mut String, head: &str, body: &str, spec: &Conversion, is_number: bool) {
    let length = head.chars().count() + body.chars().count();
    let missing = spec.width.saturating_sub(length);
    let fill = |c: char| std::iter::repeat_n(c, missing);
    if spec.left {
        out.push_str(head);
        out.push_str(body);
        out.extend(fill(' '));
    } else if spec.zero && is_number {
        out.push_str(head);
        out.extend(fill('0'));
        out.push_str(body);
    } else {
        out.extend(fill(' '));
        out.push_str(head);
        out.push_str(body);
    }
}
