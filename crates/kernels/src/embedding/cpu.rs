//! f32 on the processor, in place.

use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::cpu::{Shared, f32s, into_vec, tensor};

/// Columns of a task, which adds every row's: whole lines of the cache.
const COLUMNS: usize = 64;

/// `Err` hands `sum` back when something is not f32 on the CPU.
pub(super) fn add_rows(
    sum: Tensor<2>,
    dh: &Tensor<2>,
    ids: &[u32],
    alpha: f32,
) -> Result<Tensor<2>, Tensor<2>> {
    let (shape @ [_, width], Some(dh)) = (sum.dims(), f32s(dh)) else {
        return Err(sum);
    };
    if f32s(&sum).is_none() {
        return Err(sum);
    }
    let dh: &[f32] = &dh;
    let mut values = into_vec(sum);
    let table = Shared(values.as_mut_ptr());
    (0..width.div_ceil(COLUMNS))
        .into_par_iter()
        .for_each(|part| {
            let columns = part * COLUMNS..((part + 1) * COLUMNS).min(width);
            let mut row = [0f32; COLUMNS];
            for (dh, &id) in dh.chunks_exact(width).zip(ids) {
                let row = &mut row[..columns.len()];
                for (to, dh) in row.iter_mut().zip(&dh[columns.clone()]) {
                    *to = alpha * dh;
                }
                #[expect(unsafe_code, reason = "tasks write disjoint columns")]
                // SAFETY: ids are below the number of rows, checked by the caller, and no other task has these columns.
                unsafe {
                    table.add(id as usize * width + columns.start, row);
                }
            }
        });
    Ok(tensor(values, shape))
}
