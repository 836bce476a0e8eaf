//! `==`, `<` and `in`.

use std::cmp::Ordering;
use std::sync::Arc;

use super::error::{JinjaError, Result, fail};
use super::iterate::Walk;
use super::meter::Meter;
use super::value::{Value, View};

/// `a == b`.
pub(super) fn equal(a: &Value, b: &Value, meter: &Meter) -> Result<bool> {
    meter.steps(1)?;
    Ok(match (a, b) {
        (Value::List(a), Value::List(b))
        | (Value::Tuple(a) | Value::Group(a), Value::Tuple(b) | Value::Group(b)) => {
            Arc::ptr_eq(a, b) || (a.len() == b.len() && all_equal(a, b, meter)?)
        }
        (Value::Dict(a), Value::Dict(b)) => {
            if Arc::ptr_eq(a, b) {
                return Ok(true);
            }
            if a.len() != b.len() {
                return Ok(false);
            }
            for (key, value) in a.iter() {
                meter.steps(a.len() / 16)?;
                match b.get(key) {
                    Some(other) if equal(value, other, meter)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::View(View::Keys, a), Value::View(View::Keys, b)) => {
            meter.steps(a.len().saturating_mul(b.len()) / 16)?;
            a.len() == b.len() && a.keys().all(|key| b.get(key).is_some())
        }
        (Value::Str(a) | Value::Markup(a), Value::Str(b) | Value::Markup(b)) => {
            meter.bytes(a.len().min(b.len()))?;
            a == b
        }
        _ => same_key(a, b),
    })
}

fn all_equal(a: &[Value], b: &[Value], meter: &Meter) -> Result<bool> {
    for (a, b) in a.iter().zip(b) {
        if !equal(a, b, meter)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `a == b` for what can be a key, and identity for what is only equal to itself.
pub(super) fn same_key(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Str(a) | Value::Markup(a), Value::Str(b) | Value::Markup(b)) => a == b,
        (Value::Bytes(a), Value::Bytes(b)) => a == b,
        (Value::Tuple(a) | Value::Group(a), Value::Tuple(b) | Value::Group(b)) => {
            a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| same_key(a, b))
        }
        (Value::Range(a), Value::Range(b)) => {
            let length = a.len();
            length == b.len()
                && (length == 0 || a.start == b.start && (length == 1 || a.step == b.step))
        }
        (Value::Namespace(a), Value::Namespace(b)) => Arc::ptr_eq(a, b),
        (Value::Macro(a), Value::Macro(b)) => Arc::ptr_eq(a, b),
        (Value::Loop(a), Value::Loop(b)) => Arc::ptr_eq(a, b),
        (Value::Iter(a), Value::Iter(b)) => Arc::ptr_eq(a, b),
        (Value::Cycler(a), Value::Cycler(b)) => Arc::ptr_eq(a, b),
        (Value::Joiner(a), Value::Joiner(b)) => Arc::ptr_eq(a, b),
        (Value::Function(a), Value::Function(b)) => a == b,
        _ => match (a.as_index(), b.as_index()) {
            (Some(a), Some(b)) => a == b,
            _ => match (a.as_float(), b.as_float()) {
                (Some(a), Some(b)) => a == b,
                _ => false,
            },
        },
    }
}

/// The order of two values for `<` and its kin; `None` where neither is before the other (NaN).
pub(super) fn order(a: &Value, b: &Value, sign: &str, meter: &Meter) -> Result<Option<Ordering>> {
    meter.steps(1)?;
    match (a, b) {
        (Value::Undefined(reason), _) | (_, Value::Undefined(reason)) => Err(reason.error()),
        (Value::Str(a) | Value::Markup(a), Value::Str(b) | Value::Markup(b)) => {
            meter.bytes(a.len().min(b.len()))?;
            Ok(Some(a.cmp(b)))
        }
        (Value::Bytes(a), Value::Bytes(b)) => Ok(Some(a.cmp(b))),
        (Value::List(x), Value::List(y))
        | (Value::Tuple(x) | Value::Group(x), Value::Tuple(y) | Value::Group(y)) => {
            for (a, b) in x.iter().zip(y.iter()) {
                if !equal(a, b, meter)? {
                    return order(a, b, sign, meter);
                }
            }
            Ok(Some(x.len().cmp(&y.len())))
        }
        _ => match (a.as_index(), b.as_index()) {
            (Some(a), Some(b)) => Ok(Some(a.cmp(&b))),
            _ => match (a.as_float(), b.as_float()) {
                (Some(a), Some(b)) => Ok(a.partial_cmp(&b)),
                _ => fail!(
                    "'{sign}' not supported between instances of '{}' and '{}'",
                    a.type_name(),
                    b.type_name()
                ),
            },
        },
    }
}

/// `needle in haystack`.
pub(super) fn contains(haystack: &Value, needle: &Value, meter: &Meter) -> Result<bool> {
    match haystack {
        Value::Str(text) | Value::Markup(text) => match needle.as_str() {
            Some(needle) => {
                meter.bytes(text.len())?;
                Ok(text.contains(needle))
            }
            None => fail!(
                "'in <string>' requires string as left operand, not {}",
                needle.type_name()
            ),
        },
        Value::Dict(dict) | Value::View(View::Keys, dict) => {
            if !needle.is_hashable() {
                fail!("unhashable type: '{}'", needle.type_name());
            }
            meter.steps(dict.len() / 16)?;
            Ok(dict.get(needle).is_some())
        }
        _ => {
            let mut walk = Walk::over(haystack).map_err(|_| {
                JinjaError::runtime(format!(
                    "argument of type '{}' is not iterable",
                    haystack.type_name()
                ))
            })?;
            while let Some(item) = walk.next(meter)? {
                if equal(&item, needle, meter)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}

/// `a is b`.
pub(super) fn identical(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::None, Value::None) => true,
        // Small integers are one object each in Python.
        (Value::Int(a), Value::Int(b)) => a == b && (-5..=256).contains(a),
        (Value::Str(a), Value::Str(b)) => Arc::ptr_eq(a, b) || (a == b && a.chars().count() < 2),
        (Value::List(a), Value::List(b)) => Arc::ptr_eq(a, b),
        (Value::Tuple(a), Value::Tuple(b)) | (Value::Group(a), Value::Group(b)) => {
            Arc::ptr_eq(a, b)
        }
        (Value::Dict(a), Value::Dict(b)) => Arc::ptr_eq(a, b),
        (Value::Int(_) | Value::Float(_) | Value::Bool(_), _)
        | (_, Value::Int(_) | Value::Float(_) | Value::Bool(_))
        | (Value::Undefined(_), _)
        | (Value::Markup(_) | Value::Str(_) | Value::Bytes(_), _)
        | (Value::Tuple(_) | Value::Group(_) | Value::Range(_), _) => false,
        _ => same_key(a, b),
    }
}

/// Sorts, stably, by what is less; a comparison that fails ends it. Unlike the standard library's
/// sort it takes any answers, also those about NaN that contradict each other.
pub(super) fn sort<T>(
    items: Vec<T>,
    less: &mut impl FnMut(&T, &T) -> Result<bool>,
) -> Result<Vec<T>> {
    if items.len() < 2 {
        return Ok(items);
    }
    let mut left = items;
    let right = left.split_off(left.len() / 2);
    let mut left = sort(left, less)?.into_iter().peekable();
    let mut right = sort(right, less)?.into_iter().peekable();
    let mut merged = Vec::with_capacity(left.len() + right.len());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let from = if less(b, a)? { &mut right } else { &mut left };
        merged.extend(from.next());
    }
    merged.extend(left);
    merged.extend(right);
    Ok(merged)
}

/// `a < b`.
pub(super) fn less(a: &Value, b: &Value, meter: &Meter) -> Result<bool> {
    Ok(order(a, b, "<", meter)? == Some(Ordering::Less))
}
