//! Filters of lists and dictionaries.

use std::sync::Arc;

use crate::args::Args;
use crate::arithmetic;
use crate::ast::Operator;
use crate::attribute;
use crate::compare;
use crate::error::{JinjaError, JinjaErrorKind, Result, fail};
use crate::iterate::{self, Walk};
use crate::meter::Meter;
use crate::methods;
use crate::render::Renderer;
use crate::repr;
use crate::value::{Iter, Seq, Undefined, Value};

/// The item that an attribute such as `"a.b.0"` or `3` leads to, with a default for what is not
/// there.
pub(super) fn lookup(item: &Value, path: &Value, default: &Value) -> Result<Value> {
    let mut value = item.clone();
    let parts: Vec<Value> = match path {
        Value::None => Vec::new(),
        Value::Str(path) | Value::Markup(path) => path
            .split('.')
            .map(|part| match part.parse::<i128>() {
                Ok(index) if part.bytes().all(|b| b.is_ascii_digit()) => Value::Int(index),
                _ => part.into(),
            })
            .collect(),
        other => vec![other.clone()],
    };
    for part in &parts {
        value = attribute::item(&value, part)?;
        if value.is_undefined() && !default.is_none() {
            value = default.clone();
        }
    }
    Ok(value)
}

/// A key to sort and compare by: strings without regard to case, unless case counts.
fn key(item: &Value, path: &Value, default: &Value, case_sensitive: bool) -> Result<Value> {
    let found = lookup(item, path, default)?;
    Ok(match case_sensitive {
        true => found,
        false => without_case(found),
    })
}

fn without_case(value: Value) -> Value {
    match value.as_str() {
        Some(text) => text.to_lowercase().into(),
        None => value,
    }
}

/// Pairs of a dictionary, or of a list of pairs.
pub(super) fn pairs_of(value: &Value, meter: &Meter) -> Result<Vec<(Value, Value)>> {
    if let Value::Dict(dict) = value {
        return Ok(dict.iter().map(|(k, v)| (k.clone(), v.clone())).collect());
    }
    let mut pairs = Vec::new();
    for pair in iterate::collect(value, meter)? {
        let pair = iterate::collect(&pair, meter)?;
        match <[Value; 2]>::try_from(pair) {
            Ok([key, value]) => pairs.push((key, value)),
            Err(pair) => fail!("expected pairs, got {} values", pair.len()),
        }
    }
    Ok(pairs)
}

fn nothing(reason: &'static str) -> Value {
    Value::Undefined(Undefined::Because(reason))
}

pub(super) fn attr(_: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let bound = args.bind("attr", ["name"], 1)?;
    let name = bound.str(0, "attr")?;
    Ok(attribute::own(&value, name)?.unwrap_or_else(|| {
        Value::Undefined(Undefined::Attribute {
            of: value.type_name(),
            name: name.into(),
        })
    }))
}

pub(super) fn batch(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let bound = args.bind("batch", ["linecount", "fill_with"], 1)?;
    let meter = &renderer.meter;
    let size = bound.int(0, "batch")?;
    let fill = bound.value(1);
    let mut batches = Vec::new();
    let mut batch = Vec::new();
    for item in iterate::collect(&value, meter)? {
        if batch.len() as i128 == size {
            batches.push(Value::list(std::mem::take(&mut batch))?);
        }
        batch.push(item);
    }
    if !batch.is_empty() {
        let missing = usize::try_from((size - batch.len() as i128).max(0)).unwrap_or(usize::MAX);
        if !fill.is_none() {
            meter.steps(missing.saturating_mul(4))?;
            batch.extend(std::iter::repeat_n(fill, missing));
        }
        batches.push(Value::list(batch)?);
    }
    Iter::value(batches, None)
}

pub(super) fn slice(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let bound = args.bind("slice", ["slices", "fill_with"], 1)?;
    let items = iterate::collect(&value, &renderer.meter)?;
    let count = bound.int(0, "slice")?;
    if count == 0 {
        fail!("integer division or modulo by zero");
    }
    let count = usize::try_from(count).unwrap_or(0);
    renderer.meter.steps(count.saturating_mul(4))?;
    let fill = bound.value(1);
    let (size, longer) = (items.len() / count.max(1), items.len() % count.max(1));
    let mut slices = Vec::new();
    let mut items = items.into_iter();
    for index in 0..count {
        let take = size + usize::from(index < longer);
        let mut part: Vec<Value> = items.by_ref().take(take).collect();
        if !fill.is_none() && index >= longer {
            part.push(fill.clone());
        }
        slices.push(Value::list(part)?);
    }
    Iter::value(slices, None)
}

pub(super) fn default(_: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let bound = args.bind("default", ["default_value", "boolean"], 0)?;
    if value.is_undefined() || bound.truth_or(1, false) && !value.truth() {
        return Ok(bound.given(0).cloned().unwrap_or_else(|| "".into()));
    }
    Ok(value)
}

pub(super) fn length(_: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    args.bind::<0>("length", [], 0)?;
    match value.len() {
        Some(length) => Ok(length.into()),
        None => fail!("object of type '{}' has no len()", value.type_name()),
    }
}

pub(super) fn items(_: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    args.bind::<0>("items", [], 0)?;
    match value {
        Value::Undefined(_) => Iter::value(Vec::new(), None),
        Value::Dict(dict) => Iter::value(iterate::pairs(&dict)?, None),
        _ => Iter::value(
            Vec::new(),
            Some(JinjaError::runtime(
                "Can only get item pairs from a mapping.",
            )),
        ),
    }
}

pub(super) fn first(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    args.bind::<0>("first", [], 0)?;
    let first = Walk::over(&value)?.next(&renderer.meter)?;
    Ok(first.unwrap_or_else(|| nothing("No first item, sequence was empty.")))
}

pub(super) fn last(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    args.bind::<0>("last", [], 0)?;
    let last = match &value {
        Value::List(items) | Value::Tuple(items) | Value::Group(items) => items.last().cloned(),
        _ => reversed(&value, &renderer.meter)?.into_iter().next(),
    };
    Ok(last.unwrap_or_else(|| nothing("No last item, sequence was empty.")))
}

/// `reversed(value)`, which generators refuse.
fn reversed(value: &Value, meter: &Meter) -> Result<Vec<Value>> {
    if matches!(value, Value::Iter(_)) || Walk::over(value).is_err() {
        fail!("'{}' object is not reversible", value.type_name());
    }
    let mut items = iterate::collect(value, meter)?;
    items.reverse();
    Ok(items)
}

pub(super) fn reverse(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    args.bind::<0>("reverse", [], 0)?;
    let meter = &renderer.meter;
    match &value {
        Value::Str(text) | Value::Markup(text) => {
            meter.bytes(text.len())?;
            Ok(text.chars().rev().collect::<String>().into())
        }
        Value::Iter(_) => {
            let mut items = iterate::collect(&value, meter)?;
            items.reverse();
            Value::list(items)
        }
        _ if Walk::over(&value).is_err() => fail!("argument must be iterable"),
        _ => Iter::value(reversed(&value, meter)?, None),
    }
}

pub(super) fn list(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    args.bind::<0>("list", [], 0)?;
    Value::list(iterate::collect(&value, &renderer.meter)?)
}

pub(super) fn join(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let bound = args.bind("join", ["d", "attribute"], 0)?;
    let separator = match bound.given(0) {
        Some(value) => repr::text(value, &renderer.meter)?,
        None => String::new(),
    };
    let path = bound.value(1);
    methods::text::join_all(renderer, &separator, &value, |_, item| {
        match path.is_none() {
            true => Ok(item),
            false => lookup(&item, &path, &Value::None),
        }
    })
}

/// Values with the keys that they are sorted by, in order.
fn in_order(
    keyed: Vec<(Value, Value)>,
    reverse: bool,
    meter: &Meter,
) -> Result<Vec<(Value, Value)>> {
    let mut keyed = keyed;
    // Python sorts backwards by reversing twice, so that equal items stay in their order.
    if reverse {
        keyed.reverse();
    }
    let mut sorted = compare::sort(keyed, &mut |a, b| compare::less(&a.0, &b.0, meter))?;
    if reverse {
        sorted.reverse();
    }
    Ok(sorted)
}

pub(super) fn dictsort(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let bound = args.bind("dictsort", ["case_sensitive", "by", "reverse"], 0)?;
    let by_value = match bound.optional_str(1, "dictsort")?.unwrap_or("key") {
        "key" => false,
        "value" => true,
        _ => fail!("You can only sort by either \"key\" or \"value\""),
    };
    let case_sensitive = bound.truth_or(0, false);
    let Value::Dict(dict) = &value else {
        fail!("'{}' object has no attribute 'items'", value.type_name());
    };
    let mut keyed = Vec::new();
    for (key, value) in dict.iter() {
        let by = if by_value { value } else { key }.clone();
        let by = if case_sensitive { by } else { without_case(by) };
        keyed.push((by, Value::tuple(vec![key.clone(), value.clone()])?));
    }
    let sorted = in_order(keyed, bound.truth_or(2, false), &renderer.meter)?;
    Value::list(sorted.into_iter().map(|(_, pair)| pair).collect())
}

pub(super) fn sort(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let bound = args.bind("sort", ["reverse", "case_sensitive", "attribute"], 0)?;
    let meter = &renderer.meter;
    let case_sensitive = bound.truth_or(1, false);
    let paths: Vec<Value> = match bound.value(2) {
        Value::Str(paths) => paths.split(',').map(Value::from).collect(),
        other => vec![other],
    };
    let mut keyed = Vec::new();
    for item in iterate::collect(&value, meter)? {
        let keys = paths
            .iter()
            .map(|path| key(&item, path, &Value::None, case_sensitive));
        keyed.push((Value::list(keys.collect::<Result<_>>()?)?, item));
    }
    let sorted = in_order(keyed, bound.truth_or(0, false), meter)?;
    Value::list(sorted.into_iter().map(|(_, item)| item).collect())
}

pub(super) fn unique(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let bound = args.bind("unique", ["case_sensitive", "attribute"], 0)?;
    let meter = &renderer.meter;
    let mut seen: Vec<Value> = Vec::new();
    let mut items = Vec::new();
    for item in iterate::collect(&value, meter)? {
        let key = key(
            &item,
            &bound.value(1),
            &Value::None,
            bound.truth_or(0, false),
        )?;
        if !key.is_hashable() {
            fail!("unhashable type: '{}'", key.type_name());
        }
        meter.steps(1 + seen.len() / 4)?;
        if !seen.iter().any(|known| compare::same_key(known, &key)) {
            seen.push(key);
            items.push(item);
        }
    }
    Iter::value(items, None)
}

pub(super) fn groupby(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let bound = args.bind("groupby", ["attribute", "default", "case_sensitive"], 1)?;
    let meter = &renderer.meter;
    let (path, default) = (bound.value(0), bound.value(1));
    let case_sensitive = bound.truth_or(2, false);
    let mut keyed = Vec::new();
    for item in iterate::collect(&value, meter)? {
        keyed.push((key(&item, &path, &default, case_sensitive)?, item));
    }
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for (key, item) in in_order(keyed, false, meter)? {
        match groups.last_mut() {
            Some((last, items)) if compare::equal(last, &key, meter)? => items.push(item),
            _ => groups.push((key, vec![item])),
        }
    }
    let mut tuples = Vec::new();
    for (key, items) in groups {
        let grouper = match (case_sensitive, items.first()) {
            (false, Some(first)) => lookup(first, &path, &default)?,
            _ => key,
        };
        tuples.push(Value::Group(Seq::new(vec![grouper, Value::list(items)?])?));
    }
    Value::list(tuples)
}

pub(super) fn sum(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let bound = args.bind("sum", ["attribute", "start"], 0)?;
    let path = bound.value(0);
    let mut total = bound.given(1).cloned().unwrap_or(Value::Int(0));
    if total.as_str().is_some() {
        fail!("sum() can't sum strings [use ''.join(seq) instead]");
    }
    for item in iterate::collect(&value, &renderer.meter)? {
        let item = lookup(&item, &path, &Value::None)?;
        total = arithmetic::binary(Operator::Add, &total, &item, &renderer.meter)?;
    }
    Ok(total)
}

pub(super) fn min(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    extreme(renderer, &value, args, |best, key, meter| {
        compare::less(key, best, meter)
    })
}

pub(super) fn max(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    extreme(renderer, &value, args, |best, key, meter| {
        compare::less(best, key, meter)
    })
}

fn extreme(
    renderer: &mut Renderer<'_>,
    value: &Value,
    args: Args,
    beats: impl Fn(&Value, &Value, &Meter) -> Result<bool>,
) -> Result<Value> {
    let bound = args.bind("min or max", ["case_sensitive", "attribute"], 0)?;
    let meter = &renderer.meter;
    let mut best: Option<(Value, Value)> = None;
    for item in iterate::collect(value, meter)? {
        let key = key(
            &item,
            &bound.value(1),
            &Value::None,
            bound.truth_or(0, false),
        )?;
        let wins = match &best {
            Some((best, _)) => beats(best, &key, meter)?,
            None => true,
        };
        if wins {
            best = Some((key, item));
        }
    }
    Ok(best.map_or_else(
        || nothing("No aggregated item, sequence was empty."),
        |(_, item)| item,
    ))
}

/// `value` as an iterable that may be looked at for whether it holds anything: what is empty by
/// Python's rules is not walked over.
pub(super) fn walk_if_true(value: &Value) -> Result<Option<Walk>> {
    match value.truth() {
        true => Walk::over(value).map(Some),
        false => Ok(None),
    }
}

/// An error of an item, told when the item is asked for.
pub(super) fn lazily(
    walk: Option<Walk>,
    renderer: &mut Renderer<'_>,
    mut each: impl FnMut(&mut Renderer<'_>, Value) -> Result<Option<Value>>,
) -> Result<Value> {
    let mut items = Vec::new();
    let mut failed = None;
    if let Some(mut walk) = walk {
        loop {
            let next = walk.next(&renderer.meter);
            let item = match next {
                Ok(Some(item)) => each(renderer, item),
                Ok(None) => break,
                Err(error) => Err(error),
            };
            match item {
                Ok(item) => items.extend(item),
                Err(error)
                    if matches!(error.kind, JinjaErrorKind::Fuel | JinjaErrorKind::Large) =>
                {
                    return Err(error);
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
    }
    Iter::value(items, failed)
}

/// The text of a name that an argument gives.
pub(super) fn name_of(value: &Value, filter: &str) -> Result<Arc<str>> {
    match value {
        Value::Str(name) | Value::Markup(name) => Ok(Arc::clone(name)),
        other => fail!("{filter}: expected a name, got {}", other.type_name()),
    }
}
