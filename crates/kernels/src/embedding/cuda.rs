//! A table in pinned memory of the host, which kernels read over the link.

use burn::tensor::{DType, Device, Shape, Tensor};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use cubecl::prelude::*;

use crate::cube::{elementwise, indices, tensor};
use crate::hopper::loaded;
use crate::offload::pinned::Pinned;

/// Bytes that a unit reads at once.
const CHUNK: usize = 16;

/// The rows of a table in pinned memory.
#[derive(Debug)]
pub(super) struct PinnedRows(Pinned);

impl PinnedRows {
    /// `None` where `device` cannot read the host's memory by itself, or this much of it cannot be pinned.
    pub(super) fn holding(bytes: &[u8], row: usize, device: &Device) -> Option<Self> {
        if !row.is_multiple_of(CHUNK) {
            return None;
        }
        Pinned::holding(bytes.len(), &[(0, bytes)], device).map(Self)
    }

    /// Rows of `width` values, one for each id.
    pub(super) fn rows(&self, ids: &[u32], width: usize, dtype: DType) -> Tensor<2> {
        let (client, on) = (self.0.client.clone(), self.0.on.clone());
        let shape = Shape::from([ids.len(), width]);
        let out = empty_device_contiguous_dtype(client, on, shape, dtype);
        let row = width * dtype.size() / CHUNK;
        let count = ids.len() * row;
        if count > 0 {
            let (cubes, dim) = elementwise(count);
            let ids = indices(&out.client, ids);
            #[expect(unsafe_code, reason = "a kernel without bounds checks")]
            // SAFETY: the output has as many chunks, and the kernel does not go beyond the last; ids are rows of the
            // table, checked by the caller, which lies at the address until after the last kernel that reads it.
            unsafe {
                let chunks = BufferArg::from_raw_parts(out.handle.clone(), count);
                let address = self.0.address as u64;
                kernel::launch_unchecked(
                    &out.client,
                    cubes,
                    dim,
                    4,
                    ids,
                    chunks,
                    address,
                    row as u32,
                );
            }
        }
        tensor(out)
    }
}

#[cube(launch_unchecked)]
fn kernel<N: Size>(ids: &[u32], out: &mut [Vector<u32, N>], address: u64, row: u32) {
    let i = ABSOLUTE_POS;
    if i < out.len() {
        let row = row as usize;
        let chunk = u64::cast_from(ids[i / row]) * u64::cast_from(row) + u64::cast_from(i % row);
        out[i] = chunk_at::<N>(address + chunk * 16u64);
    }
}

/// 16 bytes of global memory, which nobody writes.
#[cube]
fn chunk_at<N: Size>(address: u64) -> Vector<u32, N> {
    let address = loaded::<u64>(address);
    let out: Vector<u32, N>;
    gpu_asm!("ld.global.nc.v4.u32 {o}, [{a}];", o = out(_) out, a = in(_) address);
    out
}
