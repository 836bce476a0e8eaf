//! JSON objects one after another: one a line, several in one, or one over several.

use std::collections::VecDeque;
use std::io::BufRead;
use std::path::{Path, PathBuf};

use super::json;
use super::nest::Nest;
use crate::error::DataError;
use crate::jsonl::{JsonlReader, Line, MAX_LINE_BYTES};

/// Broken lines after which no line is joined with those behind it any more: each try may read
/// [`MAX_LINE_BYTES`].
const MAX_TRIES: usize = 16;

/// Reads a value a line. A line that leaves brackets open is joined with the next ones where that
/// gives a whole value, and is a broken row by itself where it does not.
pub(super) struct JsonRows<R> {
    path: PathBuf,
    lines: JsonlReader<R>,
    /// Lines that were read too far, or rests of lines.
    ahead: VecDeque<Result<Line, DataError>>,
    tries: usize,
}

impl<R: BufRead> JsonRows<R> {
    pub(super) fn new(path: &Path, reader: R) -> Self {
        Self {
            path: path.to_owned(),
            lines: JsonlReader::new(path, reader),
            ahead: VecDeque::new(),
            tries: 0,
        }
    }

    /// The next value with the line on which it begins.
    pub(super) fn next_row(&mut self) -> Result<Option<(usize, String)>, DataError> {
        let Some(line) = self.next_line()? else {
            return Ok(None);
        };
        let Line { number, text } = line;
        let start = text.len() - text.trim_start().len();
        if !text[start..].starts_with(['{', '[']) {
            return Ok(Some((number, text)));
        }
        let mut nest = Nest::default();
        let (length, ended) = nest.advance(&text.as_bytes()[start..]);
        if !ended {
            return Ok(Some(self.join(number, text, nest)?));
        }
        let end = start + length;
        let rest = text[end..].trim_start();
        match rest.bytes().next() {
            None => Ok(Some((number, text))),
            Some(b',') => Err(self.comma(number)),
            Some(b'{') => {
                let rest = rest.to_owned();
                self.put_back(number, rest);
                Ok(Some((number, text[start..end].to_owned())))
            }
            // The parser says what is wrong with it.
            Some(_) => Ok(Some((number, text))),
        }
    }

    fn next_line(&mut self) -> Result<Option<Line>, DataError> {
        match self.ahead.pop_front() {
            Some(line) => line.map(Some),
            None => self.lines.next_line(),
        }
    }

    fn put_back(&mut self, number: usize, text: String) {
        self.ahead.push_front(Ok(Line { number, text }));
    }

    fn comma(&self, line: usize) -> DataError {
        DataError::Layout {
            path: self.path.clone(),
            line,
            expected: "objects without commas between them".to_owned(),
            found: "a comma after an object; remove it, or put all of them into one list in [ ]"
                .to_owned(),
            recoverable: true,
        }
    }

    /// The value that begins in `first` and goes on in the next lines; `first` alone, which is then
    /// a broken row, if it does not end.
    fn join(
        &mut self,
        number: usize,
        first: String,
        mut nest: Nest,
    ) -> Result<(usize, String), DataError> {
        let mut text = first.clone();
        let mut taken = Vec::new();
        let mut at = number;
        let mut whole = false;
        while self.tries < MAX_TRIES && text.len() <= MAX_LINE_BYTES {
            let line = match self.next_line() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(error) => {
                    taken.push(Err(error));
                    break;
                }
            };
            let begins = line.text.trim_start().bytes().next().unwrap_or(b' ');
            if !nest.may_go_on(begins) {
                taken.push(Ok(line));
                break;
            }
            let (length, ended) = nest.advance(line.text.as_bytes());
            // Blank lines count too, for the places of errors.
            text.extend(std::iter::repeat_n('\n', line.number.saturating_sub(at)));
            text.push_str(&line.text[..length]);
            at = line.number;
            if ended && json::parse(&text).is_ok() {
                let rest = line.text[length..].trim_start();
                if rest.starts_with(',') {
                    return Err(self.comma(line.number));
                }
                if !rest.is_empty() {
                    self.put_back(line.number, rest.to_owned());
                }
                whole = true;
                break;
            }
            taken.push(Ok(line));
            if ended {
                break;
            }
        }
        if whole {
            return Ok((number, text));
        }
        self.tries += usize::from(taken.len() > 1);
        for line in taken.into_iter().rev() {
            self.ahead.push_front(line);
        }
        Ok((number, first))
    }
}
