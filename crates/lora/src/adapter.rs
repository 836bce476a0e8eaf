//! The trainable factors of one projection.

use backdraft_kernels::dropout::Dropout;
use backdraft_kernels::lora_linear::Factors;
use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use backdraft_arch::LoraConfig;

/// Low-rank factors A `[r, in]` and B `[out, r]`.
#[derive(Module, Debug)]
pub struct LoraAdapter {
    /// A, applied first.
    pub lora_a: Param<Tensor<2>>,
    /// B, applied second; zero at the start, so that training begins at the base model.
    pub lora_b: Param<Tensor<2>>,
    #[module(skip)]
    scaling: f64,
    #[module(skip)]
    dropout: f64,
    /// The factors in the dtype that activations have, where that is not f32: rounded once an update.
    #[module(skip)]
    rounded: Option<[Tensor<2>; 2]>,
}

impl LoraAdapter {
    /// A drawn uniformly from ±1/√in (Kaiming-uniform with a = √5, as PEFT), B zero.
    ///
    /// # Shapes
    /// For a weight `[output, input]`.
    pub fn init(
        config: &LoraConfig,
        [output, input]: [usize; 2],
        rng: &mut ChaCha8Rng,
        device: &Device,
    ) -> Self {
        let bound = 1.0 / (input as f32).sqrt();
        let values: Vec<f32> = (0..config.rank * input)
            .map(|_| rng.random_range(-bound..bound))
            .collect();
        let lora_a = Tensor::from_data(TensorData::new(values, [config.rank, input]), device);
        Self::from_factors(config, lora_a, Tensor::zeros([output, config.rank], device))
    }

    /// An adapter with given factors.
    ///
    /// # Shapes
    /// `lora_a` `[r, in]`, `lora_b` `[out, r]`.
    pub fn from_factors(config: &LoraConfig, lora_a: Tensor<2>, lora_b: Tensor<2>) -> Self {
        Self {
            lora_a: Param::from_tensor(lora_a),
            lora_b: Param::from_tensor(lora_b),
            scaling: config.scaling(),
            dropout: config.dropout,
            rounded: None,
        }
    }

    /// The same adapter with another s in y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ.
    #[must_use]
    pub fn with_scaling(mut self, scaling: f64) -> Self {
        self.scaling = scaling;
        self
    }

    /// The same adapter for activations of `dtype`; the factors themselves stay as they are.
    #[must_use]
    pub fn computing_in(mut self, dtype: DType) -> Self {
        self.rounded = (self.lora_a.val().dtype() != dtype).then(|| self.round(dtype));
        self
    }

    fn round(&self, dtype: DType) -> [Tensor<2>; 2] {
        [&self.lora_a, &self.lora_b].map(|factor| factor.val().inner().cast(dtype))
    }

    /// s in y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ.
    pub fn scaling(&self) -> f64 {
        self.scaling
    }

    /// The number of trained values.
    pub fn num_trained(&self) -> usize {
        self.lora_a.val().shape().num_elements() + self.lora_b.val().shape().num_elements()
    }

    /// Replaces both factors by what `update` makes of them.
    pub fn update(&mut self, mut update: impl FnMut(ParamId, Tensor<2>) -> Tensor<2>) {
        for param in [&mut self.lora_a, &mut self.lora_b] {
            let id = param.id;
            *param = param.clone().map(|tensor| update(id, tensor));
        }
        if let Some([a, _]) = &self.rounded {
            self.rounded = Some(self.round(a.dtype()));
        }
    }

    /// Both factors, and their copies in the dtype of activations, in memory of the caller's, which holds the
    /// same values.
    pub fn store_in(&mut self, factors: [Tensor<2>; 2], rounded: Option<[Tensor<2>; 2]>) {
        let params = [&mut self.lora_a, &mut self.lora_b];
        for (param, factor) in params.into_iter().zip(factors) {
            *param = param.clone().map(|_| factor);
        }
        if self.rounded.is_some() {
            self.rounded = rounded;
        }
    }

    /// The dtype of activations, where the factors are kept in another.
    pub fn rounded_to(&self) -> Option<DType> {
        self.rounded.as_ref().map(|[a, _]| a.dtype())
    }

    /// s·B·A, the dense change that the adapter stands for. For merging only.
    ///
    /// # Shapes
    /// `[out, in]`.
    pub fn delta(&self) -> Tensor<2> {
        let (a, b) = (self.lora_a.val().inner(), self.lora_b.val().inner());
        b.matmul(a).mul_scalar(self.scaling)
    }

    /// What the kernels take for activations of `dtype`, tracked by autodiff; dropout only where a seed is
    /// given.
    pub(crate) fn factors(&self, dtype: DType, dropout_seed: Option<u64>) -> Factors {
        let [a, b] = [&self.lora_a, &self.lora_b].map(|factor| {
            let factor = factor.val();
            if factor.dtype() == dtype {
                factor
            } else {
                factor.cast(dtype)
            }
        });
        self.with_settings([a, b], dropout_seed)
    }

    /// As [`factors`](Self::factors), without autodiff.
    pub(crate) fn plain_factors(&self, dtype: DType, dropout_seed: Option<u64>) -> Factors {
        let factors = match &self.rounded {
            Some(rounded) if rounded[0].dtype() == dtype => rounded.clone(),
            _ if self.lora_a.val().dtype() == dtype => {
                [self.lora_a.val().inner(), self.lora_b.val().inner()]
            }
            _ => self.round(dtype),
        };
        self.with_settings(factors, dropout_seed)
    }

    fn with_settings(&self, [a, b]: [Tensor<2>; 2], dropout_seed: Option<u64>) -> Factors {
        let dropout = dropout_seed
            .filter(|_| self.dropout > 0.0)
            .map(|seed| Dropout {
                p: self.dropout as f32,
                seed,
            });
        Factors {
            a,
            b,
            scaling: self.scaling as f32,
            dropout,
        }
    }
}
