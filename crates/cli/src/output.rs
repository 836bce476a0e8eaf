//! Everything the program says: text for people, JSON lines for programs.

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::envelope;
use crate::error::CliError;

/// Set once nothing reads standard output any more, as after `… | head -1`.
static CLOSED: AtomicBool = AtomicBool::new(false);
/// Set once a run has said that standard output cannot be written.
static WARNED: AtomicBool = AtomicBool::new(false);

/// Where results go, and in which form.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    /// Nobody is told anything, but of errors.
    quiet: bool,
}

impl Output {
    pub(crate) const fn new(json: bool) -> Self {
        Self { json, quiet: false }
    }

    /// The same for one of several processes that would say the same.
    #[must_use]
    pub(crate) const fn quiet(self) -> Self {
        Self {
            quiet: true,
            ..self
        }
    }

    /// A line for people; nothing where a program reads.
    pub(crate) fn line(self, text: impl AsRef<str>) -> Result<(), CliError> {
        if self.json || self.quiet {
            Ok(())
        } else {
            write_stdout(&format!("{}\n", text.as_ref()))
        }
    }

    /// Text as it is, shown at once: the tokens of a stream.
    pub(crate) fn stream(self, text: &str) -> Result<(), CliError> {
        if self.json || self.quiet {
            Ok(())
        } else {
            write_stdout(text)
        }
    }

    /// One JSON object on one line, where a program reads: `value`'s own keys, below the event's name.
    /// `docs/json.md` describes each event.
    pub(crate) fn record(self, event: &str, value: &impl Serialize) -> Result<(), CliError> {
        if !self.json || self.quiet {
            return Ok(());
        }
        let line = envelope::line(event, value).map_err(CliError::internal)?;
        write_stdout(&format!("{line}\n"))
    }

    /// Progress for people who wait: to standard error, so that it never mixes with results.
    pub(crate) fn progress(self, text: impl AsRef<str>) {
        if !self.json && !self.quiet {
            // Standard error may be closed; there is no other place to say so.
            let _ = writeln!(std::io::stderr(), "{}", text.as_ref());
        }
    }

    /// Something that is not as it should be and ends nothing: standard error, or an event.
    pub(crate) fn warn(self, message: impl AsRef<str>) {
        let message = message.as_ref();
        if self.json {
            self.go_on(self.record("warning", &serde_json::json!({ "message": message })));
        } else {
            self.progress(format!("warning: {message}"));
        }
    }

    /// Does without what could not be written, and says so once: a run's results are its files.
    pub(crate) fn go_on(self, written: Result<(), CliError>) {
        if let Err(error) = written
            && !WARNED.swap(true, Ordering::Relaxed)
        {
            let error = std::error::Error::source(&error)
                .map_or_else(String::new, |cause| format!(": {cause}"));
            let _ = writeln!(
                std::io::stderr(),
                "warning: standard output cannot be written{error}; the run continues without it"
            );
        }
    }

    /// Whether nothing reads standard output any more.
    pub(crate) fn is_closed(self) -> bool {
        CLOSED.load(Ordering::Relaxed)
    }

    /// Whether a program reads.
    pub(crate) const fn is_json(self) -> bool {
        self.json
    }

    /// Whether text on standard output may have colour.
    pub(crate) fn wants_colour(self) -> bool {
        colour_allowed() && !self.json && std::io::stdout().is_terminal()
    }

    /// Whether a dashboard makes sense.
    pub(crate) fn is_terminal(self) -> bool {
        !self.json
            && !self.quiet
            && !dumb_terminal()
            && std::io::stdin().is_terminal()
            && std::io::stdout().is_terminal()
    }

    /// Columns to wrap text to; `None` where it goes to a file or a pipe.
    pub(crate) fn columns(self) -> Option<usize> {
        let terminal = !self.json && std::io::stdout().is_terminal();
        terminal.then(terminal_columns).flatten()
    }
}

/// Whether the user's terminal and wishes allow colours: `NO_COLOR` and `TERM=dumb` do not.
pub(crate) fn colour_allowed() -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !no_color && !dumb_terminal()
}

/// Whether the terminal says that it can do nothing but print.
pub(crate) fn dumb_terminal() -> bool {
    std::env::var_os("TERM").is_some_and(|value| value == "dumb")
}

/// Columns of the terminal, or what `COLUMNS` says.
pub(crate) fn terminal_columns() -> Option<usize> {
    let said = std::env::var("COLUMNS")
        .ok()
        .and_then(|columns| columns.parse().ok());
    said.or_else(|| {
        ratatui::crossterm::terminal::size()
            .ok()
            .map(|(columns, _)| usize::from(columns))
    })
    .filter(|columns| *columns > 0)
}

/// Whether the other end of a pipe is closed. Windows has several errors that say so, of which the standard library knows
/// all but `ERROR_PIPE_NOT_CONNECTED`.
fn nobody_reads(error: &std::io::Error) -> bool {
    const PIPE_NOT_CONNECTED: i32 = 233;
    error.kind() == ErrorKind::BrokenPipe
        || (cfg!(windows) && error.raw_os_error() == Some(PIPE_NOT_CONNECTED))
}

/// A reader that went away, as `head` does, ends nothing: what is left to say is dropped.
fn write_stdout(text: &str) -> Result<(), CliError> {
    if CLOSED.load(Ordering::Relaxed) {
        return Ok(());
    }
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if nobody_reads(&error) => {
            CLOSED.store(true, Ordering::Relaxed);
            Ok(())
        }
        result => result.map_err(|error| CliError::user("cannot write the results").because(error)),
    }
}
