//! [`noise`](super) in plain tensors.

use burn::tensor::{DType, Tensor, TensorData};

use super::{RowNoise, draw};

/// `x` with noise on each row.
pub fn add(x: Tensor<2>, rows: &[RowNoise]) -> Tensor<2> {
    let (dims, dtype, device) = (x.dims(), x.dtype(), x.device());
    let noise = rows
        .iter()
        .flat_map(|row| (0..dims[1]).map(|j| row.scale * draw(row.key, j)));
    let noise = TensorData::new(noise.collect::<Vec<f32>>(), dims);
    let noise = Tensor::<2>::from_data(noise, (&device, DType::F32));
    (x.cast(DType::F32) + noise).cast(dtype)
}
