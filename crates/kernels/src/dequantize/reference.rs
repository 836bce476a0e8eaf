//! Dequantisation in plain tensors.

use burn::tensor::{DType, Int, Tensor, TensorData};

use super::{Absmax, BlockFormat, Blocks, GgufBlocks, Int8Rows};
use crate::codebook::DynamicMap;
use crate::quantize::NESTED_BLOCK_SIZE;

/// `table[code] · absmax` of each value.
///
/// # Shapes
/// `[out, in]`.
pub fn blocks<F: BlockFormat>(matrix: &Blocks<F>) -> Tensor<2> {
    let values = matrix.dims[0] * matrix.dims[1];
    let planes = matrix.planes.iter().zip(matrix.format.planes());
    let planes = planes.map(|(plane, bits)| (unpacked(plane, bits).narrow(0, 0, values), bits));
    let codes = planes
        .reduce(|(high, width), (low, bits)| (high.mul_scalar(1 << bits) + low, width + bits));
    let Some((codes, _)) = codes else {
        unreachable!("a format without codes");
    };
    let scales = repeat(absmax(&matrix.absmax), matrix.block_size, values);
    (look_up(matrix.format.values(), codes, &scales) * scales).reshape(matrix.dims)
}

/// Codes of so many bits, the first in the highest bits of the first byte.
fn unpacked(packed: &Tensor<1, Int>, bits: usize) -> Tensor<1, Int> {
    let mut left = packed.clone().cast(DType::I64);
    let codes = (1..=8 / bits).map(|i| {
        let below = 1 << (8 - i * bits);
        let code = left.clone().div_scalar(below);
        left = left.clone() - code.clone().mul_scalar(below);
        code
    });
    Tensor::stack::<2>(codes.collect(), 1).flatten(0, 1)
}

/// The scale of each block, f32.
///
/// # Shapes
/// `[blocks]`.
pub fn absmax(absmax: &Absmax) -> Tensor<1> {
    match absmax {
        Absmax::Single(absmax) => absmax.clone(),
        Absmax::Double {
            codes,
            scales,
            offset,
        } => {
            let scales = repeat(scales.clone(), NESTED_BLOCK_SIZE, codes.dims()[0]);
            let codes = codes.clone().cast(DType::I64);
            look_up(DynamicMap::Signed.values(), codes, &scales) * scales + *offset
        }
    }
}

/// `code · absmax / 127` of each value.
///
/// # Shapes
/// `[out, in]`.
pub fn int8(matrix: &Int8Rows) -> Tensor<2> {
    let step = matrix.absmax.clone().div_scalar(127.0);
    let codes = matrix.codes.clone().reshape(matrix.dims);
    codes.float().cast(DType::F32) * step.unsqueeze_dim(1)
}

/// The values of a file's blocks, unpacked on the host.
///
/// # Shapes
/// `[out, in]`.
pub fn gguf(matrix: &GgufBlocks) -> Tensor<2> {
    let bytes: Vec<u8> = matrix.bytes.clone().into_data().iter::<u8>().collect();
    let mut values = vec![0.0; matrix.dims[0] * matrix.dims[1]];
    matrix.kind.unpack(&bytes, &mut values);
    let values = TensorData::new(values, matrix.dims);
    Tensor::from_data(values, (&matrix.bytes.device(), DType::F32))
}

fn look_up(table: &[f32], codes: Tensor<1, Int>, like: &Tensor<1>) -> Tensor<1> {
    let table = TensorData::new(table.to_vec(), [table.len()]);
    Tensor::<1>::from_data(table, (&like.device(), like.dtype())).select(0, codes)
}

/// Each value `times` times, cut to `length`.
fn repeat(values: Tensor<1>, times: usize, length: usize) -> Tensor<1> {
    let values: Tensor<2> = values.unsqueeze_dim(1);
    let [count, _] = values.dims();
    let values: Tensor<1> = values.expand([count, times]).flatten(0, 1);
    values.narrow(0, 0, length)
}
