//! Finding settings: the trials of a sweep over one base, and learning-rate range tests.
//!
//! [`TuneState`] is what is known of a sweep, in one file; [`TuneState::next`] says which trial goes on and how far, and
//! [`train_trial`] trains it: a run as any other, which is stopped and resumed from its checkpoint where halving looks at
//! it. [`range_test`] is a run of its own. Whoever calls these reads bases ([`Base`](crate::run::Base)) and rows.

mod halving;
mod range_test;
mod state;
mod trial;

pub use halving::Halving;
pub use range_test::{RangeSettings, range_test};
pub use state::{Content, Next, TuneState};
pub use trial::{Left, StopAt, by_base, measure, note, train_trial};
