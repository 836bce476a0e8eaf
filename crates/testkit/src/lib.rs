//! What the tests share: reference values, tolerances and tiny models.
//!
//! | module | what |
//! | --- | --- |
//! | [`byte_level`] | a tokenizer that GGUF files can have |
//! | [`folder`] | cases as folders, packed or not |
//! | [`golden`] | reading reference values, wherever they lie |
//! | [`random_model`] | models of any size with random weights |
//! | [`smollm2`] | where the SmolLM2 weights are, if they are |
//! | [`tiny`] | a model, rows and a recipe of a run that takes no time |
//! | [`tolerance`] | how far from a reference value a correct program may be |
//! | [`wrapped`] | a decoder as one part of a model with a tower beside it |
//!
//! Everything here panics with a message that names the file or the value: a test has nothing better
//! to do.

pub mod byte_level;
pub mod folder;
pub mod golden;
pub mod random_model;
pub mod smollm2;
pub mod tiny;
pub mod tolerance;
pub mod wrapped;
