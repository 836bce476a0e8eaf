//! Frozen matrices between files and memory.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use backdraft_arch::GgufBlock;
use backdraft_formats::bnb::{
    BnbAbsmax, BnbFourBit, BnbInt8, BnbKind, BnbMaps, BnbQuantType, BnbTensor,
};
use backdraft_formats::dtype::to_f32_into;
use backdraft_formats::{Dtype, FormatError, ModelSource};
use backdraft_kernels::codebook::{DynamicMap, FourBitFormat};
use backdraft_kernels::dequantize::{
    Absmax, FourBit, GgufBlocks, HostAbsmax, Int8Rows, PartsError,
};
use backdraft_kernels::embedding::HostTable;
use backdraft_kernels::quantize::{ByteBlocks, NestedScales, all_finite};
use backdraft_quant::{QuantizationPlan, Quantizer, Scheme, Weight};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

/// Values that are in f32 at a time while a matrix is quantised: 1 MiB, which caches hold.
const PIECE: usize = 1 << 18;

/// Why a matrix cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MatrixError {
    /// A file cannot be read.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A value that is NaN or infinite.
    #[error("{}: tensor `{tensor}` holds a value that is not finite", path.display())]
    NotFinite {
        /// The model.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// Codes and scales do not fit each other.
    #[error("{}: tensor `{tensor}` cannot be used", path.display())]
    Parts {
        /// The model.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What does not fit.
        source: PartsError,
    },
    /// There are no blocks that could be kept.
    #[error(
        "{} holds no blocks to keep: only a .gguf file with quantised weights does; leave out quantization.keep_blocks \
         (--quantization blocks)",
        path.display()
    )]
    NoBlocks {
        /// The model.
        path: PathBuf,
    },
    /// A matrix is not in the blocks that were asked for.
    #[error(
        "{}: tensor `{tensor}` is in {actual}, not in the file's own blocks of {expected} that the adapter was trained \
         over; name that file, or say with --quantization how this one is to be kept",
        path.display()
    )]
    OtherBlocks {
        /// The model.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type of the blocks that were asked for.
        expected: GgufBlock,
        /// What the file has.
        actual: String,
    },
}

/// The values of bitsandbytes' codes.
#[must_use]
pub fn maps() -> BnbMaps<'static> {
    BnbMaps {
        nf4: FourBitFormat::Nf4.values(),
        fp4: FourBitFormat::Fp4.values(),
        signed: DynamicMap::Signed.values(),
    }
}

/// The plan that keeps every matrix of a GGUF file in its own blocks; those that have none are dense.
///
/// # Errors
/// [`MatrixError::NoBlocks`] where there are none at all.
pub fn blocks_plan(source: &ModelSource) -> Result<QuantizationPlan, MatrixError> {
    let matrices = source.tensor_names().filter_map(|name| {
        let path = name.strip_suffix(".weight")?;
        let is_matrix = source.tensor_info(name)?.shape.len() == 2;
        is_matrix.then(|| (path.to_owned(), source.block_kind(name)))
    });
    let matrices: BTreeMap<_, _> = matrices.collect();
    QuantizationPlan::of_blocks(&matrices).ok_or_else(|| MatrixError::NoBlocks {
        path: source.path().to_owned(),
    })
}

/// Reads a matrix `[out, in]`. One that the file has in codes stays as it is; of others, those with a
/// `scheme` are quantised piece by piece, so that the whole is never in memory in f32, or stay in the blocks of a GGUF file
/// if those are the scheme.
///
/// # Errors
/// No such tensor, a malformed one, or one with a value that is not finite.
pub fn read_matrix(
    source: &ModelSource,
    name: &str,
    dims: [usize; 2],
    scheme: Option<Scheme>,
    (device, dtype): (&Device, DType),
) -> Result<Weight, MatrixError> {
    ReadMatrix::read(source, name, dims, scheme, dtype)?.put_on(device)
}

/// A matrix in the host's memory as it will be kept: read by any thread, put on a device by the one that builds the
/// model.
#[derive(Debug)]
pub struct ReadMatrix<'a> {
    source: &'a ModelSource,
    name: String,
    dims: [usize; 2],
    stored: Stored<'a>,
}

#[derive(Debug)]
enum Stored<'a> {
    Bnb(BnbTensor<'a>),
    Blocks(GgufBlock, Vec<u8>),
    Codes(Quantizer),
    Dense(TensorData),
}

impl<'a> ReadMatrix<'a> {
    /// As [`read_matrix`]; dense values are of `dtype`.
    ///
    /// # Errors
    /// As [`read_matrix`].
    pub fn read(
        source: &'a ModelSource,
        name: &str,
        dims: [usize; 2],
        scheme: Option<Scheme>,
        dtype: DType,
    ) -> Result<Self, MatrixError> {
        let stored = match (source.quantized(name, maps())?, scheme) {
            (Some(tensor), _) => Stored::Bnb(tensor),
            (None, Some(Scheme::Gguf(kind))) => Stored::Blocks(kind, kept(source, name, kind)?),
            (None, Some(scheme)) => Stored::Codes(quantize(source, name, dims, scheme)?),
            (None, None) => Stored::Dense(read_data(source, name, dims, dtype)?),
        };
        Ok(Self {
            source,
            name: name.to_owned(),
            dims,
            stored,
        })
    }

    /// The matrix on a device.
    ///
    /// # Errors
    /// Codes that do not fit the matrix.
    pub fn put_on(self, device: &Device) -> Result<Weight, MatrixError> {
        let (path, tensor) = (self.source.path(), self.name);
        let malformed = |source| MatrixError::Parts {
            path: path.to_owned(),
            tensor: tensor.clone(),
            source,
        };
        let weight = match self.stored {
            Stored::Bnb(codes) => from_bnb(codes, device).map_err(malformed)?,
            Stored::Blocks(kind, bytes) => {
                let made = GgufBlocks::from_parts(kind, self.dims, bytes, device);
                Weight::Gguf(made.map_err(malformed)?)
            }
            Stored::Codes(quantizer) => quantizer.finish(device),
            Stored::Dense(data) => {
                let dtype = data.dtype();
                Weight::Dense(Tensor::from_data(data, (device, dtype)))
            }
        };
        self.source.release(&tensor);
        Ok(weight)
    }

    /// As [`put_on`](Self::put_on); a dense one stays in the host's memory if the device reads its rows there by itself:
    /// an embedding.
    ///
    /// # Errors
    /// As [`put_on`](Self::put_on).
    pub fn put_beside(self, device: &Device) -> Result<Weight, MatrixError> {
        if let Stored::Dense(data) = &self.stored
            && let Some(table) = HostTable::pinned(data, device)
        {
            self.source.release(&self.name);
            return Ok(Weight::Host(table));
        }
        self.put_on(device)
    }
}

/// A tensor of values of `dtype`: as they lie where the file has that type, else through f32.
///
/// # Errors
/// As [`read_matrix`].
pub fn read_dense<const D: usize>(
    source: &ModelSource,
    name: &str,
    dims: [usize; D],
    (device, dtype): (&Device, DType),
) -> Result<Tensor<D>, MatrixError> {
    let data = read_data(source, name, dims, dtype)?;
    Ok(Tensor::from_data(data, (device, dtype)))
}

fn read_data<const D: usize>(
    source: &ModelSource,
    name: &str,
    dims: [usize; D],
    dtype: DType,
) -> Result<TensorData, MatrixError> {
    let same = match dtype {
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        _ => Dtype::F32,
    };
    let of_file = source.tensor_info(name).map(|info| info.dtype);
    let data = if same != Dtype::F32 && of_file == Some(same) {
        let raw = source.raw(name)?;
        let mut buffer = vec![0.0; PIECE.min(raw.bytes.len() / 2)];
        for bytes in raw.bytes.chunks(2 * PIECE) {
            let values = &mut buffer[..bytes.len() / 2];
            to_f32_into(same, bytes, values);
            check_finite(source, name, values)?;
        }
        TensorData::from_bytes_vec(raw.bytes.into_owned(), dims, dtype)
    } else {
        let values = source.read_f32(name)?;
        check_finite(source, name, &values)?;
        TensorData::new(values, dims).convert_dtype(dtype)
    };
    Ok(data)
}

fn kept(source: &ModelSource, name: &str, expected: GgufBlock) -> Result<Vec<u8>, MatrixError> {
    let (path, tensor) = (source.path().to_owned(), name.to_owned());
    match source.blocks(name)? {
        Some((kind, bytes)) if kind == expected => {
            if !kind.all_finite(&bytes) {
                return Err(MatrixError::NotFinite { path, tensor });
            }
            Ok(bytes.into_owned())
        }
        _ => Err(MatrixError::OtherBlocks {
            path,
            tensor,
            expected,
            actual: source.stored_type(name).unwrap_or_default(),
        }),
    }
}

fn quantize(
    source: &ModelSource,
    name: &str,
    dims: [usize; 2],
    scheme: Scheme,
) -> Result<Quantizer, MatrixError> {
    let raw = source.raw(name)?;
    let dtype = raw.info.dtype;
    if !dtype.is_float() {
        return Err(MatrixError::Format(FormatError::TensorDtype {
            path: source.path().to_owned(),
            tensor: name.to_owned(),
            expected: "F32, F16, BF16 or F64",
            actual: dtype,
        }));
    }
    let mut quantizer = Quantizer::new(dims, scheme);
    let granularity = quantizer.granularity();
    let piece = (PIECE / granularity).max(1) * granularity;
    // One buffer for all pieces: fresh memory would take longer to get than to fill.
    let mut buffer = vec![0.0; piece.min(dims[0] * dims[1])];
    for bytes in raw.bytes.chunks(piece * dtype.size()) {
        let values = &mut buffer[..bytes.len() / dtype.size()];
        to_f32_into(dtype, bytes, values);
        check_finite(source, name, values)?;
        quantizer.push(values);
    }
    Ok(quantizer)
}

fn check_finite(source: &ModelSource, name: &str, values: &[f32]) -> Result<(), MatrixError> {
    if all_finite(values) {
        return Ok(());
    }
    Err(MatrixError::NotFinite {
        path: source.path().to_owned(),
        tensor: name.to_owned(),
    })
}

/// A matrix's values as f32, dequantised where the file has codes.
///
/// # Errors
/// As [`read_matrix`].
pub fn read_values(source: &ModelSource, name: &str) -> Result<Vec<f32>, MatrixError> {
    match source.quantized(name, maps())? {
        None => Ok(source.read_f32(name)?),
        Some(tensor) => {
            let weight = from_bnb(tensor, &Device::flex()).map_err(|error| MatrixError::Parts {
                path: source.path().to_owned(),
                tensor: name.to_owned(),
                source: error,
            })?;
            Ok(weight.dequantize().into_data().iter::<f32>().collect())
        }
    }
}

fn from_bnb(tensor: BnbTensor<'_>, device: &Device) -> Result<Weight, PartsError> {
    match tensor {
        BnbTensor::FourBit(weight) => {
            let absmax = match weight.absmax {
                BnbAbsmax::Single(absmax) => HostAbsmax::Single(absmax),
                BnbAbsmax::Nested {
                    codes,
                    scales,
                    offset,
                } => HostAbsmax::Double(NestedScales {
                    blocks: ByteBlocks {
                        codes,
                        absmax: scales,
                    },
                    offset,
                }),
            };
            let packed = weight.packed.into_owned();
            FourBit::from_parts(
                four_bit_format(weight.quant_type),
                weight.block_size,
                weight.shape,
                packed,
                absmax,
                device,
            )
            .map(Weight::FourBit)
        }
        BnbTensor::Int8(weight) => {
            let codes = weight.codes.iter().map(|&code| code as i8).collect();
            Int8Rows::from_parts(weight.shape, codes, weight.absmax, device).map(Weight::Int8)
        }
    }
}

/// A scheme as bitsandbytes calls it; `None` where it has no such codes.
#[must_use]
pub fn bnb_kind(scheme: Scheme) -> Option<BnbKind> {
    match scheme {
        Scheme::FourBit {
            format,
            block_size,
            double_quant,
        } => Some(BnbKind::FourBit {
            quant_type: bnb_quant_type(format),
            block_size,
            nested: double_quant,
        }),
        Scheme::Nested { .. } | Scheme::Gguf(_) => None,
        Scheme::Int8 => Some(BnbKind::Int8),
    }
}

/// What bitsandbytes' name stands for.
#[must_use]
pub fn scheme(kind: BnbKind) -> Scheme {
    match kind {
        BnbKind::FourBit {
            quant_type,
            block_size,
            nested,
        } => Scheme::FourBit {
            format: four_bit_format(quant_type),
            block_size,
            double_quant: nested,
        },
        BnbKind::Int8 => Scheme::Int8,
    }
}

fn four_bit_format(quant_type: BnbQuantType) -> FourBitFormat {
    match quant_type {
        BnbQuantType::Nf4 => FourBitFormat::Nf4,
        BnbQuantType::Fp4 => FourBitFormat::Fp4,
    }
}

fn bnb_quant_type(format: FourBitFormat) -> BnbQuantType {
    match format {
        FourBitFormat::Nf4 => BnbQuantType::Nf4,
        FourBitFormat::Fp4 => BnbQuantType::Fp4,
    }
}

/// A weight as it is written to a file; `None` where it is not in codes that bitsandbytes has. `dtype` is what it had
/// before.
#[must_use]
pub fn to_bnb(weight: &Weight, dtype: Dtype) -> Option<BnbTensor<'static>> {
    match weight {
        Weight::Dense(_) | Weight::Host(_) | Weight::Nested(_) | Weight::Gguf(_) => None,
        Weight::Streamed(matrix) => to_bnb(&matrix.here(), dtype),
        Weight::FourBit(matrix) => {
            let absmax = match matrix.absmax() {
                Absmax::Single(absmax) => BnbAbsmax::Single(floats(absmax)),
                Absmax::Double {
                    codes,
                    scales,
                    offset,
                } => BnbAbsmax::Nested {
                    codes: bytes(codes.clone()),
                    scales: floats(scales),
                    offset: *offset,
                },
            };
            Some(BnbTensor::FourBit(BnbFourBit {
                quant_type: bnb_quant_type(matrix.format()),
                block_size: matrix.block_size(),
                dtype,
                shape: matrix.dims(),
                packed: Cow::Owned(bytes(matrix.packed().clone())),
                absmax,
            }))
        }
        Weight::Int8(matrix) => Some(BnbTensor::Int8(BnbInt8 {
            shape: matrix.dims(),
            codes: Cow::Owned(bytes(matrix.codes().clone())),
            absmax: floats(matrix.absmax()),
        })),
    }
}

fn floats(tensor: &Tensor<1>) -> Vec<f32> {
    tensor.clone().into_data().iter::<f32>().collect()
}

/// Codes of 8 bits as bytes, whether they have a sign or not.
fn bytes<const D: usize>(tensor: Tensor<D, Int>) -> Vec<u8> {
    let data = tensor.into_data();
    match data.dtype() {
        DType::I8 => data.iter::<i8>().map(|code| code as u8).collect(),
        _ => data.iter::<u8>().collect(),
    }
}
