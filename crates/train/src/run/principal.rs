//! PiSSA: adapters begin as the largest part of the weights, which the base gives up.

use backdraft_arch::{AdapterStart, TargetModule};
use backdraft_formats::ModelSource;
use backdraft_kernels::device;
use backdraft_lora::base::read_dense;
use backdraft_lora::{Adapter, AdapterWeights, principal_factors};
use backdraft_model::CausalLm;
use backdraft_quant::Weight;
use burn::tensor::{DType, Tensor};

use super::Run;
use crate::checkpoint::Saved;
use crate::error::TrainError;

impl Run {
    /// Starts the adapters and takes what they begin with out of the base, where the recipe says so.
    ///
    /// # Errors
    /// A file that cannot be read, a device that failed.
    pub(super) fn start_principal(&mut self) -> Result<(), TrainError> {
        if self.recipe.lora.init != AdapterStart::Pissa {
            return Ok(());
        }
        let adapted: Vec<(usize, TargetModule)> = self
            .model
            .adapters()
            .map(|(layer, target, _)| (layer, target))
            .collect();
        for (place, (layer, target)) in adapted.into_iter().enumerate() {
            let weight = dense(&self.source, &self.model, (layer, target))?;
            let projection = self.model.layers[layer].projection_mut(target);
            let Some(Adapter::Lora(lora)) = projection.adapter_mut() else {
                continue;
            };
            let shape = (lora.rank(), lora.scaling());
            let seed = self.recipe.seed.wrapping_add(place as u64);
            let found = principal_factors(&weight, shape, seed);
            let found = found.map_err(|error| TrainError::Device {
                step: 0,
                message: error.to_string(),
            })?;
            if let Some(factors) = found {
                lora.start_at(factors);
                let given = lora.delta();
                self.give_up((layer, target), weight, given);
            }
        }
        self.principal = self.model.adapter();
        Ok(())
    }

    /// Keeps `weight` without what the adapter was `given`.
    fn give_up(
        &mut self,
        (layer, target): (usize, TargetModule),
        weight: Tensor<2>,
        given: Tensor<2>,
    ) {
        let (device, dtype) = (self.model.device().inner(), self.model.dtype());
        let left = device::lasting(&device, (weight, given), |(weight, given)| {
            (weight - given).cast(dtype)
        });
        let projection = self.model.layers[layer].projection_mut(target);
        *projection.weight_mut() = Weight::Dense(left);
    }

    /// Takes what the adapters of a checkpoint began with out of the base, and remembers it.
    fn give_up_all(&mut self, start: AdapterWeights) -> Result<(), TrainError> {
        let places: Vec<_> = self.model.spec().projections().collect();
        for (layer, target) in places {
            if let Some(Adapter::Lora(lora)) = start.adapters.get(&target.path(layer)) {
                let weight = dense(&self.source, &self.model, (layer, target))?;
                self.give_up((layer, target), weight, lora.delta());
            }
        }
        self.principal = Some(start);
        Ok(())
    }

    /// The adapter of a checkpoint as it is trained, or what is trained in place of the base's tensors; what it began with is taken out of the base, if it was not yet.
    ///
    /// # Errors
    /// A checkpoint that cannot be read.
    pub(super) fn adapter_of(&mut self, saved: &Saved) -> Result<AdapterWeights, TrainError> {
        let config = self.recipe.trained(self.model.spec())?;
        if config.trainable.is_full() {
            return Ok(saved.model(&config, (self.model.spec(), &self.device))?);
        }
        let mut adapter = saved.adapter(&self.device)?;
        if self.recipe.lora.init == AdapterStart::Pissa {
            let (now, start) = adapter.apart(&config).ok_or_else(|| TrainError::NoStart {
                path: saved.path.clone(),
            })?;
            if self.principal.is_none() {
                self.give_up_all(start)?;
            }
            adapter = now;
        }
        adapter.config = config;
        Ok(adapter)
    }
}

/// A projection as its file has it, f32.
fn dense(
    source: &ModelSource,
    model: &CausalLm,
    (layer, target): (usize, TargetModule),
) -> Result<Tensor<2>, TrainError> {
    let name = format!("{}.weight", target.path(layer));
    let dims = model.layers[layer].projection(target).weight().dims();
    let device = model.device().inner();
    let read = read_dense(source, &name, dims, (&device, DType::F32));
    let values = read.map_err(|error| TrainError::Load(error.into()))?;
    source.release(&name);
    Ok(values)
}
