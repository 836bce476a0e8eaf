//! One frozen matrix.

use backdraft_kernels::lora_linear::FrozenMatrix;
use burn::tensor::{Int, Tensor, TensorData};

/// A frozen matrix `[out, in]`, laid out as checkpoints store it.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Values of the device's float type. A tensor that is tracked by autodiff gets its gradient: this
    /// is how a program that trains everything uses the model.
    Dense(Tensor<2>),
}

impl Weight {
    /// `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Dense(tensor) => tensor.dims(),
        }
    }

    /// The number of values.
    pub fn num_params(&self) -> usize {
        let [out, input] = self.dims();
        out * input
    }

    /// Memory that the weight takes.
    ///
    /// # Units
    /// Bytes.
    pub fn num_bytes(&self) -> usize {
        match self {
            Self::Dense(tensor) => self.num_params() * tensor.dtype().size(),
        }
    }

    /// The dense tensor if autodiff tracks it.
    pub fn tracked(&self) -> Option<Tensor<2>> {
        match self {
            Self::Dense(tensor) => tensor.is_tracked().then(|| tensor.clone()),
        }
    }

    /// As a dense tensor; a copy where the weight is stored otherwise.
    pub fn dequantize(&self) -> Tensor<2> {
        match self {
            Self::Dense(tensor) => tensor.clone(),
        }
    }

    /// The rows with the given numbers: an embedding look-up.
    ///
    /// # Shapes
    /// `[rows.len(), in]`.
    ///
    /// # Panics
    /// If a number is not below `out`.
    pub fn rows(&self, rows: &[u32]) -> Tensor<2> {
        match self {
            Self::Dense(tensor) => {
                let [out, _] = tensor.dims();
                if let Some(row) = rows.iter().find(|&&row| row as usize >= out) {
                    panic!("row {row} of a matrix with {out} rows");
                }
                let index: Vec<i64> = rows.iter().map(|&row| i64::from(row)).collect();
                let index = TensorData::new(index, [rows.len()]);
                let index = Tensor::<1, Int>::from_data(index, &tensor.device());
                tensor.clone().select(0, index)
            }
        }
    }
}

impl FrozenMatrix for Weight {
    fn matmul(&self, x: &Tensor<2>) -> Tensor<2> {
        match self {
            Self::Dense(tensor) => FrozenMatrix::matmul(tensor, x),
        }
    }

    fn matmul_transposed(&self, dy: &Tensor<2>) -> Tensor<2> {
        match self {
            Self::Dense(tensor) => FrozenMatrix::matmul_transposed(tensor, dy),
        }
    }
}
