//! Methods of `str` that say what it consists of.

use crate::unicode;

pub(super) fn call(text: &str, method: &str) -> bool {
    let all = |holds: fn(char) -> bool| !text.is_empty() && text.chars().all(holds);
    match method {
        "isalnum" => all(unicode::is_alnum),
        "isalpha" => all(unicode::is_alpha),
        "isascii" => text.is_ascii(),
        "isdecimal" => all(unicode::is_decimal),
        "isdigit" => all(unicode::is_digit),
        "isnumeric" => all(unicode::is_numeric),
        "isspace" => all(unicode::is_space),
        "isprintable" => text.chars().all(unicode::is_printable),
        "islower" => is_lower(text),
        "isupper" => is_upper(text),
        "istitle" => is_title(text),
        _ => {
            let is_start = |c: char| c == '_' || unicode::is_alpha(c);
            text.starts_with(is_start) && text.chars().all(unicode::is_word)
        }
    }
}

pub(crate) fn is_lower(text: &str) -> bool {
    let capital = |c: char| c.is_uppercase() || unicode::is_title(c);
    text.contains(char::is_lowercase) && !text.contains(capital)
}

pub(crate) fn is_upper(text: &str) -> bool {
    let small = |c: char| c.is_lowercase() || unicode::is_title(c);
    text.contains(char::is_uppercase) && !text.contains(small)
}

fn is_title(text: &str) -> bool {
    let mut found = false;
    let mut after_cased = false;
    for c in text.chars() {
        if c.is_uppercase() || unicode::is_title(c) {
            if after_cased {
                return false;
            }
            found = true;
        } else if c.is_lowercase() {
            if !after_cased {
                return false;
            }
            found = true;
        }
        after_cased = unicode::is_cased(c);
    }
    found
}
