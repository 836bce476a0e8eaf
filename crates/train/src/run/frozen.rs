//! The adapter that a run went on from, kept as it was: what its answers are compared with.

use std::path::Path;

use backdraft_formats::{AdapterTensors, PeftDir};
use backdraft_journal::text::hex;
use backdraft_kernels::device;
use backdraft_lora::AdapterWeights;
use backdraft_model::CausalLm;
use sha2::{Digest, Sha256};

use super::Run;
use crate::checkpoint::Saved;
use crate::error::TrainError;

/// An adapter that stays as it is.
pub(super) struct FrozenStart {
    /// Its factors, which no optimiser has; `None` once nothing needs them.
    pub(super) adapter: Option<AdapterWeights>,
    /// SHA-256 over its factors, in hexadecimal.
    pub(super) fingerprint: String,
}

impl FrozenStart {
    /// What was read from a directory, scaled as the run scales its own.
    pub(super) fn new(directory: &PeftDir, adapter: &AdapterWeights) -> Self {
        Self {
            adapter: Some(adapter.clone()),
            fingerprint: fingerprint(&directory.tensors),
        }
    }
}

impl Run {
    /// Reads the adapter that the run began with once more, for a run that goes on from `saved`.
    ///
    /// # Errors
    /// A directory that cannot be read, or whose factors are not those of the beginning.
    pub(super) fn read_start_again(&mut self, saved: &Saved) -> Result<(), TrainError> {
        let Some(path) = self.recipe.lora.adapter.clone() else {
            return Ok(());
        };
        if !self.recipe.compares_with_start() {
            return Ok(());
        }
        let directory = PeftDir::read(&path).map_err(|source| TrainError::StartGone {
            path: path.clone(),
            source: Box::new(source),
        })?;
        let mut adapter = AdapterWeights::from_peft(&directory, &self.device);
        adapter.config = self.recipe.trained(self.model.spec())?;
        let start = FrozenStart::new(&directory, &adapter);
        let was = saved.state.start_fingerprint.as_deref();
        if was != Some(start.fingerprint.as_str()) {
            return Err(TrainError::StartChanged {
                path,
                was: was.unwrap_or("none").to_owned(),
                now: start.fingerprint,
            });
        }
        self.start = Some(start);
        Ok(())
    }

    /// SHA-256 over the factors that the run began with, where answers are compared with it; a checkpoint notes it.
    pub(super) fn start_fingerprint(&self, saved: Option<&Saved>) -> Option<String> {
        match &self.start {
            Some(start) => Some(start.fingerprint.clone()),
            None => saved?.state.start_fingerprint.clone(),
        }
    }

    /// The model that answers are compared with; `None` where that is the base alone, or nothing.
    ///
    /// # Errors
    /// Factors that do not fit the model.
    pub(super) fn reference(&self) -> Result<Option<CausalLm>, TrainError> {
        let Some(adapter) = self.start.as_ref().and_then(|start| start.adapter.as_ref()) else {
            return Ok(None);
        };
        let model = self.model.clone();
        let device = self.model.device();
        let reference = device::lasting(&device, model, |model| model.with_adapter(adapter));
        let path = || self.recipe.lora.adapter.as_deref().unwrap_or(Path::new(""));
        let reference = reference.map_err(|source| TrainError::Adapter {
            path: path().to_owned(),
            source: Box::new(source),
        })?;
        Ok(Some(reference))
    }
}

/// SHA-256 over names, shapes and values of factors, in the order of the modules, then of whole tensors.
fn fingerprint(tensors: &AdapterTensors) -> String {
    let mut hash = Sha256::new();
    for pair in tensors.iter() {
        hash.update((pair.module.len() as u64).to_le_bytes());
        hash.update(pair.module.as_bytes());
        for size in [pair.rank(), pair.in_features, pair.out_features] {
            hash.update((size as u64).to_le_bytes());
        }
        for value in pair.values() {
            hash.update(value.to_bits().to_le_bytes());
        }
    }
    for tensor in tensors.whole() {
        hash.update((tensor.name.len() as u64).to_le_bytes());
        hash.update(tensor.name.as_bytes());
        for size in &tensor.shape {
            hash.update((*size as u64).to_le_bytes());
        }
        for value in &tensor.values {
            hash.update(value.to_bits().to_le_bytes());
        }
    }
    hex(&hash.finalize())
}
