//! Llama: the plain decoder, with biases where flags say so.

use crate::config::{ConfigError, Keys};
use crate::spec::ModelSpec;
use crate::target::{TargetModule, TargetSet};

pub(super) fn describe(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    use TargetModule as M;
    let mut biases = TargetSet::NONE;
    if keys.flag_or("attention_bias", false)? {
        biases = biases.with([M::QProj, M::KProj, M::VProj, M::OProj]);
    }
    if keys.flag_or("mlp_bias", false)? {
        biases = biases.with([M::GateProj, M::UpProj, M::DownProj]);
    }
    for layer in &mut spec.layers {
        layer.biases = biases;
    }
    Ok(())
}
