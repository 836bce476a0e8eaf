//! From source to tokens, with Jinja's rules for whitespace and line ends.
//!
//! # Source
//! `jinja2/lexer.py` with `trim_blocks`, `lstrip_blocks` and no `keep_trailing_newline`.

use std::sync::Arc;

use super::error::{JinjaError, Result};
use super::literal;
use super::unicode::is_space;

/// A token with its line.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) line: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// Text between tags.
    Data(String),
    BlockBegin,
    BlockEnd,
    VariableBegin,
    VariableEnd,
    Name(Arc<str>),
    Str(Arc<str>),
    Int(i128),
    Float(f64),
    Operator(&'static str),
    End,
}

impl Kind {
    /// How errors name the token.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Data(_) => "template data / text".to_owned(),
            Self::BlockBegin => "begin of statement block".to_owned(),
            Self::BlockEnd => "end of statement block".to_owned(),
            Self::VariableBegin => "begin of print statement".to_owned(),
            Self::VariableEnd => "end of print statement".to_owned(),
            Self::Name(name) => name.to_string(),
            Self::Str(_) => "string".to_owned(),
            Self::Int(_) => "integer".to_owned(),
            Self::Float(_) => "float".to_owned(),
            Self::Operator(operator) => (*operator).to_owned(),
            Self::End => "end of template".to_owned(),
        }
    }
}

/// Longer ones first.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";",
];

/// All tokens of a template.
pub(super) fn tokens(source: &str) -> Result<Vec<Token>> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer {
        source: &source,
        at: 0,
        line: 1,
        line_starting: true,
        tokens: Vec::new(),
    };
    lexer.run()?;
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: usize,
    /// Whether what was read last ended a line.
    line_starting: bool,
    tokens: Vec<Token>,
}

#[derive(Clone, Copy, PartialEq)]
enum Tag {
    Comment,
    Block,
    Variable,
    Raw,
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        &self.source[self.at..]
    }

    /// Moves on, counting lines.
    fn advance(&mut self, bytes: usize) {
        let read = &self.source[self.at..self.at + bytes];
        self.line += read.matches('\n').count();
        if !read.is_empty() {
            self.line_starting = read.ends_with('\n');
        }
        self.at += bytes;
    }

    fn push(&mut self, kind: Kind) {
        let line = self.line;
        self.tokens.push(Token { kind, line });
    }

    fn run(&mut self) -> Result<()> {
        while !self.rest().is_empty() {
            let Some((length, tag)) = self.find_tag() else {
                let data = self.rest().to_owned();
                self.push(Kind::Data(data));
                self.advance(self.rest().len());
                break;
            };
            self.text_before(length, tag);
            match tag {
                Tag::Comment => self.comment()?,
                Tag::Raw => self.raw()?,
                Tag::Block => {
                    self.push(Kind::BlockBegin);
                    self.inside(Tag::Block)?;
                }
                Tag::Variable => {
                    self.push(Kind::VariableBegin);
                    self.inside(Tag::Variable)?;
                }
            }
        }
        self.push(Kind::End);
        Ok(())
    }

    /// Bytes up to the next tag, and which it is.
    fn find_tag(&self) -> Option<(usize, Tag)> {
        let rest = self.rest();
        let mut from = 0;
        loop {
            let at = from + rest[from..].find('{')?;
            let tag = match rest.as_bytes().get(at + 1) {
                Some(b'#') => Tag::Comment,
                Some(b'{') => Tag::Variable,
                Some(b'%') if raw_tag(&rest[at..], "raw").is_some() => Tag::Raw,
                Some(b'%') => Tag::Block,
                _ => {
                    from = at + 1;
                    continue;
                }
            };
            return Some((at, tag));
        }
    }

    /// The text before a tag, without what the tag strips; also reads the tag's opening.
    fn text_before(&mut self, length: usize, tag: Tag) {
        let text = &self.source[self.at..self.at + length];
        let sign = self.source.as_bytes().get(self.at + length + 2).copied();
        let kept = self.stripped(text, sign, tag != Tag::Variable).to_owned();
        if !kept.is_empty() {
            self.push(Kind::Data(kept));
        }
        self.advance(length);
        if tag != Tag::Raw {
            self.advance(if matches!(sign, Some(b'-' | b'+')) {
                3
            } else {
                2
            });
        }
    }

    fn stripped<'t>(&self, text: &'t str, sign: Option<u8>, block: bool) -> &'t str {
        match sign {
            Some(b'-') => text.trim_end_matches(is_space),
            Some(b'+') => text,
            _ if block => {
                let line = text.rfind('\n').map_or(0, |at| at + 1);
                let blank = text[line..].chars().all(is_space);
                if blank && (line > 0 || self.line_starting) {
                    &text[..line]
                } else {
                    text
                }
            }
            _ => text,
        }
    }

    fn comment(&mut self) -> Result<()> {
        let Some(end) = self.rest().find("#}") else {
            if self.rest().is_empty() {
                // Jinja says nothing of a comment that begins with the last two characters.
                return Ok(());
            }
            return Err(JinjaError::syntax(self.line, "Missing end of comment tag"));
        };
        let strips = end > 0 && self.rest().as_bytes()[end - 1] == b'-';
        let keeps = end > 0 && self.rest().as_bytes()[end - 1] == b'+';
        let tail = self.tail(end + 2, strips, !keeps);
        self.advance(end + 2 + tail);
        Ok(())
    }

    /// Bytes after a tag's end that belong to it.
    fn tail(&self, end: usize, strips: bool, trims: bool) -> usize {
        let after = &self.rest()[end..];
        if strips {
            after.len() - after.trim_start_matches(is_space).len()
        } else {
            usize::from(trims && after.starts_with('\n'))
        }
    }

    fn raw(&mut self) -> Result<()> {
        let Some((length, strips)) = raw_tag(self.rest(), "raw") else {
            return Err(JinjaError::syntax(
                self.line,
                "Missing end of raw directive",
            ));
        };
        let tail = self.tail(length, strips, false);
        self.advance(length + tail);
        let rest = self.rest();
        let mut from = 0;
        let (at, length, strips) = loop {
            let Some(at) = rest[from..].find("{%").map(|at| from + at) else {
                return Err(JinjaError::syntax(
                    self.line,
                    "Missing end of raw directive",
                ));
            };
            if let Some((length, strips)) = raw_tag(&rest[at..], "endraw") {
                break (at, length, strips);
            }
            from = at + 2;
        };
        let sign = rest.as_bytes().get(at + 2).copied();
        let kept = self.stripped(&rest[..at], sign, true).to_owned();
        let keeps = rest[at..at + length].ends_with("+%}");
        if !kept.is_empty() {
            self.push(Kind::Data(kept));
        }
        self.advance(at);
        let tail = self.tail(length, strips, !keeps);
        self.advance(length + tail);
        Ok(())
    }

    /// The tokens of a block or variable up to its end.
    fn inside(&mut self, tag: Tag) -> Result<()> {
        let mut open: Vec<&'static str> = Vec::new();
        loop {
            let rest = self.rest();
            if open.is_empty()
                && let Some(length) = self.tag_end(tag)
            {
                self.push(match tag {
                    Tag::Block => Kind::BlockEnd,
                    _ => Kind::VariableEnd,
                });
                self.advance(length);
                return Ok(());
            }
            let Some(first) = rest.chars().next() else {
                // The parser says what is missing.
                return Ok(());
            };
            if is_space(first) {
                let blank = rest.len() - rest.trim_start_matches(is_space).len();
                self.advance(blank);
                continue;
            }
            let (kind, length) = self.token(first)?;
            if let Kind::Operator(operator) = kind {
                self.balance(&mut open, operator)?;
            }
            self.push(kind);
            self.advance(length);
        }
    }

    fn tag_end(&self, tag: Tag) -> Option<usize> {
        let rest = self.rest();
        let (end, trims) = match tag {
            Tag::Block => ("%}", true),
            _ => ("}}", false),
        };
        if rest.starts_with(end) {
            return Some(2 + self.tail(2, false, trims));
        }
        if rest.starts_with('-') && rest[1..].starts_with(end) {
            return Some(3 + self.tail(3, true, false));
        }
        (trims && rest.starts_with("+%}")).then_some(3)
    }

    fn token(&self, first: char) -> Result<(Kind, usize)> {
        let rest = self.rest();
        let line = self.line;
        if first.is_ascii_digit() {
            let after_dot = self.source[..self.at].ends_with('.');
            return literal::number(rest, after_dot)
                .ok_or_else(|| JinjaError::syntax(line, "this integer is too large"));
        }
        if first == '_' || first.is_alphanumeric() {
            let end = rest
                .find(|c: char| c != '_' && !c.is_alphanumeric())
                .unwrap_or(rest.len());
            return Ok((Kind::Name(rest[..end].into()), end));
        }
        if let Some(length) = literal::string_length(rest) {
            let text = literal::unescape(&rest[1..length - 1])
                .map_err(|reason| JinjaError::syntax(line, reason))?;
            return Ok((Kind::Str(text.into()), length));
        }
        OPERATORS
            .into_iter()
            .find(|operator| rest.starts_with(operator))
            .map(|operator| (Kind::Operator(operator), operator.len()))
            .ok_or_else(|| {
                let at = self.source[..self.at].chars().count();
                JinjaError::syntax(line, format!("unexpected char {first:?} at {at}"))
            })
    }

    fn balance(&self, open: &mut Vec<&'static str>, operator: &str) -> Result<()> {
        match operator {
            "{" => open.push("}"),
            "(" => open.push(")"),
            "[" => open.push("]"),
            "}" | ")" | "]" => match open.pop() {
                Some(expected) if expected == operator => {}
                Some(expected) => {
                    let message = format!("unexpected '{operator}', expected '{expected}'");
                    return Err(JinjaError::syntax(self.line, message));
                }
                None => {
                    let message = format!("unexpected '{operator}'");
                    return Err(JinjaError::syntax(self.line, message));
                }
            },
            _ => {}
        }
        Ok(())
    }
}

/// The length of `{% raw %}` or `{% endraw %}` at the start of a text, and whether it strips what
/// follows.
fn raw_tag(text: &str, name: &str) -> Option<(usize, bool)> {
    let inner = text.strip_prefix("{%")?;
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
    let inner = inner.trim_start_matches(is_space).strip_prefix(name)?;
    let inner = inner.trim_start_matches(is_space);
    let length = |after: &str| text.len() - after.len();
    if let Some(after) = inner.strip_prefix("-%}") {
        return Some((length(after), true));
    }
    if name == "endraw"
        && let Some(after) = inner.strip_prefix("+%}")
    {
        return Some((length(after), false));
    }
    inner.strip_prefix("%}").map(|after| (length(after), false))
}

#[cfg(test)]
mod tests {
    use super::{Kind, tokens};

    fn data(source: &str) -> String {
        let data = |kind| match kind {
            Kind::Data(text) => Some(text),
            _ => None,
        };
        let tokens = tokens(source).unwrap();
        tokens
            .into_iter()
            .filter_map(|token| data(token.kind))
            .collect()
    }

    #[test]
    fn whitespace_is_stripped_as_jinja_does() {
        let cases = [
            ("a\r\nb\rc\n", "a\nb\nc"),
            ("a\n\n", "a\n"),
            ("a\n  {% if x %}\n  b", "a\n  b"),
            ("a  {% if x %}\n  b", "a    b"),
            ("a  {%+ if x %}\n  b", "a    b"),
            ("  {%+ if x +%}\n  b", "  \n  b"),
            ("a \n {%- if x -%} \n  b", "ab"),
            ("a {{- x -}} \n b", "ab"),
            ("  {{ x }}\nb", "  \nb"),
            ("a\n  {# c #}\nb", "a\nb"),
            ("a {#- c -#} b", "ab"),
            ("{% raw %} {{ x }} {% endraw %}\nb", " {{ x }} b"),
            ("a {%- raw -%} {% x %} {%- endraw -%} b", "a{% x %}b"),
            ("{% if x %}  {% if y %}z", "  z"),
            ("{{ x }}  {% if y %}z", "  z"),
        ];
        for (source, expected) in cases {
            assert_eq!(data(source), expected, "{source:?}");
        }
    }
}
