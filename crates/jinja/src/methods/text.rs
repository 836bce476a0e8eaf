//! Methods of `str`.

use std::sync::Arc;

use super::{text_split, text_tests};
use crate::args::{Args, Bound};
use crate::braces;
use crate::dict::Dict;
use crate::error::{Result, fail};
use crate::iterate::{self, Walk};
use crate::render::Renderer;
use crate::repr;
use crate::unicode;
use crate::value::Value;

pub(crate) fn call(
    renderer: &mut Renderer<'_>,
    text: &Arc<str>,
    method: &'static str,
    args: Args,
) -> Result<Value> {
    let meter = &renderer.meter;
    meter.bytes(text.len())?;
    match method {
        "format" => return braces::format(text, &args, meter).map(Value::from),
        "split" | "rsplit" | "splitlines" | "partition" | "rpartition" => {
            return text_split::call(renderer, text, method, args);
        }
        _ if method.starts_with("is") => {
            args.bind_positional::<0>(method, 0)?;
            return Ok(text_tests::call(text, method).into());
        }
        _ => {}
    }
    match method {
        "capitalize" | "casefold" | "lower" | "swapcase" | "title" | "upper" => {
            args.bind_positional::<0>(method, 0)?;
            Ok(cased(text, method).into())
        }
        "strip" | "lstrip" | "rstrip" => {
            let bound = args.bind_positional::<1>(method, 0)?;
            Ok(strip(text, bound.optional_str(0, method)?, method).into())
        }
        "center" | "ljust" | "rjust" | "zfill" => justify(renderer, text, method, args),
        "count" | "find" | "rfind" | "index" | "rindex" => search(text, method, args),
        "startswith" | "endswith" => {
            let bound = args.bind_positional::<3>(method, 1)?;
            affixed(text, method, &bound)
        }
        "removeprefix" | "removesuffix" => {
            let bound = args.bind_positional::<1>(method, 1)?;
            let affix = bound.str(0, method)?;
            let kept = match method {
                "removeprefix" => text.strip_prefix(affix),
                _ => text.strip_suffix(affix),
            };
            Ok(kept.unwrap_or(text).into())
        }
        "replace" => {
            let bound = args.bind(method, ["old", "new", "count"], 2)?;
            let count = bound.int_or(2, -1, method)?;
            let (old, new) = (bound.str(0, method)?, bound.str(1, method)?);
            replace(renderer, text, old, new, count).map(Value::from)
        }
        "join" => join(renderer, text, args),
        "expandtabs" => expand_tabs(renderer, text, args),
        _ => rare(renderer, text, method, args),
    }
}

fn rare(
    renderer: &mut Renderer<'_>,
    text: &Arc<str>,
    method: &'static str,
    args: Args,
) -> Result<Value> {
    match method {
        "encode" => {
            let bound = args.bind(method, ["encoding", "errors"], 0)?;
            let encoding = bound
                .optional_str(0, method)?
                .unwrap_or("utf-8")
                .to_lowercase();
            match encoding.replace('_', "-").as_str() {
                "utf-8" | "utf8" => {}
                "ascii" | "us-ascii" if text.is_ascii() => {}
                _ => fail!("'{encoding}' codec can't encode this text, or is not supported"),
            }
            Ok(Value::Bytes(text.as_bytes().into()))
        }
        "format_map" => {
            let Value::Dict(dict) = args.bind_positional::<1>(method, 1)?.value(0) else {
                fail!("format_map() expects a mapping");
            };
            let names = dict.iter().filter_map(|(key, value)| match key {
                Value::Str(key) => Some((Arc::clone(key), value.clone())),
                _ => None,
            });
            let args = Args {
                positional: Vec::new(),
                keywords: names.collect(),
            };
            braces::format(text, &args, &renderer.meter).map(Value::from)
        }
        "maketrans" => make_translation(renderer, args),
        _ => {
            let Value::Dict(table) = args.bind_positional::<1>(method, 1)?.value(0) else {
                fail!("translate() expects a mapping");
            };
            let mut out = String::new();
            for c in text.chars() {
                renderer.meter.steps(1 + table.len() / 16)?;
                match table.get(&Value::Int(i128::from(u32::from(c)))) {
                    None => out.push(c),
                    Some(Value::None) => {}
                    Some(Value::Str(other)) => {
                        renderer.meter.grow(out.len(), other.len())?;
                        out.push_str(other);
                    }
                    Some(other) => match other.as_index().and_then(character) {
                        Some(c) => out.push(c),
                        None => fail!("character mapping must return integer, None or str"),
                    },
                }
            }
            Ok(out.into())
        }
    }
}

fn character(code: i128) -> Option<char> {
    u32::try_from(code).ok().and_then(char::from_u32)
}

fn make_translation(renderer: &mut Renderer<'_>, args: Args) -> Result<Value> {
    let bound = args.bind_positional::<3>("maketrans", 1)?;
    let code = |c: char| Value::Int(i128::from(u32::from(c)));
    let mut table = Dict::default();
    if let (Value::Dict(given), None) = (bound.value(0), bound.given(1)) {
        for (key, value) in given.iter() {
            let key = match key.as_str() {
                Some(key) => match (key.chars().next(), key.chars().count()) {
                    (Some(c), 1) => code(c),
                    _ => fail!("string keys in translate table must be of length 1"),
                },
                None => key.clone(),
            };
            renderer.meter.steps(1 + table.len() / 16)?;
            table.insert(key, value.clone())?;
        }
        return Ok(Value::Dict(Arc::new(table)));
    }
    let from: Vec<char> = bound.str(0, "maketrans")?.chars().collect();
    let to: Vec<char> = bound.str(1, "maketrans")?.chars().collect();
    if from.len() != to.len() {
        fail!("the first two maketrans arguments must have equal length");
    }
    let dropped = bound.optional_str(2, "maketrans")?.unwrap_or_default();
    let pairs = from.into_iter().zip(to.into_iter().map(code));
    for (c, value) in pairs.chain(dropped.chars().map(|c| (c, Value::None))) {
        renderer.meter.steps(1 + table.len() / 16)?;
        table.insert(code(c), value)?;
    }
    Ok(Value::Dict(Arc::new(table)))
}

/// Text in another case.
pub(crate) fn cased(text: &str, method: &str) -> String {
    match method {
        "lower" => text.to_lowercase(),
        "upper" => text.to_uppercase(),
        "casefold" => unicode::casefold(text),
        "capitalize" => {
            let mut out = String::with_capacity(text.len());
            let Some(first) = text.chars().next() else {
                return out;
            };
            unicode::push_title(&mut out, first);
            let lower = text.to_lowercase();
            let first = first.to_lowercase().map(char::len_utf8).sum();
            out + lower.get(first..).unwrap_or_default()
        }
        "swapcase" => {
            let lower = text.to_lowercase();
            // Lower case depends on what stands around only for the final sigma.
            let mut out = String::with_capacity(text.len());
            let mut at = 0;
            for c in text.chars() {
                let length: usize = c.to_lowercase().map(char::len_utf8).sum();
                let lowered = &lower[at..at + length];
                at += length;
                if c.is_uppercase() {
                    out.push_str(lowered);
                } else if c.is_lowercase() {
                    out.extend(c.to_uppercase());
                } else {
                    out.push(c);
                }
            }
            out
        }
        _ => {
            let lower = text.to_lowercase();
            let mut out = String::with_capacity(text.len());
            let mut at = 0;
            let mut after_cased = false;
            for c in text.chars() {
                let length: usize = c.to_lowercase().map(char::len_utf8).sum();
                match after_cased {
                    true => out.push_str(&lower[at..at + length]),
                    false => unicode::push_title(&mut out, c),
                }
                at += length;
                after_cased = unicode::is_cased(c);
            }
            out
        }
    }
}

/// Text without white space, or without some characters, at its ends.
pub(crate) fn strip<'t>(text: &'t str, chars: Option<&str>, method: &str) -> &'t str {
    let drops = |c: char| match chars {
        Some(chars) => chars.contains(c),
        None => unicode::is_space(c),
    };
    match method {
        "lstrip" => text.trim_start_matches(drops),
        "rstrip" => text.trim_end_matches(drops),
        _ => text.trim_matches(drops),
    }
}

fn justify(
    renderer: &mut Renderer<'_>,
    text: &str,
    method: &'static str,
    args: Args,
) -> Result<Value> {
    let bound = args.bind_positional::<2>(method, 1)?;
    if method == "zfill" && bound.given(1).is_some() {
        fail!("zfill() takes exactly one argument (2 given)");
    }
    let fill = match (bound.given(1).and_then(Value::as_str), bound.given(1)) {
        (_, None) => {
            if method == "zfill" {
                '0'
            } else {
                ' '
            }
        }
        (Some(fill), _) if fill.chars().count() == 1 => fill.chars().next().unwrap_or(' '),
        _ => fail!("The fill character must be exactly one character long"),
    };
    let length = text.chars().count();
    let width = usize::try_from(bound.int(0, method)?.max(0)).unwrap_or(usize::MAX);
    let missing = width.saturating_sub(length);
    renderer
        .meter
        .bytes(missing.saturating_mul(fill.len_utf8()))?;
    let filled = |count: usize| std::iter::repeat_n(fill, count);
    let mut out = String::with_capacity(text.len() + missing * fill.len_utf8());
    let left = match method {
        "ljust" => 0,
        // CPython puts the odd one to the left only where the width is odd too.
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    let (sign, digits) = match method {
        "zfill" if text.starts_with(['+', '-']) => text.split_at(1),
        _ => ("", text),
    };
    out.push_str(sign);
    out.extend(filled(left));
    out.push_str(digits);
    out.extend(filled(missing - left));
    Ok(out.into())
}

/// The part of a text between two indices of characters, with its first index; `None` where the
/// start is beyond the end.
fn part<'t, const N: usize>(
    text: &'t str,
    bound: &Bound<N>,
    method: &str,
) -> Result<Option<(&'t str, usize)>> {
    if matches!(bound.given(1), None | Some(Value::None))
        && matches!(bound.given(2), None | Some(Value::None))
    {
        return Ok(Some((text, 0)));
    }
    let length = text.chars().count() as i128;
    let place = |index: usize, default: i128| -> Result<i128> {
        match bound.given(index) {
            None | Some(Value::None) => Ok(default),
            Some(value) => {
                let at = crate::args::integer(value, method)?;
                Ok(if at < 0 { (at + length).max(0) } else { at })
            }
        }
    };
    let start = place(1, 0)?;
    let stop = place(2, length)?.min(length);
    if start > stop {
        return Ok(None);
    }
    let byte = |at: i128| {
        let mut bytes = text.char_indices().map(|(byte, _)| byte);
        bytes.nth(at as usize).unwrap_or(text.len())
    };
    Ok(Some((&text[byte(start)..byte(stop)], start as usize)))
}

fn search(text: &str, method: &'static str, args: Args) -> Result<Value> {
    let bound = args.bind_positional::<3>(method, 1)?;
    let wanted = bound.str(0, method)?;
    let part = part(text, &bound, method)?;
    if method == "count" {
        return Ok(part
            .map_or(0, |(part, _)| part.matches(wanted).count())
            .into());
    }
    let found = part.and_then(|(part, start)| {
        let byte = match method {
            "find" | "index" => part.find(wanted),
            _ => part.rfind(wanted),
        };
        byte.map(|byte| start + part[..byte].chars().count())
    });
    match (found, method) {
        (Some(index), _) => Ok(index.into()),
        (None, "find" | "rfind") => Ok(Value::Int(-1)),
        (None, _) => fail!("substring not found"),
    }
}

fn affixed(text: &str, method: &'static str, bound: &Bound<3>) -> Result<Value> {
    let affixes = match bound.value(0) {
        Value::Tuple(items) | Value::Group(items) => items.to_vec(),
        one => vec![one],
    };
    let part = part(text, bound, method)?;
    for affix in &affixes {
        let Some(affix) = affix.as_str() else {
            fail!(
                "{method} first arg must be str or a tuple of str, not {}",
                affix.type_name()
            );
        };
        let holds = part.is_some_and(|(part, _)| match method {
            "startswith" => part.starts_with(affix),
            _ => part.ends_with(affix),
        });
        if holds {
            return Ok(true.into());
        }
    }
    Ok(false.into())
}

/// `text.replace(old, new, count)`, paid for beforehand.
pub(crate) fn replace(
    renderer: &mut Renderer<'_>,
    text: &str,
    old: &str,
    new: &str,
    count: i128,
) -> Result<String> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let matches = text.matches(old).take(count).count();
    let added = new.len().saturating_sub(old.len()).saturating_mul(matches);
    renderer.meter.bytes(text.len().saturating_add(added))?;
    Ok(text.replacen(old, new, count))
}

fn join(renderer: &mut Renderer<'_>, separator: &str, args: Args) -> Result<Value> {
    let meter = &renderer.meter;
    let over = args.bind_positional::<1>("join", 1)?.value(0);
    let mut walk = match Walk::over(&over) {
        Ok(walk) => walk,
        Err(_) => fail!("can only join an iterable"),
    };
    let mut out = String::new();
    let mut index = 0;
    while let Some(item) = walk.next(meter)? {
        let Some(text) = item.as_str() else {
            fail!(
                "sequence item {index}: expected str instance, {} found",
                item.type_name()
            );
        };
        meter.grow(out.len(), separator.len() + text.len())?;
        if index > 0 {
            out.push_str(separator);
        }
        out.push_str(text);
        index += 1;
    }
    Ok(out.into())
}

fn expand_tabs(renderer: &mut Renderer<'_>, text: &str, args: Args) -> Result<Value> {
    let bound = args.bind("expandtabs", ["tabsize"], 0)?;
    let size = bound.int_or(0, 8, "expandtabs")?;
    let size = usize::try_from(size).unwrap_or(if size < 0 { 0 } else { usize::MAX });
    let mut out = String::with_capacity(text.len());
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' if size == 0 => {}
            '\t' => {
                let blanks = size - column % size;
                renderer.meter.grow(out.len(), blanks)?;
                out.extend(std::iter::repeat_n(' ', blanks));
                column += blanks;
            }
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    Ok(out.into())
}

/// `str.join` for filters: any values, written as `str` does.
pub(crate) fn join_all(
    renderer: &mut Renderer<'_>,
    separator: &str,
    values: &Value,
    mut each: impl FnMut(&mut Renderer<'_>, Value) -> Result<Value>,
) -> Result<Value> {
    let mut out = String::new();
    for (index, value) in iterate::collect(values, &renderer.meter)?
        .into_iter()
        .enumerate()
    {
        if index > 0 {
            renderer.meter.grow(out.len(), separator.len())?;
            out.push_str(separator);
        }
        let value = each(renderer, value)?;
        repr::write_text(&mut out, &value, &renderer.meter)?;
    }
    Ok(out.into())
}
