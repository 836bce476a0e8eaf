//! RMSNorm with a frozen weight, or one that is trained.

use backdraft_arch::NormScale;
use backdraft_kernels::rms_norm::{self, Gain};
use backdraft_lora::{AdapterGrads, TrainedTensor};
use backdraft_quant::Frozen;
use burn::module::Module;
use burn::tensor::Tensor;

/// y = x·w / rms(x), or x·(1 + w) / rms(x).
#[derive(Module, Debug)]
pub struct RmsNorm {
    weight: Frozen<Tensor<1>>,
    /// What is trained in its place.
    trained: Option<TrainedTensor>,
    #[module(skip)]
    scale: NormScale,
    #[module(skip)]
    eps: f64,
}

impl RmsNorm {
    /// # Shapes
    /// `weight` `[h]`.
    pub fn new(weight: Tensor<1>, scale: NormScale, eps: f64) -> Self {
        Self {
            weight: Frozen(weight),
            trained: None,
            scale,
            eps,
        }
    }

    /// The weight of the base, `[h]`, whatever is trained in its place.
    pub fn weight(&self) -> &Tensor<1> {
        &self.weight
    }

    /// The weight of the base, to be replaced by one that is trained.
    pub fn weight_mut(&mut self) -> &mut Tensor<1> {
        &mut self.weight
    }

    /// What is trained in place of the weight.
    pub fn trained(&self) -> Option<&TrainedTensor> {
        self.trained.as_ref()
    }

    /// The same, to be changed, set or taken away.
    pub fn trained_mut(&mut self) -> &mut Option<TrainedTensor> {
        &mut self.trained
    }

    /// The weight that it multiplies by and how, tracked by autodiff where it is.
    pub(crate) fn tracked(&self) -> (Tensor<1>, NormScale) {
        let weight = match &self.trained {
            Some(trained) => trained.tracked(),
            None => Tensor::clone(&self.weight),
        };
        (weight, self.scale)
    }

    /// Adds the gradient of a trained weight; nothing where it is frozen.
    ///
    /// # Shapes
    /// As [`backward`](Self::backward).
    pub fn add_grad(
        &self,
        grads: &mut AdapterGrads,
        dy: &Tensor<2>,
        x: &Tensor<2>,
        rstd: &Tensor<1>,
    ) {
        if let Some(trained) = &self.trained {
            trained.add_grad(grads, rms_norm::backward_weight(dy, x, rstd));
        }
    }

    /// What it multiplies by, and ε.
    pub(crate) fn parts(&self) -> (Gain<'_>, f64) {
        (self.gain(), self.eps)
    }

    fn gain(&self) -> Gain<'_> {
        Gain {
            weight: self
                .trained
                .as_ref()
                .map_or(&*self.weight, TrainedTensor::now),
            scale: self.scale,
        }
    }

    /// # Shapes
    /// `x` and the result `[t, h]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        rms_norm::rms_norm(x, self.tracked(), self.eps)
    }

    /// Without autodiff, with the statistic of each row for the backward pass.
    ///
    /// # Shapes
    /// `x` and the result `[t, h]`, the statistic `[t]`.
    pub fn forward_saving(&self, x: &Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        rms_norm::forward(x, self.gain(), self.eps)
    }

    /// # Shapes
    /// `dy`, `x` and the result `[t, h]`, `rstd` `[t]`.
    pub fn backward(&self, dy: &Tensor<2>, x: &Tensor<2>, rstd: &Tensor<1>) -> Tensor<2> {
        rms_norm::backward(dy, x, self.gain(), rstd)
    }

    /// As [`backward`](Self::backward), added to `sum`: what goes past the norm.
    ///
    /// # Shapes
    /// `dy`, `x`, `sum` and the result `[t, h]`, `rstd` `[t]`.
    pub fn backward_add(
        &self,
        dy: &Tensor<2>,
        x: &Tensor<2>,
        rstd: &Tensor<1>,
        sum: Tensor<2>,
    ) -> Tensor<2> {
        rms_norm::backward_add(dy, x, self.gain(), rstd, sum)
    }
}
