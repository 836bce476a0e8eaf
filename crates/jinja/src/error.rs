//! What stops a template.

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JinjaErrorKind {
    /// The source is not Jinja, or names a filter or test that does not exist.
    Syntax,
    /// The template called `raise_exception`.
    Raised,
    /// A variable or attribute that is not there was used.
    Undefined,
    /// A variable, function, filter or test was used that no conversation could bring.
    Unknown,
    /// Python would raise a `TypeError`, a `ValueError` or the like.
    Runtime,
    /// The limit of work is reached.
    Fuel,
    /// The limit of output is reached.
    Large,
}

/// An error of a template, with its line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct JinjaError {
    /// What kind of thing went wrong.
    pub kind: JinjaErrorKind,
    /// The reason, in Jinja's or Python's words where they have some.
    pub message: String,
    /// The template's line, from 1.
    pub line: usize,
}

/// Boxed, because results of values are passed around all the time.
pub(super) type Result<T> = std::result::Result<T, Box<JinjaError>>;

impl JinjaError {
    /// An error whose line is not known yet.
    pub(super) fn new(kind: JinjaErrorKind, message: impl Into<String>) -> Box<Self> {
        Box::new(Self {
            kind,
            message: message.into(),
            line: 0,
        })
    }

    pub(super) fn syntax(line: usize, message: impl Into<String>) -> Box<Self> {
        Self::new(JinjaErrorKind::Syntax, message).at(line)
    }

    /// A filter or test that does not exist.
    pub(super) fn unknown(message: String) -> Box<Self> {
        Self::new(JinjaErrorKind::Unknown, message)
    }

    pub(super) fn runtime(message: impl Into<String>) -> Box<Self> {
        Self::new(JinjaErrorKind::Runtime, message)
    }

    /// The error with its line, unless it has one already.
    pub(super) fn at(mut self: Box<Self>, line: usize) -> Box<Self> {
        if self.line == 0 {
            self.line = line;
        }
        self
    }
}

/// Ends a function with a [`JinjaErrorKind::Runtime`] error.
macro_rules! fail {
    ($($text:tt)*) => {
        return Err($crate::error::JinjaError::runtime(format!($($text)*)))
    };
}
pub(super) use fail;
