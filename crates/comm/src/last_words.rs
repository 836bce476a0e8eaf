//! Why a process ended, told to the others.

use std::fmt;

/// The most bytes of a message.
const LONGEST: usize = 4096;

/// What a process says to the others when it ends early, or what is said for it if it had no time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastWords {
    /// Which process; `None` where the store itself is gone and nobody can tell why.
    pub rank: Option<usize>,
    /// Its machine; empty where nobody said.
    pub host: String,
    /// The step that it was at, if it had begun to train.
    pub step: Option<u64>,
    /// Why, in its words.
    pub message: String,
}

impl fmt::Display for LastWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(rank) = self.rank {
            write!(f, "rank {rank}")?;
            if !self.host.is_empty() {
                write!(f, " on {}", self.host)?;
            }
            write!(f, " ended")?;
            if let Some(step) = self.step {
                write!(f, " at step {step}")?;
            }
            write!(f, ": ")?;
        }
        f.write_str(&self.message)
    }
}

impl LastWords {
    /// As a value of the store: rank, host and step in a line, then the message.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let number = |number: Option<u64>| number.map_or_else(String::new, |n| n.to_string());
        let rank = number(self.rank.map(|rank| rank as u64));
        let host = self.host.replace(['\n', '\t'], " ");
        let head = format!("{rank}\t{host}\t{}\n", number(self.step));
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(self.message.as_bytes());
        bytes.truncate(LONGEST);
        bytes
    }

    /// From a value of the store, whatever it is: what cannot be read as last words is the message.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]);
        let clean = |text: &str| -> String {
            let kept = text.chars().filter(|c| *c == '\n' || !c.is_control());
            kept.collect()
        };
        if let Some((head, message)) = text.split_once('\n')
            && let [rank, host, step] = head.split('\t').collect::<Vec<_>>()[..]
        {
            return Self {
                rank: rank.parse().ok(),
                host: clean(host),
                step: step.parse().ok(),
                message: clean(message),
            };
        }
        Self {
            rank: None,
            host: String::new(),
            step: None,
            message: clean(&text),
        }
    }
}
