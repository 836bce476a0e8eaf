//! Qwen 2 and 2.5: Llama's layer with biases on q, k and v, whatever flags say.

use super::qwen_windows;
use crate::config::{ConfigError, Keys};
use crate::spec::ModelSpec;
use crate::target::{TargetModule as M, TargetSet};

pub(super) fn describe(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<(), ConfigError> {
    for layer in &mut spec.layers {
        layer.biases = TargetSet::NONE.with([M::QProj, M::KProj, M::VProj]);
    }
    qwen_windows(keys, spec)
}
