//! [`embedding`](super) in plain tensors.

use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData};

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

/// The rows in their places.
pub fn spread(values: &Tensor<2>, rows: &[u32], t: usize) -> Tensor<2> {
    let [count, width] = values.dims();
    let zeros = Tensor::zeros([t, width], (&values.device(), values.dtype()));
    if count == 0 {
        return zeros;
    }
    let rows: Vec<i64> = rows.iter().map(|&row| i64::from(row)).collect();
    let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [count]), &values.device());
    zeros.select_assign(0, rows, values.clone(), IndexingUpdateOp::Add)
}

/// The gradient of a table, row after row.
pub fn add_rows(sum: Tensor<2>, dh: &Tensor<2>, ids: &[u32], alpha: f32) -> Tensor<2> {
    let rows = dh.clone().cast(DType::F32).mul_scalar(alpha);
    ids.iter().enumerate().fold(sum, |sum, (i, &id)| {
        let id = Tensor::<1, Int>::from_data([i64::from(id)], &sum.device());
        let row = rows.clone().narrow(0, i, 1);
        sum.select_assign(0, id, row, IndexingUpdateOp::Add)
    })
}
