//! Rows of a table: the embedding of token ids.

#[cfg(feature = "cube")]
mod cube;
pub mod reference;

use burn::tensor::Tensor;

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
