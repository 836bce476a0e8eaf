//! Gradients of the adapters, summed over micro-batches.

use std::collections::HashMap;

use burn::module::ParamId;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

/// Gradients by parameter; adding to one that is there sums.
#[derive(Clone, Debug, Default)]
pub struct AdapterGrads(HashMap<ParamId, Tensor<2>>);

impl AdapterGrads {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the gradient of one micro-batch.
    pub fn add(&mut self, id: ParamId, grad: Tensor<2>) {
        let sum = match self.0.remove(&id) {
            Some(sum) => sum + grad,
            None => grad,
        };
        self.0.insert(id, sum);
    }

    /// The gradient of one parameter.
    pub fn get(&self, id: ParamId) -> Option<&Tensor<2>> {
        self.0.get(&id)
    }

    /// How many parameters have one.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every gradient through `f`.
    pub fn map(self, f: impl Fn(Tensor<2>) -> Tensor<2>) -> Self {
        Self(self.0.into_iter().map(|(id, grad)| (id, f(grad))).collect())
    }

    /// The other way of [`into_params`](Self::into_params), for the given parameters.
    pub fn from_params(
        params: &mut GradientsParams,
        ids: impl IntoIterator<Item = ParamId>,
    ) -> Self {
        let grads = ids
            .into_iter()
            .filter_map(|id| Some((id, params.remove::<2>(id)?)));
        Self(grads.collect())
    }

    /// In the form that Burn's optimisers take.
    pub fn into_params(self) -> GradientsParams {
        let mut params = GradientsParams::new();
        for (id, grad) in self.0 {
            params.register(id, grad);
        }
        params
    }
}
