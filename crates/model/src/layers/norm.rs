//! RMSNorm with a frozen weight.

use backdraft_kernels::rms_norm;
use burn::module::Module;
use burn::tensor::Tensor;

/// y = x·w / rms(x).
#[derive(Module, Debug)]
pub struct RmsNorm {
    #[module(skip)]
    weight: Tensor<1>,
    #[module(skip)]
    eps: f64,
}

/// What [`RmsNorm::backward`] needs.
#[derive(Clone, Debug)]
pub struct NormSaved {
    x: Tensor<2>,
    rstd: Tensor<1>,
}

impl RmsNorm {
    /// # Shapes
    /// `weight` `[h]`.
    pub fn new(weight: Tensor<1>, eps: f64) -> Self {
        Self { weight, eps }
    }

    /// The weight, `[h]`.
    pub fn weight(&self) -> &Tensor<1> {
        &self.weight
    }

    /// The weight, to be replaced by one that is trained.
    pub fn weight_mut(&mut self) -> &mut Tensor<1> {
        &mut self.weight
    }

    /// # Shapes
    /// `x` and the result `[t, h]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        rms_norm::rms_norm(x, self.weight.clone(), self.eps)
    }

    /// Without autodiff, with what the backward pass needs.
    ///
    /// # Shapes
    /// As [`forward`](Self::forward).
    pub fn forward_saving(&self, x: Tensor<2>) -> (Tensor<2>, NormSaved) {
        let (y, rstd) = rms_norm::forward(&x, &self.weight, self.eps);
        (y, NormSaved { x, rstd })
    }

    /// # Shapes
    /// `dy` and the result `[t, h]`.
    pub fn backward(&self, dy: &Tensor<2>, saved: &NormSaved) -> Tensor<2> {
        rms_norm::backward(dy, &saved.x, &self.weight, &saved.rstd)
    }
}
