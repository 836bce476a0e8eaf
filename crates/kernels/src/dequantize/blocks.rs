//! Matrices in blocks of codes that share a scale.

use std::fmt::Debug;

use burn::tensor::{DType, Device, Int, Tensor};

#[cfg(feature = "cube")]
use super::cube;
use super::{
    Absmax, HostAbsmax, PartsError, Tensors, To, check, check_rows, count, cpu, matmul_add,
    matmul_transposed_add, reference, select,
};
use crate::codebook::{FourBitFormat, NestedFormat, bytes};
use crate::dispatch::on_device;
use crate::frozen_matrix::FrozenMatrix;
use crate::gemm;

/// What codes in blocks stand for, and how they are kept.
pub trait BlockFormat: Copy + Debug + Send + Sync + 'static {
    /// The value of each code, in units of its block's scale.
    fn values(self) -> &'static [f32];

    /// Bits of a code in each of its arrays, high bits first; 0 where there is no second array.
    fn planes(self) -> [usize; 2];

    /// What each byte stands for, where a byte is two codes.
    fn pairs(self) -> Option<&'static [[f32; 2]; 256]> {
        None
    }
}

impl BlockFormat for FourBitFormat {
    fn values(self) -> &'static [f32] {
        Self::values(self)
    }

    fn planes(self) -> [usize; 2] {
        [4, 0]
    }

    fn pairs(self) -> Option<&'static [[f32; 2]; 256]> {
        static NF4: [[f32; 2]; 256] = pairs(FourBitFormat::Nf4);
        static FP4: [[f32; 2]; 256] = pairs(FourBitFormat::Fp4);
        Some(match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &FP4,
        })
    }
}

const fn pairs(format: FourBitFormat) -> [[f32; 2]; 256] {
    let values = format.values();
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [values[byte >> 4], values[byte & 15]];
        byte += 1;
    }
    pairs
}

impl BlockFormat for NestedFormat {
    fn values(self) -> &'static [f32] {
        Self::values(self)
    }

    fn planes(self) -> [usize; 2] {
        Self::planes(self)
    }
}

/// A matrix in blocks of codes over its row-major values.
#[derive(Clone, Debug)]
pub struct Blocks<F> {
    pub(super) format: F,
    pub(super) block_size: usize,
    pub(super) dims: [usize; 2],
    /// Arrays of codes, as many as the format has: the first code in the highest bits of the first byte.
    pub(super) planes: Vec<Tensor<1, Int>>,
    pub(super) absmax: Absmax,
}

/// A matrix of bitsandbytes' 4-bit codes.
pub type FourBit = Blocks<FourBitFormat>;

/// A matrix of codes of 3, 5 or 6 bits.
pub type Nested = Blocks<NestedFormat>;

impl FourBit {
    /// A matrix of codes that were made by [`quantize`](crate::quantize) or read from a file.
    ///
    /// # Shapes
    /// `dims` `[out, in]`; `packed` `ceil(out·in / 2)` bytes, one scale for each started block.
    ///
    /// # Errors
    /// Parts of another length.
    pub fn from_parts(
        format: FourBitFormat,
        block_size: usize,
        dims: [usize; 2],
        packed: Vec<u8>,
        absmax: HostAbsmax,
        device: &Device,
    ) -> Result<Self, PartsError> {
        Self::of(format, (block_size, 2), dims, vec![packed], absmax, device)
    }

    /// The codes, two to a byte, the first in the high half.
    ///
    /// # Shapes
    /// `[ceil(out·in / 2)]` u8.
    pub fn packed(&self) -> &Tensor<1, Int> {
        &self.planes[0]
    }
}

impl Nested {
    /// A matrix of codes that were made by [`nested_codes`](crate::quantize::nested_codes) and put into arrays by
    /// [`planes`](crate::quantize::planes).
    ///
    /// # Shapes
    /// `dims` `[out, in]`; each of `planes` `ceil(out·in · bits / 8)` bytes, with the bits that
    /// [`NestedFormat::planes`] says; one scale for each started block.
    ///
    /// # Errors
    /// Parts of another length.
    pub fn from_parts(
        format: NestedFormat,
        block_size: usize,
        dims: [usize; 2],
        planes: [Vec<u8>; 2],
        absmax: HostAbsmax,
        device: &Device,
    ) -> Result<Self, PartsError> {
        Self::of(format, (block_size, 8), dims, planes.into(), absmax, device)
    }

    /// The arrays of codes, high bits first.
    ///
    /// # Shapes
    /// `[ceil(out·in · bits / 8)]` u8 each.
    pub fn planes(&self) -> [&Tensor<1, Int>; 2] {
        [&self.planes[0], &self.planes[1]]
    }
}

impl<F: BlockFormat> Blocks<F> {
    /// `step` is what a block must be a multiple of, so that it begins with a byte.
    fn of(
        format: F,
        (block_size, step): (usize, usize),
        dims: [usize; 2],
        planes: Vec<Vec<u8>>,
        absmax: HostAbsmax,
        device: &Device,
    ) -> Result<Self, PartsError> {
        if block_size == 0 || !block_size.is_multiple_of(step) {
            return Err(PartsError {
                what: "values of a block",
                expected: match step {
                    2 => "an even number of at least 2".to_owned(),
                    _ => format!("a multiple of {step}"),
                },
                actual: block_size.to_string(),
            });
        }
        let values = count(dims)?;
        for (bits, plane) in format.planes().into_iter().zip(&planes) {
            check("bytes of codes", values.div_ceil(8 / bits), plane.len())?;
        }
        let absmax = absmax.on(device, values.div_ceil(block_size))?;
        let planes = planes.into_iter().map(|plane| bytes(plane, device));
        Ok(Self {
            format,
            block_size,
            dims,
            planes: planes.collect(),
            absmax,
        })
    }

    /// `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// What the codes stand for.
    pub fn format(&self) -> F {
        self.format
    }

    /// Values that share a scale.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// The scales.
    pub fn absmax(&self) -> &Absmax {
        &self.absmax
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        self.planes[0].device()
    }

    /// The same matrix there.
    #[must_use]
    pub fn to_device(self, device: &Device) -> Self {
        self.over(&mut To(device))
    }

    /// The same matrix of other tensors.
    #[must_use]
    pub fn over(self, tensors: &mut impl Tensors) -> Self {
        let planes = self.planes.into_iter();
        Self {
            planes: planes.map(|plane| tensors.codes(plane)).collect(),
            absmax: self.absmax.over(tensors),
            ..self
        }
    }

    /// Memory of codes and scales.
    ///
    /// # Units
    /// Bytes.
    pub fn num_bytes(&self) -> usize {
        let codes = self.planes.iter().map(|plane| plane.dims()[0]);
        codes.sum::<usize>() + self.absmax.num_bytes()
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
            .or_else(|| on_device!(cube::blocks::dequantize(self, dtype)))
            .unwrap_or_else(|| reference::blocks(self).cast(dtype))
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
            .or_else(|| on_device!(cube::blocks::rows(self, rows)))
            .unwrap_or_else(|| select(self.dequantize(), rows))
    }
}

impl<F: BlockFormat> FrozenMatrix for Blocks<F> {
    fn matmul_add(&self, x: &Tensor<2>, alpha: f32, sum: Option<&Tensor<2>>) -> Tensor<2> {
        matmul_add(self, x, alpha, sum, || {
            on_device!(super::few_rows(alpha, sum, |sum| cube::few_rows::matmul(
                x, self, sum
            )))
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
