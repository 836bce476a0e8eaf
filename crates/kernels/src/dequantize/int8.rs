//! Matrices of whole numbers, one scale for each row.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

#[cfg(feature = "cube")]
use super::cube;
use super::{
    PartsError, Tensors, To, check_rows, cpu, floats, matmul_add, matmul_transposed_add, reference,
    select,
};
use crate::dispatch::on_device;
use crate::frozen_matrix::FrozenMatrix;
use crate::gemm;

/// A matrix of whole numbers −127 to 127, each row in units of its absmax / 127.
#[derive(Clone, Debug)]
pub struct Int8Rows {
    pub(super) dims: [usize; 2],
    /// In one dimension: devices may leave gaps between the rows of a tensor of two.
    pub(super) codes: Tensor<1, Int>,
    pub(super) absmax: Tensor<1>,
}

impl Int8Rows {
    /// A matrix of codes that were made by [`int8_rows`](crate::quantize::int8_rows) or read from a file.
    ///
    /// # Shapes
    /// `dims` `[out, in]`, `codes` `out·in` values, `absmax` `out` values.
    ///
    /// # Errors
    /// Parts of another length.
    pub fn from_parts(
        dims: [usize; 2],
        codes: Vec<i8>,
        absmax: Vec<f32>,
        device: &Device,
    ) -> Result<Self, PartsError> {
        let values = dims[0].saturating_mul(dims[1]);
        if codes.len() != values || absmax.len() != dims[0] {
            return Err(PartsError {
                what: "codes and scales",
                expected: format!("{values} and {}", dims[0]),
                actual: format!("{} and {}", codes.len(), absmax.len()),
            });
        }
        let codes = TensorData::new(codes, [values]);
        Ok(Self {
            dims,
            codes: Tensor::from_data(codes, (device, DType::I8)),
            absmax: floats(absmax, device),
        })
    }

    /// `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// The codes, row-major.
    ///
    /// # Shapes
    /// `[out·in]` i8.
    pub fn codes(&self) -> &Tensor<1, Int> {
        &self.codes
    }

    /// The largest magnitude of each row.
    ///
    /// # Shapes
    /// `[out]`.
    pub fn absmax(&self) -> &Tensor<1> {
        &self.absmax
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        self.codes.device()
    }

    /// The same matrix there.
    #[must_use]
    pub fn to_device(self, device: &Device) -> Self {
        self.over(&mut To(device))
    }

    /// The same matrix of other tensors.
    #[must_use]
    pub fn over(self, tensors: &mut impl Tensors) -> Self {
        Self {
            codes: tensors.codes(self.codes),
            absmax: tensors.scales(self.absmax),
            ..self
        }
    }

    /// Memory of codes and scales.
    ///
    /// # Units
    /// Bytes.
    pub fn num_bytes(&self) -> usize {
        let [out, input] = self.dims();
        out * input + 4 * out
    }

    /// The values in f32.
    ///
    /// # Shapes
    /// `[out, in]`.
    pub fn dequantize(&self) -> Tensor<2> {
        self.dequantize_as(DType::F32)
    }

    /// The values in a float type: what a product with operands of that type takes.
    ///
    /// # Shapes
    /// `[out, in]`.
    pub fn dequantize_as(&self, dtype: DType) -> Tensor<2> {
        let on_cpu = (dtype == DType::F32)
            .then(|| cpu::dequantize(self))
            .flatten();
        on_cpu
            .or_else(|| on_device!(cube::int8::dequantize(self, dtype)))
            .unwrap_or_else(|| reference::int8(self).cast(dtype))
    }

    /// Some rows of the values, in f32.
    ///
    /// # Shapes
    /// `[rows.len(), in]`.
    ///
    /// # Panics
    /// If a number is not below `out`.
    pub fn rows(&self, rows: &[u32]) -> Tensor<2> {
        check_rows(self.dims, rows);
        cpu::rows(self, rows)
            .or_else(|| on_device!(cube::int8::rows(self, rows)))
            .unwrap_or_else(|| select(self.dequantize(), rows))
    }
}

impl FrozenMatrix for Int8Rows {
    fn matmul_add(&self, x: &Tensor<2>, alpha: f32, sum: Option<&Tensor<2>>) -> Tensor<2> {
        matmul_add(self, x, alpha, sum, || {
            gemm::project(x, &self.dequantize_as(x.dtype()), alpha, sum)
        })
    }

    fn matmul_transposed_add(
        &self,
        dy: &Tensor<2>,
        alpha: f32,
        sum: Option<Tensor<2>>,
    ) -> Tensor<2> {
        matmul_transposed_add(self, dy, alpha, sum, || self.dequantize_as(dy.dtype()))
    }
}
