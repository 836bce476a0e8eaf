//! Adapters that start where they give back what quantisation took.

use backdraft_arch::AdapterStart;
use backdraft_formats::ModelSource;
use backdraft_lora::base::read_dense;
use backdraft_lora::{Adapter, start_factors};
use backdraft_model::CausalLm;
use burn::tensor::{DType, Tensor};

use super::probe::Probe;
use crate::error::TrainError;

/// Values of all adapters, to go back to.
pub(crate) type Kept = Vec<Vec<Tensor<1>>>;

/// The present values.
pub(crate) fn kept(model: &CausalLm) -> Kept {
    let of = |adapter: &Adapter| adapter.params().into_iter().map(|param| param.values);
    model
        .adapters()
        .map(|(.., adapter)| of(adapter).collect())
        .collect()
}

/// Puts back what [`kept`] found: the same bits.
pub(crate) fn restore(model: &mut CausalLm, kept: &Kept) {
    for ((.., adapter), values) in model.adapters_mut().zip(kept) {
        let mut values = values.iter();
        adapter.update(|param| values.next().cloned().unwrap_or(param.values));
    }
}

/// Starts every adapter over codes as `start` says, and returns how many; over a dense weight an adapter stays as it was.
///
/// # Errors
/// A file that cannot be read, a device that failed.
pub(crate) fn start(
    model: &mut CausalLm,
    source: &ModelSource,
    start: AdapterStart,
    probe: Option<&Probe>,
    seed: u64,
) -> Result<usize, TrainError> {
    let device = model.device().inner();
    let spec = model.spec().clone();
    let mut started = 0;
    let adapted: Vec<_> = model
        .adapters()
        .map(|(layer, target, _)| (layer, target))
        .collect();
    for (place, (layer, target)) in spec.projections().enumerate() {
        let projection = model.layers[layer].projection_mut(target);
        let weight = projection.weight();
        if !adapted.contains(&(layer, target)) || weight.scheme().is_none() {
            continue;
        }
        let name = format!("{}.weight", target.path(layer));
        let dims = weight.dims();
        let values = read_dense(source, &name, dims, (&device, DType::F32));
        let values: Tensor<2> = values.map_err(|error| TrainError::Load(error.into()))?;
        source.release(&name);
        let error = values - weight.dequantize().cast(DType::F32);
        let measured = match start {
            AdapterStart::Qera => probe.map(|probe| &probe.projections[place]),
            AdapterStart::Loftq
            | AdapterStart::Default
            | AdapterStart::Pissa
            | AdapterStart::Orthogonal => None,
        };
        let Some(Adapter::Lora(lora)) = projection.adapter_mut() else {
            continue;
        };
        let shape = (lora.rank(), lora.scaling());
        let found = start_factors(&error, measured, shape, seed.wrapping_add(place as u64));
        let found = found.map_err(|error| TrainError::Device {
            step: 0,
            message: error.to_string(),
        })?;
        if let Some(factors) = found {
            lora.start_at(factors);
            started += 1;
        }
    }
    Ok(started)
}
