//! One pass on a CubeCL device.

use burn::tensor::Tensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use crate::cube::{argument, elem, elementwise, empty, floats, indices, len, line, tensor};

pub(super) fn forward(table: &Tensor<2>, ids: &[u32]) -> Option<Tensor<2>> {
    let width = table.dims()[1];
    let table = floats(table)?;
    let out = empty(&table, [ids.len(), width], table.dtype);
    if len(&out) > 0 {
        let line = line(table.dtype, width);
        let (count, dim) = elementwise(len(&out) / line);
        let ids = indices(&out.client, ids);
        let (from, to) = (argument(&table, line), argument(&out, line));
        let (client, vectors) = (&out.client, (width / line) as u32);
        let elem = elem(table.dtype);
        #[expect(unsafe_code, reason = "a kernel without bounds checks")]
        // SAFETY: ids are rows of the table, checked by the caller; the kernel does not go beyond the output.
        unsafe {
            kernel::launch_unchecked(client, count, dim, line, from, ids, to, vectors, elem);
        }
    }
    Some(tensor(out))
}

#[cube(launch_unchecked)]
fn kernel<F: Float, N: Size>(
    table: &[Vector<F, N>],
    ids: &[u32],
    out: &mut [Vector<F, N>],
    vectors: u32,
    #[define(F)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i < out.len() {
        let vectors = vectors as usize;
        let row = ids[i / vectors] as usize;
        out[i] = table[row * vectors + i % vectors];
    }
}
