//! Comparison with values made by the reference Python stack.
//!
//! Every case found under `BACKDRAFT_GOLDEN` (default: `tests/golden`) is checked; that directory's
//! `README.md` says what the files hold and how far a correct program may be from them. A case with
//! a feature that is not supported must be refused by the feature's name.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod golden_cases;
