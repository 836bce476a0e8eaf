//! Storing projections otherwise: from the file, never from codes.

use backdraft_arch::{QuantizationPlan, Scheme, TargetModule};
use backdraft_formats::ModelSource;
use backdraft_kernels::device;
use backdraft_lora::base::{MatrixError, read_matrix};
use backdraft_model::CausalLm;

use crate::error::TrainError;

/// Stores every projection as `plan` says; those that are stored so already stay as they are. What becomes smaller goes
/// first, and one matrix at a time, so that never more than one is in memory twice.
///
/// # Errors
/// A file that cannot be read; what was moved before stays moved.
pub(crate) fn store_as(
    model: &mut CausalLm,
    plan: &QuantizationPlan,
    source: &ModelSource,
) -> Result<(), TrainError> {
    let mut moves: Vec<(i64, usize, TargetModule, Option<Scheme>)> = Vec::new();
    for (index, layer) in model.layers.iter().enumerate() {
        for target in layer.modules() {
            let weight = layer.projection(target).weight();
            let wanted = plan.scheme_for(&target.path(index));
            if wanted != weight.scheme() {
                let bytes = match wanted {
                    Some(scheme) => scheme.num_bytes(weight.dims()),
                    None => weight.num_params() * model.dtype().size(),
                };
                moves.push((
                    bytes as i64 - weight.num_bytes() as i64,
                    index,
                    target,
                    wanted,
                ));
            }
        }
    }
    moves.sort_by_key(|&(growth, index, target, _)| (growth, index, target as usize));
    let (device, dtype) = (model.device().inner(), model.dtype());
    for (_, index, target, scheme) in moves {
        let name = format!("{}.weight", target.path(index));
        let weight = model.layers[index].projection_mut(target).weight_mut();
        let dims = weight.dims();
        let read = || read_matrix(source, &name, dims, scheme, (&device, dtype));
        let made: Result<_, MatrixError> = device::lasting(&device, (), |()| read());
        *weight = made.map_err(|error| TrainError::Load(error.into()))?;
    }
    Ok(())
}
