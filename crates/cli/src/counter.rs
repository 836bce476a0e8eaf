//! How far work has come that takes a while.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::output::{Output, dumb_terminal};

/// One line on standard error: rewritten in place on a terminal, else repeated now and then.
pub(crate) struct Counter {
    output: Output,
    in_place: bool,
    shown: Option<Instant>,
}

impl Counter {
    pub(crate) fn new(output: Output) -> Self {
        Self {
            output,
            in_place: std::io::stderr().is_terminal() && !dumb_terminal(),
            shown: None,
        }
    }

    /// Shows `text` where it is time to.
    pub(crate) fn show(&mut self, text: impl FnOnce() -> String) {
        let pause = match self.in_place {
            true => Duration::from_millis(100),
            false => Duration::from_secs(10),
        };
        if self.output.is_json() || self.shown.is_some_and(|shown| shown.elapsed() < pause) {
            return;
        }
        self.shown = Some(Instant::now());
        if self.in_place {
            self.write(&format!("\r{}\u{1b}[K", text()));
        } else {
            self.output.progress(text());
        }
    }

    fn write(&self, text: &str) {
        let mut stderr = std::io::stderr();
        // Standard error may be closed; progress is then not shown.
        let _ = stderr
            .write_all(text.as_bytes())
            .and_then(|()| stderr.flush());
    }
}

/// What comes next begins on a line of its own.
impl Drop for Counter {
    fn drop(&mut self) {
        if self.in_place && self.shown.is_some() {
            self.write("\r\u{1b}[K");
        }
    }
}
