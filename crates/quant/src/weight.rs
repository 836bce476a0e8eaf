//! One frozen matrix.

use std::ops::Range;

use backdraft_kernels::codebook::{FourBitFormat, NestedFormat};
use backdraft_kernels::dequantize::{FourBit, GgufBlocks, HostAbsmax, Int8Rows, Nested, Tensors};
use backdraft_kernels::embedding::HostTable;
use backdraft_kernels::frozen_matrix::FrozenMatrix;
use backdraft_kernels::quantize::{self, PackedBlocks};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use backdraft_arch::Scheme;

use crate::streamed::Streamed;

/// Rows whose values are dense at a time where lengths are taken of them.
const PANEL: usize = 256;

/// A frozen matrix `[out, in]`, laid out as checkpoints store it.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Values of the device's float type. A tensor that is tracked by autodiff gets its gradient: this
    /// is how a program that trains everything uses the model.
    Dense(Tensor<2>),
    /// The same in the host's memory: an embedding.
    Host(HostTable),
    /// NF4 or FP4.
    FourBit(FourBit),
    /// NF4 with a bit less, one more or two more.
    Nested(Nested),
    /// Whole numbers of 8 bits.
    Int8(Int8Rows),
    /// The blocks that a GGUF file has it in.
    Gguf(GgufBlocks),
    /// Any of these but an embedding, in the host's memory.
    Streamed(Streamed),
}

impl Weight {
    /// `values` quantised by `scheme`.
    ///
    /// # Shapes
    /// `dims` `[out, in]`, `values` row-major.
    ///
    /// # Panics
    /// If there are not `out · in` values, or for a GGUF file's blocks, which are read and never made.
    pub fn quantize(values: &[f32], dims: [usize; 2], scheme: Scheme, device: &Device) -> Self {
        let mut quantizer = Quantizer::new(dims, scheme);
        quantizer.push(values);
        quantizer.finish(device)
    }

    /// `[out, in]`.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Dense(tensor) => tensor.dims(),
            Self::Host(table) => table.dims(),
            Self::FourBit(matrix) => matrix.dims(),
            Self::Nested(matrix) => matrix.dims(),
            Self::Int8(matrix) => matrix.dims(),
            Self::Gguf(matrix) => matrix.dims(),
            Self::Streamed(matrix) => matrix.dims(),
        }
    }

    /// The number of values.
    pub fn num_params(&self) -> usize {
        let [out, input] = self.dims();
        out * input
    }

    /// Memory that the weight takes, the device's or the host's.
    ///
    /// # Units
    /// Bytes.
    pub fn num_bytes(&self) -> usize {
        match self {
            Self::Dense(tensor) => self.num_params() * tensor.dtype().size(),
            Self::Host(table) => self.num_params() * table.dtype().size(),
            Self::FourBit(matrix) => matrix.num_bytes(),
            Self::Nested(matrix) => matrix.num_bytes(),
            Self::Int8(matrix) => matrix.num_bytes(),
            Self::Gguf(matrix) => matrix.num_bytes(),
            Self::Streamed(matrix) => matrix.num_bytes(),
        }
    }

    /// Memory that the weight takes of its device; that of slots is nobody's.
    ///
    /// # Units
    /// Bytes.
    pub fn device_bytes(&self) -> usize {
        match self {
            Self::Host(_) | Self::Streamed(_) => 0,
            _ => self.num_bytes(),
        }
    }

    /// How it is quantised; `None` where it is not.
    pub fn scheme(&self) -> Option<Scheme> {
        match self {
            Self::Dense(_) | Self::Host(_) => None,
            Self::FourBit(matrix) => Some(Scheme::FourBit {
                format: matrix.format(),
                block_size: matrix.block_size(),
                double_quant: matrix.absmax().is_double(),
            }),
            Self::Nested(matrix) => Some(Scheme::Nested {
                format: matrix.format(),
                block_size: matrix.block_size(),
                double_quant: matrix.absmax().is_double(),
            }),
            Self::Int8(_) => Some(Scheme::Int8),
            Self::Gguf(matrix) => Some(Scheme::Gguf(matrix.kind())),
            Self::Streamed(matrix) => matrix.form().scheme(),
        }
    }

    /// The dense tensor if autodiff tracks it.
    pub fn tracked(&self) -> Option<Tensor<2>> {
        match self {
            Self::Dense(tensor) => tensor.is_tracked().then(|| tensor.clone()),
            _ => None,
        }
    }

    /// As a dense tensor; a copy where the weight is stored otherwise.
    pub fn dequantize(&self) -> Tensor<2> {
        match self {
            Self::Dense(tensor) => tensor.clone(),
            Self::Host(table) => table.whole(),
            Self::FourBit(matrix) => matrix.dequantize(),
            Self::Nested(matrix) => matrix.dequantize(),
            Self::Int8(matrix) => matrix.dequantize(),
            Self::Gguf(matrix) => matrix.dequantize(),
            Self::Streamed(matrix) => match matrix.here() {
                // A copy: what is in a slot does not stay there.
                Self::Dense(tensor) => tensor.mul_scalar(1.0),
                codes => codes.dequantize(),
            },
        }
    }

    /// The type of its values, where they are not in codes.
    pub fn dense_dtype(&self) -> Option<DType> {
        match self {
            Self::Dense(tensor) => Some(tensor.dtype()),
            Self::Host(table) => Some(table.dtype()),
            Self::Streamed(matrix) => matrix.form().dense_dtype(),
            Self::FourBit(_) | Self::Nested(_) | Self::Int8(_) | Self::Gguf(_) => None,
        }
    }

    /// The same codes of other tensors.
    ///
    /// # Panics
    /// If it has none.
    pub(crate) fn over(self, tensors: &mut impl Tensors) -> Self {
        match self {
            Self::FourBit(matrix) => Self::FourBit(matrix.over(tensors)),
            Self::Nested(matrix) => Self::Nested(matrix.over(tensors)),
            Self::Int8(matrix) => Self::Int8(matrix.over(tensors)),
            Self::Gguf(matrix) => Self::Gguf(matrix.over(tensors)),
            Self::Dense(_) | Self::Host(_) | Self::Streamed(_) => panic!("no codes: {self:?}"),
        }
    }

    /// Squared lengths of its rows, in f32, a panel of rows at a time.
    ///
    /// # Shapes
    /// `[out]`.
    pub fn row_squares(&self) -> Tensor<1> {
        let [out, _] = self.dims();
        let panels = (0..out).step_by(PANEL).map(|start| {
            let rows = start..(start + PANEL).min(out);
            let count = rows.len();
            let values = match self {
                Self::Dense(tensor) => tensor.clone().inner().narrow(0, start, count),
                _ => self.rows(&rows.map(|row| row as u32).collect::<Vec<_>>()),
            };
            let squares = values.cast(DType::F32).square().sum_dim(1);
            squares.reshape([count])
        });
        Tensor::cat(panels.collect(), 0)
    }

    /// Some of its rows, in its memory; where blocks do not end with them, as a dense copy.
    ///
    /// # Shapes
    /// `[rows.len(), in]`.
    ///
    /// # Panics
    /// If there are not as many rows.
    #[must_use]
    pub fn part(&self, rows: Range<usize>) -> Self {
        let cut = |tensor: Tensor<2>| Self::Dense(tensor.narrow(0, rows.start, rows.len()));
        match self {
            Self::Dense(tensor) => cut(tensor.clone()),
            Self::Host(table) => cut(table.whole()),
            Self::FourBit(matrix) => match matrix.part(rows.clone()) {
                Some(part) => Self::FourBit(part),
                None => cut(matrix.dequantize()),
            },
            Self::Nested(matrix) => match matrix.part(rows.clone()) {
                Some(part) => Self::Nested(part),
                None => cut(matrix.dequantize()),
            },
            Self::Int8(matrix) => Self::Int8(matrix.part(rows)),
            Self::Gguf(matrix) => Self::Gguf(matrix.part(rows)),
            Self::Streamed(matrix) => Self::Streamed(matrix.part(rows)),
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
            Self::Host(table) => table.rows(rows),
            Self::FourBit(matrix) => matrix.rows(rows),
            Self::Nested(matrix) => matrix.rows(rows),
            Self::Int8(matrix) => matrix.rows(rows),
            Self::Gguf(matrix) => matrix.rows(rows),
            Self::Streamed(matrix) => matrix.here().rows(rows),
        }
    }
}

impl FrozenMatrix for Weight {
    fn matmul_add(&self, x: &Tensor<2>, alpha: f32, sum: Option<&Tensor<2>>) -> Tensor<2> {
        match self {
            Self::Dense(tensor) => tensor.matmul_add(x, alpha, sum),
            Self::Host(table) => table.whole().matmul_add(x, alpha, sum),
            Self::FourBit(matrix) => matrix.matmul_add(x, alpha, sum),
            Self::Nested(matrix) => matrix.matmul_add(x, alpha, sum),
            Self::Int8(matrix) => matrix.matmul_add(x, alpha, sum),
            Self::Gguf(matrix) => matrix.matmul_add(x, alpha, sum),
            Self::Streamed(matrix) => matrix.here().matmul_add(x, alpha, sum),
        }
    }

    fn matmul_transposed_add(
        &self,
        dy: &Tensor<2>,
        alpha: f32,
        sum: Option<Tensor<2>>,
    ) -> Tensor<2> {
        match self {
            Self::Dense(tensor) => tensor.matmul_transposed_add(dy, alpha, sum),
            Self::Host(table) => table.whole().matmul_transposed_add(dy, alpha, sum),
            Self::FourBit(matrix) => matrix.matmul_transposed_add(dy, alpha, sum),
            Self::Nested(matrix) => matrix.matmul_transposed_add(dy, alpha, sum),
            Self::Int8(matrix) => matrix.matmul_transposed_add(dy, alpha, sum),
            Self::Gguf(matrix) => matrix.matmul_transposed_add(dy, alpha, sum),
            Self::Streamed(matrix) => matrix.here().matmul_transposed_add(dy, alpha, sum),
        }
    }
}

/// Quantises a matrix that comes in pieces, so that it is never in memory as a whole.
#[derive(Debug)]
pub struct Quantizer {
    dims: [usize; 2],
    codes: Codes,
    seen: usize,
}

#[derive(Debug)]
enum Codes {
    FourBit {
        format: FourBitFormat,
        block_size: usize,
        double_quant: bool,
        blocks: PackedBlocks,
    },
    Nested {
        format: NestedFormat,
        block_size: usize,
        double_quant: bool,
        planes: [Vec<u8>; 2],
        absmax: Vec<f32>,
    },
    Int8 {
        codes: Vec<i8>,
        absmax: Vec<f32>,
    },
}

impl Quantizer {
    /// For a matrix `[out, in]`.
    ///
    /// # Panics
    /// For a GGUF file's blocks, which are read and never made.
    #[must_use]
    pub fn new(dims: [usize; 2], scheme: Scheme) -> Self {
        let values = dims[0] * dims[1];
        let codes = match scheme {
            Scheme::FourBit {
                format,
                block_size,
                double_quant,
            } => Codes::FourBit {
                format,
                block_size,
                double_quant,
                blocks: PackedBlocks {
                    packed: Vec::with_capacity(values.div_ceil(2)),
                    absmax: Vec::with_capacity(values.div_ceil(block_size)),
                },
            },
            Scheme::Nested {
                format,
                block_size,
                double_quant,
            } => Codes::Nested {
                format,
                block_size,
                double_quant,
                planes: format
                    .planes()
                    .map(|bits| Vec::with_capacity(values.div_ceil(8 / bits))),
                absmax: Vec::with_capacity(values.div_ceil(block_size)),
            },
            Scheme::Int8 => Codes::Int8 {
                codes: Vec::with_capacity(values),
                absmax: Vec::with_capacity(dims[0]),
            },
            Scheme::Gguf(kind) => panic!("blocks of {kind} are taken from a file, not made"),
        };
        Self {
            dims,
            codes,
            seen: 0,
        }
    }

    /// Every piece but the last must have a multiple of so many values.
    #[must_use]
    pub fn granularity(&self) -> usize {
        match &self.codes {
            Codes::FourBit { block_size, .. } | Codes::Nested { block_size, .. } => *block_size,
            Codes::Int8 { .. } => self.dims[1].max(1),
        }
    }

    /// The next values, row-major.
    ///
    /// # Panics
    /// If the piece before was not a multiple of the granularity.
    pub fn push(&mut self, values: &[f32]) {
        let granularity = self.granularity();
        assert!(
            self.seen.is_multiple_of(granularity),
            "{} values so far in pieces of {granularity}",
            self.seen
        );
        self.seen += values.len();
        match &mut self.codes {
            Codes::FourBit {
                format,
                block_size,
                blocks,
                ..
            } => {
                let piece = quantize::four_bit(values, *format, *block_size);
                blocks.packed.extend_from_slice(&piece.packed);
                blocks.absmax.extend_from_slice(&piece.absmax);
            }
            Codes::Nested {
                format,
                block_size,
                planes,
                absmax,
                ..
            } => {
                let piece = quantize::nested_codes(values, *block_size);
                let parts = quantize::planes(&piece.codes, *format);
                for (plane, part) in planes.iter_mut().zip(parts) {
                    plane.extend_from_slice(&part);
                }
                absmax.extend_from_slice(&piece.absmax);
            }
            Codes::Int8 { codes, absmax } => {
                let (piece, scales) = quantize::int8_rows(values, self.dims[1]);
                codes.extend_from_slice(&piece);
                absmax.extend_from_slice(&scales);
            }
        }
    }

    /// The matrix.
    ///
    /// # Panics
    /// If there were not `out · in` values.
    pub fn finish(self, device: &Device) -> Weight {
        let expected = self.dims[0] * self.dims[1];
        assert_eq!(self.seen, expected, "values of a matrix {:?}", self.dims);
        let made = match self.codes {
            Codes::FourBit {
                format,
                block_size,
                double_quant,
                blocks: PackedBlocks { packed, absmax },
            } => {
                let absmax = scales(absmax, double_quant);
                FourBit::from_parts(format, block_size, self.dims, packed, absmax, device)
                    .map(Weight::FourBit)
            }
            Codes::Nested {
                format,
                block_size,
                double_quant,
                planes,
                absmax,
            } => {
                let absmax = scales(absmax, double_quant);
                Nested::from_parts(format, block_size, self.dims, planes, absmax, device)
                    .map(Weight::Nested)
            }
            Codes::Int8 { codes, mut absmax } => {
                // Rows without values have a scale nevertheless.
                absmax.resize(self.dims[0], 0.0);
                Int8Rows::from_parts(self.dims, codes, absmax, device).map(Weight::Int8)
            }
        };
        match made {
            Ok(weight) => weight,
            Err(error) => unreachable!("codes made here fit their matrix: {error}"),
        }
    }
}

fn scales(absmax: Vec<f32>, double_quant: bool) -> HostAbsmax {
    match double_quant {
        true => HostAbsmax::Double(quantize::nested(&absmax)),
        false => HostAbsmax::Single(absmax),
    }
}

#[cfg(test)]
mod tests;
