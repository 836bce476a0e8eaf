//! Precision by measurement: which projection gets how many bits, and where its adapter starts.
//!
//! A point measures what an error of each projection would cost (`probe`), prices every format of every projection by it
//! (`table`), deals the bits out, moves the projections, and looks at rows kept for it whether that was good; what was
//! not is taken back. Points stand between steps. Codes are a function of the model's file and the plan, so a
//! checkpoint holds the plan alone.
//!
//! # Source
//! Prices: NVIDIA's AutoQuantize and HIGGS (arXiv:2411.17525) add up over matrices as these do.

mod first;
mod given;
mod judge;
mod later;
mod moves;
mod point;
mod probe;
mod rows;
mod starts;
mod survey;
mod table;

pub use given::{GivenPlanError, read_plan};
pub use point::Adaptation;
pub use rows::CalibrationRows;
pub use survey::{Offer, Survey};
