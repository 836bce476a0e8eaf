//! Whole tensors of the base that are trained, each in the base's place.

use backdraft_kernels::column_sums::column_sums;
use backdraft_kernels::embedding;
use backdraft_kernels::gemm::Op;
use backdraft_quant::{Frozen, Weight};
use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Device, Tensor, TensorReadError};

use crate::gradients::AdapterGrads;
use crate::param::{AdapterParam, Stored};

/// A tensor of the base that is trained whole: the weight of a norm, a bias, an embedding or a head, and, where no adapter is
/// made, the weight of a projection. Beside adapters, what the base has stays beside it, for who asks for the base alone.
#[derive(Module, Debug)]
pub struct TrainedTensor {
    /// Row by row: f32, or the dtype of activations where there is no more.
    values: Param<Tensor<1>>,
    /// The same in the dtype of activations, rounded once an update.
    now: Frozen<Tensor<1>>,
    #[module(skip)]
    dims: Vec<usize>,
}

/// Names of a weight and of a bias, in files of PEFT, and of that of a projection with an adapter, which PEFT wraps.
const WEIGHT: [&str; 2] = ["weight"; 2];
const BIAS: [&str; 2] = ["bias"; 2];
const BASE_BIAS: [&str; 2] = ["bias", "base_layer.bias"];

impl TrainedTensor {
    /// Given values, for activations of `dtype`.
    ///
    /// # Shapes
    /// `values` `[product of dims]`.
    ///
    /// # Panics
    /// If there are not as many values.
    pub fn new(values: Tensor<1>, dims: impl Into<Vec<usize>>, dtype: DType) -> Self {
        let dims = dims.into();
        let count: usize = dims.iter().product();
        assert_eq!(values.dims(), [count], "values of {dims:?}");
        let values = values.cast(DType::F32);
        Self {
            now: Frozen(rounded(&values, dtype)),
            values: Param::from_tensor(values),
            dims,
        }
    }

    /// Its shape.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// The same without more digits than bf16 has, to which its values are rounded here and by every update: there is no
    /// copy in f32 beside that in the dtype of activations. Values that are bf16's already stay as they are.
    #[must_use]
    pub fn without_master(self) -> Self {
        let dtype = self.now.dtype();
        let values = self.values().cast(DType::BF16).cast(dtype);
        Self {
            now: Frozen(values.clone()),
            values: self.values.map(|_| values),
            dims: self.dims,
        }
    }

    /// The values, without autodiff.
    ///
    /// # Shapes
    /// `[product of dims]`, f32, or the dtype of activations [`without_master`](Self::without_master).
    pub fn values(&self) -> Tensor<1> {
        self.values.val().inner()
    }

    /// The values in the dtype of activations, without autodiff.
    ///
    /// # Shapes
    /// `[product of dims]`.
    pub fn now(&self) -> &Tensor<1> {
        &self.now
    }

    /// As [`now`](Self::now), tracked by autodiff where the values are.
    pub fn tracked(&self) -> Tensor<1> {
        let (values, dtype) = (self.values.val(), self.now.dtype());
        match values.is_tracked() {
            false => self.now().clone(),
            true if values.dtype() == dtype => values,
            true => values.cast(dtype),
        }
    }

    /// A matrix in the dtype of activations, without autodiff.
    ///
    /// # Panics
    /// If it is no matrix.
    pub fn matrix(&self) -> Weight {
        Weight::Dense(self.now().clone().reshape(self.matrix_dims()))
    }

    /// The same, tracked by autodiff where the values are.
    ///
    /// # Panics
    /// If it is no matrix.
    pub fn tracked_matrix(&self) -> Weight {
        Weight::Dense(self.tracked().reshape(self.matrix_dims()))
    }

    fn matrix_dims(&self) -> [usize; 2] {
        match self.dims[..] {
            [rows, columns] => [rows, columns],
            _ => panic!("a matrix, found {:?}", self.dims),
        }
    }

    /// It as a parameter: the weight of its module, or the bias, which PEFT calls otherwise where the module is `adapted`.
    pub fn param(&self, is_bias: bool, adapted: bool) -> AdapterParam {
        AdapterParam {
            dims: self.dims.clone(),
            ..AdapterParam::of(names(is_bias, adapted), &self.values)
        }
    }

    /// Its number.
    pub fn id(&self) -> ParamId {
        self.values.id
    }

    /// A copy with a parameter of its own, for activations of `dtype`.
    #[must_use]
    pub fn on(&self, device: &Device, dtype: DType) -> Self {
        Self::new(self.values().to_device(device), self.dims.clone(), dtype)
    }

    /// The same with other rows at some places, which ascend.
    ///
    /// # Shapes
    /// `rows` `[places, columns]`.
    ///
    /// # Panics
    /// If it is no matrix, or has no such rows.
    #[must_use]
    pub fn with_rows(&self, places: &[u32], rows: &Tensor<2>) -> Self {
        let [count, columns] = self.matrix_dims();
        let mut values = self.values().reshape([count, columns]);
        for (i, &place) in places.iter().enumerate() {
            let place = place as usize;
            let row = rows.clone().narrow(0, i, 1).cast(DType::F32);
            values = values.slice_assign([place..place + 1, 0..columns], row);
        }
        Self::new(values.flatten(0, 1), self.dims.clone(), self.now.dtype())
    }

    /// Replaces the values by what `update` makes of them.
    pub fn update(
        &mut self,
        (is_bias, adapted): (bool, bool),
        update: impl FnOnce(AdapterParam) -> Tensor<1>,
    ) {
        let param = self.param(is_bias, adapted);
        let dtype = self.values.val().dtype();
        self.values = self.values.clone().map(|_| update(param).cast(dtype));
        self.now = Frozen(rounded(&self.values(), self.now.dtype()));
    }

    /// Moves the values, and their copy in the dtype of activations, to where `place` says, if it says anything.
    pub fn store_in(&mut self, place: impl FnOnce(ParamId) -> Option<Stored>) {
        let Some(Stored { values, rounded }) = place(self.values.id) else {
            return;
        };
        let count: usize = self.dims.iter().product();
        let values = values.reshape([count]);
        self.now = Frozen(match rounded {
            Some(rounded) => rounded.reshape([count]),
            None => values.clone(),
        });
        self.values = self.values.clone().map(|_| values);
    }

    /// Adds a gradient, as a vector.
    ///
    /// # Shapes
    /// `grad` `[n]`, f32.
    pub fn add_grad(&self, grads: &mut AdapterGrads, grad: Tensor<1>) {
        grads.add_vector(self.values.id, grad);
    }

    /// Adds that of a bias, of which α times was added to every row.
    ///
    /// # Shapes
    /// `dy` `[t, out]`.
    pub fn add_bias_grad(&self, grads: &mut AdapterGrads, dy: &Tensor<2>, alpha: f32) {
        let sums = column_sums(dy);
        let sums = match alpha {
            1.0 => sums,
            alpha => sums.mul_scalar(alpha),
        };
        self.add_grad(grads, sums);
    }

    /// Adds that of a matrix W which made α·x·Wᵀ: α·dyᵀ·x.
    ///
    /// # Shapes
    /// `x` `[t, in]`, `dy` `[t, out]`.
    pub fn add_matrix_grad(
        &self,
        grads: &mut AdapterGrads,
        x: &Tensor<2>,
        (alpha, dy): (f32, &Tensor<2>),
    ) {
        grads.add_product(self.values.id, (Op::T, dy), (Op::N, x), alpha);
    }

    /// Adds that of a matrix of one row w which made x·wᵀ: dyᵀ·x, element by element and so without TF32.
    ///
    /// # Shapes
    /// `x` `[t, in]`, `dy` `[t, 1]`, f32.
    ///
    /// # Panics
    /// If it is no matrix of one row.
    pub fn add_row_grad(&self, grads: &mut AdapterGrads, x: &Tensor<2>, dy: &Tensor<2>) {
        let grad = (x.clone() * dy.clone()).sum_dim(0);
        let place = (self.matrix_dims(), &grad.device());
        grads.add_to(self.values.id, place, |sum| sum + grad);
    }

    /// Adds what an embedding of `input_ids` tells, `dh` being the gradient of what it gave, which was multiplied by
    /// `multiplier`.
    ///
    /// # Shapes
    /// `dh` `[input_ids, hidden]`.
    ///
    /// # Panics
    /// If it is no matrix.
    pub fn add_embedding_grad(
        &self,
        grads: &mut AdapterGrads,
        (input_ids, dh): (&[u32], &Tensor<2>),
        multiplier: f32,
    ) {
        grads.add_to(self.values.id, (self.matrix_dims(), &dh.device()), |sum| {
            embedding::add_rows(sum, dh, input_ids, multiplier)
        });
    }

    /// Whether the values are those of `base`. Reads them from the device.
    ///
    /// # Errors
    /// A device that does not give them.
    pub fn is(&self, base: &Tensor<1>) -> Result<bool, TensorReadError> {
        let base = base.clone().cast(DType::F32).try_into_data()?;
        let now = self.values().try_into_data()?;
        Ok(base.iter::<f32>().eq(now.iter::<f32>()))
    }
}

const fn names(is_bias: bool, adapted: bool) -> [&'static str; 2] {
    match (is_bias, adapted) {
        (false, _) => WEIGHT,
        (true, false) => BIAS,
        (true, true) => BASE_BIAS,
    }
}

fn rounded(values: &Tensor<1>, dtype: DType) -> Tensor<1> {
    let values = values.clone().inner();
    match values.dtype() == dtype {
        true => values,
        false => values.cast(dtype),
    }
}
