//! Gradients of the adapters, summed over micro-batches.

use std::collections::HashMap;

use backdraft_kernels::gemm::Slot;
use burn::module::ParamId;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

/// Gradients by parameter; adding to one that is there sums.
#[derive(Clone, Debug, Default)]
pub struct AdapterGrads {
    tensors: HashMap<ParamId, Tensor<2>>,
    /// Views that gradients are written into, where they all lie in one buffer.
    slots: HashMap<ParamId, Tensor<2>>,
}

impl AdapterGrads {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing yet; gradients are written into these views of a flat buffer.
    pub fn within(views: impl IntoIterator<Item = (ParamId, Tensor<2>)>) -> Self {
        Self {
            tensors: HashMap::new(),
            slots: views.into_iter().collect(),
        }
    }

    /// Where the next gradient of a parameter goes, where it has a place; it counts as there from now on.
    pub(crate) fn slot(&mut self, id: ParamId) -> Option<Slot> {
        let view = self.slots.get(&id)?.clone();
        let accumulate = self.tensors.insert(id, view.clone()).is_some();
        Some(Slot { view, accumulate })
    }

    /// Adds the gradient of one micro-batch.
    pub fn add(&mut self, id: ParamId, grad: Tensor<2>) {
        let sum = match self.tensors.remove(&id) {
            Some(sum) => sum + grad,
            None => grad,
        };
        self.tensors.insert(id, sum);
    }

    /// The gradient of one parameter.
    pub fn get(&self, id: ParamId) -> Option<&Tensor<2>> {
        self.tensors.get(&id)
    }

    /// How many parameters have one.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Every gradient through `f`.
    pub fn map(self, f: impl Fn(Tensor<2>) -> Tensor<2>) -> Self {
        let tensors = self.tensors.into_iter();
        Self {
            tensors: tensors.map(|(id, grad)| (id, f(grad))).collect(),
            slots: self.slots,
        }
    }

    /// The other way of [`into_params`](Self::into_params), for the given parameters.
    pub fn from_params(
        params: &mut GradientsParams,
        ids: impl IntoIterator<Item = ParamId>,
    ) -> Self {
        let grads = ids
            .into_iter()
            .filter_map(|id| Some((id, params.remove::<2>(id)?)));
        Self {
            tensors: grads.collect(),
            slots: HashMap::new(),
        }
    }

    /// In the form that Burn's optimisers take.
    pub fn into_params(self) -> GradientsParams {
        let mut params = GradientsParams::new();
        for (id, grad) in self.tensors {
            params.register(id, grad);
        }
        params
    }
}
