//! `value is test`.

use super::args::Args;
use super::arithmetic;
use super::ast::{Comparison, Operator};
use super::compare;
use super::error::{Result, fail};
use super::filters::Filter;
use super::methods;
use super::render::Renderer;
use super::repr;
use super::value::Value;

/// A test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::enum_variant_names, reason = "the names are Jinja's")]
pub(super) enum Test {
    Odd,
    Even,
    DivisibleBy,
    Defined,
    Undefined,
    Filter,
    Test,
    None,
    Boolean,
    False,
    True,
    Integer,
    Float,
    Lower,
    Upper,
    String,
    Mapping,
    Number,
    Sequence,
    Iterable,
    Callable,
    SameAs,
    Escaped,
    Compare(Comparison),
}

impl Test {
    pub(super) fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "odd" => Self::Odd,
            "even" => Self::Even,
            "divisibleby" => Self::DivisibleBy,
            "defined" => Self::Defined,
            "undefined" => Self::Undefined,
            "filter" => Self::Filter,
            "test" => Self::Test,
            "none" => Self::None,
            "boolean" => Self::Boolean,
            "false" => Self::False,
            "true" => Self::True,
            "integer" => Self::Integer,
            "float" => Self::Float,
            "lower" => Self::Lower,
            "upper" => Self::Upper,
            "string" => Self::String,
            "mapping" => Self::Mapping,
            "number" => Self::Number,
            "sequence" => Self::Sequence,
            "iterable" => Self::Iterable,
            "callable" => Self::Callable,
            "sameas" => Self::SameAs,
            "escaped" => Self::Escaped,
            "in" => Self::Compare(Comparison::In),
            "==" | "eq" | "equalto" => Self::Compare(Comparison::Eq),
            "!=" | "ne" => Self::Compare(Comparison::Ne),
            ">" | "gt" | "greaterthan" => Self::Compare(Comparison::Gt),
            ">=" | "ge" => Self::Compare(Comparison::Ge),
            "<" | "lt" | "lessthan" => Self::Compare(Comparison::Lt),
            "<=" | "le" => Self::Compare(Comparison::Le),
            _ => return None,
        })
    }

    fn parameters(self) -> usize {
        match self {
            Self::DivisibleBy | Self::SameAs | Self::Compare(_) => 1,
            _ => 0,
        }
    }

    /// Whether the test holds.
    pub(super) fn apply(
        self,
        renderer: &mut Renderer<'_>,
        value: &Value,
        args: Args,
    ) -> Result<bool> {
        let meter = &renderer.meter;
        let other = match self.parameters() {
            1 => args.bind("test", ["other"], 1)?.value(0),
            _ => {
                args.bind::<0>("test", [], 0)?;
                Value::None
            }
        };
        let rest = |by: &Value, rest: i128| -> Result<bool> {
            let found = arithmetic::binary(Operator::Mod, value, by, meter)?;
            compare::equal(&found, &Value::Int(rest), meter)
        };
        Ok(match self {
            Self::Odd => rest(&Value::Int(2), 1)?,
            Self::Even => rest(&Value::Int(2), 0)?,
            Self::DivisibleBy => rest(&other, 0)?,
            Self::Defined => !value.is_undefined(),
            Self::Undefined => value.is_undefined(),
            Self::Filter | Self::Test if !value.is_hashable() => {
                fail!("unhashable type: '{}'", value.type_name())
            }
            Self::Filter => value.as_str().and_then(Filter::by_name).is_some(),
            Self::Test => value.as_str().and_then(Self::by_name).is_some(),
            Self::None => value.is_none(),
            Self::Boolean => matches!(value, Value::Bool(_)),
            Self::False => matches!(value, Value::Bool(false)),
            Self::True => matches!(value, Value::Bool(true)),
            Self::Integer => matches!(value, Value::Int(_)),
            Self::Float => matches!(value, Value::Float(_)),
            Self::Lower => methods::is_lower(&repr::text(value, meter)?),
            Self::Upper => methods::is_upper(&repr::text(value, meter)?),
            Self::String => value.as_str().is_some(),
            Self::Mapping => matches!(value, Value::Dict(_)),
            Self::Number => value.as_float().is_some(),
            Self::Sequence => is_sequence(value),
            Self::Iterable => {
                matches!(value, Value::Loop(_)) || super::iterate::Walk::over(value).is_ok()
            }
            Self::Callable => is_callable(value),
            Self::SameAs => compare::identical(value, &other),
            Self::Escaped => matches!(value, Value::Markup(_)),
            Self::Compare(comparison) => renderer.holds(comparison, value, &other)?,
        })
    }
}

/// Whether Python finds a length and `__getitem__`.
fn is_sequence(value: &Value) -> bool {
    match value {
        // Its `__getitem__` is an attribute all the same.
        Value::Undefined(_) => true,
        Value::View(..) | Value::Loop(_) => false,
        other => other.len().is_some(),
    }
}

fn is_callable(value: &Value) -> bool {
    matches!(
        value,
        Value::Undefined(_)
            | Value::Macro(_)
            | Value::Function(_)
            | Value::Method(_)
            | Value::Loop(_)
            | Value::Joiner(_)
    )
}
