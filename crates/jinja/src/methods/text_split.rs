//! Methods of `str` that cut it into pieces.

use crate::args::Args;
use crate::error::{Result, fail};
use crate::render::Renderer;
use crate::unicode::{is_line_end, is_space};
use crate::value::Value;

pub(super) fn call(
    renderer: &mut Renderer<'_>,
    text: &str,
    method: &'static str,
    args: Args,
) -> Result<Value> {
    match method {
        "partition" | "rpartition" => {
            let bound = args.bind_positional::<1>(method, 1)?;
            let separator = bound.str(0, method)?;
            if separator.is_empty() {
                fail!("empty separator");
            }
            let found = match method {
                "partition" => text.split_once(separator),
                _ => text.rsplit_once(separator),
            };
            let parts = match found {
                Some((before, after)) => [before, separator, after],
                None if method == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            Value::tuple(parts.map(Value::from).to_vec())
        }
        "splitlines" => {
            let bound = args.bind(method, ["keepends"], 0)?;
            // Each piece is a value, which is paid for before there is one.
            renderer.meter.steps(text.matches(is_line_end).count())?;
            let lines = lines(text, bound.truth_or(0, false));
            Value::list(lines.into_iter().map(Value::from).collect())
        }
        _ => {
            let bound = args.bind(method, ["sep", "maxsplit"], 0)?;
            let most = usize::try_from(bound.int_or(1, -1, method)?).unwrap_or(usize::MAX);
            let from_right = method == "rsplit";
            let separator = bound.optional_str(0, method)?;
            let cuts = match separator {
                Some(separator) => text.matches(separator).count(),
                None => text.matches(is_space).count(),
            };
            renderer.meter.steps(cuts.min(most))?;
            let pieces = match separator {
                Some("") => fail!("empty separator"),
                Some(separator) if from_right => {
                    let mut pieces: Vec<&str> =
                        text.rsplitn(most.saturating_add(1), separator).collect();
                    pieces.reverse();
                    pieces
                }
                Some(separator) => text.splitn(most.saturating_add(1), separator).collect(),
                None if from_right => words_from_right(text, most),
                None => words(text, most),
            };
            Value::list(pieces.into_iter().map(Value::from).collect())
        }
    }
}

fn words(text: &str, most: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        if pieces.len() == most {
            pieces.push(rest);
            break;
        }
        let end = rest.find(is_space).unwrap_or(rest.len());
        pieces.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(is_space);
    }
    pieces
}

fn words_from_right(text: &str, most: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        if pieces.len() == most {
            pieces.push(rest);
            break;
        }
        let start = rest
            .char_indices()
            .rev()
            .find(|(_, c)| is_space(*c))
            .map_or(0, |(at, c)| at + c.len_utf8());
        pieces.push(&rest[start..]);
        rest = rest[..start].trim_end_matches(is_space);
    }
    pieces.reverse();
    pieces
}

/// `text.splitlines(keep_ends)`.
pub(crate) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_line_end(*c)) {
        let length = match rest[at..].starts_with("\r\n") {
            true => 2,
            false => c.len_utf8(),
        };
        lines.push(&rest[..if keep_ends { at + length } else { at }]);
        rest = &rest[at + length..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}
