//! Python's `format(value, spec)`.

use super::error::{Result, fail};
use super::meter::Meter;
use super::repr;
use super::value::Value;

/// The most digits behind the point that are written.
const MAX_PRECISION: usize = 60_000;

/// `[[fill]align][sign][z][#][0][width][,_][.precision][type]`
#[derive(Debug, Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    no_negative_zero: bool,
    alternate: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

/// `format(value, spec)`.
pub(super) fn format(value: &Value, spec: &str, meter: &Meter) -> Result<String> {
    if spec.is_empty() {
        return repr::text(value, meter);
    }
    let parsed = parse(spec, value)?;
    meter.bytes(parsed.width.saturating_mul(4))?;
    meter.bytes(parsed.precision.unwrap_or(0))?;
    match value {
        Value::Str(text) | Value::Markup(text) => format_str(text, &parsed),
        Value::Float(number) => format_float(*number, &parsed),
        _ => match (value.as_index(), parsed.kind) {
            (Some(number), Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%')) => {
                format_float(number as f64, &parsed)
            }
            (Some(number), _) => format_int(number, &parsed),
            (None, _) => fail!(
                "unsupported format string passed to {}.__format__",
                value.type_name()
            ),
        },
    }
}

fn parse(spec: &str, value: &Value) -> Result<Spec> {
    let is_align = |c: &char| matches!(c, '<' | '>' | '=' | '^');
    let mut parsed = Spec::default();
    let mut chars = spec.chars().peekable();
    let mut ahead = spec.chars();
    let first = ahead.next();
    if ahead.next().as_ref().is_some_and(is_align) {
        parsed.fill = first;
        chars.next();
        parsed.align = chars.next();
    } else {
        parsed.align = chars.next_if(is_align);
    }
    parsed.sign = chars.next_if(|c| matches!(c, '+' | '-' | ' '));
    parsed.no_negative_zero = chars.next_if_eq(&'z').is_some();
    parsed.alternate = chars.next_if_eq(&'#').is_some();
    if chars.next_if_eq(&'0').is_some() {
        parsed.fill = parsed.fill.or(Some('0'));
        // A string is not padded behind its sign, for it has none.
        let numeric = value.as_str().is_none();
        parsed.align = parsed.align.or(numeric.then_some('='));
    }
    let number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
        let mut number = None;
        while let Some(digit) = chars.next_if(char::is_ascii_digit) {
            let digit = digit as usize - '0' as usize;
            number = Some(
                number
                    .unwrap_or(0_usize)
                    .saturating_mul(10)
                    .saturating_add(digit),
            );
        }
        number
    };
    parsed.width = number(&mut chars).unwrap_or(0);
    parsed.grouping = chars.next_if(|c| matches!(c, ',' | '_'));
    if chars.next_if_eq(&'.').is_some() {
        parsed.precision = number(&mut chars);
        if parsed.precision.is_none() {
            fail!("Format specifier missing precision");
        }
    }
    parsed.kind = chars.next();
    if chars.next().is_some() {
        fail!(
            "Invalid format specifier '{spec}' for object of type '{}'",
            value.type_name()
        );
    }
    Ok(parsed)
}

fn unknown<T>(kind: char, of: &str) -> Result<T> {
    fail!("Unknown format code '{kind}' for object of type '{of}'")
}

fn format_str(text: &str, spec: &Spec) -> Result<String> {
    if let Some(kind) = spec.kind.filter(|kind| *kind != 's') {
        return unknown(kind, "str");
    }
    if spec.sign.is_some() {
        fail!("Sign not allowed in string format specifier");
    }
    if spec.alternate {
        fail!("Alternate form (#) not allowed in string format specifier");
    }
    if let Some(grouping) = spec.grouping {
        fail!("Cannot specify '{grouping}' with 's'.");
    }
    if spec.align == Some('=') {
        fail!("'=' alignment not allowed in string format specifier");
    }
    let text = match spec.precision {
        Some(precision) => text.chars().take(precision).collect(),
        None => text.to_owned(),
    };
    Ok(pad("", &text, spec, '<'))
}

fn format_int(number: i128, spec: &Spec) -> Result<String> {
    if spec.precision.is_some() {
        fail!("Precision not allowed in integer format specifier");
    }
    let magnitude = number.unsigned_abs();
    let (prefix, digits, group) = match spec.kind {
        None | Some('d' | 'n') => ("", magnitude.to_string(), 3),
        Some('b') => ("0b", format!("{magnitude:b}"), 4),
        Some('o') => ("0o", format!("{magnitude:o}"), 4),
        Some('x') => ("0x", format!("{magnitude:x}"), 4),
        Some('X') => ("0X", format!("{magnitude:X}"), 4),
        Some('c') => {
            if spec.sign.is_some() {
                fail!("Sign not allowed with integer format specifier 'c'");
            }
            return match u32::try_from(number).ok().and_then(char::from_u32) {
                Some(c) => Ok(pad("", &c.to_string(), spec, '<')),
                None => fail!("%c arg not in range(0x110000)"),
            };
        }
        Some(kind) => return unknown(kind, "int"),
    };
    let prefix = if spec.alternate { prefix } else { "" };
    let head = format!("{}{prefix}", sign(number < 0, spec.sign));
    Ok(pad(
        &head,
        &grouped(&digits, "", &head, group, spec),
        spec,
        '>',
    ))
}

fn format_float(number: f64, spec: &Spec) -> Result<String> {
    let precision = check_precision(spec.precision)?;
    let magnitude = number.abs();
    let text = match spec.kind {
        None => match precision {
            None => repr::float(magnitude),
            Some(precision) => general(magnitude, precision, spec.alternate, true),
        },
        Some('e' | 'E') => exponential(magnitude, precision.unwrap_or(6), spec.alternate),
        Some('f' | 'F') => fixed(magnitude, precision.unwrap_or(6), spec.alternate),
        Some('g' | 'G' | 'n') => general(magnitude, precision.unwrap_or(6), spec.alternate, false),
        Some('%') => fixed(magnitude * 100.0, precision.unwrap_or(6), spec.alternate) + "%",
        Some(kind) => return unknown(kind, "float"),
    };
    let text = match spec.kind {
        Some('E' | 'F' | 'G') => text.to_uppercase(),
        _ => text,
    };
    let is_zero = !text.contains(|c: char| c.is_ascii_digit() && c != '0');
    let negative = number.is_sign_negative() && !number.is_nan();
    let negative = negative && !(spec.no_negative_zero && is_zero && number.is_finite());
    let head = sign(negative, spec.sign);
    let whole = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (whole, rest) = text.split_at(whole);
    let body = match whole.is_empty() {
        // Infinity and NaN have no digits to group.
        true => text.clone(),
        false => grouped(whole, rest, head, 3, spec),
    };
    Ok(pad(head, &body, spec, '>'))
}

fn check_precision(precision: Option<usize>) -> Result<Option<usize>> {
    match precision {
        Some(precision) if precision > MAX_PRECISION => fail!("precision too big"),
        precision => Ok(precision),
    }
}

fn sign(negative: bool, spec: Option<char>) -> &'static str {
    match spec {
        _ if negative => "-",
        Some('+') => "+",
        Some(' ') => " ",
        _ => "",
    }
}

/// Digits with separators, filled with zeros where the width asks for that.
fn grouped(digits: &str, rest: &str, head: &str, size: usize, spec: &Spec) -> String {
    let Some(separator) = spec.grouping else {
        return format!("{digits}{rest}");
    };
    let mut count = digits.len();
    if spec.fill == Some('0') && spec.align == Some('=') {
        let width = spec.width.saturating_sub(head.len() + rest.len());
        // The fewest digits that with their separators are that wide.
        while count + (count.max(1) - 1) / size < width {
            count += 1;
        }
    }
    let mut out = String::new();
    let zeros = std::iter::repeat_n('0', count - digits.len());
    for (index, digit) in zeros.chain(digits.chars()).enumerate() {
        if index > 0 && (count - index).is_multiple_of(size) {
            out.push(separator);
        }
        out.push(digit);
    }
    out + rest
}

fn pad(head: &str, body: &str, spec: &Spec, default: char) -> String {
    let length = head.chars().count() + body.chars().count();
    let missing = spec.width.saturating_sub(length);
    let fill = |count: usize| std::iter::repeat_n(spec.fill.unwrap_or(' '), count);
    let mut out = String::new();
    match spec.align.unwrap_or(default) {
        '<' => {
            out.push_str(head);
            out.push_str(body);
            out.extend(fill(missing));
        }
        '^' => {
            out.extend(fill(missing / 2));
            out.push_str(head);
            out.push_str(body);
            out.extend(fill(missing - missing / 2));
        }
        '=' => {
            out.push_str(head);
            out.extend(fill(missing));
            out.push_str(body);
        }
        _ => {
            out.extend(fill(missing));
            out.push_str(head);
            out.push_str(body);
        }
    }
    out
}

/// A number without sign as `%f` writes it.
pub(super) fn fixed(number: f64, precision: usize, alternate: bool) -> String {
    if !number.is_finite() {
        return repr::float(number);
    }
    let point = if alternate && precision == 0 { "." } else { "" };
    format!("{number:.precision$}{point}")
}

/// A number without sign as `%e` writes it.
pub(super) fn exponential(number: f64, precision: usize, alternate: bool) -> String {
    if !number.is_finite() {
        return repr::float(number);
    }
    let text = format!("{number:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let point = if alternate && precision == 0 { "." } else { "" };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}{point}e{sign}{:02}", exponent.abs())
}

/// A number without sign as `%g` writes it, or as a float without a type, which keeps one digit
/// behind the point.
pub(super) fn general(number: f64, precision: usize, alternate: bool, keep_point: bool) -> String {
    if !number.is_finite() {
        return repr::float(number);
    }
    let precision = precision.max(1);
    let scientific = exponential(number, precision - 1, false);
    let exponent = scientific
        .split_once('e')
        .and_then(|(_, exponent)| exponent.parse::<i64>().ok())
        .unwrap_or(0);
    let highest = precision as i64 - i64::from(keep_point);
    let trimmed = |digits: &str| match digits.contains('.') && !alternate {
        true => digits
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_owned(),
        false => digits.to_owned(),
    };
    if (-4..highest).contains(&exponent) {
        let digits = (precision as i64 - 1 - exponent).max(0) as usize;
        let text = trimmed(&fixed(number, digits, alternate));
        return match keep_point && !text.contains('.') {
            true => text + ".0",
            false => text,
        };
    }
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "+00"));
    let digits = match alternate && !digits.contains('.') {
        true => format!("{digits}."),
        false => trimmed(digits),
    };
    format!("{digits}e{exponent}")
}
