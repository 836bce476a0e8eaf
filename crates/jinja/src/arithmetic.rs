//! `+`, `-`, `*`, `/`, `//`, `%`, `**` and signs, as Python's types have them.

use super::ast::Operator;
use super::error::{Result, fail};
use super::meter::Meter;
use super::value::{Seq, Value};
use super::{html, percent};

/// `a operator b`.
pub(super) fn binary(operator: Operator, a: &Value, b: &Value, meter: &Meter) -> Result<Value> {
    // A format string takes anything, undefined values too.
    if operator == Operator::Mod && a.as_str().is_some() {
        return percent::format(a, b, meter);
    }
    for value in [a, b] {
        if let Value::Undefined(reason) = value {
            return Err(reason.error());
        }
    }
    if let (Some(a), Some(b)) = (a.as_index(), b.as_index()) {
        return integers(operator, a, b);
    }
    if let (Some(a), Some(b)) = (a.as_float(), b.as_float()) {
        return floats(operator, a, b);
    }
    match operator {
        Operator::Add => add(a, b, meter),
        Operator::Mul => repeat(a, b, meter),
        _ => unsupported(operator, a, b),
    }
}

fn unsupported(operator: Operator, a: &Value, b: &Value) -> Result<Value> {
    let sign = match operator {
        Operator::Add => "+",
        Operator::Sub => "-",
        Operator::Mul => "*",
        Operator::Div => "/",
        Operator::FloorDiv => "//",
        Operator::Mod => "%",
        Operator::Pow => "** or pow()",
    };
    if operator == Operator::Add && a.as_str().is_some() {
        fail!(
            "can only concatenate str (not \"{}\") to str",
            b.type_name()
        );
    }
    fail!(
        "unsupported operand type(s) for {sign}: '{}' and '{}'",
        a.type_name(),
        b.type_name()
    )
}

fn integers(operator: Operator, a: i128, b: i128) -> Result<Value> {
    let result = match operator {
        Operator::Add => a.checked_add(b),
        Operator::Sub => a.checked_sub(b),
        Operator::Mul => a.checked_mul(b),
        Operator::Div => return divide(a as f64, b as f64),
        Operator::FloorDiv if b == 0 => fail!("integer division or modulo by zero"),
        Operator::Mod if b == 0 => fail!("integer modulo by zero"),
        // Python rounds down; Rust rounds towards zero, or up for a divisor below zero.
        Operator::FloorDiv => a.checked_div(b).and_then(|quotient| {
            let inexact = quotient.checked_mul(b)? != a;
            quotient.checked_sub(i128::from(inexact && (a < 0) != (b < 0)))
        }),
        Operator::Mod => a.checked_rem(b).map(|rest| match rest {
            0 => 0,
            rest if (rest < 0) != (b < 0) => rest + b,
            rest => rest,
        }),
        Operator::Pow if b < 0 => return power(a as f64, b as f64),
        Operator::Pow => match (a, u32::try_from(b)) {
            (0 | 1, _) => Some(if b == 0 { 1 } else { a }),
            (-1, _) => Some(if b % 2 == 0 { 1 } else { -1 }),
            (_, Ok(exponent)) => a.checked_pow(exponent),
            (_, Err(_)) => None,
        },
    };
    match result {
        Some(number) => Ok(Value::Int(number)),
        None => fail!("an integer of more than 127 bits is not supported"),
    }
}

fn floats(operator: Operator, a: f64, b: f64) -> Result<Value> {
    Ok(Value::Float(match operator {
        Operator::Add => a + b,
        Operator::Sub => a - b,
        Operator::Mul => a * b,
        Operator::Div => return divide(a, b),
        Operator::Pow => return power(a, b),
        Operator::FloorDiv | Operator::Mod if b == 0.0 => fail!("float floor division by zero"),
        Operator::FloorDiv => floor_divide(a, b).0,
        Operator::Mod => floor_divide(a, b).1,
    }))
}

fn divide(a: f64, b: f64) -> Result<Value> {
    match b == 0.0 {
        true => fail!("division by zero"),
        false => Ok(Value::Float(a / b)),
    }
}

fn power(a: f64, b: f64) -> Result<Value> {
    if a == 0.0 && b < 0.0 {
        fail!("0.0 cannot be raised to a negative power");
    }
    if a < 0.0 && b.fract() != 0.0 {
        fail!("complex numbers are not supported");
    }
    let result = a.powf(b);
    match result.is_infinite() && a.is_finite() && b.is_finite() {
        true => fail!("Numerical result out of range"),
        false => Ok(Value::Float(result)),
    }
}

/// Quotient and rest as CPython's `float_divmod` has them.
fn floor_divide(a: f64, b: f64) -> (f64, f64) {
    let mut rest = a % b;
    let mut quotient = (a - rest) / b;
    if rest == 0.0 {
        rest = 0.0_f64.copysign(b);
    } else if (b < 0.0) != (rest < 0.0) {
        rest += b;
        quotient -= 1.0;
    }
    let floor = if quotient == 0.0 {
        0.0_f64.copysign(a / b)
    } else {
        let floor = quotient.floor();
        floor + f64::from(u8::from(quotient - floor > 0.5))
    };
    (floor, rest)
}

fn add(a: &Value, b: &Value, meter: &Meter) -> Result<Value> {
    let joined = |a: &Seq, b: &Seq| -> Result<Vec<Value>> {
        meter.steps(a.len() + b.len())?;
        Ok(a.iter().chain(b.iter()).cloned().collect())
    };
    match (a, b) {
        (Value::Str(a), Value::Str(b)) => {
            meter.bytes(a.len() + b.len())?;
            Ok([&**a, &**b].concat().into())
        }
        (Value::Markup(_), Value::Str(_) | Value::Markup(_))
        | (Value::Str(_), Value::Markup(_)) => {
            let text = html::escape(a, meter)? + &html::escape(b, meter)?;
            Ok(Value::Markup(text.into()))
        }
        (Value::List(a), Value::List(b)) => Value::list(joined(a, b)?),
        (Value::Tuple(a) | Value::Group(a), Value::Tuple(b) | Value::Group(b)) => {
            Value::tuple(joined(a, b)?)
        }
        _ => unsupported(Operator::Add, a, b),
    }
}

fn repeat(a: &Value, b: &Value, meter: &Meter) -> Result<Value> {
    let (sequence, count) = match (a.as_index(), b.as_index()) {
        (None, Some(count)) => (a, count),
        (Some(count), None) => (b, count),
        _ => return unsupported(Operator::Mul, a, b),
    };
    let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
    let text = |text: &str| {
        let bytes = text.len().saturating_mul(count);
        meter.bytes(bytes).map(|()| text.repeat(count))
    };
    let items = |items: &Seq| -> Result<Vec<Value>> {
        let length = items.len().saturating_mul(count);
        meter.steps(length.saturating_mul(4))?;
        Ok(items.iter().cloned().cycle().take(length).collect())
    };
    match sequence {
        Value::Str(repeated) => Ok(text(repeated)?.into()),
        Value::Markup(repeated) => Ok(Value::Markup(text(repeated)?.into())),
        Value::List(repeated) => Value::list(items(repeated)?),
        Value::Tuple(repeated) | Value::Group(repeated) => Value::tuple(items(repeated)?),
        _ => unsupported(Operator::Mul, a, b),
    }
}

/// `-value` and `+value`.
pub(super) fn signed(value: &Value, negative: bool) -> Result<Value> {
    match value {
        Value::Undefined(reason) => Err(reason.error()),
        Value::Float(number) => Ok(Value::Float(if negative { -number } else { *number })),
        _ => match value.as_index() {
            Some(number) if negative => integers(Operator::Sub, 0, number),
            Some(number) => Ok(Value::Int(number)),
            None => fail!(
                "bad operand type for unary {}: '{}'",
                if negative { '-' } else { '+' },
                value.type_name()
            ),
        },
    }
}
