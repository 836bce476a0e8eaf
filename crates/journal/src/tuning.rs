//! Finding settings: what came of the trials of a sweep and of a learning-rate range test, and what follows from it.
//!
//! [`TrialReport`] is one trial, [`rank`] orders them and says how sure the order is, [`RangeTest`] is a range test.

mod range_test;
mod ranking;
mod trial;

use std::path::PathBuf;

use serde::Serialize;

pub use range_test::{RangePoint, RangeTest, Watchdog};
pub use ranking::{Confidence, Ranking, Recommendation, SettingReport, rank};
pub use trial::{Measure, Score, Settings, Standing, TrialReport};

/// A sweep as it stands.
#[derive(Clone, Debug, Serialize)]
pub struct TuneReport {
    /// `grid`, `random` or `halving`.
    pub method: String,
    /// The keys that are swept.
    pub keys: Vec<String>,
    /// What trials are compared by.
    pub measure: Measure,
    /// Trials and settings in their order, and what is recommended.
    #[serde(flatten)]
    pub ranking: Ranking,
    /// Whether somebody ended it before all trials were done.
    pub interrupted: bool,
    /// Seconds of everything, over all resumptions.
    pub seconds: f64,
    /// Seconds of the steps of all trials.
    pub step_seconds: f64,
    /// How often a base was read.
    pub base_loads: usize,
    /// Where the page is.
    pub report: PathBuf,
}
