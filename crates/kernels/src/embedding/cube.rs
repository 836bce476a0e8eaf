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

/// A row that has no values.
const NOTHING: u32 = u32::MAX;

pub(super) fn spread(values: &Tensor<2>, rows: &[u32], t: usize) -> Option<Tensor<2>> {
    let width = values.dims()[1];
    let values = floats(values)?;
    let out = empty(&values, [t, width], values.dtype);
    if len(&out) > 0 {
        let mut sources = vec![NOTHING; t];
        for (source, &row) in (0..).zip(rows) {
            sources[row as usize] = source;
        }
        let line = line(values.dtype, width);
        let (count, dim) = elementwise(len(&out) / line);
        let sources = indices(&out.client, &sources);
        // Where there are no values at all, something has to be bound.
        let from = if rows.is_empty() { &out } else { &values };
        let (from, to) = (argument(from, line), argument(&out, line));
        let (client, vectors) = (&out.client, (width / line) as u32);
        let elem = elem(values.dtype);
        #[expect(unsafe_code, reason = "a kernel without bounds checks")]
        // SAFETY: sources are rows of the values, or nothing; the kernel does not go beyond the output.
        unsafe {
            spread_kernel::launch_unchecked(
                client, count, dim, line, from, sources, to, vectors, elem,
            );
        }
    }
    Some(tensor(out))
}

#[cube(launch_unchecked)]
fn spread_kernel<F: Float, N: Size>(
    values: &[Vector<F, N>],
    sources: &[u32],
    out: &mut [Vector<F, N>],
    vectors: u32,
    #[define(F)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i < out.len() {
        let vectors = vectors as usize;
        let source = sources[i / vectors];
        let mut value = Vector::<F, N>::new(F::new(0.0));
        if source != NOTHING {
            value = values[source as usize * vectors + i % vectors];
        }
        out[i] = value;
    }
}
