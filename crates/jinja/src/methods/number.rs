//! Attributes and methods of `int` and `float`.

use crate::args::Args;
use crate::error::{Result, fail};
use crate::value::Value;

pub(super) const INT: [&str; 4] = ["as_integer_ratio", "bit_count", "bit_length", "conjugate"];
pub(super) const FLOAT: [&str; 2] = ["conjugate", "is_integer"];

/// An attribute that is no method.
pub(crate) fn attribute(value: &Value, name: &str) -> Option<Value> {
    let is_float = matches!(value, Value::Float(_));
    let real = || match value.as_index() {
        Some(number) => Value::Int(number),
        None => value.clone(),
    };
    match name {
        "real" => Some(real()),
        "imag" if is_float => Some(Value::Float(0.0)),
        "imag" => Some(Value::Int(0)),
        "numerator" if !is_float => Some(real()),
        "denominator" if !is_float => Some(Value::Int(1)),
        _ => None,
    }
}

pub(super) fn call(of: &Value, method: &'static str, args: Args) -> Result<Value> {
    args.bind_positional::<0>(method, 0)?;
    match (of, of.as_index()) {
        (Value::Float(number), _) => Ok(match method {
            "is_integer" => (number.is_finite() && number.fract() == 0.0).into(),
            _ => Value::Float(*number),
        }),
        (_, Some(number)) => {
            let magnitude = number.unsigned_abs();
            match method {
                "bit_length" => Ok(Value::Int(i128::from(128 - magnitude.leading_zeros()))),
                "bit_count" => Ok(Value::Int(i128::from(magnitude.count_ones()))),
                "as_integer_ratio" => Value::tuple(vec![Value::Int(number), Value::Int(1)]),
                _ => Ok(Value::Int(number)),
            }
        }
        _ => fail!("'{}' object has no method '{method}'", of.type_name()),
    }
}
