//! Low-rank factors, and perhaps the lengths of the rows that they change.

use backdraft_arch::{AdapterStart, LoraConfig};
use backdraft_kernels::dropout::Dropout;
use backdraft_kernels::gemm::{Op, Slot, gemm};
use backdraft_kernels::lora_linear::{FactorGrads, Factors};
use backdraft_quant::{Frozen, Weight};
use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Device, Tensor, TensorData, TensorReadError};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::dora::Magnitude;
use crate::gradients::AdapterGrads;
use crate::orthogonal::{normal, orthogonal_factors};
use crate::param::{AdapterParam, Stored};
use crate::start::StartFactors;

const A: [&str; 2] = ["lora_a", "lora_A.weight"];
const B: [&str; 2] = ["lora_b", "lora_B.weight"];
/// Those of an embedding, which PEFT calls otherwise.
const EMBEDDING_A: [&str; 2] = ["lora_embedding_a", "lora_embedding_A"];
const EMBEDDING_B: [&str; 2] = ["lora_embedding_b", "lora_embedding_B"];

/// Low-rank factors A `[r, in]` and B `[out, r]`.
#[derive(Module, Debug)]
pub struct LoraAdapter {
    /// A, applied first.
    pub lora_a: Param<Tensor<2>>,
    /// B, applied second; zero at the start, so that training begins at the base model.
    pub lora_b: Param<Tensor<2>>,
    /// Lengths that the rows are brought to: DoRA.
    pub magnitude: Option<Magnitude>,
    #[module(skip)]
    scaling: f64,
    #[module(skip)]
    dropout: f64,
    /// Whether the inputs are tokens: see [`embedding`](Self::embedding).
    #[module(skip)]
    embeds: bool,
    /// The factors in the dtype that activations have, where that is not f32: rounded once an update.
    rounded: Option<Frozen<[Tensor<2>; 2]>>,
}

impl LoraAdapter {
    /// A drawn uniformly from ±1/√in (Kaiming-uniform with a = √5, as PEFT), B zero, for the module at `path`; or both as
    /// [`AdapterStart::Orthogonal`] says.
    ///
    /// # Shapes
    /// For a weight `[output, input]`.
    pub fn init(
        config: &LoraConfig,
        (path, [output, input]): (&str, [usize; 2]),
        rng: &mut ChaCha8Rng,
        device: &Device,
    ) -> Self {
        let rank = config.rank_of(path);
        if config.start == AdapterStart::Orthogonal {
            let StartFactors { a, b } = orthogonal_factors(rank, [output, input], rng, device);
            return Self::from_factors(config, a, b).scaled_for(config, path);
        }
        let bound = 1.0 / (input as f32).sqrt();
        let values: Vec<f32> = (0..rank * input)
            .map(|_| rng.random_range(-bound..bound))
            .collect();
        let lora_a = Tensor::from_data(TensorData::new(values, [rank, input]), device);
        let lora_b = Tensor::zeros([output, rank], device);
        Self::from_factors(config, lora_a, lora_b).scaled_for(config, path)
    }

    /// That of an embedding, whose inputs are the tokens: A zero, B normal, as PEFT.
    ///
    /// # Shapes
    /// For a table `[vocab, hidden]`: A `[r, vocab]`, B `[hidden, r]`.
    pub(crate) fn init_embedding(
        config: &LoraConfig,
        (path, [vocab, hidden]): (&str, [usize; 2]),
        rng: &mut ChaCha8Rng,
        device: &Device,
    ) -> Self {
        let rank = config.rank_of(path);
        let drawn = normal(hidden * rank, rng).into_iter();
        let drawn = TensorData::new(drawn.map(|x| x as f32).collect(), [hidden, rank]);
        let (a, b) = (
            Tensor::zeros([rank, vocab], device),
            Tensor::from_data(drawn, device),
        );
        let embedding = Self::from_factors(config, a, b).embedding();
        embedding.scaled_for(config, path)
    }

    /// An adapter with given factors.
    ///
    /// # Shapes
    /// `lora_a` `[r, in]`, `lora_b` `[out, r]`.
    pub fn from_factors(config: &LoraConfig, lora_a: Tensor<2>, lora_b: Tensor<2>) -> Self {
        Self {
            lora_a: Param::from_tensor(lora_a),
            lora_b: Param::from_tensor(lora_b),
            magnitude: None,
            scaling: config.scaling(),
            dropout: config.dropout,
            embeds: false,
            rounded: None,
        }
    }

    /// The same as that of an embedding, where A has a column and the table a row for each token.
    #[must_use]
    pub(crate) fn embedding(self) -> Self {
        Self {
            embeds: true,
            ..self
        }
    }

    /// Whether it is that of an embedding.
    pub(crate) const fn embeds(&self) -> bool {
        self.embeds
    }

    /// What A and B are called here and in files.
    const fn names(&self) -> [[&'static str; 2]; 2] {
        match self.embeds {
            true => [EMBEDDING_A, EMBEDDING_B],
            false => [A, B],
        }
    }

    /// The same with lengths that the rows are brought to.
    #[must_use]
    pub fn with_magnitude(self, magnitude: Option<Magnitude>) -> Self {
        Self { magnitude, ..self }
    }

    /// The same over a weight, whose rows' lengths count where those of the sum are trained.
    #[must_use]
    pub(crate) fn over(mut self, weight: &Weight) -> Self {
        if let Some(magnitude) = self.magnitude.take() {
            let dtype = self
                .rounded_to()
                .unwrap_or_else(|| self.lora_a.val().dtype());
            let factors = self.plain_factors(dtype, None);
            self.magnitude = Some(magnitude.over(weight, &factors));
        }
        self
    }

    /// New factors with the values of these for the module at `path`, scaled as `config` says.
    pub(crate) fn for_module(&self, config: &LoraConfig, path: &str, device: &Device) -> Self {
        let [a, b] =
            [&self.lora_a, &self.lora_b].map(|factor| factor.val().inner().to_device(device));
        let magnitude = self.magnitude.as_ref();
        let made = Self {
            embeds: self.embeds,
            ..Self::from_factors(config, a, b)
        };
        made.with_magnitude(magnitude.map(|magnitude| magnitude.moved(device)))
            .scaled_for(config, path)
    }

    /// The same, scaled as `config` says for the module at `path`.
    #[must_use]
    pub(crate) fn scaled_for(mut self, config: &LoraConfig, path: &str) -> Self {
        self.scaling = config.scaling_of(path, self.rank());
        self
    }

    pub(crate) fn fits(&self, [output, input]: [usize; 2]) -> bool {
        let ([rank, columns], [rows, inner]) = (self.lora_a.dims(), self.lora_b.dims());
        let lengths = self.magnitude.as_ref();
        columns == input
            && rows == output
            && rank == inner
            && lengths.is_none_or(|lengths| lengths.vector.dims() == [output])
    }

    /// The same adapter for activations of `dtype`; the factors themselves stay as they are.
    #[must_use]
    pub(crate) fn computing_in(mut self, dtype: DType) -> Self {
        self.rounded = (self.lora_a.val().dtype() != dtype).then(|| Frozen(self.round(dtype)));
        self
    }

    fn round(&self, dtype: DType) -> [Tensor<2>; 2] {
        [&self.lora_a, &self.lora_b].map(|factor| factor.val().inner().cast(dtype))
    }

    /// A, B and m.
    pub(crate) fn params(&self) -> Vec<AdapterParam> {
        let [a, b] = self.names();
        let factors = [
            AdapterParam::of(a, &self.lora_a),
            AdapterParam::of(b, &self.lora_b),
        ];
        let magnitude = self.magnitude.iter().map(Magnitude::param);
        factors.into_iter().chain(magnitude).collect()
    }

    /// Replaces each parameter by what `update` makes of it.
    pub(crate) fn update(&mut self, mut update: impl FnMut(AdapterParam) -> Tensor<1>) {
        let [a, b] = self.names();
        for (names, param) in [(a, &mut self.lora_a), (b, &mut self.lora_b)] {
            let id = param.id;
            *param = param.clone().map(|tensor| {
                let dims = tensor.dims();
                update(AdapterParam::new(names, id, tensor)).reshape(dims)
            });
        }
        if let Some(magnitude) = &mut self.magnitude {
            magnitude.update(update);
        }
        if let Some(dtype) = self.rounded_to() {
            self.rounded = Some(Frozen(self.round(dtype)));
        }
    }

    /// r.
    pub fn rank(&self) -> usize {
        self.lora_a.dims()[0]
    }

    /// s.
    pub fn scaling(&self) -> f64 {
        self.scaling
    }

    /// Goes to other factors of the same shapes; the parameters keep their numbers.
    pub fn start_at(&mut self, StartFactors { a, b }: StartFactors) {
        let mut factors = [a, b].into_iter();
        self.update(|param| match factors.next() {
            Some(factor) => factor.flatten(0, 1),
            None => param.values,
        });
    }

    pub(crate) fn store_in(&mut self, mut place: impl FnMut(ParamId) -> Option<Stored>) {
        let sides = [&mut self.lora_a, &mut self.lora_b];
        for (i, param) in sides.into_iter().enumerate() {
            let Some(Stored { values, rounded }) = place(param.id) else {
                continue;
            };
            *param = param.clone().map(|_| values);
            if let (Some(copies), Some(rounded)) = (&mut self.rounded, rounded) {
                copies[i] = rounded;
            }
        }
        if let Some(magnitude) = &mut self.magnitude {
            magnitude.store_in(place);
        }
    }

    /// Whether B, or an embedding's A, is zero and m what it was, as at the start.
    pub(crate) fn changes_nothing(&self) -> Result<bool, TensorReadError> {
        let last = if self.embeds {
            &self.lora_a
        } else {
            &self.lora_b
        };
        let values = last.val().inner().try_into_data()?;
        let zero = values.iter::<f32>().all(|value| value == 0.0);
        match &self.magnitude {
            Some(magnitude) if zero => magnitude.changes_nothing(),
            _ => Ok(zero),
        }
    }

    /// Where the factors' gradients go, where they have places.
    pub(crate) fn slots(&self, grads: &mut AdapterGrads) -> Option<[Slot; 2]> {
        Some([grads.slot(self.lora_a.id)?, grads.slot(self.lora_b.id)?])
    }

    pub(crate) fn add_grads(&self, grads: &mut AdapterGrads, FactorGrads { a, b }: FactorGrads) {
        grads.add(self.lora_a.id, a);
        grads.add(self.lora_b.id, b);
    }

    /// The dtype of activations, where the factors are kept in another.
    pub(crate) fn rounded_to(&self) -> Option<DType> {
        self.rounded.as_ref().map(|Frozen([a, _])| a.dtype())
    }

    /// s·B·A, the dense change that the factors stand for. For merging only.
    ///
    /// # Shapes
    /// `[out, in]`.
    pub fn delta(&self) -> Tensor<2> {
        let (a, b) = (self.lora_a.val().inner(), self.lora_b.val().inner());
        gemm((Op::N, &b), (Op::N, &a), 1.0, None).mul_scalar(self.scaling)
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
            Some(Frozen(rounded)) if rounded[0].dtype() == dtype => rounded.clone(),
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
