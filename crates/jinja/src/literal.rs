//! Numbers and strings as they are written in a template.

use super::lexer::Kind;

/// The number at the start of a text and its length; `None` if it is too large.
pub(super) fn number(text: &str, after_dot: bool) -> Option<(Kind, usize)> {
    if !after_dot && let Some(length) = float_length(text) {
        let digits = text[..length].replace('_', "");
        return Some((Kind::Float(digits.parse().ok()?), length));
    }
    let bytes = text.as_bytes();
    let radix = match (bytes[0], bytes.get(1).map(u8::to_ascii_lowercase)) {
        (b'0', Some(b'b')) => 2,
        (b'0', Some(b'o')) => 8,
        (b'0', Some(b'x')) => 16,
        _ => 10,
    };
    if radix != 10 {
        let length = run(&text[2..], true, |c| c.is_digit(radix));
        if length > 0 {
            let digits = text[2..2 + length].replace('_', "");
            return Some((
                Kind::Int(i128::from_str_radix(&digits, radix).ok()?),
                2 + length,
            ));
        }
    }
    let length = match bytes[0] {
        b'0' => 1 + run(&text[1..], true, |c| c == '0'),
        _ => run(text, false, |c| c.is_ascii_digit()),
    };
    let digits = text[..length].replace('_', "");
    Some((Kind::Int(digits.parse().ok()?), length))
}

/// Bytes of digits, each of which may follow one underscore; the first one only if said so.
fn run(text: &str, underscore_first: bool, is_digit: impl Fn(char) -> bool) -> usize {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).is_some_and(|b| is_digit(char::from(*b)));
    let mut length = 0;
    loop {
        if digit(length) {
            length += 1;
        } else if (length > 0 || underscore_first)
            && bytes.get(length) == Some(&b'_')
            && digit(length + 1)
        {
            length += 2;
        } else {
            return length;
        }
    }
}

fn float_length(text: &str) -> Option<usize> {
    let digits = |text: &str| run(text, false, |c| c.is_ascii_digit());
    let bytes = text.as_bytes();
    let mut length = digits(text);
    let mut is_float = false;
    if bytes.get(length) == Some(&b'.') {
        let fraction = digits(&text[length + 1..]);
        if fraction > 0 {
            length += 1 + fraction;
            is_float = true;
        }
    }
    if matches!(bytes.get(length), Some(b'e' | b'E')) {
        let signed = usize::from(matches!(bytes.get(length + 1), Some(b'+' | b'-')));
        let exponent = digits(text.get(length + 1 + signed..)?);
        if exponent > 0 {
            length += 1 + signed + exponent;
            is_float = true;
        }
    }
    is_float.then_some(length)
}

/// The length of the string at the start of a text, quotes included.
pub(super) fn string_length(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Python's `unicode-escape`.
pub(super) fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(c) = rest.chars().next() else {
            return Err("\\ at end of string".to_owned());
        };
        rest = &rest[c.len_utf8()..];
        match c {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(c),
            'a' => out.push('\u{7}'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\u{b}'),
            '0'..='7' => {
                let more = rest
                    .bytes()
                    .take(2)
                    .take_while(|b| (b'0'..=b'7').contains(b))
                    .count();
                let code = format!("{c}{}", &rest[..more]);
                rest = &rest[more..];
                out.push(coded(&code, 8)?);
            }
            'x' => out.push(hex(&mut rest, 2)?),
            'u' => out.push(hex(&mut rest, 4)?),
            'U' => out.push(hex(&mut rest, 8)?),
            'N' => return Err("\\N{…} is not supported; write the character itself".to_owned()),
            c if c.is_ascii() => {
                out.push('\\');
                out.push(c);
            }
            // Jinja escapes what is not ASCII before it reads escapes.
            c => {
                out.push('\\');
                out.push_str(&super::repr::ascii(&c.to_string())[1..]);
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn hex(rest: &mut &str, digits: usize) -> Result<char, String> {
    let code = rest
        .get(..digits)
        .filter(|code| code.bytes().all(|b| b.is_ascii_hexdigit()))
        .ok_or_else(|| format!("truncated escape of {digits} hexadecimal digits"))?;
    *rest = &rest[digits..];
    coded(code, 16)
}

fn coded(code: &str, radix: u32) -> Result<char, String> {
    u32::from_str_radix(code, radix)
        .ok()
        .and_then(char::from_u32)
        .ok_or_else(|| format!("illegal Unicode character {code}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_unescaped_as_python_does() {
        let cases = [
            (r"a\nb\tc", "a\nb\tc"),
            (r"\/\d\\", r"\/\d\"),
            (r"\x41\u00e9\U0001F600\101\0", "Aé😀A\0"),
            ("\\\nx", "x"),
            ("é", "é"),
            ("\\é", "\\xe9"),
        ];
        for (source, expected) in cases {
            assert_eq!(unescape(source).unwrap(), expected);
        }
        assert!(unescape(r"\x4").is_err());
        assert!(unescape(r"\ud800").is_err());
    }

    #[test]
    fn numbers_end_where_jinja_ends_them() {
        let cases = [
            ("1_000", Kind::Int(1000), 5),
            ("0x1F", Kind::Int(31), 4),
            ("0b_11", Kind::Int(3), 5),
            ("00", Kind::Int(0), 2),
            ("012", Kind::Int(0), 1),
            ("1e5", Kind::Float(1e5), 3),
            ("1.5e-3x", Kind::Float(1.5e-3), 6),
            ("1.x", Kind::Int(1), 1),
            ("1__0", Kind::Int(1), 1),
        ];
        for (source, kind, length) in cases {
            assert_eq!(number(source, false), Some((kind, length)), "{source}");
        }
        assert_eq!(number("1.2", true), Some((Kind::Int(1), 1)));
        assert_eq!(number(&"9".repeat(60), false), None);
    }
}
