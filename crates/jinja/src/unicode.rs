//! Characters as Python's `str` sees them.

mod tables;

use std::cmp::Ordering;

/// Whether Python counts a character as white space.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Whether `splitlines` ends a line here.
pub(super) fn is_line_end(c: char) -> bool {
    matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

pub(super) fn is_printable(c: char) -> bool {
    match c.is_ascii() {
        true => (' '..='~').contains(&c),
        false => !within(tables::NOT_PRINTABLE, c),
    }
}

pub(super) fn is_alpha(c: char) -> bool {
    match c.is_ascii() {
        true => c.is_ascii_alphabetic(),
        false => within(tables::ALPHA, c),
    }
}

pub(super) fn is_decimal(c: char) -> bool {
    match c.is_ascii() {
        true => c.is_ascii_digit(),
        false => within(tables::DECIMAL, c),
    }
}

pub(super) fn is_digit(c: char) -> bool {
    is_decimal(c) || within(tables::DIGIT, c)
}

pub(super) fn is_numeric(c: char) -> bool {
    is_digit(c) || within(tables::NUMERIC, c)
}

pub(super) fn is_alnum(c: char) -> bool {
    is_alpha(c) || is_numeric(c)
}

/// Whether `\w` of Python's `re` matches.
pub(super) fn is_word(c: char) -> bool {
    c == '_' || is_alnum(c)
}

/// Whether a character is one of the few that are two letters with the first one capital.
pub(super) fn is_title(c: char) -> bool {
    matches!(c,
        '\u{1C5}' | '\u{1C8}' | '\u{1CB}' | '\u{1F2}' | '\u{1F88}'..='\u{1F8F}'
        | '\u{1F98}'..='\u{1F9F}' | '\u{1FA8}'..='\u{1FAF}' | '\u{1FBC}' | '\u{1FCC}' | '\u{1FFC}')
}

pub(super) fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || is_title(c)
}

/// The digit of a decimal character of any script.
pub(super) fn decimal_value(c: char) -> Option<u32> {
    if c.is_ascii() {
        return c.to_digit(10);
    }
    // Each script has its ten digits in a row.
    let (first, _) = find(tables::DECIMAL, c)?;
    Some((u32::from(c) - first) % 10)
}

/// Appends a character in title case.
pub(super) fn push_title(out: &mut String, c: char) {
    match mapped(tables::TITLE, c) {
        Some(title) => out.push_str(title),
        None => out.extend(c.to_uppercase()),
    }
}

/// `casefold()`.
pub(super) fn casefold(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match mapped(tables::FOLDED, c) {
            Some(folded) => out.push_str(folded),
            None => out.extend(c.to_lowercase()),
        }
    }
    out
}

fn within(table: &[(u32, u32)], c: char) -> bool {
    find(table, c).is_some()
}

fn find(table: &[(u32, u32)], c: char) -> Option<(u32, u32)> {
    let code = u32::from(c);
    let index = table.binary_search_by(|(first, last)| match code {
        code if code < *first => Ordering::Greater,
        code if code > *last => Ordering::Less,
        _ => Ordering::Equal,
    });
    index.ok().map(|index| table[index])
}

fn mapped(table: &'static [(u32, &'static str)], c: char) -> Option<&'static str> {
    let code = u32::from(c);
    let index = table.binary_search_by_key(&code, |(from, _)| *from);
    index.ok().map(|index| table[index].1)
}
