//! Arguments of a call, and how they meet parameters.

use std::sync::Arc;

use super::error::{Result, fail};
use super::value::Value;

/// Arguments by place and by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Args {
    pub(super) positional: Vec<Value>,
    pub(super) keywords: Vec<(Arc<str>, Value)>,
}

/// The values of parameters; what was not given is `None`.
pub(super) struct Bound<const N: usize>(pub(super) [Option<Value>; N]);

impl Args {
    pub(super) fn of(positional: Vec<Value>) -> Self {
        Self {
            positional,
            keywords: Vec::new(),
        }
    }

    /// Gives each parameter its argument; the first `required` must have one.
    pub(super) fn bind<const N: usize>(
        self,
        function: &str,
        parameters: [&str; N],
        required: usize,
    ) -> Result<Bound<N>> {
        if self.positional.len() > N {
            fail!(
                "{function}() takes at most {N} argument{} ({} given)",
                if N == 1 { "" } else { "s" },
                self.positional.len()
            );
        }
        let mut bound = [const { None }; N];
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.keywords {
            match parameters.iter().position(|parameter| *parameter == &*name) {
                Some(index) if bound[index].is_none() => bound[index] = Some(value),
                Some(_) => fail!("{function}() got multiple values for argument '{name}'"),
                None => fail!("{function}() got an unexpected keyword argument '{name}'"),
            }
        }
        for (parameter, value) in parameters.iter().zip(&bound).take(required) {
            if value.is_none() {
                fail!("{function}() missing required argument: '{parameter}'");
            }
        }
        Ok(Bound(bound))
    }

    /// As [`Self::bind`], for functions of Python that take no names.
    pub(super) fn bind_positional<const N: usize>(
        self,
        function: &str,
        required: usize,
    ) -> Result<Bound<N>> {
        if !self.keywords.is_empty() {
            fail!("{function}() takes no keyword arguments");
        }
        if self.positional.len() < required {
            fail!(
                "{function}() expected at least {required} argument{}, got {}",
                if required == 1 { "" } else { "s" },
                self.positional.len()
            );
        }
        self.bind(function, [""; N], 0)
    }
}

impl<const N: usize> Bound<N> {
    /// The argument at a place; `None` in its stead if it was not given.
    pub(super) fn value(&self, index: usize) -> Value {
        self.0[index].clone().unwrap_or(Value::None)
    }

    pub(super) fn given(&self, index: usize) -> Option<&Value> {
        self.0[index].as_ref()
    }

    /// A string that must be there.
    pub(super) fn str(&self, index: usize, function: &str) -> Result<&str> {
        match &self.0[index] {
            Some(value) => match value.as_str() {
                Some(text) => Ok(text),
                None => fail!("{function}: expected a string, got {}", value.type_name()),
            },
            None => fail!("{function}: missing an argument"),
        }
    }

    /// A string that may be missing or none.
    pub(super) fn optional_str(&self, index: usize, function: &str) -> Result<Option<&str>> {
        match &self.0[index] {
            None | Some(Value::None) => Ok(None),
            Some(_) => self.str(index, function).map(Some),
        }
    }

    /// An integer that must be there.
    pub(super) fn int(&self, index: usize, function: &str) -> Result<i128> {
        match &self.0[index] {
            Some(value) => integer(value, function),
            None => fail!("{function}: missing an argument"),
        }
    }

    /// An integer with a default.
    pub(super) fn int_or(&self, index: usize, default: i128, function: &str) -> Result<i128> {
        match &self.0[index] {
            Some(value) => integer(value, function),
            None => Ok(default),
        }
    }

    pub(super) fn truth_or(&self, index: usize, default: bool) -> bool {
        self.0[index].as_ref().map_or(default, Value::truth)
    }
}

/// What Python's functions take where they want an integer.
pub(super) fn integer(value: &Value, function: &str) -> Result<i128> {
    match value.as_index() {
        Some(number) => Ok(number),
        None => fail!(
            "{function}: '{}' object cannot be interpreted as an integer",
            value.type_name()
        ),
    }
}
