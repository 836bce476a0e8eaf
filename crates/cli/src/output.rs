//! Everything the program says: text for people, JSON lines for programs.

use std::io::{ErrorKind, IsTerminal, Write};

use serde::Serialize;

use crate::error::CliError;

/// Where results go, and in which form.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// A line for people; nothing where a program reads.
    pub(crate) fn line(self, text: impl AsRef<str>) -> Result<(), CliError> {
        if self.json {
            Ok(())
        } else {
            write_stdout(&format!("{}\n", text.as_ref()))
        }
    }

    /// Text as it is, shown at once: the tokens of a stream.
    pub(crate) fn stream(self, text: &str) -> Result<(), CliError> {
        if self.json {
            Ok(())
        } else {
            write_stdout(text)
        }
    }

    /// One JSON object on one line, where a program reads.
    pub(crate) fn record(self, value: &impl Serialize) -> Result<(), CliError> {
        if !self.json {
            return Ok(());
        }
        let text = serde_json::to_string(value).map_err(CliError::internal)?;
        write_stdout(&format!("{text}\n"))
    }

    /// Progress for people who wait: to standard error, so that it never mixes with results.
    pub(crate) fn progress(self, text: impl AsRef<str>) {
        if !self.json {
            // Nobody is left to tell that standard error is closed.
            let _ = writeln!(std::io::stderr(), "{}", text.as_ref());
        }
    }

    /// Whether text on standard output may have colour.
    pub(crate) fn wants_colour(self) -> bool {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        wanted && !self.json && std::io::stdout().is_terminal()
    }

    /// Whether a dashboard or a prompt makes sense.
    pub(crate) fn is_terminal(self) -> bool {
        !self.json && std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
    }
}

fn write_stdout(text: &str) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(CliError::closed_pipe()),
        result => result.map_err(|error| CliError::user("cannot write the results").because(error)),
    }
}
