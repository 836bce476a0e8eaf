//! What a run tells and leaves.
//!
//! | module | noun |
//! |---|---|
//! | [`report`] | [`Reporter`](report::Reporter), who hears of everything, and what it is told |
//! | [`adaptation`] | what a point of adaptive precision found and did |
//! | [`answers`] | what came of answers that were compared |
//! | [`records`] | `metrics.jsonl`: a line for each step and evaluation |
//! | [`run_files`] | [`RunFiles`](run_files::RunFiles): what lies in an output directory, to be shown again |
//! | [`diagnosis`] | what the curve of a run means |
//! | [`report_html`] | runs as one HTML page |
//! | [`tensorboard`] | events for TensorBoard |
//! | [`exact`] | floating-point numbers in JSON that come back with every bit |
//! | [`tuning`] | what came of trials and range tests, and what follows from it |
//! | [`text`] | words for errors, machines and devices |
//!
//! Start reading at [`report`].
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod adaptation;
pub mod answers;
pub mod diagnosis;
pub mod exact;
pub mod records;
pub mod report;
pub mod report_html;
pub mod run_files;
pub mod tensorboard;
pub mod text;
pub mod tuning;
