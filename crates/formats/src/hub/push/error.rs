//! Why files did not get to the hub.

use std::fmt;
use std::path::PathBuf;

/// Why a push failed. Nothing is visible on the hub then but, at most, a new and empty repository or branch: files
/// appear in one commit, the last request of all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// Not a hub id.
    #[error("{name:?} is no hub id; expected organisation/name, of letters, digits, -, _ and .")]
    Name {
        /// The name as given.
        name: String,
    },
    /// Nothing may be sent.
    #[error("HF_HUB_OFFLINE forbids sending anything to {name}")]
    Offline {
        /// The repository.
        name: String,
    },
    /// Nobody to send as.
    #[error("HF_TOKEN {problem}; {endpoint} takes files only with an access token that may write")]
    Token {
        /// What is wrong with it; never the token itself.
        problem: &'static str,
        /// The hub.
        endpoint: String,
    },
    /// The hub, or its storage, said no.
    #[error("{}", refusal(*status, what, place, *attempts, message.as_deref()))]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What was asked for.
        what: String,
        /// The hub or its storage: scheme and host.
        place: String,
        /// How often it was asked.
        attempts: u32,
        /// What it said.
        message: Option<String>,
    },
    /// No answer.
    #[error("the connection to {place} failed {}: {what}", times(*attempts))]
    Network {
        /// What was asked for.
        what: String,
        /// The hub or its storage: scheme and host.
        place: String,
        /// How often it was asked.
        attempts: u32,
        /// The network's error.
        source: UploadNetworkError,
    },
    /// The connection broke after the commit was sent.
    #[error(
        "the connection to {place} failed while it made the commit: whether {name} has it is not known"
    )]
    Uncertain {
        /// The repository.
        name: String,
        /// The hub.
        place: String,
        /// The network's error.
        source: UploadNetworkError,
    },
    /// The answer cannot be understood, or must not be followed.
    #[error("{place} gave an unusable answer for {what}: {problem}")]
    Answer {
        /// What was asked for.
        what: String,
        /// The hub or its storage: scheme and host.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The repository has another name by now.
    #[error("{place} keeps {name} under another name: {to}")]
    Renamed {
        /// The repository.
        name: String,
        /// The hub.
        place: String,
        /// Where it points.
        to: String,
    },
    /// Somebody else committed since the repository was looked at.
    #[error("{name} has changed since it was looked at: somebody else has committed to {branch}")]
    Moved {
        /// The repository.
        name: String,
        /// The branch.
        branch: String,
    },
    /// A private push to a repository that everybody can read.
    #[error("{name} is public: whatever is sent there can be read by everybody")]
    Public {
        /// The repository.
        name: String,
    },
    /// A file was written to meanwhile.
    #[error("{} changed while it was sent: {expected} bytes became {actual}", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// Bytes that it had.
        expected: u64,
        /// Bytes that were read.
        actual: u64,
    },
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

impl PushError {
    /// The HTTP status of a refusal.
    #[must_use]
    pub const fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether there is no room left: the statuses for it, and 403 where the message says so.
    #[must_use]
    pub fn is_quota(&self) -> bool {
        let Self::Refused {
            status, message, ..
        } = self
        else {
            return false;
        };
        is_quota(*status, message.as_deref())
    }
}

/// A failure of the network.
#[derive(Debug)]
pub struct UploadNetworkError(Box<ureq::Error>);

impl From<ureq::Error> for UploadNetworkError {
    fn from(error: ureq::Error) -> Self {
        Self(Box::new(error))
    }
}

impl fmt::Display for UploadNetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            ureq::Error::Io(error) => error.fmt(f),
            // Its text is the address, which may carry a signature.
            ureq::Error::BadUri(_) => f.write_str("the address is malformed"),
            error => error.fmt(f),
        }
    }
}

impl std::error::Error for UploadNetworkError {}

fn is_quota(status: u16, message: Option<&str>) -> bool {
    let said = message.unwrap_or_default().to_ascii_lowercase();
    let full = said.contains("quota") || said.contains("storage") && said.contains("limit");
    matches!(status, 402 | 507) || matches!(status, 400 | 403 | 413) && full
}

fn refusal(status: u16, what: &str, place: &str, attempts: u32, message: Option<&str>) -> String {
    let text = match status {
        status if is_quota(status, message) => {
            format!("{place} has no room left for {what}")
        }
        401 => format!("{place} does not accept the access token in HF_TOKEN"),
        403 => format!("{place} does not let the access token in HF_TOKEN do this: {what}"),
        404 => {
            format!("{place} does not know what this is about, or hides it from the token: {what}")
        }
        409 => format!("{place} has something in the way of this: {what}"),
        413 => format!("{place} finds this too large: {what}"),
        429 => format!("{place} takes no more requests for now: {what}"),
        500.. => format!("{place} failed: {what}"),
        _ => format!("{place} refused this: {what}"),
    };
    let attempts = match attempts {
        1 => String::new(),
        _ => format!(", {}", times(attempts)),
    };
    let said = message.map_or_else(String::new, |message| format!("; it says: {message}"));
    format!("{text} (HTTP {status}{attempts}){said}")
}

fn times(attempts: u32) -> String {
    match attempts {
        1 => "once".to_owned(),
        attempts => format!("{attempts} times"),
    }
}
