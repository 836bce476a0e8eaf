//! Llama: the plain decoder, with biases where flags say so.

use super::{flagged_biases, refuse_window};
use crate::config::{ConfigError, Keys};
use crate::spec::ModelSpec;

pub(super) fn describe(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    refuse_window(keys)?;
    let biases = flagged_biases(keys)?;
    for layer in &mut spec.layers {
        layer.biases = biases;
    }
    Ok(())
}
