//! Rows of a table: the embedding of token ids, and rows put back into place.

#[cfg(feature = "cube")]
mod cube;
#[cfg(feature = "cuda")]
mod cuda;
mod host;
pub mod reference;

use burn::tensor::Tensor;

pub use host::HostTable;

use crate::dispatch::on_device;

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
