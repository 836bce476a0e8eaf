//! A request as the engine sees it, and what it hears of it.

use std::time::Instant;

use backdraft_model::decode::{AdmitError, DecodeRequest};
use tokio::sync::mpsc::UnboundedSender;

/// A prompt to continue, once or several times.
///
/// What it is answered is bounded by its tokens, so the channel need not be: a client that reads slowly costs the memory
/// of its own answer, and no other client's time.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: DecodeRequest,
    /// Strings that end the text; they are not part of it.
    pub(crate) stops: Vec<String>,
    /// Number of the first sample among the choices of the answer.
    pub(crate) first_choice: usize,
    pub(crate) deadline: Instant,
    pub(crate) to: UnboundedSender<Event>,
}

/// What becomes of a job.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// A token.
    Token {
        choice: usize,
        /// The text that is complete now; may be empty.
        text: String,
        /// How likely the token was, and the likeliest.
        likely: Option<(TokenText, Vec<TokenText>)>,
    },
    /// The last of a choice.
    End { choice: usize, reason: Reason },
    /// It took too long; nothing more comes.
    Timeout,
    /// It fits in no memory; nothing more comes.
    Refused(AdmitError),
    /// The tokenizer cannot write a token; nothing more comes.
    Failed(String),
}

/// Why a choice ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The model ended it, or a stop string.
    Stop,
    /// It has as many tokens as it may have.
    Length,
}

/// A token as text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TokenText {
    pub(crate) text: String,
    pub(crate) logprob: f32,
}
