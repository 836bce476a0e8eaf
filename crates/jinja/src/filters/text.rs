//! Filters of strings.

use super::collections::pairs_of;
use crate::args::Args;
use crate::dict::Dict;
use crate::error::{Result, fail};
use crate::html;
use crate::iterate;
use crate::meter::Meter;
use crate::methods;
use crate::percent;
use crate::render::Renderer;
use crate::repr;
use crate::unicode;
use crate::value::Value;

/// What `str` makes of a value, unless it is a string.
fn soft(value: &Value, meter: &Meter) -> Result<String> {
    repr::text(value, meter)
}

fn cased(renderer: &mut Renderer<'_>, value: &Value, args: Args, name: &str) -> Result<Value> {
    args.bind::<0>(name, [], 0)?;
    Ok(methods::text::cased(&soft(value, &renderer.meter)?, name).into())
}

pub(super) fn capitalize(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    cased(renderer, &value, args, "capitalize")
}

pub(super) fn lower(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    cased(renderer, &value, args, "lower")
}

pub(super) fn upper(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    cased(renderer, &value, args, "upper")
}

/// Words begin behind white space and opening brackets only, unlike with `str.title`.
pub(super) fn title(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    args.bind::<0>("title", [], 0)?;
    let text = soft(&value, &renderer.meter)?;
    let separates = |c: char| matches!(c, '-' | '(' | '{' | '[' | '<') || unicode::is_space(c);
    let mut out = String::with_capacity(text.len());
    for word in text.split_inclusive(separates) {
        let mut chars = word.chars();
        if let Some(first) = chars.next() {
            out.extend(first.to_uppercase());
            out.push_str(&chars.as_str().to_lowercase());
        }
    }
    Ok(out.into())
}

pub(super) fn center(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let bound = args.bind("center", ["width"], 0)?;
    let width = Value::Int(bound.int_or(0, 80, "center")?);
    let text = soft(&value, &renderer.meter)?;
    methods::on_text(renderer, &text, "center", vec![width])
}

pub(super) fn escape(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    args.bind::<0>("escape", [], 0)?;
    Ok(Value::Markup(html::escape(&value, &renderer.meter)?.into()))
}

pub(super) fn forceescape(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    args.bind::<0>("forceescape", [], 0)?;
    let text: Value = soft(&value, &renderer.meter)?.into();
    Ok(Value::Markup(html::escape(&text, &renderer.meter)?.into()))
}

pub(super) fn safe(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    args.bind::<0>("safe", [], 0)?;
    Ok(Value::Markup(soft(&value, &renderer.meter)?.into()))
}

pub(super) fn string(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    args.bind::<0>("string", [], 0)?;
    match value {
        Value::Str(_) | Value::Markup(_) => Ok(value),
        other => Ok(soft(&other, &renderer.meter)?.into()),
    }
}

pub(super) fn striptags(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    args.bind::<0>("striptags", [], 0)?;
    let text = soft(&value, &renderer.meter)?;
    Ok(html::strip_tags(&text).into())
}

pub(super) fn format(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    if !args.positional.is_empty() && !args.keywords.is_empty() {
        fail!("can't handle positional and keyword arguments at the same time");
    }
    let values = if args.keywords.is_empty() {
        Value::tuple(args.positional)?
    } else {
        let mut dict = Dict::default();
        for (name, value) in args.keywords {
            dict.insert(Value::Str(name), value)?;
        }
        Value::Dict(dict.into())
    };
    let source = match &value {
        Value::Markup(_) => value.clone(),
        other => soft(other, &renderer.meter)?.into(),
    };
    percent::format(&source, &values, &renderer.meter)
}

pub(super) fn indent(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let bound = args.bind("indent", ["width", "first", "blank"], 0)?;
    let meter = &renderer.meter;
    let indention = match bound.given(0) {
        Some(Value::Str(text) | Value::Markup(text)) => text.to_string(),
        _ => {
            let width = bound.int_or(0, 4, "indent")?.max(0);
            let width = usize::try_from(width).unwrap_or(usize::MAX);
            meter.bytes(width)?;
            " ".repeat(width)
        }
    };
    let Some(text) = value.as_str() else {
        fail!(
            "unsupported operand type(s) for +=: '{}' and 'str'",
            value.type_name()
        );
    };
    // Jinja adds a line end, so that an empty last line counts.
    let text = format!("{text}\n");
    let lines = methods::lines(&text);
    meter.bytes(
        text.len()
            .saturating_add(indention.len().saturating_mul(lines.len())),
    )?;
    let (first, blank) = (bound.truth_or(1, false), bound.truth_or(2, false));
    let mut out = String::new();
    for (index, line) in lines.into_iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let indents = match index {
            0 => first,
            _ => blank || !line.is_empty(),
        };
        if indents {
            out.push_str(&indention);
        }
        out.push_str(line);
    }
    Ok(out.into())
}

pub(super) fn replace(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let bound = args.bind("replace", ["old", "new", "count"], 2)?;
    let meter = &renderer.meter;
    let text = soft(&value, meter)?;
    let old = soft(&bound.value(0), meter)?;
    let new = soft(&bound.value(1), meter)?;
    let count = match bound.value(2) {
        Value::None => -1,
        other => crate::args::integer(&other, "replace")?,
    };
    methods::text::replace(renderer, &text, &old, &new, count).map(Value::from)
}

pub(super) fn trim(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let bound = args.bind("trim", ["chars"], 0)?;
    let text = soft(&value, &renderer.meter)?;
    let chars = bound.optional_str(0, "trim")?;
    Ok(methods::text::strip(&text, chars, "strip").into())
}

pub(super) fn truncate(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let bound = args.bind("truncate", ["length", "killwords", "end", "leeway"], 0)?;
    let length = bound.int_or(0, 255, "truncate")?;
    let end = bound.optional_str(2, "truncate")?.unwrap_or("...");
    let leeway = match bound.value(3) {
        Value::None => 5,
        other => crate::args::integer(&other, "truncate")?,
    };
    let end_length = end.chars().count() as i128;
    if length < end_length {
        fail!("expected length >= {end_length}, got {length}");
    }
    if leeway < 0 {
        fail!("expected leeway >= 0, got {leeway}");
    }
    let Some(text) = value.as_str() else {
        let Some(found) = value.len() else {
            fail!("object of type '{}' has no len()", value.type_name());
        };
        match found as i128 <= length.saturating_add(leeway) {
            true => return Ok(value),
            false => fail!("'{}' object cannot be truncated", value.type_name()),
        }
    };
    renderer.meter.bytes(text.len())?;
    if text.chars().count() as i128 <= length.saturating_add(leeway) {
        return Ok(value);
    }
    let kept: String = text.chars().take((length - end_length) as usize).collect();
    if bound.truth_or(1, false) {
        return Ok((kept + end).into());
    }
    let kept = kept
        .rsplit_once(' ')
        .map_or(kept.as_str(), |(words, _)| words);
    Ok(format!("{kept}{end}").into())
}

pub(super) fn wordcount(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    args.bind::<0>("wordcount", [], 0)?;
    let text = soft(&value, &renderer.meter)?;
    let words = text.split(|c: char| !unicode::is_word(c));
    Ok(words.filter(|word| !word.is_empty()).count().into())
}

pub(super) fn urlencode(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    args.bind::<0>("urlencode", [], 0)?;
    let meter = &renderer.meter;
    let quote = |value: &Value, query: bool| -> Result<String> {
        let text = repr::text(value, meter)?;
        meter.bytes(text.len().saturating_mul(3))?;
        Ok(quoted(&text, query))
    };
    let is_pairs = value.as_str().is_none() && iterate::Walk::over(&value).is_ok();
    if !is_pairs {
        return Ok(quote(&value, false)?.into());
    }
    let mut parts = Vec::new();
    for (key, value) in pairs_of(&value, meter)? {
        parts.push(format!("{}={}", quote(&key, true)?, quote(&value, true)?));
    }
    Ok(parts.join("&").into())
}

fn quoted(text: &str, query: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => {
                out.push(char::from(byte));
            }
            b'/' if !query => out.push('/'),
            b' ' if query => out.push('+'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

pub(super) fn xmlattr(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let bound = args.bind("xmlattr", ["autospace"], 0)?;
    let meter = &renderer.meter;
    let Value::Dict(dict) = &value else {
        fail!("'{}' object has no attribute 'items'", value.type_name());
    };
    let mut items = Vec::new();
    for (key, value) in dict.iter() {
        if value.is_none() || value.is_undefined() {
            continue;
        }
        let Some(name) = key.as_str() else {
            fail!("expected string or bytes-like object");
        };
        if name
            .contains(|c: char| c.is_ascii_whitespace() || matches!(c, '\u{b}' | '/' | '>' | '='))
        {
            fail!(
                "Invalid character in attribute name: {}",
                repr::quoted(name)
            );
        }
        items.push(format!(
            "{}=\"{}\"",
            html::escape(key, meter)?,
            html::escape(value, meter)?
        ));
    }
    let text = items.join(" ");
    let space = if bound.truth_or(0, true) && !text.is_empty() {
        " "
    } else {
        ""
    };
    Ok(format!("{space}{text}").into())
}
