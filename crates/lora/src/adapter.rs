//! The trainable factors of one projection.

use backdraft_kernels::dropout::Dropout;
use backdraft_kernels::lora_linear::Factors;
use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::config::LoraConfig;

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
        }
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
    }

    /// s·B·A, the dense change that the adapter stands for. For merging only.
    ///
    /// # Shapes
    /// `[out, in]`.
    pub fn delta(&self) -> Tensor<2> {
        let (a, b) = (self.lora_a.val().inner(), self.lora_b.val().inner());
        b.matmul(a).mul_scalar(self.scaling)
    }

    /// What the kernels take; dropout only where a seed is given.
    pub(crate) fn factors(&self, dropout_seed: Option<u64>) -> Factors {
        let dropout = dropout_seed
            .filter(|_| self.dropout > 0.0)
            .map(|seed| Dropout {
                p: self.dropout as f32,
                seed,
            });
        Factors {
            a: self.lora_a.val(),
            b: self.lora_b.val(),
            scaling: self.scaling as f32,
            dropout,
        }
    }

    /// As [`factors`](Self::factors), without autodiff.
    pub(crate) fn plain_factors(&self, dropout_seed: Option<u64>) -> Factors {
        let factors = self.factors(dropout_seed);
        Factors {
            a: factors.a.inner(),
            b: factors.b.inner(),
            ..factors
        }
    }
}
