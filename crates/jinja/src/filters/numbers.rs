//! Filters of numbers.

use crate::args::Args;
use crate::error::{Result, fail};
use crate::render::Renderer;
use crate::unicode;
use crate::value::Value;

pub(super) fn abs(_: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    args.bind::<0>("abs", [], 0)?;
    match (&value, value.as_index()) {
        (Value::Float(number), _) => Ok(Value::Float(number.abs())),
        (_, Some(number)) => match number.checked_abs() {
            Some(number) => Ok(Value::Int(number)),
            None => fail!("an integer of more than 127 bits is not supported"),
        },
        _ => fail!("bad operand type for abs(): '{}'", value.type_name()),
    }
}

/// `int(number)` of a float.
pub(crate) fn truncated(number: f64) -> Result<i128> {
    if number.is_nan() {
        fail!("cannot convert float NaN to integer");
    }
    if number.is_infinite() {
        fail!("cannot convert float infinity to integer");
    }
    match number.abs() < 1e38 {
        true => Ok(number.trunc() as i128),
        false => fail!("an integer of more than 127 bits is not supported"),
    }
}

pub(super) fn int(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let bound = args.bind("int", ["default", "base"], 0)?;
    let default = bound.given(0).cloned().unwrap_or(Value::Int(0));
    let base = bound.int_or(1, 10, "int")?;
    if let Value::Undefined(reason) = &value {
        return Err(reason.error());
    }
    if let Some(number) = value.as_index() {
        return Ok(Value::Int(number));
    }
    if let Value::Float(number) = value {
        // Infinity is an error in Python too, NaN is not.
        return match number.is_nan() {
            true => Ok(default),
            false => truncated(number).map(Value::Int),
        };
    }
    let Some(text) = value.as_str() else {
        return Ok(default);
    };
    renderer.meter.bytes(text.len())?;
    let base = u32::try_from(base)
        .ok()
        .filter(|base| matches!(base, 0 | 2..=36));
    if let Some(base) = base
        && let Some(number) = parse_int(text, base)?
    {
        return Ok(Value::Int(number));
    }
    match parse_float(text) {
        Some(number) if number.is_finite() => truncated(number).map(Value::Int),
        _ => Ok(default),
    }
}

/// Digits with single underscores between them, in ASCII.
fn digits(text: &str) -> Option<String> {
    let apart = text.starts_with('_') || text.ends_with('_') || text.contains("__");
    let plain = |c: char| match unicode::decimal_value(c) {
        Some(digit) => char::from_digit(digit, 10).unwrap_or(c),
        None => c,
    };
    (!apart).then(|| text.chars().filter(|c| *c != '_').map(plain).collect())
}

/// `int(text, base)`.
fn parse_int(text: &str, base: u32) -> Result<Option<i128>> {
    let text = text.trim_matches(unicode::is_space);
    let (negative, body) = match text.strip_prefix('-') {
        Some(body) => (true, body),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefixed = |prefix: char| {
        let rest = body.strip_prefix('0')?;
        let rest = rest.strip_prefix([prefix, prefix.to_ascii_uppercase()])?;
        Some(rest.strip_prefix('_').unwrap_or(rest))
    };
    let (base, body) = match base {
        2 | 0 if prefixed('b').is_some() => (2, prefixed('b')),
        8 | 0 if prefixed('o').is_some() => (8, prefixed('o')),
        16 | 0 if prefixed('x').is_some() => (16, prefixed('x')),
        0 => (10, Some(body)),
        base => (base, Some(body)),
    };
    let Some(digits) = body.and_then(digits) else {
        return Ok(None);
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(base)) {
        return Ok(None);
    }
    match i128::from_str_radix(&digits, base) {
        Ok(number) => Ok(Some(if negative { -number } else { number })),
        Err(_) => fail!("an integer of more than 127 bits is not supported"),
    }
}

/// `float(text)`.
fn parse_float(text: &str) -> Option<f64> {
    let text = digits(text.trim_matches(unicode::is_space))?;
    let lower = text.to_ascii_lowercase();
    let unsigned = lower.trim_start_matches(['+', '-']);
    let named = matches!(unsigned, "inf" | "infinity" | "nan");
    let numeric = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    (named || numeric).then(|| lower.parse().ok()).flatten()
}

pub(super) fn float(_: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let bound = args.bind("float", ["default"], 0)?;
    if let Value::Undefined(reason) = &value {
        return Err(reason.error());
    }
    let number = value
        .as_float()
        .or_else(|| value.as_str().and_then(parse_float));
    Ok(match number {
        Some(number) => Value::Float(number),
        None => bound.given(0).cloned().unwrap_or(Value::Float(0.0)),
    })
}

pub(super) fn round(_: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let bound = args.bind("round", ["precision", "method"], 0)?;
    let precision = bound.int_or(0, 0, "round")?;
    let method = bound.optional_str(1, "round")?.unwrap_or("common");
    if !matches!(method, "common" | "ceil" | "floor") {
        fail!("method must be common, ceil or floor");
    }
    let Ok(precision) = i32::try_from(precision.clamp(-400, 400)) else {
        fail!("precision too big");
    };
    match (&value, value.as_index(), method) {
        (Value::Float(number), _, "common") => Ok(Value::Float(rounded(*number, precision))),
        (_, Some(number), "common") => Ok(Value::Int(rounded_int(number, precision))),
        (_, None, "common") => {
            fail!("type {} doesn't define __round__ method", value.type_name())
        }
        _ => {
            let Some(number) = value.as_float() else {
                fail!("can't multiply sequence by non-int of type 'float'");
            };
            let factor = 10_f64.powi(precision);
            let scaled = number * factor;
            if !scaled.is_finite() {
                fail!("cannot convert float infinity to integer");
            }
            let whole = if method == "ceil" {
                scaled.ceil()
            } else {
                scaled.floor()
            };
            // Python's integers have no zero below zero.
            Ok(Value::Float((whole + 0.0) / factor))
        }
    }
}

/// `round(number, precision)`: the nearest decimal, the even one of two.
fn rounded(number: f64, precision: i32) -> f64 {
    if !number.is_finite() || number == 0.0 {
        return number;
    }
    match usize::try_from(precision) {
        Ok(precision) => format!("{number:.precision$}").parse().unwrap_or(number),
        Err(_) => {
            let factor = 10_f64.powi(-precision);
            (number / factor).round_ties_even() * factor
        }
    }
}

fn rounded_int(number: i128, precision: i32) -> i128 {
    let Some(factor) = 10_i128.checked_pow(precision.min(0).unsigned_abs()) else {
        return 0;
    };
    let rest = number.rem_euclid(factor);
    let below = number - rest;
    let odd = (below / factor) % 2 != 0;
    match (rest * 2).cmp(&factor) {
        std::cmp::Ordering::Greater => below + factor,
        std::cmp::Ordering::Equal if odd => below + factor,
        _ => below,
    }
}

pub(super) fn filesizeformat(_: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let bound = args.bind("filesizeformat", ["binary"], 0)?;
    let binary = bound.truth_or(0, false);
    let Some(bytes) = value
        .as_float()
        .or_else(|| value.as_str().and_then(parse_float))
    else {
        fail!("could not convert {} to float", value.type_name());
    };
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return Ok("1 Byte".into());
    }
    if bytes < base {
        return Ok(format!("{} Bytes", truncated(bytes)?).into());
    }
    let mut unit = base;
    let mut prefix = "";
    for next in ["k", "M", "G", "T", "P", "E", "Z", "Y"] {
        prefix = next;
        unit *= base;
        if bytes < unit {
            break;
        }
    }
    let size = base * bytes / unit;
    Ok(match binary {
        true => format!("{size:.1} {}iB", prefix.to_uppercase()),
        false => format!("{size:.1} {prefix}B"),
    }
    .into())
}
