//! What became of rows, and how far the work has come.

use std::time::Duration;

use crate::answers::Comparisons;
use crate::lengths::LengthHistogram;

/// What became of the rows of a file.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct DataReport {
    /// Rows read, skipped ones included.
    pub rows: usize,
    /// Rows kept.
    pub kept: usize,
    /// Kept rows that were cut at `max_seq_length`.
    pub truncated: usize,
    /// Rows without a supervised token, cut ones included.
    pub dropped: usize,
    /// Tokens of kept rows.
    pub tokens: u64,
    /// Supervised tokens of kept rows (after the shift).
    pub supervised_tokens: u64,
    /// Tokens of the longest row before it was cut.
    pub longest: usize,
    /// Trained turns that no special token ends.
    pub open_turns: usize,
    /// Rows that say the same as one before them, among the first four million different ones.
    pub duplicates: usize,
    /// Rows by length before they were cut.
    pub lengths: LengthHistogram,
    /// Rows of answers to compare.
    #[serde(skip_serializing_if = "Comparisons::is_empty")]
    pub comparisons: Comparisons,
}

/// How far loading has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    /// Rows tokenised.
    pub rows: usize,
    /// Bytes read.
    pub bytes: u64,
    /// Bytes of all files.
    pub total_bytes: u64,
    /// Time since the beginning.
    pub elapsed: Duration,
}

impl LoadProgress {
    /// Bytes read each second; 0 at the beginning.
    pub fn bytes_per_second(&self) -> f64 {
        rate(self.bytes as f64, self.elapsed)
    }

    /// Rows tokenised each second; 0 at the beginning.
    pub fn rows_per_second(&self) -> f64 {
        rate(self.rows as f64, self.elapsed)
    }

    /// Time that the rest will take if it goes on like this; `None` at the beginning.
    pub fn time_left(&self) -> Option<Duration> {
        let rest = self.total_bytes.saturating_sub(self.bytes) as f64;
        Duration::try_from_secs_f64(rest / self.bytes_per_second()).ok()
    }
}

fn rate(count: f64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 { count / seconds } else { 0.0 }
}
