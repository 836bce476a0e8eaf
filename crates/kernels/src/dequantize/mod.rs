//! Matrices kept in codes: their values, and products with them.
//!
//! The products never hold the whole matrix in f32: on the processor a panel of rows is dequantised into
//! a buffer that each thread keeps, multiplied with, and written over by the next. On a CubeCL device 4-bit codes
//! are multiplied with up to eight rows as they are (`few_rows.rs`), with more after the whole matrix was
//! dequantised into the operands' type.

mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
#[cfg(feature = "cube")]
mod few_rows;
pub mod reference;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::codebook::{FourBitFormat, bytes};
use crate::dispatch::on_device;
use crate::frozen_matrix::FrozenMatrix;
use crate::gemm::{self, Op};
use crate::quantize::{NESTED_BLOCK_SIZE, NestedScales};

/// A matrix in blocks of 4-bit codes over its row-major values.
#[derive(Clone, Debug)]
pub struct FourBit {
    format: FourBitFormat,
    block_size: usize,
    dims: [usize; 2],
    packed: Tensor<1, Int>,
    absmax: Absmax,
}

/// The scale of each block.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one of a matrix, which owns both kinds of tensor anyway"
)]
pub enum Absmax {
    /// As f32.
    ///
    /// # Shapes
    /// `[blocks]`.
    Single(Tensor<1>),
    /// Quantised in turn: `map[code] · scale + offset`, one scale for 256 codes.
    ///
    /// # Shapes
    /// `codes` `[blocks]` u8, `scales` `[ceil(blocks / 256)]`.
    Double {
        /// Codes of the signed dynamic map.
        codes: Tensor<1, Int>,
        /// Their scales.
        scales: Tensor<1>,
        /// Mean that was taken off before.
        offset: f32,
    },
}

/// Why parts do not make a matrix of codes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: expected {expected}, found {actual}")]
pub struct PartsError {
    /// The part.
    pub what: &'static str,
    /// Its length, or the values it may have.
    pub expected: String,
    /// What was given.
    pub actual: String,
}

/// Scales of 4-bit blocks on the host.
#[derive(Clone, Debug, PartialEq)]
pub enum HostAbsmax {
    /// As they are.
    Single(Vec<f32>),
    /// Quantised in turn.
    Double(NestedScales),
}

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
        let check = |what, expected: usize, actual: usize| {
            if expected == actual {
                return Ok(());
            }
            Err(PartsError {
                what,
                expected: expected.to_string(),
                actual: actual.to_string(),
            })
        };
        if block_size == 0 || !block_size.is_multiple_of(2) {
            return Err(PartsError {
                what: "values of a block",
                expected: "an even number of at least 2".to_owned(),
                actual: block_size.to_string(),
            });
        }
        let values = dims[0].checked_mul(dims[1]).ok_or_else(|| PartsError {
            what: "values",
            expected: "fewer than memory has room for".to_owned(),
            actual: format!("{dims:?}"),
        })?;
        let blocks = values.div_ceil(block_size);
        check("bytes of codes", values.div_ceil(2), packed.len())?;
        let absmax = match absmax {
            HostAbsmax::Single(absmax) => {
                check("scales", blocks, absmax.len())?;
                Absmax::Single(floats(absmax, device))
            }
            HostAbsmax::Double(NestedScales {
                blocks: nested,
                offset,
            }) => {
                check("codes of scales", blocks, nested.codes.len())?;
                let scales = blocks.div_ceil(NESTED_BLOCK_SIZE);
                check("scales of scales", scales, nested.absmax.len())?;
                Absmax::Double {
                    codes: bytes(nested.codes, device),
                    scales: floats(nested.absmax, device),
                    offset,
                }
            }
        };
        Ok(Self {
            format,
            block_size,
            dims,
            packed: bytes(packed, device),
            absmax,
        })
    }

    /// `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// What the codes stand for.
    pub fn format(&self) -> FourBitFormat {
        self.format
    }

    /// Values that share a scale.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// The codes, two to a byte, the first in the high half.
    ///
    /// # Shapes
    /// `[ceil(out·in / 2)]` u8.
    pub fn packed(&self) -> &Tensor<1, Int> {
        &self.packed
    }

    /// The scales.
    pub fn absmax(&self) -> &Absmax {
        &self.absmax
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        self.packed.device()
    }

    /// The same matrix there.
    #[must_use]
    pub fn to_device(self, device: &Device) -> Self {
        let absmax = match self.absmax {
            Absmax::Single(absmax) => Absmax::Single(absmax.to_device(device)),
            Absmax::Double {
                codes,
                scales,
                offset,
            } => Absmax::Double {
                codes: codes.to_device(device),
                scales: scales.to_device(device),
                offset,
            },
        };
        Self {
            packed: self.packed.to_device(device),
            absmax,
            ..self
        }
    }

    /// Memory of codes and scales.
    ///
    /// # Units
    /// Bytes.
    pub fn num_bytes(&self) -> usize {
        let absmax = match &self.absmax {
            Absmax::Single(absmax) => 4 * absmax.dims()[0],
            Absmax::Double { codes, scales, .. } => codes.dims()[0] + 4 * scales.dims()[0] + 4,
        };
        self.packed.dims()[0] + absmax
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
            .or_else(|| on_device!(cube::dequantize(self, dtype)))
            .unwrap_or_else(|| reference::four_bit(self).cast(dtype))
    }

    /// Some rows of the values.
    ///
    /// # Shapes
    /// `[rows.len(), in]`.
    ///
    /// # Panics
    /// If a number is not below `out`.
    pub fn rows(&self, rows: &[u32]) -> Tensor<2> {
        cpu::rows(self, rows).unwrap_or_else(|| select(self.dequantize(), rows))
    }
}

impl FrozenMatrix for FourBit {
    fn matmul(&self, x: &Tensor<2>) -> Tensor<2> {
        self.matmul_add(x, None)
    }

    fn matmul_transposed(&self, dy: &Tensor<2>) -> Tensor<2> {
        cpu::matmul_transposed(dy, self)
            .unwrap_or_else(|| gemm::nn(dy, &self.dequantize_as(dy.dtype())))
    }

    fn matmul_add(&self, x: &Tensor<2>, sum: Option<&Tensor<2>>) -> Tensor<2> {
        match (cpu::matmul(x, self), sum) {
            (Some(product), Some(sum)) => sum.clone() + product,
            (Some(product), None) => product,
            (None, sum) => on_device!(few_rows::matmul(x, self, sum))
                .unwrap_or_else(|| gemm::project(x, &self.dequantize_as(x.dtype()), sum)),
        }
    }

    fn matmul_transposed_add(&self, dy: &Tensor<2>, sum: Option<Tensor<2>>) -> Tensor<2> {
        match (cpu::matmul_transposed(dy, self), sum) {
            (Some(product), Some(sum)) => sum + product,
            (Some(product), None) => product,
            (None, sum) => {
                let values = self.dequantize_as(dy.dtype());
                gemm::gemm((Op::N, dy), (Op::N, &values), 1.0, sum)
            }
        }
    }
}

/// A matrix of whole numbers −127 to 127, each row in units of its absmax / 127.
#[derive(Clone, Debug)]
pub struct Int8Rows {
    codes: Tensor<2, Int>,
    absmax: Tensor<1>,
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
        let codes = TensorData::new(codes, dims);
        Ok(Self {
            codes: Tensor::from_data(codes, (device, DType::I8)),
            absmax: floats(absmax, device),
        })
    }

    /// `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        self.codes.dims()
    }

    /// The codes.
    ///
    /// # Shapes
    /// `[out, in]` i8.
    pub fn codes(&self) -> &Tensor<2, Int> {
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
        Self {
            codes: self.codes.to_device(device),
            absmax: self.absmax.to_device(device),
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

    /// The values.
    ///
    /// # Shapes
    /// `[out, in]`.
    pub fn dequantize(&self) -> Tensor<2> {
        cpu::dequantize(self).unwrap_or_else(|| reference::int8(self))
    }

    /// Some rows of the values.
    ///
    /// # Shapes
    /// `[rows.len(), in]`.
    ///
    /// # Panics
    /// If a number is not below `out`.
    pub fn rows(&self, rows: &[u32]) -> Tensor<2> {
        cpu::rows(self, rows).unwrap_or_else(|| select(self.dequantize(), rows))
    }
}

impl FrozenMatrix for Int8Rows {
    fn matmul(&self, x: &Tensor<2>) -> Tensor<2> {
        cpu::matmul(x, self).unwrap_or_else(|| gemm::nt(x, &self.dequantize().cast(x.dtype())))
    }

    fn matmul_transposed(&self, dy: &Tensor<2>) -> Tensor<2> {
        cpu::matmul_transposed(dy, self)
            .unwrap_or_else(|| gemm::nn(dy, &self.dequantize().cast(dy.dtype())))
    }
}

fn floats(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

fn select(values: Tensor<2>, rows: &[u32]) -> Tensor<2> {
    let index: Vec<i64> = rows.iter().map(|&row| i64::from(row)).collect();
    let index = TensorData::new(index, [rows.len()]);
    let index = Tensor::<1, Int>::from_data(index, &values.device());
    values.select(0, index)
}

#[cfg(test)]
mod tests;
