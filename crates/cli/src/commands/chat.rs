//! `generate --chat`: a conversation, line by line.

use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backdraft_data::{Message, Role};
use backdraft_model::generate::GenerateConfig;
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use crate::commands::generate::{Answer, answer, encode};
use crate::error::{CliError, INTERRUPTED};
use crate::output::Output;
use crate::session::Session;

/// Lines that end the chat.
const EXIT: [&str; 2] = ["/exit", "/quit"];

/// Talks until the user ends it; `first` is said first where it is there.
pub(crate) fn chat(
    session: &Session,
    mut messages: Vec<Message>,
    first: Option<String>,
    config: &GenerateConfig,
    output: Output,
) -> Result<(), CliError> {
    output.progress(
        "/exit, an empty line or the end of input ends the chat; Ctrl-C stops an answer.",
    );
    let keyboard = Keyboard::listen()?;
    let mut next = first;
    while !output.is_closed() {
        let said = match next.take() {
            Some(said) => said,
            None => {
                output.stream("> ")?;
                line(&mut std::io::stdin().lock())?
            }
        };
        if ends(&said) {
            break;
        }
        messages.push(Message::new(Role::User, said.trim()));
        let ids = encode(session, messages.clone(), "")?;
        let answered =
            keyboard.answering(|stopped| answer(session, &ids, config, output, stopped))?;
        output.line("")?;
        output.record("answer", &answered.to_json(None))?;
        let Answer { text, .. } = answered;
        messages.push(Message::new(Role::Assistant, text));
    }
    Ok(())
}

/// Whether a line ends the chat.
fn ends(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || EXIT.contains(&line)
}

/// The next line; empty at the end of the input.
fn line(input: &mut impl BufRead) -> Result<String, CliError> {
    let mut line = String::new();
    input
        .read_line(&mut line)
        .map_err(|error| CliError::user("cannot read the input").because(error))?;
    Ok(line)
}

/// Ctrl-C: while the model answers it ends the answer, else the program.
struct Keyboard {
    idle: Arc<AtomicBool>,
    stopped: Arc<AtomicBool>,
}

impl Keyboard {
    fn listen() -> Result<Self, CliError> {
        let cannot = |error| CliError::user("cannot listen for signals").because(error);
        let (idle, stopped) = (
            Arc::new(AtomicBool::new(true)),
            Arc::new(AtomicBool::new(false)),
        );
        flag::register_conditional_shutdown(SIGINT, i32::from(INTERRUPTED), idle.clone())
            .map_err(cannot)?;
        // A second one during the same answer does not wait for it.
        flag::register_conditional_shutdown(SIGINT, i32::from(INTERRUPTED), stopped.clone())
            .map_err(cannot)?;
        flag::register(SIGINT, stopped.clone()).map_err(cannot)?;
        Ok(Self { idle, stopped })
    }

    /// Runs `work`, which looks whether it is to stop.
    fn answering<T>(&self, work: impl FnOnce(&AtomicBool) -> T) -> T {
        self.stopped.store(false, Ordering::Relaxed);
        self.idle.store(false, Ordering::Relaxed);
        let done = work(&self.stopped);
        self.idle.store(true, Ordering::Relaxed);
        self.stopped.store(false, Ordering::Relaxed);
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_empty_lines_end_a_chat() {
        for line in ["/exit\n", " /quit ", "\n", ""] {
            assert!(ends(line), "{line:?}");
        }
        for line in ["exit\n", "/exit now", "what is /exit?"] {
            assert!(!ends(line), "{line:?}");
        }
    }

    #[test]
    fn lines_are_read_to_the_end_of_the_input() {
        let mut input = "one\ntwo".as_bytes();
        let lines: Vec<String> = (0..3).map(|_| line(&mut input).unwrap()).collect();
        assert_eq!(lines, ["one\n", "two", ""]);
    }

    #[cfg(unix)]
    #[test]
    fn ctrl_c_ends_the_answer_and_not_the_program() {
        let keyboard = Keyboard::listen().unwrap();
        let stopped = keyboard.answering(|stopped| {
            assert!(!stopped.load(Ordering::Relaxed));
            signal_hook::low_level::raise(SIGINT).unwrap();
            stopped.load(Ordering::Relaxed)
        });
        assert!(stopped);
        // The next answer begins afresh.
        assert!(!keyboard.answering(|stopped| stopped.load(Ordering::Relaxed)));
    }
}
