//! [`embedding`](super) in plain tensors.

use burn::tensor::{Int, Tensor, TensorData};

/// The rows.
pub fn forward(table: &Tensor<2>, ids: &[u32]) -> Tensor<2> {
    let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let count = ids.len();
    if count == 0 {
        let width = table.dims()[1];
        return Tensor::empty([0, width], (&table.device(), table.dtype()));
    }
    let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), &table.device());
    table.clone().select(0, ids)
}
