//! GLM 4 (0414), dense: norms before and after attention and MLP, gate and up in one matrix, biases on q, k and v, and half of
//! each head turned in pairs of neighbours.

use super::refuse_window;
use crate::config::{ConfigError, Keys};
use crate::ops::{NormNames, NormPlaces};
use crate::rope::RotaryPairs;
use crate::spec::ModelSpec;
use crate::target::{TargetModule, TargetSet};

pub(super) fn describe(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    use TargetModule as M;
    refuse_window(keys)?;
    let biases = match keys.flag_or("attention_bias", false)? {
        true => TargetSet::NONE.with([M::QProj, M::KProj, M::VProj]),
        false => TargetSet::NONE,
    };
    spec.rope.pairs = RotaryPairs::Neighbours;
    for layer in &mut spec.layers {
        layer.norm_places = NormPlaces::Around;
        layer.norm_names = NormNames::Glm;
        layer.fused = TargetSet::NONE.with([M::GateUpProj]);
        layer.biases = biases;
    }
    Ok(())
}
