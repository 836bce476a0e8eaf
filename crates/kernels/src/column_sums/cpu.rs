//! f32 on the processor: each sum in the order of the tokens, whatever the number of threads.

use burn::tensor::Tensor;

use crate::cpu::{f32s, sum_columns, tensor};

pub(super) fn column_sums(x: &Tensor<2>) -> Option<Tensor<1>> {
    let [t, width] = x.dims();
    let x = f32s(x)?;
    let x: &[f32] = &x;
    let sums = sum_columns(
        [t, width],
        #[inline(always)]
        |row, columns, sums| {
            let row = &x[row * width..(row + 1) * width];
            for (sum, x) in sums.iter_mut().zip(&row[columns]) {
                *sum += x;
            }
        },
    );
    Some(tensor(sums, [width]))
}
