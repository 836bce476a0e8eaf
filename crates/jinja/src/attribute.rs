//! `value.name`, `value[item]` and `value[a:b:c]`, in the sandbox that forbids to change things.

use std::sync::Arc;

use super::error::{Result, fail};
use super::methods;
use super::value::{Method, Undefined, Value};

/// `value.name`: an attribute of Python's type, else an item.
pub(super) fn get(value: &Value, name: &Arc<str>) -> Result<Value> {
    if let Some(found) = own(value, name)? {
        return Ok(found);
    }
    Ok(match subscript(value, &Value::Str(Arc::clone(name))) {
        Some(found) => found,
        None => undefined(value, name),
    })
}

/// `value[key]`: an item, else an attribute of Python's type.
pub(super) fn item(value: &Value, key: &Value) -> Result<Value> {
    if let Value::Undefined(reason) = value {
        return Err(reason.error());
    }
    if let Some(found) = subscript(value, key) {
        return Ok(found);
    }
    match key {
        Value::Str(name) | Value::Markup(name) => {
            Ok(own(value, name)?.unwrap_or_else(|| undefined(value, name)))
        }
        _ => Ok(Value::Undefined(Undefined::Because(
            "an item that is not there is undefined",
        ))),
    }
}

fn undefined(value: &Value, name: &Arc<str>) -> Value {
    Value::Undefined(Undefined::Attribute {
        of: value.type_name(),
        name: Arc::clone(name),
    })
}

/// An attribute that Python's type has. Those that the sandbox keeps from templates are undefined.
pub(super) fn own(value: &Value, name: &str) -> Result<Option<Value>> {
    let found = match value {
        Value::Undefined(reason) => {
            return Err(reason.error());
        }
        Value::Namespace(namespace) => return Ok(namespace.lock().get_str(name).cloned()),
        Value::Loop(state) => state.attribute(name),
        Value::Group(items) => match name {
            "grouper" => items.first().cloned(),
            "list" => items.get(1).cloned(),
            _ => None,
        },
        Value::Range(range) => match name {
            "start" => Some(Value::Int(range.start)),
            "stop" => Some(Value::Int(range.stop)),
            "step" => Some(Value::Int(range.step)),
            _ => None,
        },
        Value::Macro(template) => template.attribute(name)?,
        Value::Cycler(cycler) => match name {
            "current" => Some(super::functions::current(cycler)),
            "items" => Some(Value::Tuple(Arc::clone(&cycler.items))),
            "pos" => {
                let position = cycler.position.load(std::sync::atomic::Ordering::Relaxed);
                Some(position.into())
            }
            _ => None,
        },
        Value::Joiner(joiner) => match name {
            "sep" => Some(joiner.separator.clone()),
            "used" => Some(
                joiner
                    .used
                    .load(std::sync::atomic::Ordering::Relaxed)
                    .into(),
            ),
            _ => None,
        },
        Value::Int(_) | Value::Bool(_) | Value::Float(_) => methods::number::attribute(value, name),
        _ => None,
    };
    if found.is_some() {
        return Ok(found);
    }
    if methods::is_unsafe(value, name) {
        return Ok(Some(Value::Undefined(Undefined::Because(
            "access to this attribute is unsafe: templates change nothing that they are given",
        ))));
    }
    Ok(methods::find(value, name).map(|name| {
        Value::Method(Arc::new(Method {
            of: value.clone(),
            name,
        }))
    }))
}

/// An item, where Python's `value[key]` gives one.
fn subscript(value: &Value, key: &Value) -> Option<Value> {
    match value {
        Value::Dict(dict) if key.is_hashable() => dict.get(key).cloned(),
        Value::Str(text) => {
            let index = place(key.as_index()?, value.len()?)?;
            let c = match text.is_ascii() {
                true => text.get(index..=index)?,
                false => {
                    let start = text.char_indices().nth(index)?.0;
                    let c = text[start..].chars().next()?;
                    &text[start..start + c.len_utf8()]
                }
            };
            Some(c.into())
        }
        Value::Markup(text) => match subscript(&Value::Str(Arc::clone(text)), key)? {
            Value::Str(text) => Some(Value::Markup(text)),
            other => Some(other),
        },
        Value::Bytes(bytes) => {
            let index = place(key.as_index()?, bytes.len())?;
            Some(Value::Int(i128::from(bytes[index])))
        }
        Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
            items.get(place(key.as_index()?, items.len())?).cloned()
        }
        Value::Range(range) => place(key.as_index()?, range.len()).map(|index| range.at(index)),
        _ => None,
    }
}

/// An index from the start, if it is there.
fn place(index: i128, length: usize) -> Option<usize> {
    let index = match index {
        0.. => index,
        _ => index + length as i128,
    };
    usize::try_from(index).ok().filter(|index| *index < length)
}

/// `value[start:stop:step]`.
pub(super) fn slice(value: &Value, parts: [Value; 3]) -> Result<Value> {
    let length = match value {
        Value::Undefined(reason) => {
            return Err(reason.error());
        }
        Value::Str(_) | Value::Markup(_) | Value::Bytes(_) | Value::Range(_) => value.len(),
        Value::List(items) | Value::Tuple(items) | Value::Group(items) => Some(items.len()),
        _ => None,
    };
    let Some(length) = length else {
        fail!(
            "'{}' object is not subscriptable by a slice",
            value.type_name()
        );
    };
    let indices = indices(&parts, length)?;
    match value {
        Value::Str(text) => Ok(sliced_text(text, &indices).into()),
        Value::Markup(text) => Ok(Value::Markup(sliced_text(text, &indices).into())),
        Value::Bytes(bytes) => Ok(Value::Bytes(indices.iter().map(|i| bytes[i]).collect())),
        Value::List(items) => Value::list(indices.iter().map(|i| items[i].clone()).collect()),
        Value::Tuple(items) | Value::Group(items) => {
            Value::tuple(indices.iter().map(|i| items[i].clone()).collect())
        }
        Value::Range(range) => Ok(Value::Range(super::value::Range {
            start: range.start + range.step * indices.start,
            stop: range.start + range.step * indices.stop,
            step: range.step * indices.step,
        })),
        _ => Ok(Value::None),
    }
}

/// What a slice picks: bounds that are not beyond the ends.
struct Indices {
    start: i128,
    stop: i128,
    step: i128,
}

impl Indices {
    fn iter(&self) -> impl Iterator<Item = usize> {
        let (stop, step) = (self.stop, self.step);
        let goes_on = move |at: &i128| if step > 0 { *at < stop } else { *at > stop };
        std::iter::successors(Some(self.start), move |at| at.checked_add(step))
            .take_while(goes_on)
            .map(|at| at as usize)
    }
}

fn indices(parts: &[Value; 3], length: usize) -> Result<Indices> {
    let number = |part: &Value| match part {
        Value::None => Ok(None),
        part => match part.as_index() {
            // Beyond any length, all are alike.
            Some(number) => Ok(Some(number.clamp(-(1 << 64), 1 << 64))),
            None => fail!("slice indices must be integers or None or have an __index__ method"),
        },
    };
    let step = number(&parts[2])?.unwrap_or(1);
    if step == 0 {
        fail!("slice step cannot be zero");
    }
    let length = length as i128;
    let (low, high) = if step > 0 {
        (0, length)
    } else {
        (-1, length - 1)
    };
    let clamp = |at: i128| match at {
        0.. => at.min(high),
        _ => (at + length).max(low),
    };
    let (first, last) = if step > 0 { (low, high) } else { (high, low) };
    Ok(Indices {
        start: number(&parts[0])?.map_or(first, clamp),
        stop: number(&parts[1])?.map_or(last, clamp),
        step,
    })
}

fn sliced_text(text: &str, indices: &Indices) -> String {
    if text.is_ascii() {
        if indices.step == 1 {
            let stop = indices.stop.max(indices.start) as usize;
            return text[indices.start as usize..stop].to_owned();
        }
        let bytes = text.as_bytes();
        return indices.iter().map(|i| char::from(bytes[i])).collect();
    }
    if indices.step == 1 {
        let count = (indices.stop - indices.start).max(0) as usize;
        return text
            .chars()
            .skip(indices.start as usize)
            .take(count)
            .collect();
    }
    let chars: Vec<char> = text.chars().collect();
    indices.iter().map(|i| chars[i]).collect()
}
