//! Rows of a table: the embedding of token ids, and rows put back into place.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "cuda")]
mod cuda;
mod host;
pub mod reference;

use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData};

pub use host::HostTable;

use crate::dispatch::on_device;
use crate::gemm::{Op, gemm_f32};

/// Row `ids[i]` of `table` for each i.
///
/// # Shapes
/// `table` `[v, h]`, result `[ids.len(), h]`.
///
/// # Panics
/// If an id is not below v.
pub fn forward(table: &Tensor<2>, ids: &[u32]) -> Tensor<2> {
    let [rows, _] = table.dims();
    if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
        panic!("id {id} of a table of {rows} rows");
    }
    on_device!(cube::forward(table, ids)).unwrap_or_else(|| reference::forward(table, ids))
}

/// The other way: row `i` of `values` in row `rows[i]` of the result, zeros elsewhere.
///
/// # Shapes
/// `values` `[rows.len(), h]`, result `[t, h]`.
///
/// # Panics
/// If rows do not ascend, or the last is not below `t`.
pub fn spread(values: &Tensor<2>, rows: &[u32], t: usize) -> Tensor<2> {
    assert_eq!(values.dims()[0], rows.len(), "a row for each number");
    assert!(rows.windows(2).all(|pair| pair[0] < pair[1]), "rows ascend");
    assert!(
        rows.last().is_none_or(|&last| (last as usize) < t),
        "rows below {t}"
    );
    on_device!(cube::spread(values, rows, t)).unwrap_or_else(|| reference::spread(values, rows, t))
}

/// The gradient of a table: `sum`, and to its row `ids[i]` `alpha` times row `i` of `dh`, in f32. Rows of one id are added up
/// in an order that is always the same; elsewhere than on the processor by one product with zeros and ones. `sum` is written
/// over where nothing else holds it.
///
/// # Shapes
/// `sum` and the result `[v, h]`, f32; `dh` `[ids.len(), h]`.
///
/// # Panics
/// If there is not a row for each id, or an id is not below v.
pub fn add_rows(sum: Tensor<2>, dh: &Tensor<2>, ids: &[u32], alpha: f32) -> Tensor<2> {
    let [rows, _] = sum.dims();
    assert_eq!(dh.dims()[0], ids.len(), "a row for each id");
    if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
        panic!("id {id} of a table of {rows} rows");
    }
    if ids.is_empty() {
        return sum;
    }
    cpu::add_rows(sum, dh, ids, alpha).unwrap_or_else(|sum| add_grouped(sum, dh, ids, alpha))
}

/// No two of the rows that are put into place are of one id.
fn add_grouped(sum: Tensor<2>, dh: &Tensor<2>, ids: &[u32], alpha: f32) -> Tensor<2> {
    let mut distinct = ids.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let (count, k) = (ids.len(), distinct.len());
    let mut chosen = vec![0f32; count * k];
    for (i, id) in ids.iter().enumerate() {
        let place = distinct.binary_search(id).unwrap_or_default();
        chosen[i * k + place] = 1.0;
    }
    let chosen = TensorData::new(chosen, [count, k]).convert_dtype(dh.dtype());
    let chosen = Tensor::from_data(chosen, (&dh.device(), dh.dtype()));
    let rows = gemm_f32((Op::T, &chosen), (Op::N, dh), alpha);
    let places: Vec<i64> = distinct.into_iter().map(i64::from).collect();
    let places = Tensor::<1, Int>::from_data(TensorData::new(places, [k]), &dh.device());
    sum.select_assign(0, places, rows.cast(DType::F32), IndexingUpdateOp::Add)
}
