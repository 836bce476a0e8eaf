//! What is trained beside a frozen projection, whatever kind of adapter it is.

use backdraft_arch::LoraConfig;
use burn::module::{Module, ParamId};
use burn::tensor::{DType, Device, Tensor, TensorReadError};
use rand_chacha::ChaCha8Rng;

use crate::lora_adapter::LoraAdapter;
use crate::param::{AdapterParam, Stored};

/// The adapter of one projection. Optimisers, checkpoints and files know its tensors by [`params`](Self::params)
/// alone; what it computes is between its kind and [`Projection`](crate::Projection).
#[derive(Module, Debug)]
pub enum Adapter {
    /// Low-rank factors.
    Lora(LoraAdapter),
}

impl Adapter {
    /// A fresh adapter of the kind that `config` describes for the module at `path`; it changes nothing yet.
    ///
    /// # Shapes
    /// For a weight `[output, input]`.
    pub fn init(
        config: &LoraConfig,
        (path, dims): (&str, [usize; 2]),
        rng: &mut ChaCha8Rng,
        device: &Device,
    ) -> Self {
        Self::Lora(LoraAdapter::init(config, (path, dims), rng, device))
    }

    /// An adapter that does nothing and learns nothing.
    ///
    /// # Shapes
    /// For a weight `[output, input]`.
    pub fn zero(config: &LoraConfig, [output, input]: [usize; 2], device: &Device) -> Self {
        let [a, b] = [[config.rank, input], [output, config.rank]];
        let [a, b] = [a, b].map(|dims| Tensor::zeros(dims, device));
        Self::Lora(LoraAdapter::from_factors(config, a, b))
    }

    /// Its trained tensors, in the order of files.
    pub fn params(&self) -> Vec<AdapterParam> {
        match self {
            Self::Lora(lora) => lora.params().to_vec(),
        }
    }

    /// The number of its first parameter, by which statistics of the projection are kept.
    pub fn first_id(&self) -> ParamId {
        match self {
            Self::Lora(lora) => lora.lora_a.id,
        }
    }

    /// The number of trained values.
    pub fn num_trained(&self) -> usize {
        self.params().iter().map(AdapterParam::len).sum()
    }

    /// Replaces the values of every parameter by what `update` makes of it.
    pub fn update(&mut self, update: impl FnMut(AdapterParam) -> Tensor<1>) {
        match self {
            Self::Lora(lora) => lora.update(update),
        }
    }

    /// Moves every parameter, and its copy in the dtype of activations, to where `place` says.
    pub fn store_in(&mut self, place: impl FnMut(ParamId) -> Stored) {
        match self {
            Self::Lora(lora) => lora.store_in(place),
        }
    }

    /// The same adapter for activations of `dtype`; its parameters stay as they are.
    #[must_use]
    pub fn computing_in(self, dtype: DType) -> Self {
        match self {
            Self::Lora(lora) => Self::Lora(lora.computing_in(dtype)),
        }
    }

    /// The dtype of activations, where the parameters are kept in another.
    pub fn rounded_to(&self) -> Option<DType> {
        match self {
            Self::Lora(lora) => lora.rounded_to(),
        }
    }

    /// Whether it fits a weight `[output, input]`.
    pub fn fits(&self, dims: [usize; 2]) -> bool {
        match self {
            Self::Lora(lora) => lora.fits(dims),
        }
    }

    /// A copy with parameters of its own for the module at `path`, scaled as `config` says.
    pub fn for_module(&self, config: &LoraConfig, path: &str, device: &Device) -> Self {
        match self {
            Self::Lora(lora) => Self::Lora(lora.for_module(config, path, device)),
        }
    }

    /// Whether its output is still that of the projection alone. Reads it from the device.
    ///
    /// # Errors
    /// A device that failed.
    pub fn changes_nothing(&self) -> Result<bool, TensorReadError> {
        match self {
            Self::Lora(lora) => lora.changes_nothing(),
        }
    }
}
