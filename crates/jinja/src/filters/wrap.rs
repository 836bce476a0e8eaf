//! `wordwrap`: Python's `textwrap.wrap`, line by line.

use std::collections::VecDeque;

use crate::args::Args;
use crate::error::{Result, fail};
use crate::methods;
use crate::render::Renderer;
use crate::unicode;
use crate::value::Value;

pub(super) fn wordwrap(renderer: &mut Renderer<'_>, value: Value, args: Args) -> Result<Value> {
    let names = [
        "width",
        "break_long_words",
        "wrapstring",
        "break_on_hyphens",
    ];
    let bound = args.bind("wordwrap", names, 0)?;
    let width = bound.int_or(0, 79, "wordwrap")?;
    let Some(text) = value.as_str() else {
        fail!(
            "'{}' object has no attribute 'splitlines'",
            value.type_name()
        );
    };
    if width <= 0 && !text.is_empty() {
        fail!("invalid width {width} (must be > 0)");
    }
    let wrapper = Wrapper {
        width: usize::try_from(width).unwrap_or(usize::MAX),
        break_long_words: bound.truth_or(1, true),
        break_on_hyphens: bound.truth_or(3, true),
    };
    let separator = bound.optional_str(2, "wordwrap")?.unwrap_or("\n");
    // A line may hold one character only.
    let lines = text.len().saturating_mul(separator.len() + 8);
    renderer.meter.bytes(text.len().saturating_add(lines))?;
    let paragraphs: Vec<String> = methods::lines(text)
        .into_iter()
        .map(|line| wrapper.wrap(line).join(separator))
        .collect();
    Ok(paragraphs.join(separator).into())
}

struct Wrapper {
    width: usize,
    break_long_words: bool,
    break_on_hyphens: bool,
}

/// `textwrap`'s own idea of white space.
fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

fn is_letter(c: char) -> bool {
    unicode::is_word(c) && !unicode::is_decimal(c)
}

impl Wrapper {
    fn wrap(&self, line: &str) -> Vec<String> {
        let chars: Vec<char> = line.chars().collect();
        let mut chunks: VecDeque<Vec<char>> = self.split(&chars).into();
        let mut lines: Vec<String> = Vec::new();
        let is_space = |chunk: &Vec<char>| chunk.iter().all(|c| unicode::is_space(*c));
        while !chunks.is_empty() {
            let mut current: Vec<Vec<char>> = Vec::new();
            let mut length = 0;
            if !lines.is_empty() && chunks.front().is_some_and(is_space) {
                chunks.pop_front();
            }
            while let Some(chunk) = chunks.pop_front() {
                if length + chunk.len() > self.width {
                    chunks.push_front(chunk);
                    break;
                }
                length += chunk.len();
                current.push(chunk);
            }
            if chunks.front().is_some_and(|chunk| chunk.len() > self.width) {
                self.take_long_word(&mut chunks, &mut current, length);
            }
            if current.last().is_some_and(is_space) {
                current.pop();
            }
            if !current.is_empty() {
                lines.push(current.into_iter().flatten().collect());
            }
        }
        lines
    }

    fn take_long_word(
        &self,
        chunks: &mut VecDeque<Vec<char>>,
        current: &mut Vec<Vec<char>>,
        length: usize,
    ) {
        let space = self.width.saturating_sub(length);
        let Some(mut chunk) = chunks.pop_front() else {
            return;
        };
        if !self.break_long_words {
            match current.is_empty() {
                true => current.push(chunk),
                false => chunks.push_front(chunk),
            }
            return;
        }
        let mut end = space;
        if self.break_on_hyphens && chunk.len() > space {
            let hyphen = chunk[..space].iter().rposition(|c| *c == '-');
            if let Some(hyphen) = hyphen
                && hyphen > 0
                && chunk[..hyphen].iter().any(|c| *c != '-')
            {
                end = hyphen + 1;
            }
        }
        let rest = chunk.split_off(end);
        current.push(chunk);
        chunks.push_front(rest);
    }

    /// Words, hyphens and spaces, as `textwrap.TextWrapper.wordsep_re` splits.
    fn split(&self, text: &[char]) -> Vec<Vec<char>> {
        let mut chunks = Vec::new();
        let mut start = 0;
        while start < text.len() {
            let end = match is_blank(text[start]) {
                true => run(text, start, is_blank),
                false if self.break_on_hyphens => word_end(text, start),
                false => run(text, start, |c| !is_blank(c)),
            };
            chunks.push(text[start..end].to_vec());
            start = end;
        }
        chunks
    }
}

fn run(text: &[char], start: usize, holds: impl Fn(char) -> bool) -> usize {
    let rest = text[start..].iter();
    start + rest.take_while(|c| holds(**c)).count()
}

/// Where the word at a place ends: at a blank, behind a hyphen between letters, or around a dash.
fn word_end(text: &[char], start: usize) -> usize {
    let at = |index: usize| text.get(index).copied();
    let before_dash = |index: usize| {
        let c = index.checked_sub(1).and_then(at);
        c.is_some_and(|c| unicode::is_word(c) || "!\"'&.,?".contains(c))
    };
    // The place behind a dash of two hyphens or more that a word follows.
    let dash_end = |index: usize| {
        let end = run(text, index, |c| c == '-');
        (end >= index + 2 && at(end).is_some_and(unicode::is_word)).then_some(end)
    };
    if before_dash(start)
        && let Some(end) = dash_end(start)
    {
        return end;
    }
    let letter = |index: Option<usize>| index.and_then(at).is_some_and(is_letter);
    let hyphen = |index: Option<usize>| index.and_then(at) == Some('-');
    let mut end = start + 1;
    loop {
        if at(end).is_none_or(is_blank) {
            return end;
        }
        if at(end) == Some('-') {
            let two_letters = letter(end.checked_sub(1)) && letter(end.checked_sub(2));
            let one_letter = letter(end.checked_sub(1))
                && hyphen(end.checked_sub(2))
                && letter(end.checked_sub(3));
            let after = match at(end + 2) {
                Some('-') => letter(Some(end + 3)),
                _ => letter(Some(end + 2)),
            };
            if (two_letters || one_letter) && letter(Some(end + 1)) && after {
                return end + 1;
            }
            if before_dash(end) && dash_end(end).is_some() {
                return end;
            }
        }
        end += 1;
    }
}
