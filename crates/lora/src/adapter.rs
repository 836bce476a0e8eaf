//! What is trained beside a frozen projection, whatever kind of adapter it is.

use backdraft_arch::{LoraConfig, TokenTable};
use backdraft_quant::Weight;
use burn::module::{Module, ParamId};
use burn::tensor::{DType, Device, Tensor, TensorReadError};
use rand_chacha::ChaCha8Rng;

use crate::dora::Magnitude;
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
    /// A fresh adapter of the kind that `config` describes for a weight of the module at `path`; it changes nothing yet.
    pub fn init(
        config: &LoraConfig,
        (path, weight): (&str, &Weight),
        rng: &mut ChaCha8Rng,
        device: &Device,
    ) -> Self {
        let lora = LoraAdapter::init(config, (path, weight.dims()), rng, device);
        let magnitude = config.use_dora.then(|| Magnitude::of(weight));
        Self::Lora(lora.with_magnitude(magnitude))
    }

    /// A fresh low-rank adapter of a table of tokens `[vocab, hidden]`; it changes nothing yet.
    pub fn init_table(
        config: &LoraConfig,
        (table, dims): (TokenTable, [usize; 2]),
        rng: &mut ChaCha8Rng,
        device: &Device,
    ) -> Self {
        let of = (table.path(), dims);
        Self::Lora(match table {
            TokenTable::Embedding => LoraAdapter::init_embedding(config, of, rng, device),
            TokenTable::Head => LoraAdapter::init(config, of, rng, device),
        })
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

    /// The same over a weight, which it has to know where lengths of rows are trained.
    #[must_use]
    pub(crate) fn over(self, weight: &Weight) -> Self {
        match self {
            Self::Lora(lora) => Self::Lora(lora.over(weight)),
        }
    }

    /// Its trained tensors, in the order of files.
    pub fn params(&self) -> Vec<AdapterParam> {
        match self {
            Self::Lora(lora) => lora.params(),
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

    /// Moves every parameter, and its copy in the dtype of activations, to where `place` says; those of which it says nothing stay.
    pub fn store_in(&mut self, place: impl FnMut(ParamId) -> Option<Stored>) {
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

    /// Whether it is that of an embedding: its inputs are the tokens, and [`fits`](Self::fits) goes by them.
    pub const fn embeds(&self) -> bool {
        match self {
            Self::Lora(lora) => lora.embeds(),
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
