//! Views are cut from handles; a copy is a kernel.

use burn::tensor::{Shape, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use crate::cube::{CubeTensor, argument, elem, elementwise, empty, floats, len, tensor};

/// Burn's own `empty` may leave gaps between rows.
pub(super) fn unwritten(dims: [usize; 2], like: &Tensor<2>) -> Option<Tensor<2>> {
    let like = floats(like)?;
    Some(tensor(empty(&like, dims, like.dtype)))
}

pub(super) fn rows(x: &Tensor<2>, start: usize, n: usize) -> Option<Tensor<2>> {
    let [_, k] = x.dims();
    Some(cut(&floats(x)?, (start * k, [n, k])))
}

/// `dims` values from `start` on, in the memory of `buffer`.
pub(crate) fn cut(buffer: &CubeTensor, (start, dims): (usize, [usize; 2])) -> Tensor<2> {
    let size = buffer.dtype.size();
    let behind = len(buffer) - start - dims[0] * dims[1];
    let handle = buffer
        .handle
        .clone()
        .offset_start((start * size) as u64)
        .offset_end((behind * size) as u64);
    let (client, device) = (buffer.client.clone(), buffer.device.clone());
    let shape = Shape::from(dims);
    tensor(CubeTensor::new_contiguous(
        client,
        device,
        shape,
        handle,
        buffer.dtype,
    ))
}

pub(super) fn stacked(parts: &[&Tensor<2>]) -> Option<Tensor<2>> {
    let [_, k] = parts.first()?.dims();
    let parts: Vec<_> = parts.iter().map(|x| floats(x)).collect::<Option<_>>()?;
    let follow = |[upper, lower]: [&CubeTensor; 2]| {
        let (above, below) = (&upper.handle, &lower.handle);
        above.memory.descriptor() == below.memory.descriptor()
            && upper.dtype == lower.dtype
            && lower.meta.shape()[1] == k
            && above.size() - above.offset_end.unwrap_or(0) == below.offset_start.unwrap_or(0)
    };
    if !parts.windows(2).all(|pair| follow([&pair[0], &pair[1]])) {
        return None;
    }
    let (first, last) = (parts.first()?, parts.last()?);
    let mut handle = first.handle.clone();
    handle.offset_end = last.handle.offset_end;
    let (client, device) = (first.client.clone(), first.device.clone());
    let rows = parts.iter().map(|x| x.meta.shape()[0]).sum::<usize>();
    let shape = Shape::from([rows, k]);
    Some(tensor(CubeTensor::new_contiguous(
        client,
        device,
        shape,
        handle,
        first.dtype,
    )))
}

/// Writes `from` over `to`.
pub(crate) fn copy(from: &Tensor<2>, to: &Tensor<2>) -> Option<()> {
    let (from, to) = (floats(from)?, floats(to)?);
    let (count, dim) = elementwise(len(&from));
    if len(&from) > 0 {
        let dtypes = [elem(from.dtype), elem(to.dtype)];
        #[expect(unsafe_code, reason = "a kernel without bounds checks")]
        // SAFETY: both have as many values, and the kernel does not go beyond the last.
        unsafe {
            copy_kernel::launch_unchecked(
                &from.client,
                count,
                dim,
                argument(&from, 1),
                argument(&to, 1),
                dtypes,
            );
        }
    }
    Some(())
}

#[cube(launch_unchecked)]
fn copy_kernel<F: Float, G: Float>(
    from: &[F],
    to: &mut [G],
    #[define(F, G)] _dtypes: [ElemType; 2],
) {
    let i = ABSOLUTE_POS;
    if i < to.len() {
        to[i] = G::cast_from(from[i]);
    }
}
