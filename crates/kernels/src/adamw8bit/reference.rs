//! [`adamw8bit`](super) through [`adamw`] and the definition of the codes.

use burn::tensor::{DType, Int, Tensor, TensorData};

use super::{BLOCK_SIZE, Guard, Moment8Bit, Moments8Bit};
use crate::adamw::{self, AdamWParams, Moments};
use crate::codebook::DynamicMap;

/// One update.
pub fn step<const D: usize>(
    param: Tensor<D>,
    grad: &Tensor<D>,
    moments: Moments8Bit,
    (lr, t): (f64, u64),
    params: &AdamWParams,
    guard: Guard,
) -> (Tensor<D>, Moments8Bit) {
    let shape = param.shape();
    let moments = Moments {
        m: dequantize(&moments.m, DynamicMap::Signed).reshape(shape.clone()),
        v: dequantize(&moments.v, DynamicMap::Unsigned).reshape(shape),
    };
    let (param, Moments { m, v }) = adamw::reference::step(param, grad, moments, (lr, t), params);
    let moments = Moments8Bit {
        m: quantize(m.flatten(0, D - 1), DynamicMap::Signed, Guard::Off),
        v: quantize(v.flatten(0, D - 1), DynamicMap::Unsigned, guard),
    };
    (param, moments)
}

/// The values of a moment.
///
/// # Shapes
/// `[n]`.
pub fn dequantize(moment: &Moment8Bit, map: DynamicMap) -> Tensor<1> {
    let codes = moment.codes.clone().cast(DType::I64);
    let n = codes.dims()[0];
    table(map.values(), &moment.absmax).select(0, codes) * spread(moment.absmax.clone(), n)
}

fn quantize(values: Tensor<1>, map: DynamicMap, guard: Guard) -> Moment8Bit {
    let n = values.dims()[0];
    let blocks = n.div_ceil(BLOCK_SIZE);
    let padding = Tensor::zeros(
        [blocks * BLOCK_SIZE - n],
        (&values.device(), values.dtype()),
    );
    let padded = Tensor::cat(vec![values.clone(), padding], 0).reshape([blocks, BLOCK_SIZE]);
    let absmax: Tensor<1> = padded.abs().max_dim(1).squeeze_dim(1);
    let divisor = absmax
        .clone()
        .mask_fill(absmax.clone().equal_elem(0.0), 1.0);
    let scaled: Tensor<2> = (values.clone() * spread(divisor.recip(), n)).unsqueeze_dim(1);
    let midpoints: Tensor<2> = table(&map.midpoints()[..255], &values).unsqueeze_dim(0);
    let above: Tensor<2, Int> = scaled
        .expand([n, 255])
        .greater(midpoints.expand([n, 255]))
        .int();
    let codes: Tensor<1, Int> = above.sum_dim(1).squeeze_dim(1);
    let codes = match guard {
        Guard::Off => codes,
        // Code 0 of the unsigned map is zero, code 1 the smallest value above it.
        Guard::On => codes.clone() + (values.greater_elem(0.0).int() * codes.equal_elem(0).int()),
    };
    Moment8Bit {
        codes: codes.cast(DType::U8),
        absmax,
    }
}

fn table(values: &[f32], like: &Tensor<1>) -> Tensor<1> {
    let values = TensorData::new(values.to_vec(), [values.len()]);
    Tensor::from_data(values, (&like.device(), like.dtype()))
}

/// The value of each block for each of its members.
fn spread(blocks: Tensor<1>, n: usize) -> Tensor<1> {
    let count = blocks.dims()[0];
    let blocks: Tensor<2> = blocks.unsqueeze_dim(1);
    let spread: Tensor<1> = blocks.expand([count, BLOCK_SIZE]).flatten(0, 1);
    spread.narrow(0, 0, n)
}
