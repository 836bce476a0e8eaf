//! Matrices in the blocks that a GGUF file has them in.

use backdraft_arch::GgufBlock;
use burn::tensor::{DType, Device, Int, Tensor};

#[cfg(feature = "cube")]
use super::cube;
use super::{
    PartsError, Tensors, To, check, check_rows, count, cpu, matmul_add, matmul_transposed_add,
    reference, select,
};
use crate::codebook::bytes;
use crate::dispatch::on_device;
use crate::frozen_matrix::FrozenMatrix;
use crate::gemm;

/// A matrix in blocks of a GGUF file, byte for byte; what they stand for says [`GgufBlock`].
#[derive(Clone, Debug)]
pub struct GgufBlocks {
    pub(super) kind: GgufBlock,
    pub(super) dims: [usize; 2],
    /// Row by row, each in whole blocks.
    pub(super) bytes: Tensor<1, Int>,
}

impl GgufBlocks {
    /// A matrix of blocks that were read from a file. Numbers in them are not looked at: those that are not finite make
    /// values that are not.
    ///
    /// # Shapes
    /// `dims` `[out, in]`, `in` a multiple of a block's values; `blocks` as many bytes as the blocks have.
    ///
    /// # Errors
    /// Rows that are no whole blocks, or another number of bytes.
    pub fn from_parts(
        kind: GgufBlock,
        dims: [usize; 2],
        blocks: Vec<u8>,
        device: &Device,
    ) -> Result<Self, PartsError> {
        if !dims[1].is_multiple_of(kind.values()) {
            return Err(PartsError {
                what: "values of a row",
                expected: format!("a multiple of {}", kind.values()),
                actual: dims[1].to_string(),
            });
        }
        let expected = count(dims)? / kind.values() * kind.bytes();
        check("bytes of blocks", expected, blocks.len())?;
        Ok(Self {
            kind,
            dims,
            bytes: bytes(blocks, device),
        })
    }

    /// `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// The type of the blocks.
    pub fn kind(&self) -> GgufBlock {
        self.kind
    }

    /// The blocks, row by row.
    ///
    /// # Shapes
    /// `[out·in / values · bytes]` u8, with values and bytes of a block.
    pub fn bytes(&self) -> &Tensor<1, Int> {
        &self.bytes
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        self.bytes.device()
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
            bytes: tensors.codes(self.bytes),
            ..self
        }
    }

    /// Memory of the blocks.
    ///
    /// # Units
    /// Bytes.
    pub fn num_bytes(&self) -> usize {
        self.bytes.dims()[0]
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
            .or_else(|| on_device!(cube::gguf::dequantize(self, dtype)))
            .unwrap_or_else(|| reference::gguf(self).cast(dtype))
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
            .or_else(|| on_device!(cube::gguf::rows(self, rows)))
            .unwrap_or_else(|| select(self.dequantize(), rows))
    }
}

impl FrozenMatrix for GgufBlocks {
    fn matmul_add(&self, x: &Tensor<2>, alpha: f32, sum: Option<&Tensor<2>>) -> Tensor<2> {
        matmul_add(self, x, alpha, sum, || {
            on_device!(super::few_rows(alpha, sum, |sum| {
                cube::gguf_few_rows::matmul(x, self, sum)
            }))
            .unwrap_or_else(|| gemm::project(x, &self.dequantize_as(x.dtype()), alpha, sum))
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
