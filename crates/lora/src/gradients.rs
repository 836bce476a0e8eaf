//! Gradients of the adapters, summed over micro-batches.

use std::collections::HashMap;

use backdraft_kernels::gemm::{Op, Slot, gemm, gemm_f32, gemm_into};
use burn::module::ParamId;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};

use crate::param::AdapterParam;
use crate::statistics::Statistics;

/// Gradients by parameter, of any rank; adding to one that is there sums.
#[derive(Clone, Debug, Default)]
pub struct AdapterGrads {
    tensors: HashMap<ParamId, Gradient>,
    /// Views that gradients are written into, where they all lie in one buffer, and the shapes of their parameters.
    slots: HashMap<ParamId, (Vec<usize>, Tensor<2>)>,
    /// What projections saw, where somebody asked for it.
    statistics: Option<HashMap<ParamId, Statistics>>,
}

/// Values row by row, and the shape that they are of.
#[derive(Clone, Debug)]
struct Gradient {
    dims: Vec<usize>,
    values: Tensor<1>,
}

impl Gradient {
    fn of<const D: usize>(tensor: Tensor<D>) -> Self {
        Self {
            dims: tensor.dims().to_vec(),
            values: tensor.flatten(0, D - 1),
        }
    }

    /// # Panics
    /// If it has another rank.
    fn shaped<const D: usize>(self) -> Tensor<D> {
        match <[usize; D]>::try_from(self.dims) {
            Ok(dims) => self.values.reshape(dims),
            Err(dims) => panic!("a gradient of rank {D}, found {dims:?}"),
        }
    }
}

impl AdapterGrads {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing yet; gradients are written into these views of a flat buffer, each as [`AdapterParam::matrix_dims`] of its parameter,
    /// whose shape stands before it.
    pub fn within(views: impl IntoIterator<Item = (ParamId, Vec<usize>, Tensor<2>)>) -> Self {
        let slots = views.into_iter().map(|(id, dims, view)| (id, (dims, view)));
        Self {
            slots: slots.collect(),
            ..Self::default()
        }
    }

    /// The same where every view that was given holds a gradient already.
    #[must_use]
    pub fn written(mut self) -> Self {
        let ids: Vec<ParamId> = self.slots.keys().copied().collect();
        for id in ids {
            self.slot(id);
        }
        self
    }

    /// Nothing yet; every adapted projection's backward pass adds to its [`Statistics`].
    pub fn observing() -> Self {
        Self {
            statistics: Some(HashMap::new()),
            ..Self::default()
        }
    }

    /// What the projection whose adapter has that first parameter saw; `None` where nobody asked or no gradient came by.
    pub fn statistics(&self, first: ParamId) -> Option<&Statistics> {
        self.statistics.as_ref()?.get(&first)
    }

    /// Whether somebody asked for [`Statistics`].
    pub(crate) const fn observes(&self) -> bool {
        self.statistics.is_some()
    }

    /// Adds what a projection saw, where somebody asked for it: the gradient of x·Wᵀ is `alpha`·dy.
    pub(crate) fn observe(
        &mut self,
        first: ParamId,
        x: &Tensor<2>,
        (alpha, dy): (f32, &Tensor<2>),
    ) {
        if let Some(statistics) = &mut self.statistics {
            let seen = Statistics::of(x, dy).of_larger(alpha);
            let sum = match statistics.remove(&first) {
                Some(before) => before.plus(seen),
                None => seen,
            };
            statistics.insert(first, sum);
        }
    }

    /// Where the next gradient of a parameter goes, where it has a place; it counts as there from now on.
    pub(crate) fn slot(&mut self, id: ParamId) -> Option<Slot> {
        let (dims, view) = self.slots.get(&id)?.clone();
        let values = view.clone().flatten(0, 1);
        let there = Gradient { dims, values };
        let accumulate = self.tensors.insert(id, there).is_some();
        Some(Slot { view, accumulate })
    }

    /// Adds the gradient of one micro-batch.
    ///
    /// # Panics
    /// If one that is there has another shape.
    pub fn add<const D: usize>(&mut self, id: ParamId, grad: Tensor<D>) {
        let grad = Gradient::of(grad);
        let sum = match self.tensors.remove(&id) {
            Some(Gradient { dims, values }) => {
                assert_eq!(dims, grad.dims, "shape of a parameter's gradients");
                let values = values + grad.values;
                Gradient { dims, values }
            }
            None => grad,
        };
        self.tensors.insert(id, sum);
    }

    /// Replaces the sum of a parameter's gradients, zeros at first, by what `add` makes of it; in its place where that can be.
    ///
    /// # Shapes
    /// The sum and what becomes of it are `dims`, f32.
    pub(crate) fn add_to(
        &mut self,
        id: ParamId,
        (dims, device): ([usize; 2], &Device),
        add: impl FnOnce(Tensor<2>) -> Tensor<2>,
    ) {
        let zeros = || Tensor::zeros(dims, (device, DType::F32));
        if let Some(slot) = self.slot(id) {
            let before = match slot.accumulate {
                true => slot.view.clone(),
                false => zeros(),
            };
            return slot.write(&add(before));
        }
        let before = match self.tensors.remove(&id) {
            Some(Gradient { values, .. }) => values.reshape(dims),
            None => zeros(),
        };
        self.tensors.insert(id, Gradient::of(add(before)));
    }

    /// Adds a product: `alpha · op(a) · op(b)`, in f32 and where the parameter's gradients go.
    ///
    /// # Shapes
    /// The product is of the parameter's shape.
    ///
    /// # Panics
    /// If it is of another, or the factors do not fit each other.
    pub fn add_product(
        &mut self,
        id: ParamId,
        a: (Op, &Tensor<2>),
        b: (Op, &Tensor<2>),
        alpha: f32,
    ) {
        if let Some(slot) = self.slot(id) {
            return gemm_into(a, b, alpha, &slot);
        }
        let in_place = a.1.dtype() == DType::F32;
        match self.tensors.remove(&id) {
            Some(Gradient { dims, values }) if in_place => {
                let [rows, columns] = dims[..] else {
                    panic!("a gradient of rank 2, found {dims:?}")
                };
                let sum = gemm(a, b, alpha, Some(values.reshape([rows, columns])));
                self.tensors.insert(id, Gradient::of(sum));
            }
            before => {
                self.tensors.extend(before.map(|before| (id, before)));
                self.add(id, gemm_f32(a, b, alpha));
            }
        }
    }

    /// Adds the gradient of a vector, where the parameter's gradients go.
    ///
    /// # Shapes
    /// `grad` `[n]`, f32.
    pub(crate) fn add_vector(&mut self, id: ParamId, grad: Tensor<1>) {
        match self.slot(id) {
            Some(slot) => {
                let row = grad.unsqueeze();
                slot.write(&match slot.accumulate {
                    true => slot.view.clone() + row,
                    false => row,
                });
            }
            None => self.add(id, grad),
        }
    }

    /// The gradients of all parameters but one, which are here no more.
    #[must_use]
    pub fn take_all_but(&mut self, kept: Option<ParamId>) -> Self {
        let taken = self.tensors.extract_if(|id, _| Some(*id) != kept);
        Self {
            tensors: taken.collect(),
            ..Self::default()
        }
    }

    /// The parameters that have one.
    pub fn ids(&self) -> impl Iterator<Item = ParamId> {
        self.tensors.keys().copied()
    }

    /// The gradient of one parameter, row by row.
    ///
    /// # Shapes
    /// `[values of the parameter]`.
    pub fn get(&self, id: ParamId) -> Option<&Tensor<1>> {
        self.tensors.get(&id).map(|grad| &grad.values)
    }

    /// How many parameters have one.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The values of every gradient through `f`.
    pub fn map(self, f: impl Fn(Tensor<1>) -> Tensor<1>) -> Self {
        let tensors = self.tensors.into_iter().map(|(id, grad)| {
            let values = f(grad.values);
            (id, Gradient { values, ..grad })
        });
        Self {
            tensors: tensors.collect(),
            slots: self.slots,
            statistics: self.statistics,
        }
    }

    /// The other way of [`into_params`](Self::into_params), for the given parameters.
    ///
    /// # Panics
    /// If one has more than three dimensions: Burn's container asks for the rank at compile time.
    pub fn from_params(
        grads: &mut GradientsParams,
        params: impl IntoIterator<Item = AdapterParam>,
    ) -> Self {
        let found = params
            .into_iter()
            .filter_map(|AdapterParam { id, dims, .. }| {
                let grad = match dims.len() {
                    1 => Gradient::of(grads.remove::<1>(id)?),
                    2 => Gradient::of(grads.remove::<2>(id)?),
                    3 => Gradient::of(grads.remove::<3>(id)?),
                    _ => panic!("a parameter of one to three dimensions, found {dims:?}"),
                };
                Some((id, grad))
            });
        Self {
            tensors: found.collect(),
            ..Self::default()
        }
    }

    /// In the form that Burn's optimisers take: as the parameters are shaped.
    ///
    /// # Panics
    /// As [`from_params`](Self::from_params).
    pub fn into_params(self) -> GradientsParams {
        let mut params = GradientsParams::new();
        for (id, grad) in self.tensors {
            match grad.dims.len() {
                1 => params.register(id, grad.shaped::<1>()),
                2 => params.register(id, grad.shaped::<2>()),
                3 => params.register(id, grad.shaped::<3>()),
                _ => panic!(
                    "a gradient of one to three dimensions, found {:?}",
                    grad.dims
                ),
            }
        }
        params
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Param;

    use super::*;

    fn values(x: &Tensor<1>) -> Vec<f32> {
        x.clone().into_data().try_into_vec().unwrap()
    }

    #[test]
    fn gradients_of_any_rank_add_up_and_keep_their_shape() {
        let device = Device::flex();
        let vector = Param::from_tensor(Tensor::<1>::ones([3], &device));
        let matrix = Param::from_tensor(Tensor::<2>::ones([2, 3], &device));
        let cube = Param::from_tensor(Tensor::<3>::ones([2, 1, 2], &device));
        let params = || {
            [
                AdapterParam::of(["v", "v"], &vector),
                AdapterParam::of(["m", "m"], &matrix),
                AdapterParam::of(["c", "c"], &cube),
            ]
        };
        let mut grads = AdapterGrads::new();
        for _ in 0..2 {
            grads.add(vector.id, vector.val() * 2.0);
            // Not in the order of memory: what it is row by row counts.
            let wide = Tensor::<2>::from_floats([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]], &device);
            grads.add(matrix.id, wide.transpose());
            grads.add(cube.id, cube.val());
        }
        let mut burns = grads.map(|grad| grad * 0.5).into_params();
        let shaped = burns.get::<2>(matrix.id).unwrap();
        assert_eq!(shaped.dims(), [2, 3]);
        assert_eq!(burns.get::<3>(cube.id).unwrap().dims(), [2, 1, 2]);

        let back = AdapterGrads::from_params(&mut burns, params());
        assert!(burns.is_empty());
        assert_eq!(back.len(), 3);
        assert_eq!(values(back.get(vector.id).unwrap()), [2.0; 3]);
        let expected = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(values(back.get(matrix.id).unwrap()), expected);
        assert_eq!(values(back.get(cube.id).unwrap()), [1.0; 4]);
    }
    /// A buffer knows matrices only: a vector is a row there, and a vector again for who takes it.
    #[test]
    fn gradients_in_a_buffer_have_the_shapes_of_their_parameters() {
        let device = Device::flex();
        let vector = Param::from_tensor(Tensor::<1>::ones([3], &device));
        let matrix = Param::from_tensor(Tensor::<2>::ones([2, 3], &device));
        let params = [
            AdapterParam::of(["v", "v"], &vector),
            AdapterParam::of(["m", "m"], &matrix),
        ];
        let views = params.iter().map(|param| {
            let view = param.values.clone().reshape(param.matrix_dims());
            (param.id, param.dims.clone(), view)
        });
        let mut grads = AdapterGrads::within(views);
        for param in &params {
            assert!(!grads.slot(param.id).unwrap().accumulate);
            assert!(grads.slot(param.id).unwrap().accumulate);
        }
        let mut burns = grads.into_params();
        assert_eq!(burns.get::<1>(vector.id).unwrap().dims(), [3]);
        let back = AdapterGrads::from_params(&mut burns, params);
        assert_eq!(back.len(), 2);
        assert_eq!(values(back.get(matrix.id).unwrap()), [1.0; 6]);
    }
}
