//! Sizes of memory as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::reader::Value;

/// Bytes, written as a number and a unit: `12GiB`, `900 MiB`, `24GB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 10] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1000),
    ("kB", 1000),
    ("B", 1),
];

/// Text that is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a size such as \"12GiB\" or \"900MiB\", found {text:?}")]
pub struct ByteSizeError {
    /// The text.
    pub text: String,
}

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(text: &str) -> Result<Self, ByteSizeError> {
        let wrong = || ByteSizeError {
            text: text.to_owned(),
        };
        let trimmed = text.trim();
        let unit = |(name, _): &&(&str, u64)| {
            let tail = trimmed.len().checked_sub(name.len());
            tail.and_then(|at| trimmed.get(at..))
                .is_some_and(|tail| tail.eq_ignore_ascii_case(name))
        };
        let (name, factor) = UNITS.iter().find(unit).ok_or_else(wrong)?;
        let number: f64 = trimmed[..trimmed.len() - name.len()]
            .trim()
            .parse()
            .map_err(|_| wrong())?;
        let bytes = number * *factor as f64;
        // Beyond 2⁵³ a float would not hold the bytes exactly, and no machine does.
        if !(1.0..9e15).contains(&bytes) {
            return Err(wrong());
        }
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for ByteSize {
    /// In the largest binary unit that leaves no remainder, so that reading it back gives the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, factor): &&(&str, u64)| self.0 > 0 && self.0.is_multiple_of(*factor);
        match UNITS[..4].iter().find(whole) {
            Some((name, factor)) => write!(f, "{}{name}", self.0 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Value for ByteSize {
    const EXPECTED: &'static str = "a size such as \"12GiB\"";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [
            ("12GiB", 12 << 30),
            ("0.5 GiB", 1 << 29),
            ("900mib", 900 << 20),
            ("24GB", 24_000_000_000),
            ("7B", 7),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!(size.0, bytes, "{text}");
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        for text in ["", "12", "GiB", "-1GiB", "nanGiB", "0MiB", "1e300TiB", "é"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }
}
