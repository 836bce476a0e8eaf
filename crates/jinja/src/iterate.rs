//! Walking over what Python can iterate.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::dict::Dict;
use super::error::{Result, fail};
use super::meter::Meter;
use super::value::{Iter, Range, Seq, Value, View};

/// A walk over a value. It holds what it walks over, so that the value can be dropped.
pub(super) struct Walk {
    over: Over,
    index: usize,
}

enum Over {
    Nothing,
    Text(Arc<str>),
    Bytes(Arc<[u8]>),
    Items(Arc<Seq>),
    Dict(View, Arc<Dict>),
    Range(Range),
    Iter(Arc<Iter>),
}

impl Walk {
    /// `iter(value)`.
    pub(super) fn over(value: &Value) -> Result<Self> {
        let over = match value {
            Value::Undefined(_) => Over::Nothing,
            Value::Str(text) | Value::Markup(text) => Over::Text(Arc::clone(text)),
            Value::Bytes(bytes) => Over::Bytes(Arc::clone(bytes)),
            Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
                Over::Items(Arc::clone(items))
            }
            Value::Dict(dict) => Over::Dict(View::Keys, Arc::clone(dict)),
            Value::View(view, dict) => Over::Dict(*view, Arc::clone(dict)),
            Value::Range(range) => Over::Range(*range),
            Value::Iter(iter) => Over::Iter(Arc::clone(iter)),
            other => fail!("'{}' object is not iterable", other.type_name()),
        };
        Ok(Self { over, index: 0 })
    }

    /// The next item, or the error that waits in its place.
    pub(super) fn next(&mut self, meter: &Meter) -> Result<Option<Value>> {
        meter.steps(1)?;
        let index = self.index;
        self.index += 1;
        Ok(match &self.over {
            Over::Nothing => None,
            Over::Text(text) => {
                // Here the index counts bytes.
                let next = text.get(index..).and_then(|rest| rest.chars().next());
                if let Some(c) = next {
                    self.index = index + c.len_utf8();
                }
                next.map(|c| Value::from(c.encode_utf8(&mut [0; 4]) as &str))
            }
            Over::Bytes(bytes) => bytes.get(index).map(|byte| Value::Int(i128::from(*byte))),
            Over::Items(items) => items.get(index).cloned(),
            Over::Dict(view, dict) => match dict.entry(index) {
                None => None,
                Some((key, value)) => Some(match view {
                    View::Keys => key.clone(),
                    View::Values => value.clone(),
                    View::Items => Value::tuple(vec![key.clone(), value.clone()])?,
                }),
            },
            Over::Range(range) => (index < range.len()).then(|| range.at(index)),
            Over::Iter(iter) => {
                let index = iter.next.fetch_add(1, Ordering::Relaxed);
                match (iter.items.get(index), &iter.error) {
                    (Some(item), _) => Some(item.clone()),
                    (None, Some(error)) if index == iter.items.len() => return Err(error.clone()),
                    (None, _) => None,
                }
            }
        })
    }

    /// What is left, as a list.
    pub(super) fn rest(mut self, meter: &Meter) -> Result<Vec<Value>> {
        let mut items = Vec::new();
        while let Some(item) = self.next(meter)? {
            items.push(item);
        }
        Ok(items)
    }
}

/// `list(value)`.
pub(super) fn collect(value: &Value, meter: &Meter) -> Result<Vec<Value>> {
    Walk::over(value)?.rest(meter)
}

/// The pairs of a dictionary.
pub(super) fn pairs(dict: &Dict) -> Result<Vec<Value>> {
    dict.iter()
        .map(|(key, value)| Value::tuple(vec![key.clone(), value.clone()]))
        .collect()
}
