//! HTML escapes, which templates ask for with `|e`.

use super::error::Result;
use super::meter::Meter;
use super::repr;
use super::value::Value;

/// `markupsafe.escape(value)`: text that is marked as safe stays.
pub(super) fn escape(value: &Value, meter: &Meter) -> Result<String> {
    match value {
        Value::Markup(text) => Ok(text.to_string()),
        other => {
            let text = repr::text(other, meter)?;
            meter.bytes(text.len().saturating_mul(5))?;
            Ok(escape_text(&text))
        }
    }
}

pub(super) fn escape_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

/// `Markup(text).striptags()`.
pub(super) fn strip_tags(text: &str) -> String {
    // Comments first, as they may hold tags.
    let text = without(&without(text, "<!--", "-->"), "<", ">");
    let words: Vec<&str> = text
        .split(super::unicode::is_space)
        .filter(|word| !word.is_empty())
        .collect();
    unescape(&words.join(" "))
}

/// A text without what stands between two marks.
fn without(text: &str, open: &str, close: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(open) {
        let Some(end) = rest[start..].find(close) else {
            break;
        };
        out.push_str(&rest[..start]);
        rest = &rest[start + end + close.len()..];
    }
    out + rest
}

/// The references that templates meet; others stay as they are.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let reference = rest.find(';').map(|end| (&rest[1..end], end + 1));
        let found = reference.and_then(|(name, length)| Some((character(name)?, length)));
        match found {
            Some((c, length)) => {
                out.push(c);
                rest = &rest[length..];
            }
            None => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }
    out.push_str(rest);
    out
}

fn character(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        "nbsp" => Some('\u{a0}'),
        _ => {
            let code = name.strip_prefix('#')?;
            let code = match code.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => code.parse().ok()?,
            };
            char::from_u32(code)
        }
    }
}
